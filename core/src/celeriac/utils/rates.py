"""Rate limits as text."""

from __future__ import annotations

from typing import Any


def parse_rate(limit: Any) -> float:
    """Starts per second of `'10/s'`, `'10/m'`, `'10/h'` or a number; 0 for no limit (`None`, 0).

    Raises:
        ValueError: Not such a limit.
    """
    if limit is None or limit == 0:
        return 0.0
    number, _, unit = str(limit).partition("/")
    try:
        rate = float(number) / {"": 1, "s": 1, "m": 60, "h": 3600}[unit.strip().lower()[:1]]
    except (KeyError, ValueError):
        rate = -1.0
    if not 0 <= rate < float("inf"):
        raise ValueError(f"rate limit {limit!r} is not like '10/s', '10/m', '10/h' or a number")
    return rate
