"""The common envelope: a message as one JSON object, byte for byte what kombu's virtual transports write.

For transports whose broker stores plain bytes (Redis, SQLite, memory, files). Pure functions. The worker
reads only the head of each message (`read_head`, about 1 µs); the pool slot reads the rest (`unpack`).

Source: kombu 5.7 virtual transports; captured on Redis (see `docs/reference/wire-protocol.md`).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from celeriac.exceptions import PublishRejected
from celeriac.spec.data import CLAIM_HEADER, COUNT_HEADERS, Head, Malformed, Payload, Route

MAX_ENVELOPE_BYTES: Final = 256 * 1024 * 1024
MAX_HEADERS: Final = 256
MAX_HEADER_BYTES: Final = 64 * 1024
#: kombu's names for how a body sits in the envelope.
_BODY_DECODERS: Final[dict[Any, Callable[[str], bytes]]] = {
    "base64": binascii.a2b_base64,
    None: lambda text: text.encode("utf-8"),
}


class _HeadHeaders(Struct):
    id: str = ""
    task: str = ""
    eta: str | None = None
    expires: str | float | None = None
    timelimit: list[float | None] | None = None
    stamps: dict[str, Any] | None = None
    claim: Any = msgspec.field(name=CLAIM_HEADER, default=None)


class _HeadEnvelope(Struct):
    headers: _HeadHeaders


class _Envelope(Struct):
    body: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str | None = msgspec.field(name="content-type", default=None)
    content_encoding: str | None = msgspec.field(name="content-encoding", default=None)


class _Sized(Struct):
    headers: msgspec.Raw = msgspec.Raw(b"")
    properties: msgspec.Raw = msgspec.Raw(b"")


#: What may begin with a backslash in JSON and be half a character, and what may only seem so: a backslash, and a pair.
_ESCAPES: Final = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_UNKNOWN: Final = rb"\ufffd"

_read_sized = msgspec.json.Decoder(_Sized).decode
_read_head = msgspec.json.Decoder(_HeadEnvelope).decode
_read_envelope = msgspec.json.Decoder(_Envelope).decode
_encode = msgspec.json.Encoder().encode


def pack(payload: Payload, delivery_tag: str) -> bytes:
    """The envelope of a payload.

    Args:
        delivery_tag: Unique text (a uuid); kombu's workers acknowledge by it.
    Raises:
        PublishRejected: An id, a name or a header has no form in JSON, such as text with half a character in it (a lone
            surrogate), which readers would take for no message.
    """
    properties = {
        **payload.properties,
        "delivery_info": {"exchange": payload.route.exchange, "routing_key": payload.route.routing_key},
        "body_encoding": "base64",
        "delivery_tag": delivery_tag,
    }
    document = {
        "body": base64.b64encode(payload.body).decode("ascii"),
        "content-encoding": payload.content_encoding,
        "content-type": payload.content_type,
        "headers": payload.headers,
        "properties": properties,
    }
    try:
        try:
            return _encode(document)
        except (TypeError, OverflowError):  # what plain JSON has no word for: say it as text, as kombu would fail to
            return json.dumps(document, default=str).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as exc:
        raise PublishRejected(f"the message {payload.headers.get('id')!r} cannot be written as JSON: {exc}") from exc


def read_head(raw: bytes) -> Head | Malformed:
    """The head of an envelope; never raises."""
    if len(raw) > MAX_ENVELOPE_BYTES:
        return Malformed(f"message of {len(raw)} bytes is larger than {MAX_ENVELOPE_BYTES}")
    try:
        if len(raw) > MAX_HEADER_BYTES:
            _check_headers(raw)
        headers = _read_head(raw).headers
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        mended = mend(raw, exc)
        return Malformed(f"not a message envelope: {exc}") if mended is None else read_head(mended)
    expires = headers.expires
    return Head(
        headers.id,
        headers.task,
        headers.eta,
        expires if expires is None or type(expires) is str else str(expires),
        headers.timelimit,
        headers.stamps,
        headers.claim if type(headers.claim) is str else None,
    )


def unpack(raw: bytes) -> Payload:
    """The payload in an envelope.

    Raises:
        ValueError: Not an envelope, or its body is not encoded as it says.
    """
    try:
        if len(raw) > MAX_HEADER_BYTES:
            _check_headers(raw)
        envelope = _read_envelope(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        mended = mend(raw, exc)
        if mended is not None:
            return unpack(mended)
        raise ValueError(f"not a message envelope: {exc}") from exc
    properties = envelope.properties
    info = properties.get("delivery_info")
    if not isinstance(info, dict):
        info = {}
    if len(envelope.headers) > MAX_HEADERS:
        raise ValueError(f"{len(envelope.headers)} headers; at most {MAX_HEADERS} are read")
    try:
        body = _BODY_DECODERS[properties.get("body_encoding")](envelope.body)
    except (KeyError, TypeError):
        raise ValueError(f"unknown body_encoding {properties.get('body_encoding')!r}") from None
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise ValueError(f"body is not valid {properties.get('body_encoding')}: {exc}") from exc
    routing_key = info.get("routing_key")
    return Payload(
        body,
        envelope.content_type or "application/json",
        envelope.content_encoding or "utf-8",
        envelope.headers,
        properties,
        Route(routing_key if type(routing_key) is str else "", str(info.get("exchange") or "")),
    )


def renew(raw: bytes) -> bytes:
    """An envelope without what workers have counted about it; unchanged if there is nothing of the kind."""
    if b'"x-celeriac-' not in raw:
        return raw
    try:
        message = json.loads(raw)
        headers = message["headers"]
        kept = {name: value for name, value in headers.items() if name not in COUNT_HEADERS}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return raw  # not a message that was ever counted
    if len(kept) == len(headers):
        return raw
    message["headers"] = kept
    return json.dumps(message).encode("utf-8")


def mend(raw: bytes, exc: Exception) -> bytes | None:
    """An envelope that can be read, in place of one that could not (`exc` says why); None if it is none.

    Celery's clients write halves of characters (lone surrogates), as in the names of files among the arguments that
    they show: for each stands now the character that says that something cannot be shown.
    """
    if not isinstance(exc, msgspec.DecodeError):
        return None
    mended = _ESCAPES.sub(lambda found: _UNKNOWN if len(found[0]) == len(_UNKNOWN) else found[0], raw)
    return None if mended == raw else mended


def _check_headers(raw: bytes) -> None:
    """Refuse headers before anything is built of them. Those of a smaller message cannot be too large.

    Raises:
        ValueError: They are too large.
    """
    sized = _read_sized(raw)
    for what, part in (("headers", sized.headers), ("properties", sized.properties)):
        size = len(memoryview(part))
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"{what} of {size} bytes; at most {MAX_HEADER_BYTES} are read")
