"""Sends everything that a process logs, by structlog or the standard library, to one stream in one format.

Called by the command line only; a program that uses celeriac as a library keeps its own set-up.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from celeriac._state import running
from celeriac.exceptions import CeleriacWarning
from celeriac.log.lines import Console, Format, json_line, parse_level, put_in_words
from celeriac.log.stream import Stream, has_colors
from celeriac.log.template import Formats, Template
from celeriac.utils.log import task_logger


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Make `import module` fail inside the block, unless it was imported before."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment] # the import system's own sign for «not there»
    try:
        yield
    finally:
        del sys.modules[module]


# structlog imports rich where it can, for a kind of traceback that is not used here. That is 0.3 of the 0.5 s
# that importing it takes, and 5 MB in every worker; so, for the moment of this import, it cannot.
with _without("rich"):
    import structlog

get_logger = structlog.get_logger

Event = MutableMapping[str, Any]

#: The attribute of a record in which `_hand_over` leaves `(event, values)` for `_Formatter`.
EVENT = "celeriac_event"
#: What every JSON line has of its own.
_OURS = frozenset({"timestamp", "level", "event", "logger"})
_OF_EVERY_RECORD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


def configure(
    format: Format = "console",
    level: str | int = "info",
    stream: Stream | None = None,
    color: bool | None = None,
    formats: Formats | None = None,
    *,
    hijack: bool = True,
) -> None:
    """Take the place of whatever log set-up this process had.

    Args:
        format: `console` for people; `json` for programs, one object a line.
        stream: Default: standard error.
        color: None: if the stream is a terminal.
        formats: The user's own, for `console`.
        hijack: Remove other handlers of the root logger. False: where there are some, they keep the log to themselves.
    """
    stream = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(format, has_colors(stream) if color is None else color, formats))
    root = logging.getLogger()
    if hijack or not root.handlers:
        root.handlers[:] = [handler]
    root.setLevel(parse_level(level))
    before = warnings.showwarning
    logging.captureWarnings(True)
    if warnings.showwarning is not before:
        warnings.showwarning = _log_warning
    route_structlog()


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """As the standard library logs a warning; but ours are sentences, for people who know no line of ours."""
    text = f"{message}\n"
    if not issubclass(category, CeleriacWarning):
        text = warnings.formatwarning(message, category, filename, lineno, line)
    if file is not None:
        file.write(text)
    else:
        logging.getLogger("py.warnings").warning("%s", text.rstrip())


def route_structlog() -> None:
    """Let structlog log through the standard library, whose handlers then have all lines, unless the program has
    configured structlog itself."""
    if not structlog.is_configured():
        structlog.configure(
            processors=[structlog.stdlib.filter_by_level, structlog.stdlib.PositionalArgumentsFormatter(), _hand_over],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
            cache_logger_on_first_use=True,
        )


def _hand_over(logger: Any, method: str, event_dict: Event) -> tuple[tuple[str], dict[str, Any]]:
    """A structlog event as arguments for a logger of the standard library: plain text for whatever handlers there
    are, and the event with its values beside it for our formatter."""
    steering = {key: event_dict.pop(key) for key in ("exc_info", "stack_info") if key in event_dict}
    event = str(event_dict.pop("event", ""))
    words, rest = put_in_words(event, event_dict)
    text = " ".join([words, *(f"{key}={value!r}" for key, value in rest.items())])
    return (text,), {**steering, "extra": {EVENT: (event, event_dict)}}


class _Formatter(logging.Formatter):
    """Writes records, structlog's and others, in one of our formats."""

    def __init__(self, format: Format, color: bool, formats: Formats | None = None) -> None:
        super().__init__()
        self._console = Console(color) if format == "console" else None
        self._template = self._task_template = None
        if format == "console" and formats is not None:
            if formats.line:
                self._template = Template(formats.line, formats.line_date)
            if formats.task:
                self._task_template = Template(formats.task, formats.task_date)

    def format(self, record: logging.LogRecord) -> str:
        handed_over = getattr(record, EVENT, None)
        if handed_over is not None:
            event, values = handed_over
        else:
            event = record.getMessage()
            values = {key: value for key, value in vars(record).items() if key not in _OF_EVERY_RECORD}
        fields = {**structlog.contextvars.get_contextvars(), **_running_task(), **values}
        traces = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        if record.stack_info:
            traces.insert(0, self.formatStack(record.stack_info))
        template = self._template
        if self._task_template is not None and _is_task_logger(record.name):
            template = self._task_template
        if template is not None:
            return template.record(record, event, fields, traces)
        if self._console is not None:
            name = record.name
            return self._console.line(record.created, record.levelno, event, fields, logger=name, behind=traces)
        ours = {*_OURS, "exception"} if traces else _OURS
        if not ours.isdisjoint(fields):  # a value of the program's must not stand where the event is looked for
            fields = {f"{key}_" if key in ours else key: value for key, value in fields.items()}
        if traces:
            fields["exception"] = "\n".join(traces)
        return json_line(record.created, record.levelno, event, {"logger": record.name, **fields})


def _is_task_logger(name: str) -> bool:
    """Whether `get_task_logger` made it, or it stands below the one that all of these have above them."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None and logger is not task_logger:
        logger = logger.parent
    return logger is not None


def _running_task() -> dict[str, Any]:
    """Names the task that runs here, if one does: where it has called another as a function (or an errback is called),
    that whose call it is."""
    first = now = running()
    while now is not None and getattr(now.request, "id", None) is None:
        now = now.outer
    now = now or first
    if now is None:
        return {}
    return {"task_id": getattr(now.request, "id", None), "task_name": getattr(now.task, "name", None)}
