"""`get_task_logger`, at the path where Celery's users look for it."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

#: The parent of all task loggers: its level and handlers are theirs.
task_logger = logging.getLogger("celeriac.task")


def get_logger(name: str) -> logging.Logger:
    """A logger of the standard library."""
    return logging.getLogger(name)


def get_task_logger(name: str) -> logging.Logger:
    """A logger for task code, below `celeriac.task`.

    In a worker, each of its lines names the task that wrote it: `task_id` and `task_name`.

    Raises:
        RuntimeError: `name` is celeriac's own.
    """
    if name in ("celeriac", "celeriac.task"):
        raise RuntimeError(f"the name {name!r} is celeriac's own; use get_task_logger(__name__)")
    logger = logging.getLogger(name)
    logger.parent = task_logger
    return logger


# -- for programs that set logging up themselves, at Celery's names ----------------------------------------------

#: The parent of celeriac's own loggers.
base_logger = logging.getLogger("celeriac")

LOG_LEVELS: dict[Any, Any] = {
    **{getattr(logging, name): name for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")},
    **{name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")},
    "FATAL": logging.FATAL,
}


def mlevel(level: int | str | None) -> int | None:
    """The number of a level, given as number or name."""
    return int(LOG_LEVELS[level.upper()]) if isinstance(level, str) and level else level  # type: ignore[return-value]


class ColorFormatter(logging.Formatter):
    """A formatter that colours lines by their level.

    Args:
        fmt: As for `logging.Formatter`.
        use_color: False: it colours nothing.
    """

    COLORS: ClassVar[dict[str, str]] = {
        "DEBUG": "\033[34m", "WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[35m",
    }  # fmt: skip
    RESET: ClassVar[str] = "\033[0m"

    def __init__(self, fmt: str | None = None, use_color: bool = True) -> None:
        super().__init__(fmt)
        self.use_color = use_color

    def format(self, record: logging.LogRecord) -> str:
        """The line; a message whose arguments do not fit it is shown as it is."""
        try:
            text = super().format(record)
        except Exception as exc:  # whatever the program's own objects raise: a log line is no place to fail
            text = f"{record.levelname}: {record.msg!r} with {record.args!r} cannot be written: {exc!r}"
        color = self.COLORS.get(record.levelname, "") if self.use_color else ""
        return f"{color}{text}{self.RESET}" if color else text
