"""`TaskLog`: the lines about single tasks, without going through structlog.

Two structlog lines a task cost two thirds of a worker's throughput. So these are written from templates, in the
same format as all others, and go out in one piece per batch.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celeriac.log.lines import KEYS, WORDS, Console, Format, json_line, parse_level
from celeriac.log.stream import Stream, has_colors
from celeriac.log.template import Formats, Template


class TaskLog:
    """Gathers lines; `flush` writes them in one piece. Used by one thread.

    ::

        log.line(logging.INFO, "task.succeeded", task_id=id, task_name=name, runtime_s=0.001, result="4")
        log.flush()

    On the console, an event in `WORDS` becomes Celery's sentence, with the values it does not mention behind
    it; other events look as structlog writes them. The value `traceback` follows on lines of its own. In JSON
    every value is a key (and `traceback` is called `exception`, as structlog calls it).

    Attributes:
        info_on, debug_on: Whether lines of that level are written; ask before preparing values.
        lost: How many lines could not be written.
    """

    def __init__(
        self,
        format: Format,
        level: str | int,
        stream: Stream,
        color: bool | None = None,
        formats: Formats | None = None,
    ) -> None:
        self._level = parse_level(level)
        self._stream = stream
        self._lines: list[str] = []
        self._console: Console | Template | None = None
        if format == "console" and formats is not None and formats.line:
            self._console = Template(formats.line, formats.line_date)
        elif format == "console":
            self._console = Console(has_colors(stream) if color is None else color)
        self.info_on = self._level <= logging.INFO
        self.debug_on = self._level <= logging.DEBUG
        self.lost = 0

    def line(self, level: int, event: str, **fields: Any) -> None:
        """Add a line, unless `level` is below the wanted one."""
        if level < self._level:
            return
        now = time.time()
        if self._console is None:
            trace = fields.pop("traceback", None)
            if trace:
                fields["exception"] = trace
            self._lines.append(json_line(now, level, event, fields))
            return
        keys = KEYS.get(event)
        if keys is not None and len(keys) == len(fields):  # the usual case: a sentence and nothing else
            try:
                self._lines.append(self._console.sentence(now, level, WORDS[event] % fields))
                return
            except KeyError:
                pass  # as many fields, but others
        trace = fields.pop("traceback", None)
        self._lines.append(self._console.line(now, level, event, fields, behind=(trace,) if trace else ()))

    def flush(self) -> None:
        """Write what was gathered. Never raises: a worker outlives whoever reads its log."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        try:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader has gone, the disk is full, the file was closed
            self.lost += len(lines)
