"""Sends everything that a process logs, by structlog or the standard library, to one stream in one format.

Called by the command line only; a program that uses celeriac as a library keeps its own set-up.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from celeriac._state import running
from celeriac.log.lines import LEVEL_NUMBERS, Console, Format, json_line, parse_level
from celeriac.log.stream import Stream, has_colors


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


def configure(
    format: Format = "console", level: str | int = "info", stream: Stream | None = None, color: bool | None = None
) -> None:
    """Take the place of whatever log set-up this process had.

    Args:
        format: `console` for people; `json` for programs, one object a line.
        stream: Default: standard error.
        color: None: if the stream is a terminal.
    """
    stream = stream if stream is not None else sys.stderr
    first: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_task,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *first,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    render = _render_json if format == "json" else _ConsoleRenderer(has_colors(stream) if color is None else color)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(parse_level(level))


def _add_task(logger: Any, method: str, event: Event) -> Event:
    """Name the task that runs here, if one does."""
    now = running()
    if now is not None:
        event.setdefault("task_id", getattr(now.request, "id", None))
        event.setdefault("task_name", getattr(now.task, "name", None))
    return event


class _ConsoleRenderer:
    def __init__(self, color: bool) -> None:
        self._console = Console(color)

    def __call__(self, logger: Any, method: str, event: Event) -> str:
        level, text, name = _take_head(event)
        behind = [str(event.pop(key)) for key in ("stack", "exception") if event.get(key)]
        return self._console.line(time.time(), level, text, event, logger=name, behind=behind)


def _render_json(logger: Any, method: str, event: Event) -> str:
    level, text, name = _take_head(event)
    return json_line(time.time(), level, text, {"logger": name, **event} if name else event)


def _take_head(event: Event) -> tuple[int, str, str]:
    """Take level, event and logger's name out."""
    level = LEVEL_NUMBERS.get(event.pop("level", "info"), logging.INFO)
    return level, str(event.pop("event", "")), str(event.pop("logger", "") or "")
