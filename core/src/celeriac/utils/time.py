"""Times and intervals, at Celery's path."""

from __future__ import annotations

import random
from datetime import datetime, timezone, tzinfo
from typing import Any

from celeriac.utils.times import as_delta, parse_iso, plain_zone

__all__ = [
    "get_exponential_backoff_interval",
    "is_naive",
    "localize",
    "make_aware",
    "maybe_iso8601",
    "maybe_make_aware",
    "maybe_timedelta",
    "to_utc",
]


def get_exponential_backoff_interval(factor: float, retries: int, maximum: float, full_jitter: bool = False) -> int:
    """Seconds before the next try: `factor * 2 ** retries`, at most `maximum`, drawn below that with jitter."""
    pause = min(maximum, factor * 2 ** min(retries, 60))
    return max(0, int(random.uniform(0, pause + 1) if full_jitter else pause))


def maybe_timedelta(delta: Any) -> Any:
    """A number of seconds as a `timedelta`; what is none is returned as it is."""
    return as_delta(delta) if isinstance(delta, (int, float)) else delta


def maybe_iso8601(dt: str | datetime | None) -> datetime | None:
    """A text of ISO 8601 as a datetime; what is one, or None, is returned as it is."""
    return parse_iso(dt) if isinstance(dt, str) else dt


def is_naive(dt: datetime) -> bool:
    """Whether a datetime is of no zone."""
    return dt.utcoffset() is None


def make_aware(dt: datetime, tz: tzinfo) -> datetime:
    """A naive datetime as one of this zone."""
    return dt.replace(tzinfo=plain_zone(tz))


def maybe_make_aware(dt: datetime, tz: tzinfo | None = None, naive_as_utc: bool = True) -> datetime:
    """The same moment in zone `tz` (default: UTC); a naive one counts as UTC, or as of that zone."""
    zone = tz or timezone.utc
    if is_naive(dt):
        dt = make_aware(dt, timezone.utc if naive_as_utc else zone)
    return localize(dt, zone)


def to_utc(dt: datetime) -> datetime:
    """A naive datetime of UTC as an aware one, or the same moment in UTC."""
    return maybe_make_aware(dt, timezone.utc)


def localize(dt: datetime, tz: tzinfo) -> datetime:
    """The same moment in another zone."""
    return make_aware(dt, tz) if is_naive(dt) else dt.astimezone(tz)
