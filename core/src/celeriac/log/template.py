"""Lines in the user's own format: the settings `worker_log_format`, `worker_task_log_format` and their date formats.

A template of the standard library's `logging`. What goes into it is escaped as everywhere: one event stays one line.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from celeriac.log.lines import clean, indent, put_in_words

#: What the fields of a task are in a line that no task wrote.
NO_TASK = "???"
_FIELD: Final = re.compile(r"%\((\w+)\)")


class Formats(NamedTuple):
    """The four settings; of the formats, None is «as other lines»."""

    line: str | None = None
    line_date: str | None = None
    task: str | None = None
    task_date: str | None = None

    @classmethod
    def of(cls, conf: Mapping[str, Any]) -> Formats | None:
        """Those of an app; None if it has none."""
        found = cls(
            conf["worker_log_format"],
            conf["worker_log_datefmt"],
            conf["worker_task_log_format"],
            conf["worker_task_log_datefmt"],
        )
        return found if found.line or found.task else None


class Template:
    """Writes lines as `lines.Console` does, in another format.

    A field that a record lacks (a filter of the program's may add it to others) is shown as that of no task.

    Raises:
        ValueError: The format is no template of `logging`.
    """

    def __init__(self, format: str, date: str | None) -> None:
        sample = logging.makeLogRecord({"task_id": NO_TASK, "task_name": NO_TASK})
        others = set(_FIELD.findall(format)) - {*vars(sample), "message", "asctime"}
        self._formatter = logging.Formatter(format, date, defaults=dict.fromkeys(others, NO_TASK))
        try:
            self._formatter.format(sample)  # now, rather than with the first line of the worker's loop
        except (TypeError, ValueError) as exc:
            raise ValueError(f"{format!r} cannot be filled in: {exc}") from exc

    def line(
        self,
        now: float,
        level: int,
        event: str,
        fields: Mapping[str, Any] = {},
        *,
        logger: str = "",
        behind: Iterable[str] = (),
    ) -> str:
        """One event; values that its words do not mention follow as key=value."""
        words, rest = put_in_words(event, fields)
        text = " ".join([clean(words), *(f"{key}={clean(repr(value))}" for key, value in rest.items())])
        made = logging.LogRecord(logger or "celeriac.worker", level, "", 0, text, None, None)
        return "\n".join([self._write(made, now, fields), *map(indent, behind)])

    def sentence(self, now: float, level: int, event: str) -> str:
        """One event without fields."""
        return self.line(now, level, event)

    def record(self, record: logging.LogRecord, event: str, fields: Mapping[str, Any], behind: Iterable[str]) -> str:
        """A record of the standard library, with its own values at hand (`%(funcName)s`, `extra` …)."""
        words, rest = put_in_words(event, {key: value for key, value in fields.items() if not hasattr(record, key)})
        copy = logging.makeLogRecord({**vars(record), "args": None, "exc_info": None, "stack_info": None})
        shown = {key: value for key, value in rest.items() if key not in ("task_id", "task_name")}
        copy.msg = " ".join([clean(words), *(f"{key}={clean(repr(value))}" for key, value in shown.items())])
        return "\n".join([self._write(copy, record.created, fields), *map(indent, behind)])

    def _write(self, record: logging.LogRecord, now: float, fields: Mapping[str, Any]) -> str:
        record.created, record.msecs = now, now % 1 * 1000
        for name in ("task_id", "task_name"):
            setattr(record, name, clean(str(fields.get(name) or NO_TASK)))
        return self._formatter.format(record)
