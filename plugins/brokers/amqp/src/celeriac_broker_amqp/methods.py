"""The AMQP 0-9-1 methods we speak, as bytes. Pure; called by `link`, `topology`, `publisher` and `consumer`.

A method is a 32-bit number (class and method) and its arguments. Replies are recognised by the number alone;
of most of them the arguments are of no interest.

Source: the AMQP 0-9-1 specification and RabbitMQ's extensions (confirms, nack, blocked, exchange bindings).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, Final

from celeriac_broker_amqp.table import write_table

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
FRAME_END: Final = 206
#: What a frame adds to its payload.
FRAME_OVERHEAD_BYTES: Final = 8

CONNECTION_CLOSE: Final = 10 << 16 | 50
CONNECTION_CLOSE_OK: Final = 10 << 16 | 51
CONNECTION_BLOCKED: Final = 10 << 16 | 60
CONNECTION_UNBLOCKED: Final = 10 << 16 | 61
CHANNEL_OPEN_OK: Final = 20 << 16 | 11
CHANNEL_FLOW: Final = 20 << 16 | 20
CHANNEL_FLOW_OK: Final = 20 << 16 | 21
CHANNEL_CLOSE: Final = 20 << 16 | 40
CHANNEL_CLOSE_OK: Final = 20 << 16 | 41
EXCHANGE_DECLARE_OK: Final = 40 << 16 | 11
EXCHANGE_BIND_OK: Final = 40 << 16 | 31
QUEUE_DECLARE_OK: Final = 50 << 16 | 11
QUEUE_BIND_OK: Final = 50 << 16 | 21
QUEUE_PURGE_OK: Final = 50 << 16 | 31
QUEUE_DELETE_OK: Final = 50 << 16 | 41
BASIC_QOS_OK: Final = 60 << 16 | 11
BASIC_CONSUME_OK: Final = 60 << 16 | 21
BASIC_CANCEL: Final = 60 << 16 | 30
BASIC_CANCEL_OK: Final = 60 << 16 | 31
BASIC_RETURN: Final = 60 << 16 | 50
BASIC_DELIVER: Final = 60 << 16 | 60
BASIC_ACK: Final = 60 << 16 | 80
BASIC_NACK: Final = 60 << 16 | 120
CONFIRM_SELECT_OK: Final = 85 << 16 | 11

NOT_FOUND: Final = 404
RESOURCE_LOCKED: Final = 405
PRECONDITION_FAILED: Final = 406
ACCESS_REFUSED: Final = 403

_frame_start = Struct(">BHI").pack
_settle_frame = Struct(">BHIIQBB").pack
_SHORT = Struct(">H").pack

HEARTBEAT_FRAME: Final = _frame_start(HEARTBEAT, 0, 0) + b"\xce"
CHANNEL_OPEN: Final = b"\x00\x14\x00\x0a\x00"
#: A question that changes nothing: deliveries flow as they do.
FLOW: Final = b"\x00\x14\x00\x14\x01"
CONFIRM_SELECT: Final = b"\x00\x55\x00\x0a\x00"


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame."""
    return b"%b%b\xce" % (_frame_start(kind, channel, len(payload)), payload)


def short_text(text: str) -> bytes:
    """A short string.

    Raises:
        ValueError: Longer than 255 bytes, which AMQP has no word for.
    """
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > 255:
        raise ValueError(f"{text[:60]!r}… has {len(data)} bytes; AMQP allows 255 here")
    return bytes((len(data),)) + data


def read_short_text(data: bytes, at: int = 0) -> tuple[str, int]:
    """A short string and where it ends. Bytes that are no UTF-8 are shown escaped."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "backslashreplace"), end


def ack(channel: int, tag: int, multiple: bool) -> bytes:
    """The frame of basic.ack."""
    return _settle_frame(METHOD, channel, 13, BASIC_ACK, tag, multiple, FRAME_END)


def give_back(channel: int, tag: int) -> bytes:
    """The frame of basic.nack that puts the message back. From RabbitMQ 4.3 on basic.reject says that its work failed,
    which a quorum queue counts."""
    return _settle_frame(METHOD, channel, 13, BASIC_NACK, tag, 2, FRAME_END)


def reject(channel: int, tag: int) -> bytes:
    """The frame of basic.reject that has the queue dead-letter the message."""
    return _settle_frame(METHOD, channel, 13, 60 << 16 | 90, tag, 0, FRAME_END)


def give_back_all(channel: int) -> bytes:
    """Put everything that this channel was handed and has not settled back in its place: a whole frame."""
    return frame(METHOD, channel, b"\x00\x3c\x00\x78" + bytes(8) + b"\x03")


def close_connection(text: str) -> bytes:
    return b"\x00\x0a\x00\x32" + _SHORT(200) + short_text(text) + b"\0\0\0\0"


def close_channel() -> bytes:
    return b"\x00\x14\x00\x28" + _SHORT(200) + b"\0\0\0\0\0"


def declare_exchange(name: str, kind: str, *, durable: bool = True, passive: bool = False) -> bytes:
    bits = passive | durable << 1
    return b"\x00\x28\x00\x0a\0\0" + short_text(name) + short_text(kind) + bytes((bits,)) + write_table({})


def bind_exchange(name: str, source: str, routing_key: str) -> bytes:
    names = short_text(name) + short_text(source) + short_text(routing_key)
    return b"\x00\x28\x00\x1e\0\0" + names + b"\0" + write_table({})


def declare_queue(
    name: str,
    *,
    durable: bool = True,
    exclusive: bool = False,
    auto_delete: bool = False,
    passive: bool = False,
    arguments: Mapping[str, Any] = {},
) -> bytes:
    bits = passive | durable << 1 | exclusive << 2 | auto_delete << 3
    return b"\x00\x32\x00\x0a\0\0" + short_text(name) + bytes((bits,)) + write_table(arguments)


def bind_queue(name: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] = {}) -> bytes:
    names = short_text(name) + short_text(exchange) + short_text(routing_key)
    return b"\x00\x32\x00\x14\0\0" + names + b"\0" + write_table(arguments)


def purge_queue(name: str) -> bytes:
    return b"\x00\x32\x00\x1e\0\0" + short_text(name) + b"\0"


def delete_queue(name: str) -> bytes:
    return b"\x00\x32\x00\x28\0\0" + short_text(name) + b"\0"


def limit_prefetch(count: int) -> bytes:
    """basic.qos for the consumers that are opened after it, each by itself."""
    return b"\x00\x3c\x00\x0a\0\0\0\0" + _SHORT(count) + b"\0"


def consume(queue: str, consumer_tag: str, *, no_ack: bool = False) -> bytes:
    names = short_text(queue) + short_text(consumer_tag)
    return b"\x00\x3c\x00\x14\0\0" + names + bytes((no_ack << 1,)) + write_table({})


def cancel(consumer_tag: str, *, wait: bool = True) -> bytes:
    """basic.cancel; without `wait` there is no answer."""
    return b"\x00\x3c\x00\x1e" + short_text(consumer_tag) + bytes((not wait,))


def publish(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    return b"\x00\x3c\x00\x28\0\0" + short_text(exchange) + short_text(routing_key) + bytes((mandatory,))
