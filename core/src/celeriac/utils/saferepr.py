"""`saferepr`, at Celery's path: a repr that is bounded, and never raises."""

from __future__ import annotations

from typing import Any

from celeriac.utils.text import bounded_repr

__all__ = ["saferepr"]


def saferepr(o: Any, maxlen: int | None = None, maxlevels: int = 3, seen: Any = None) -> str:
    """`repr(o)`, at most `maxlen` long and `maxlevels` deep (2 to 4)."""
    return bounded_repr(o, maxlen or 1 << 20, min(max(maxlevels, 2), 4))
