"""JSON with Celery's extended types: called in clients and pool slots, once or twice for each message.

What JSON has no word for is an object with exactly the keys `__type__` and `__value__`: datetime, date, time,
Decimal, UUID and bytes. The bytes written are those of kombu 5.7's serializer, so Celery reads them and we read
Celery's. Types that a program registered with `kombu.utils.json.register_type` count too.

Writing goes through the standard library's C encoder, built once instead of once for each call. Reading goes
through msgspec, which is faster, unless an extended type may be inside; what msgspec refuses is the standard
library's to judge, because kombu reads `NaN`, `Infinity` and lone surrogates and we must too.

Source: `docs/reference/wire-protocol.md`, section 2.
"""

from __future__ import annotations

import base64
import json
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from json import encoder as stdlib_encoder
from typing import Any, Final

import msgspec

_MARK: Final = b'"__type__"'
_MARKED_KEYS: Final = {"__type__", "__value__"}

Encoder = Callable[[Any], Any]
Decoder = Callable[[Any], Any]

#: In this order: a datetime is a date too. A marker of None means that the value stands without an envelope.
_ENCODERS: Final[Mapping[type, tuple[str | None, Encoder]]] = {
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    Decimal: ("decimal", str),
    uuid.UUID: ("uuid", lambda value: {"hex": value.hex}),
}
_DECODERS: Final[Mapping[str, Decoder]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda fields: uuid.UUID(**fields),
    "bytes": lambda text: text.encode("utf-8"),
    "base64": lambda text: base64.b64decode(text.encode("utf-8")),
}


class JsonSerializer:
    """Celery's `json`."""

    name = "json"
    content_type = "application/json"
    content_encoding = "utf-8"
    unsafe = False

    def dumps(self, obj: Any) -> bytes:
        try:
            return _encode(obj).encode("ascii")
        except RecursionError:
            raise ValueError("cannot be written as JSON: nested too deeply, or it contains itself") from None

    def loads(self, data: bytes) -> Any:
        if _MARK not in data:
            try:
                return _decode_plain(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                pass  # not valid for msgspec: the standard library has the last word below
            except RecursionError:
                raise ValueError("not valid JSON: nested too deeply") from None
        return _decode_extended(data)


def _encode_extended(value: Any) -> Any:
    """What stands in JSON for a value that it has no word for; kombu's order of preference."""
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return reducer()
    if _is_lazy_text(value):
        return str(value)
    for kind, (marker, encode) in _registered("_encoders", _ENCODERS).items():
        if isinstance(value, kind):
            return encode(value) if marker is None else {"__type__": marker, "__value__": encode(value)}
    if isinstance(value, bytes):
        try:
            return {"__type__": "bytes", "__value__": value.decode("utf-8")}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _decode_object(document: dict[str, Any]) -> Any:
    if document.keys() != _MARKED_KEYS:
        return document
    decode = _registered("_decoders", _DECODERS).get(document["__type__"])
    if decode is None:
        raise ValueError(f"unknown extended type {document['__type__']!r}")
    return decode(document["__value__"])


def _decode_extended(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_hook=_decode_object)
    except ValueError:
        raise
    except Exception as exc:  # a decoder met a value of the wrong shape, whatever it raised (B26)
        raise ValueError(f"not valid JSON with extended types: {type(exc).__name__}: {exc}") from exc


def _registered(table: str, default: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """kombu's own table when the program uses kombu, for it has the types that were registered there."""
    module = sys.modules.get("kombu.utils.json")
    return default if module is None else getattr(module, table, default)


def _is_lazy_text(value: Any) -> bool:
    """A lazy translation of Django's; where Django was never imported there is none."""
    module = sys.modules.get("django.utils.functional")
    return module is not None and isinstance(value, module.Promise)


def _make_encode() -> Callable[[Any], str]:
    """The encoder that `json.dumps` builds for each call, built once.

    Without its table of open containers, which costs a third: what contains itself ends in a RecursionError.
    """
    make = getattr(stdlib_encoder, "c_make_encoder", None)
    if make is None:  # a Python without the C accelerator
        return json.JSONEncoder(default=_encode_extended).encode
    encode_text = stdlib_encoder.encode_basestring_ascii
    iterate = make(None, _encode_extended, encode_text, None, ": ", ", ", False, False, True)
    join = "".join
    return lambda value: join(iterate(value, 0))


_encode = _make_encode()
_decode_plain = msgspec.json.Decoder().decode
