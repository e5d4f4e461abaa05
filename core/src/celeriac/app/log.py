"""`app.log`: setting logging up from a program, as Celery's users do. The worker's command line does it by itself."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from celeriac import _state, signals
from celeriac.log import Formats, configure, has_colors, open_stream, route_structlog
from celeriac.utils.log import ColorFormatter, get_logger, task_logger

if TYPE_CHECKING:
    from celeriac.app.base import Celery

__all__ = ["Logging", "TaskFormatter"]

#: What is printed without ever ending its line (a progress bar) becomes a line when it is as long as this.
LONGEST_LINE: Final = 8192


class TaskFormatter(ColorFormatter):
    """A formatter whose lines may name their task: `%(task_id)s`, `%(task_name)s`; `???` outside of tasks."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry = _state.running()
        known = {"task_id": entry.request.id, "task_name": entry.task.name} if entry is not None else {}
        for field in ("task_id", "task_name"):
            if field in known or field not in record.__dict__:
                setattr(record, field, known.get(field) or "???")
        return super().format(record)


class Logging:
    """See the module."""

    already_setup = False

    def __init__(self, app: Celery) -> None:
        self.app = app

    def setup(
        self,
        loglevel: int | str | None = None,
        logfile: str | None = None,
        redirect_stdouts: bool = False,
        redirect_level: str = "WARNING",
        colorize: bool | None = None,
        hostname: str | None = None,
    ) -> bool:
        """Set logging up, once; True if a receiver of `setup_logging` did it instead."""
        handled = self.setup_logging_subsystem(loglevel, logfile, colorize=colorize, hostname=hostname)
        if redirect_stdouts and not handled:
            self.redirect_stdouts(redirect_level)
        return handled

    def setup_logging_subsystem(
        self,
        loglevel: int | str | None = None,
        logfile: str | None = None,
        format: str | None = None,
        colorize: bool | None = None,
        hostname: str | None = None,
        **_: Any,
    ) -> bool:
        """Give the root logger one handler, unless a receiver of `setup_logging` takes the matter over.

        Args:
            format: `console` or `json`; default: the setting `worker_log_style`.
        """
        if Logging.already_setup:
            return False
        Logging.already_setup = True
        conf = self.app.conf
        level = loglevel if loglevel is not None else logging.WARNING
        style: Any = format if format in ("console", "json") else conf["worker_log_style"]
        facts = {"loglevel": level, "logfile": logfile, "format": style, "colorize": colorize}
        if signals.setup_logging.send(None, **facts):
            route_structlog()
            return True
        stream = open_stream(logfile) if logfile else sys.stderr
        color = conf["worker_log_color"] if colorize is None else colorize
        configure(style, level, stream, color, Formats.of(conf), hijack=conf["worker_hijack_root_logger"])
        signals.after_setup_logger.send(None, logger=logging.getLogger(), **facts)
        signals.after_setup_task_logger.send(None, logger=task_logger, **facts)
        return False

    def setup_task_loggers(self, loglevel: int | str | None = None, **_: Any) -> logging.Logger:
        """Set the level of all task loggers; returns their parent."""
        if loglevel is not None:
            task_logger.setLevel(loglevel.upper() if isinstance(loglevel, str) else loglevel)
        return task_logger

    def redirect_stdouts(self, loglevel: str | int = "WARNING", name: str = "celeriac.redirected") -> None:
        """Let what is printed become lines of the log."""
        self.redirect_stdouts_to_logger(get_logger(name), loglevel)

    @staticmethod
    def redirect_stdouts_to_logger(
        logger: logging.Logger, loglevel: str | int | None = None, stdout: bool = True, stderr: bool = True
    ) -> LoggedStream:
        """The same, to a logger of the caller's; returns the stream that stands in for both."""
        level = logging.getLevelName(loglevel.upper()) if isinstance(loglevel, str) else loglevel or logging.WARNING
        stream = LoggedStream(logger, level)
        if stdout:
            sys.stdout = stream
        if stderr:
            sys.stderr = stream
        return stream

    @staticmethod
    def get_default_logger(name: str = "celeriac", **_: Any) -> logging.Logger:
        """A logger by its name."""
        return logging.getLogger(name)

    @staticmethod
    def supports_color(colorize: bool | None = None, logfile: Any = None) -> bool:
        """Whether lines should be coloured: on a terminal, unless told."""
        if colorize is not None:
            return colorize
        return not logfile and has_colors(sys.stderr)


class _Begun(threading.local):
    """What a thread has begun to print, and whether its handlers write just now."""

    rest = ""
    writing = False


class LoggedStream:
    """Stands in for standard output: whole lines go to a logger, each thread's by themselves."""

    encoding = "utf-8"
    closed = False

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._begun = _Begun()
        self._printed = sys.__stdout__

    def write(self, text: str | bytes) -> int:
        """Log the lines that are complete."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        begun = self._begun
        if begun.writing:  # a handler that prints would come here again, for ever
            return len(text)
        *lines, begun.rest = (begun.rest + text).split("\n")
        if len(begun.rest) > LONGEST_LINE:
            lines.append(begun.rest)
            begun.rest = ""
        begun.writing = True
        try:
            for line in lines:
                if line.strip():
                    self._logger.log(self._level, "%s", line.rstrip())
        finally:
            begun.writing = False
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing is held back but an incomplete line."""

    def isatty(self) -> bool:
        """It is no terminal."""
        return False

    def fileno(self) -> int:
        """Of the real one: programs that a task starts write there (`subprocess.run(..., stdout=sys.stdout)`)."""
        if self._printed is None:
            raise OSError("this process has no standard output")
        return self._printed.fileno()
