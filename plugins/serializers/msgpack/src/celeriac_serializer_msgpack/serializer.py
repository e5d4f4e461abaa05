"""MessagePack: called in clients and pool slots. Text stays text and bytes stay bytes; tuples become lists.

Keys of maps must be text or bytes when read (the package's guard against crafted keys), as in kombu 5.7.
"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # ships no types


class MsgpackSerializer:
    """Celery's `msgpack`."""

    name = "msgpack"
    content_type = "application/x-msgpack"
    content_encoding = "binary"
    unsafe = False

    def dumps(self, obj: Any) -> bytes:
        try:
            packed: bytes = msgpack.packb(obj, use_bin_type=True)
        except OverflowError as exc:
            raise ValueError(f"cannot be written as MessagePack: {exc}") from exc
        return packed

    def loads(self, data: bytes) -> Any:
        try:
            return msgpack.unpackb(data, raw=False)
        except ValueError:
            raise
        except Exception as exc:  # OutOfData, StackError, unhashable keys, … (B26)
            raise ValueError(f"not valid MessagePack: {type(exc).__name__}: {exc}") from exc
