"""Times on the wire: ISO 8601 texts, read and written without ceremony."""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

UTC = timezone.utc

_cached_second = -1
_cached_text = ""


class LocalZone(tzinfo):
    """This machine's zone with its summer time, as the C library knows it (`TZ`, `/etc/localtime`)."""

    def utcoffset(self, moment: datetime | None, /) -> timedelta | None:
        if moment is None:
            return None
        wall = moment.replace(tzinfo=None, microsecond=0)
        return timedelta(seconds=round(wall.replace(tzinfo=UTC).timestamp() - wall.timestamp()))

    def dst(self, moment: datetime | None, /) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None, /) -> str | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, moment: datetime, /) -> datetime:
        seconds = moment.replace(tzinfo=UTC, microsecond=0).timestamp()
        return datetime.fromtimestamp(seconds).replace(microsecond=moment.microsecond, tzinfo=self)

    def __repr__(self) -> str:
        return "local time"


LOCAL = LocalZone()


def plain_zone(zone: tzinfo) -> tzinfo:
    """A zone that gives any wall time its offset. One of pytz's does not: put to a time, it counts as before there were
    zones, 53 minutes from UTC in Berlin. For such a one this is the standard library's of the same name."""
    name = getattr(zone, "zone", None)
    if isinstance(name, str) and hasattr(zone, "localize"):
        from zoneinfo import ZoneInfo

        return ZoneInfo(name)
    return zone


def now_iso() -> str:
    """The time now as `2026-01-02T03:04:05.678901+00:00`; the text of the second is made once."""
    global _cached_second, _cached_text
    now_ns = time.time_ns()
    second, rest = divmod(now_ns, 1_000_000_000)
    if second != _cached_second:
        _cached_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _cached_second = second
    return f"{_cached_text}.{rest // 1000:06d}+00:00"


def parse_iso(text: str) -> datetime:
    """A datetime from ISO 8601 text, aware: a text without an offset is UTC.

    Raises:
        ValueError: Not such a text.
    """
    if text.endswith(("Z", "z")):  # Python 3.10 does not know it
        text = text[:-1] + "+00:00"
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def to_unix(text: str) -> float:
    """Unix time of an ISO text, or of a number given as text. Raises ValueError."""
    try:
        return parse_iso(text).timestamp()
    except ValueError:
        seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is no time")
    return seconds


def as_moment(value: datetime | str) -> datetime:
    """A datetime, or ISO 8601 text, as an aware datetime; what says no zone is UTC, whatever the app's zone is.

    Raises:
        ValueError: Not such a text.
    """
    moment = parse_iso(value) if isinstance(value, str) else value
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def after(seconds: float | timedelta) -> datetime:
    """The moment `seconds` from now, in UTC."""
    return datetime.now(UTC) + as_delta(seconds)


def as_seconds(value: Any) -> float:
    """Seconds of a number or a timedelta."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def as_delta(value: float | timedelta) -> timedelta:
    """A timedelta of a number of seconds or a timedelta."""
    return value if isinstance(value, timedelta) else timedelta(seconds=value)
