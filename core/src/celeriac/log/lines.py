"""What a log line looks like, on a console and in JSON: pure functions from values to text.

structlog's own layout, so that the lines of `TaskLog`, which never pass through structlog, look like all others.
Whatever a value holds, one event stays one line (a traceback follows indented): control characters are escaped,
so nobody can forge a line or command a terminal, and passwords in URLs are masked.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from celeriac.exceptions import mask_url

Format = Literal["console", "json"]

LEVEL_NAMES = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
LEVEL_NUMBERS = {name: number for number, name in LEVEL_NAMES.items()}

#: The console's words for some events: Celery's, for people and programs that know them.
WORDS = {
    "worker.ready": "%(node)s ready.",
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
    "task.cancelled": "Task %(task_name)s[%(task_id)s] cancelled: the broker was lost, and its message comes again",
    "task.expired": "Discarding expired task: %(task_name)s[%(task_id)s]",
    "task.unknown": "Received unregistered task of type '%(task_name)s'",
    "task.soft_timed_out": "Soft time limit (%(limit_s)ss) exceeded for %(task_name)s[%(task_id)s]",
    "task.timed_out": "Hard time limit (%(limit_s)ss) exceeded for %(task_name)s[%(task_id)s]",
}
#: Which values each of them needs.
KEYS = {event: re.findall(r"%\((\w+)\)s", words) for event, words in WORDS.items()}

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_BUT_NEWLINE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_RESET, _BRIGHT, _DIM, _CYAN, _MAGENTA = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[35m"
_RED, _GREEN, _YELLOW, _BLUE = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m"
_LEVEL_COLORS = {10: _GREEN, 20: _GREEN, 30: _YELLOW, 40: _RED, 50: _RED}
_EVENT_WIDTH = 30

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def parse_level(level: str | int) -> int:
    """`info`, `INFO` or 20 as a number; FATAL is CRITICAL.

    Raises:
        ValueError: No such level.
    """
    if isinstance(level, int) or level.isdecimal():
        return int(level)
    names = {**LEVEL_NUMBERS, "warn": 30, "fatal": 50}
    if level.lower() not in names:
        raise ValueError(f"no log level is called {level!r}; there are {', '.join(LEVEL_NUMBERS)}")
    return names[level.lower()]


def clean(text: str) -> str:
    """`text` on one line, safe for a terminal, with passwords in URLs masked."""
    if "://" in text:
        text = mask_url(text)
    # isprintable is two hundred times as fast as the pattern and almost always true
    return text if text.isprintable() else _CONTROL.sub(_escape, text)


def put_in_words(event: str, fields: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The sentence for an event that has one, and the values that it does not mention."""
    keys = KEYS.get(event)
    if not keys or not fields.keys() >= set(keys):
        return event, fields
    return WORDS[event] % fields, {key: value for key, value in fields.items() if key not in keys}


class _Clock:
    """Unix times as text with milliseconds. Formats each of them once: the lines of a batch share theirs."""

    def __init__(self, format: str, convert: Callable[[float], time.struct_time]) -> None:
        self._format = format
        self._convert = convert
        self._last = (-1, "")

    def read(self, now: float) -> str:
        millis = int(now * 1000)
        last, text = self._last
        if millis != last:
            text = f"{time.strftime(self._format, self._convert(now))}.{millis % 1000:03d}"
            self._last = (millis, text)  # one assignment, so that threads never see half of it
        return text


_utc = _Clock("%Y-%m-%dT%H:%M:%S", time.gmtime)


class Console:
    """Lines for people.

    ::

        2026-11-22 15:24:33.123 [info     ] worker.ready                   [celeriac.worker] queues=celery
    """

    def __init__(self, color: bool) -> None:
        self._color = color
        self._levels = {
            number: f"[{self._paint(_LEVEL_COLORS[number] + _BRIGHT, name.ljust(9))}]"
            for number, name in LEVEL_NAMES.items()
        }
        self._clock = _Clock("%Y-%m-%d %H:%M:%S", time.localtime)

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
        """One event.

        Args:
            now: Unix time; shown in local time.
            fields: Shown as key=value, save those that stand in the event's words.
            behind: Texts (tracebacks) that follow on lines of their own.
        """
        event, fields = put_in_words(event, fields)
        parts = [self._paint(_DIM, self._clock.read(now)), self._levels.get(level) or f"[{level:<9}]"]
        named = [self._paint(_BLUE + _BRIGHT, f"[{logger}]")] if logger else []
        named += [self._pair(key, value) for key, value in fields.items()]
        event = clean(event)
        parts.append(self._paint(_BRIGHT, event.ljust(_EVENT_WIDTH) if named else event))
        line = " ".join(parts + named)
        for text in behind:
            line += "\n" + indent(text)
        return line

    def sentence(self, now: float, level: int, event: str) -> str:
        """One event without fields; the short cut for task lines."""
        if "://" in event or not event.isprintable():
            event = clean(event)
        if self._color:
            return self.line(now, level, event)
        return f"{self._clock.read(now)} {self._levels.get(level) or f'[{level:<9}]'} {event}"

    def _pair(self, key: str, value: Any) -> str:
        text = value if isinstance(value, str) else repr(value)
        text = clean(text) if text and " " not in text else repr(clean(text))
        return f"{self._paint(_CYAN, key)}={self._paint(_MAGENTA, text)}"

    def _paint(self, style: str, text: str) -> str:
        return f"{style}{text}{_RESET}" if self._color else text


def json_line(now: float, level: int, event: str, fields: Mapping[str, Any]) -> str:
    """One event as one JSON object: `timestamp` (UTC), `level`, `event`, then the fields; unknown types as repr."""
    record = {"timestamp": _utc.read(now) + "Z", "level": LEVEL_NAMES.get(level, level), "event": event, **fields}
    text = _to_json(record)
    if "://" in text:
        # Masked value by value, for across the quotes of the finished text a pattern would tear the JSON.
        text = _to_json({key: _mask(value) for key, value in record.items()})
    # msgspec escapes what JSON must have escaped; a terminal also minds the others, which only stand in strings.
    return text if text.isprintable() else _CONTROL.sub(_escape_for_json, text)


def _to_json(record: Mapping[str, Any]) -> str:
    try:
        return _encode(record).decode()
    except (ValueError, OverflowError, RecursionError, TypeError):
        # A lone surrogate, a huge number, a loop, keys that are no text: json.dumps takes what is plain.
        plain = (str, int, float, type(None))
        return json.dumps({key: value if isinstance(value, plain) else repr(value) for key, value in record.items()})


def _mask(value: Any) -> Any:
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Mapping):
        return {key: _mask(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mask(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float)) else mask_url(repr(value))


def indent(text: str) -> str:
    """A text of several lines, indented so that none of them can pass for an event."""
    lines = _CONTROL_BUT_NEWLINE.sub(_escape, mask_url(text)).rstrip("\n")
    return "  " + lines.replace("\n", "\n  ")


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _escape_for_json(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
