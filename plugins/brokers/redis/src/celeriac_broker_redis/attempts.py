"""How often a message was lost with its worker: counted in the message itself, so that first deliveries cost nothing.

A message that comes back carries `redelivered` where kombu puts it (headers and `delivery_info`), and the header
`x-celeriac-attempt`: the number of the delivery that comes next. How many of those before were given up by workers
that were told to stop stands in `x-celeriac-spared`.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from celeriac.spec.envelope import mend

ATTEMPT: Final = "x-celeriac-attempt"
SPARED: Final = "x-celeriac-spared"
#: Only messages with this text in them are read by `attempt_of`; the others are on their first delivery.
MARK: Final = b'"redelivered"'


class _Headers(Struct):
    redelivered: Any = False
    attempt: Any = field(name=ATTEMPT, default=None)
    spared: Any = field(name=SPARED, default=None)


class _Envelope(Struct):
    headers: _Headers


_read = msgspec.json.Decoder(_Envelope).decode


def attempt_of(raw: bytes) -> tuple[int, bool, int]:
    """The number of this delivery, whether an earlier one was lost, and how many were spared. Never raises."""
    try:
        headers = _read(raw).headers
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        mended = mend(raw, exc)
        return (1, False, 0) if mended is None else attempt_of(mended)
    if headers.redelivered is not True:
        return 1, False, 0
    attempt, spared = headers.attempt, headers.spared
    attempt = attempt if type(attempt) is int and attempt > 1 else 2
    return attempt, True, spared if type(spared) is int and 0 < spared < attempt else 0


def mark_lost(raw: bytes, *, spared: bool = False) -> bytes:
    """The message as it goes back after a delivery that was lost; unchanged if it is not an envelope."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, dict):
        return raw
    attempt, _, count = attempt_of(raw)
    headers[ATTEMPT] = attempt + 1
    if spared:
        headers[SPARED] = count + 1
    headers["redelivered"] = True
    properties = message.get("properties")
    if isinstance(properties, dict) and isinstance(info := properties.get("delivery_info"), dict):
        info["redelivered"] = True
    return json.dumps(message).encode("utf-8")


def mark_new(raw: bytes) -> bytes:
    """The message without any sign of earlier deliveries; unchanged if it has none or is not an envelope."""
    if not attempt_of(raw)[1]:
        return raw
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):  # the reader above skips what it is not to read, whatever it is
        return raw
    for name in ("redelivered", ATTEMPT, SPARED):
        message["headers"].pop(name, None)
    properties = message.get("properties")
    if isinstance(properties, dict) and isinstance(info := properties.get("delivery_info"), dict):
        info.pop("redelivered", None)
    return json.dumps(message).encode("utf-8")


def priority_of(raw: bytes) -> Any:
    """The priority in an envelope, None if there is none."""
    try:
        return json.loads(raw)["properties"]["priority"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
