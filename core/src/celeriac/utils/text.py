"""Text that is bounded in length and depth, for headers and logs."""

from __future__ import annotations

import reprlib
from typing import Any

_SCALARS = frozenset({int, float, bool, type(None), str, bytes})


class _Bounded(reprlib.Repr):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.maxlevel = depth
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 100
        self.maxstring = self.maxlong = self.maxother = 1024

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            text = repr(x)
        except Exception as exc:  # a broken __repr__ must not stop a send or a log line
            text = f"<{type(x).__module__}.{type(x).__qualname__}: repr raised {type(exc).__name__}>"
        return text if len(text) <= self.maxother else text[: self.maxother - 3] + "..."


_bounded = {depth: _Bounded(depth) for depth in (2, 3, 4)}


def bounded_repr(value: Any, max_chars: int = 1024, depth: int = 3) -> str:
    """`repr(value)`, at most `max_chars` long and `depth` levels deep; never raises."""
    kind = type(value)
    if kind in _SCALARS:
        text = repr(value) if kind is not str or len(value) <= max_chars else repr(value[:max_chars])
    elif kind is tuple and len(value) < 10 and all(type(item) in _SCALARS for item in value):
        if any(type(item) in (str, bytes) and len(item) > max_chars for item in value):
            value = tuple(item[:max_chars] if type(item) in (str, bytes) else item for item in value)
        text = repr(value)
    elif kind is dict and not value:
        return "{}"
    else:
        printer = _bounded.get(depth) or _Bounded(depth)
        try:
            text = printer.repr(value)
        except Exception as exc:  # as above
            text = f"<{kind.__qualname__}: repr raised {type(exc).__name__}>"
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
