"""Python literals: called in clients and pool slots, once or twice for each message."""

from __future__ import annotations

import ast
from typing import Any


class LiteralSerializer:
    """What `repr` writes and `ast.literal_eval` reads."""

    name = "literal"
    content_type = "application/x-python-literal"
    content_encoding = "utf-8"
    unsafe = False

    def dumps(self, obj: Any) -> bytes:
        text = repr(obj)
        try:
            arrived = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as exc:
            raise TypeError(f"cannot be written as a Python literal: {exc}") from exc
        if arrived != obj:  # a class whose repr looks like a literal of another type
            raise TypeError(f"cannot be written as a Python literal: {text[:80]} reads as something else")
        return text.encode("utf-8")

    def loads(self, data: bytes) -> Any:
        try:
            return ast.literal_eval(data.decode("utf-8"))
        except Exception as exc:  # SyntaxError, TypeError, MemoryError, RecursionError …: bytes from anywhere
            raise ValueError(f"not a Python literal: {type(exc).__name__}: {exc}") from exc
