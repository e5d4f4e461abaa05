"""A message of RabbitMQ as one run of bytes, and back. Pure; called by `publisher`, `consumer` and the pool slots.

The record that travels through the house as `Delivery.raw` is put together from what arrived, nothing re-encoded::

    exchange (short string) · routing key (short string) · body size (8) · property flags (2) · properties · body

The worker hops over the header table (`scan`, some microseconds); the pool slot reads all of it (`unpack`).

Source: AMQP 0-9-1, 2.3.5.2 (content headers); Celery's message protocol 2.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Set
from struct import Struct, error
from typing import Any, Final

import msgspec

from celeriac.exceptions import PublishRejected
from celeriac.spec import CLAIM_HEADER, Head, Malformed, Payload, Route
from celeriac_broker_amqp import methods
from celeriac_broker_amqp.plain import make_headers, read_plain, write_plain
from celeriac_broker_amqp.table import (
    HALF,
    BadTable,
    find_entries,
    find_values,
    read_entries,
    read_table,
    table_end,
    write_table,
)

#: Headers of ours: deliveries lost before the message was last published anew, and how many of them were given up by
#: workers that were told to stop; and the unix time before which it should not run, where its `eta` does not say so.
LOST_HEADER: Final = "x-celeriac-attempts"
SPARED_HEADER: Final = "x-celeriac-spared"
DUE_HEADER: Final = "x-celeriac-due"
#: Of a copy by which a consumer holds a message: the tag of the delivery whose place it takes.
HELD_HEADER: Final = "x-celeriac-held"
MAX_HEADERS: Final = 256
MAX_HEADER_BYTES: Final = 64 * 1024

#: What RabbitMQ adds: how often a message was returned, and where it expired before. By the latter it takes a
#: message that is delayed a second time for one that goes in circles, and drops it.
COUNT_HEADERS: Final = frozenset({"x-delivery-count"})
DEATH_HEADERS: Final = COUNT_HEADERS | {
    HELD_HEADER,
    "x-death",
    *(f"x-{which}-death-{what}" for which in ("first", "last") for what in ("exchange", "queue", "reason")),
}

_CONTENT_TYPE: Final = 0x8000
_CONTENT_ENCODING: Final = 0x4000
_HEADERS: Final = 0x2000
_DELIVERY_MODE: Final = 0x1000
_PRIORITY: Final = 0x0800
#: Those after the priority, in the order of the wire: flag, name, whether a number of 8 bytes.
_REST: Final = (
    (0x0400, "correlation_id", False),
    (0x0200, "reply_to", False),
    (0x0100, "expiration", False),
    (0x0080, "message_id", False),
    (0x0040, "timestamp", True),
    (0x0020, "type", False),
    (0x0010, "user_id", False),
    (0x0008, "app_id", False),
    (0x0004, "cluster_id", False),
)
_MODES: Final[dict[Any, Any]] = {"transient": 1, "persistent": 2}
_WANTED: Final = frozenset(
    (
        b"task",
        b"id",
        b"eta",
        b"expires",
        b"timelimit",
        b"stamps",
        b"x-delivery-count",
        CLAIM_HEADER.encode(),
        LOST_HEADER.encode(),
        SPARED_HEADER.encode(),
        DUE_HEADER.encode(),
    )
)
_read_flags = Struct(">H").unpack_from
_read_size = Struct(">Q").unpack_from
_write_size = Struct(">QH").pack
_write_header = Struct(">HHQH").pack
_LONGLONG = Struct(">Q")

#: With it begins what Python writes for half a character, and in UTF-8 some whole ones.
_MAY_BE_HALF: Final = b"\xed"

_SHORT_TEXTS: dict[str, bytes] = {}
_SHORT_TEXTS_KEPT: Final = 256
#: What the server's content frame header says before the body size: class 60, weight 0.
HEADER_PREFIX: Final = b"\x00\x3c\x00\x00"


# -- reading ------------------------------------------------------------------------------------------------


class Marks(msgspec.Struct):
    """What a message's way so far has left among its headers.

    Attributes:
        returns: How often RabbitMQ counted that it came back (quorum queues only).
        lost: Deliveries lost before it was last published anew.
        due: Unix time before which it should not run.
        spared: How many of the lost ones were given up on purpose.
    """

    returns: int
    lost: int
    due: float | None
    spared: int = 0


#: Of a message without any.
UNMARKED: Final = Marks(0, 0, None)


def scan(raw: bytes) -> tuple[Head | Malformed, Marks | None]:
    """The head of a message, and the marks on it if there are any. Never raises."""
    try:
        table = _find_table(raw)
        if len(raw) > MAX_HEADER_BYTES and table and table_end(raw, table) - table > MAX_HEADER_BYTES:
            return Malformed(f"headers of {table_end(raw, table) - table} bytes; {MAX_HEADER_BYTES} are read"), None
        if table:
            head = _scan_plain(raw, table)
            if head is not None:
                return head, None
        values = find_values(raw, table, _WANTED) if table else {}
    except (BadTable, IndexError, error) as exc:
        return Malformed(f"not a message of AMQP: {exc}"), None
    get = values.get
    task, task_id = get(b"task", ""), get(b"id", "")
    if type(task) is not str or type(task_id) is not str:
        return Malformed(f"headers task and id must be text, not {task!r:.80} and {task_id!r:.80}"), None
    if len(values) == 2:
        return Head(task_id, task), None
    problem = _find_problem(values)
    if problem is not None:
        return Malformed(problem), None
    eta, expires, claim = get(b"eta"), get(b"expires"), get(CLAIM_HEADER.encode())
    head = Head(
        task_id,
        task,
        eta,
        expires if expires is None or type(expires) is str else str(expires),
        get(b"timelimit"),
        get(b"stamps") or None,
        claim if type(claim) is str else None,
    )
    due = get(DUE_HEADER.encode())
    if type(due) is not float:
        due = None if eta is None else read_time(eta)
    lost = _count(get(LOST_HEADER.encode()))
    spared = min(_count(get(SPARED_HEADER.encode())), lost)
    return head, Marks(_count(get(b"x-delivery-count")), lost, due, spared)


def unpack(raw: bytes) -> Payload:
    """The payload of a message.

    Raises:
        ValueError: The bytes are no such message.
    """
    try:
        exchange, pos = methods.read_short_text(raw)
        routing_key, pos = methods.read_short_text(raw, pos)
        (size,) = _read_size(raw, pos)
        content_type, content_encoding, headers, properties, end = _read_properties(raw, pos + 8)
    except (IndexError, error) as exc:
        raise ValueError(f"not a message of AMQP: {exc}") from exc
    body = raw[end:]
    if len(body) != size:
        raise ValueError(f"a message whose body has {len(body)} bytes and says {size}")
    return Payload(body, content_type, content_encoding, headers, properties, Route(routing_key, exchange))


def _find_table(raw: bytes) -> int:
    """Where the header table stands; 0 if there is none."""
    pos = 1 + raw[0]
    pos += 1 + raw[pos] + 8
    (flags,) = _read_flags(raw, pos)
    pos += 2
    if not flags & _HEADERS:
        return 0
    if flags & _CONTENT_TYPE:
        pos += 1 + raw[pos]
    if flags & _CONTENT_ENCODING:
        pos += 1 + raw[pos]
    return pos


def _scan_plain(raw: bytes, table: int) -> Head | None:
    """The head of a plain call."""
    plain = read_plain(raw, table + 4)
    if plain is None:
        return None
    (task, task_id, *_), _, pos = plain
    end = table_end(raw, table)
    if pos > end or (pos < end and find_entries(raw, pos, end, _WANTED)):
        return None
    try:
        return Head(task_id.decode(), task.decode())
    except UnicodeDecodeError:
        return None


def _read_headers(raw: bytes, table: int) -> tuple[dict[str, Any], int]:
    """The headers in the table at `table`, and where it ends."""
    plain = read_plain(raw, table + 4)
    if plain is not None:
        texts, tail, pos = plain
        end = table_end(raw, table)
        try:
            headers = make_headers(texts, tail)
        except UnicodeDecodeError:
            return read_table(raw, table)
        if pos == end:
            return headers, end
        if pos < end:
            headers.update(read_entries(raw, pos, end))
            return headers, end
    return read_table(raw, table)


def _find_problem(values: Mapping[bytes, Any]) -> str | None:
    """What is wrong with the optional values of a head, in words."""
    eta, expires, limits, stamps = (values.get(key) for key in (b"eta", b"expires", b"timelimit", b"stamps"))
    if eta is not None and type(eta) is not str:
        return f"header eta must be text, not {eta!r:.80}"
    if expires is not None and type(expires) not in (str, float, int):
        return f"header expires must be text or a number, not {expires!r:.80}"
    if limits is not None and not (
        type(limits) is list and all(item is None or type(item) in (int, float) for item in limits)
    ):
        return f"header timelimit must be a list of numbers, not {limits!r:.80}"
    if stamps is not None and type(stamps) is not dict:
        return f"header stamps must be a table, not {stamps!r:.80}"
    return None


def _count(value: Any) -> int:
    return value if type(value) is int and 0 < value < 1 << 31 else 0


def _read_properties(raw: bytes, pos: int) -> tuple[str, str, dict[str, Any], dict[str, Any], int]:
    (flags,) = _read_flags(raw, pos)
    pos += 2
    content_type = content_encoding = ""
    headers: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    if flags & _CONTENT_TYPE:
        content_type, pos = methods.read_short_text(raw, pos)
    if flags & _CONTENT_ENCODING:
        content_encoding, pos = methods.read_short_text(raw, pos)
    if flags & _HEADERS:
        if table_end(raw, pos) - pos > MAX_HEADER_BYTES:
            raise ValueError(f"headers of {table_end(raw, pos) - pos} bytes; {MAX_HEADER_BYTES} are read")
        headers, pos = _read_headers(raw, pos)
        if len(headers) > MAX_HEADERS:
            raise ValueError(f"{len(headers)} headers; at most {MAX_HEADERS} are read")
    if flags & _DELIVERY_MODE:
        properties["delivery_mode"] = raw[pos]
        pos += 1
    if flags & _PRIORITY:
        properties["priority"] = raw[pos]
        pos += 1
    if flags & 0x07FC:
        for flag, name, is_number in _REST:
            if not flags & flag:
                continue
            if is_number:
                (properties[name],) = _LONGLONG.unpack_from(raw, pos)
                pos += 8
            else:
                properties[name], pos = methods.read_short_text(raw, pos)
    if flags & 0x0003:
        raise ValueError(f"property flags {flags:#06x} that AMQP does not have")
    return content_type, content_encoding, headers, properties, pos


def body_start(raw: bytes) -> int:
    """Where the content header begins in a record (its body size)."""
    pos = 1 + raw[0]
    return pos + 1 + raw[pos]


# -- writing ------------------------------------------------------------------------------------------------


def pack_header(payload: Payload) -> bytes:
    """The content header of a payload: what stands in a header frame.

    Raises:
        PublishRejected: A header or property has a value that AMQP cannot carry.
    """
    try:
        header = _pack_header(payload)
        if _MAY_BE_HALF in header and (name := _find_half(payload)) is not None:
            raise ValueError(f"{name!r} has half a character in it (a lone surrogate)")
    except (ValueError, TypeError, error) as exc:
        task_id = payload.headers.get("id", "?")
        raise PublishRejected(
            f"message {task_id!r} was not sent: AMQP cannot carry one of its headers or properties: {exc}"
        ) from exc
    return header


def _pack_header(payload: Payload) -> bytes:
    get = payload.properties.get
    flags = _CONTENT_TYPE | _CONTENT_ENCODING | _HEADERS | _DELIVERY_MODE
    mode = get("delivery_mode") or 2
    out = [
        b"",
        _short(payload.content_type),
        _short(payload.content_encoding),
        _write_headers(payload.headers),
        bytes((int(_MODES.get(mode, mode)),)),
    ]
    priority = get("priority")
    if priority is not None:
        flags |= _PRIORITY
        out.append(bytes((min(max(int(priority), 0), 255),)))
    for flag, name, is_number in _REST:
        value = get(name)
        if value is not None:
            flags |= flag
            out.append(_pack_number(value) if is_number else methods.short_text(str(value)))
    out[0] = _write_header(60, 0, len(payload.body), flags)
    return b"".join(out)


def _find_half(payload: Payload) -> str | None:
    """The header or property in which there is half a character, which `table` would not read as it was written."""
    for name, value in (*payload.headers.items(), *payload.properties.items()):
        if not (_is_whole(name) and _is_whole(value)):
            return name
    return None


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() or HALF.search(value) is None
    if isinstance(value, Mapping):
        return all(map(_is_whole, value)) and all(map(_is_whole, value.values()))
    return all(map(_is_whole, value)) if isinstance(value, (list, tuple)) else True


def _write_headers(headers: Mapping[str, Any]) -> bytes:
    plain = write_plain(headers)
    return write_table(headers) if plain is None else len(plain).to_bytes(4, "big") + plain


def _short(text: str) -> bytes:
    """A short string out of few, kept."""
    written = _SHORT_TEXTS.get(text)
    if written is None:
        written = methods.short_text(text or "")
        if len(_SHORT_TEXTS) < _SHORT_TEXTS_KEPT:
            _SHORT_TEXTS[text] = written
    return written


def _pack_number(value: Any) -> bytes:
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return _LONGLONG.pack(int(value))


def split_record(raw: bytes) -> tuple[str, str, bytes, bytes]:
    """Exchange, routing key, content header and body of a record.

    Raises:
        ValueError: The bytes are no such record.
    """
    try:
        exchange, pos = methods.read_short_text(raw)
        routing_key, pos = methods.read_short_text(raw, pos)
        (size,) = _read_size(raw, pos)
    except (IndexError, error) as exc:
        raise ValueError(f"not a message of AMQP: {exc}") from exc
    start = len(raw) - size
    if start < pos + 10:
        raise ValueError(f"a message whose body says {size} bytes of {len(raw)}")
    return exchange, routing_key, HEADER_PREFIX + raw[pos:start], raw[start:]


def with_headers(header: bytes, extra: Mapping[str, Any], drop: Set[str] = COUNT_HEADERS) -> bytes:
    """A content header with some of our own entries in its table; all other bytes stay as they are (S3).

    Args:
        drop: Entries that RabbitMQ itself added and that must not travel on; by default its count of returns,
            which starts anew wherever the message goes.

    Raises:
        ValueError: The properties in `header` cannot be read.
    """
    try:
        (flags,) = _read_flags(header, 12)
        pos = 14
        if flags & _CONTENT_TYPE:
            pos += 1 + header[pos]
        if flags & _CONTENT_ENCODING:
            pos += 1 + header[pos]
    except (IndexError, error) as exc:
        raise ValueError(f"not a content header: {exc}") from exc
    if flags & _HEADERS:
        headers, end = read_table(header, pos)
        entries = _without(header[pos + 4 : end], headers, drop | extra.keys())
    else:
        end, entries = pos, b""
    entries += write_table(extra)[4:]
    table = len(entries).to_bytes(4, "big") + entries
    return b"".join((header[:12], (flags | _HEADERS).to_bytes(2, "big"), header[14:pos], table, header[end:]))


def _without(entries: bytes, headers: dict[str, Any], names: Set[str]) -> bytes:
    """The entries of a table less some; the very bytes when it has none of them."""
    if not names & headers.keys():
        return entries
    return write_table({key: value for key, value in headers.items() if key not in names})[4:]


def with_route(raw: bytes, queue: str) -> bytes:
    """A record as if it had been published straight to `queue`."""
    return b"\0" + methods.short_text(queue) + raw[body_start(raw) :]


def bare_header(raw: bytes) -> bytes:
    """The content header for a record that is itself the body, because its own header cannot be used."""
    return _write_header(60, 0, len(raw), _CONTENT_TYPE | _HEADERS | _DELIVERY_MODE) + b"".join(
        (methods.short_text("application/octet-stream"), write_table({"x-celeriac-record": True}), b"\x02")
    )


# -- delays -------------------------------------------------------------------------------------------------

SAME_TIME_S: Final = 0.01


def read_time(text: str) -> float | None:
    """The unix time of an `eta`; None if it is none. Without an offset it is UTC, as Celery has it."""
    try:
        moment = datetime.datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


def with_due(header: bytes, due: float, headers: Mapping[str, Any], extra: Mapping[str, Any] = {}) -> bytes:
    """The content header of a message that goes through the delay queues: `extra` added, the marks of earlier
    ways removed, and the exact time, unless its own `eta` says the same.

    Args:
        headers: What is in `header`.
    Raises:
        ValueError: As `with_headers`.
    """
    eta = headers.get("eta")
    says_so = type(eta) is str and abs((read_time(eta) or 0.0) - due) < SAME_TIME_S
    added = dict(extra) if says_so else {**extra, DUE_HEADER: due}
    if not added and DEATH_HEADERS.isdisjoint(headers) and DUE_HEADER not in headers:
        return header
    return with_headers(header, added, DEATH_HEADERS | {DUE_HEADER})
