"""`TaskLog`: the lines about single tasks, without going through structlog.

Two structlog lines a task cost two thirds of a worker's throughput. So these are written from templates, in the
same format as all others, and go out in one piece per batch.
"""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from celeriac.log.lines import Console, Format, json_line, parse_level
from celeriac.log.stream import Stream, has_colors

#: The console's words for what happens to tasks: Celery's, for people and programs that know them.
WORDS = {
    "task.received": "Task %(task_name)s[%(task_id)s] received",
    "task.started": "Task accepted: %(task_name)s[%(task_id)s] pid:%(pid)s",
    "task.succeeded": "Task %(task_name)s[%(task_id)s] succeeded in %(runtime_s)ss: %(result)s",
    "task.failed": "Task %(task_name)s[%(task_id)s] raised unexpected: %(error)s",
    "task.failed_expectedly": "Task %(task_name)s[%(task_id)s] raised expected: %(error)s",
    "task.failed_internally": "Task %(task_name)s[%(task_id)s] INTERNAL ERROR: %(error)s",
    "task.retried": "Task %(task_name)s[%(task_id)s] retry: %(error)s",
    "task.ignored": "Task %(task_name)s[%(task_id)s] ignored",
    "task.rejected": "Task %(task_name)s[%(task_id)s] rejected: %(error)s",
    "task.revoked": "Discarding revoked task: %(task_name)s[%(task_id)s]",
    "task.expired": "Discarding expired task: %(task_name)s[%(task_id)s]",
    "task.unknown": "Received unregistered task of type '%(task_name)s'",
    "task.soft_timed_out": "Soft time limit (%(limit_s)ss) exceeded for %(task_name)s[%(task_id)s]",
    "task.timed_out": "Hard time limit (%(limit_s)ss) exceeded for %(task_name)s[%(task_id)s]",
}
_KEYS = {event: re.findall(r"%\((\w+)\)s", words) for event, words in WORDS.items()}


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

    def __init__(self, format: Format, level: str | int, stream: Stream, color: bool | None = None) -> None:
        self._level = parse_level(level)
        self._stream = stream
        self._lines: list[str] = []
        self._console = Console(has_colors(stream) if color is None else color) if format == "console" else None
        self.info_on = self._level <= logging.INFO
        self.debug_on = self._level <= logging.DEBUG
        self.lost = 0

    def line(self, level: int, event: str, **fields: Any) -> None:
        """Add a line, unless `level` is below the wanted one."""
        if level < self._level:
            return
        now = time.time()
        if self._console is None:
            if "traceback" in fields:
                fields["exception"] = fields.pop("traceback")
            self._lines.append(json_line(now, level, event, fields))
            return
        keys = _KEYS.get(event)
        if keys is not None and len(keys) == len(fields):  # the usual case: a sentence and nothing else
            try:
                self._lines.append(self._console.sentence(now, level, WORDS[event] % fields))
                return
            except KeyError:
                pass  # as many fields, but others
        self._lines.append(self._full_line(now, level, event, fields))

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

    def _full_line(self, now: float, level: int, event: str, fields: dict[str, Any]) -> str:
        assert self._console is not None
        trace = fields.pop("traceback", None)
        keys = _KEYS.get(event, ())
        if keys and fields.keys() >= set(keys):
            event = WORDS[event] % fields
            fields = {key: value for key, value in fields.items() if key not in keys}
        return self._console.line(now, level, event, fields, behind=(trace,) if trace else ())
