"""Records: heads by hopping, whole messages by reading, headers added without touching the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.exceptions import PublishRejected
from celeriac.spec import Head, Malformed, Payload
from celeriac_broker_amqp import message


def record(payload: Payload, exchange: str = "", routing_key: str = "q") -> bytes:
    """As a consumer's link puts it together."""
    route = b"".join(bytes((len(text),)) + text.encode() for text in (exchange, routing_key))
    return route + message.pack_header(payload)[4:] + payload.body


def test_a_payload_is_read_as_it_was_written(tools: Any) -> None:
    payload = tools.payload("q", stamps={"a": [1, {"b": None}]}, when="now")
    payload.properties["expiration"] = "60000"
    raw = record(payload)
    assert message.unpack(raw) == payload
    head, marks = message.scan(raw)
    assert isinstance(head, Head)
    assert (head.id, head.task, head.stamps) == (payload.headers["id"], "proj.add", {"a": [1, {"b": None}]})
    assert marks == message.Marks(0, 0, None)


def test_a_head_has_times_and_limits(tools: Any) -> None:
    raw = record(tools.payload("q", eta="2030-01-01T00:00:00+00:00", expires=1893456000.5, timelimit=[30, 2.5]))
    head, marks = message.scan(raw)
    assert isinstance(head, Head)
    assert marks == message.Marks(0, 0, 1893456000.0)
    assert (head.eta, head.expires, head.timelimit) == ("2030-01-01T00:00:00+00:00", "1893456000.5", [30, 2.5])


@pytest.mark.parametrize(
    "headers",
    [
        {"task": 5},
        {"id": [1]},
        {"eta": 5},
        {"timelimit": "soon"},
        {"timelimit": ["soon"]},
        {"stamps": "x"},
        {"expires": []},
    ],
)
def test_a_head_of_wrong_types_is_malformed(tools: Any, headers: dict[str, Any]) -> None:
    payload = tools.payload("q")
    payload.headers.update(headers)
    head, _ = message.scan(record(payload))
    assert isinstance(head, Malformed)
    assert next(iter(headers)) in head.reason


def with_half_a_character(payload: Payload) -> bytes:
    """A message as a client writes it that takes any text of Python's: `@@@` in this one is half a character there."""
    return record(payload).replace(b"@@@", "\ud800".encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ({"argsrepr": "('@@@',)"}, {"argsrepr": "('\ufffd',)"}),
        ({"id": "one@@@", "root_id": "a"}, {"id": "one\ufffd"}),
        ({"group": "@@@@@@"}, {"group": "\ufffd\ufffd"}),
        ({"stamps": {"a": ["b", "@@@"]}}, {"stamps": {"a": ["b", "\ufffd"]}}),
    ],
)
def test_half_a_character_is_read_as_unknown(tools: Any, headers: dict[str, Any], read: dict[str, Any]) -> None:
    payload = tools.payload("q", **headers)
    raw = with_half_a_character(payload)
    payload.headers.update(read)
    found = message.unpack(raw)
    assert found.headers == payload.headers
    head, _ = message.scan(raw)
    assert isinstance(head, Head)
    assert (head.id, head.stamps or {}) == (payload.headers["id"], payload.headers["stamps"])


def test_half_a_character_is_not_sent_and_whole_ones_are(tools: Any) -> None:
    for words in ({"headers": {"file": "\udcff"}}, {"properties": {"reply_to": "\ud800"}}):
        payload = tools.payload("q")
        payload.headers.update(words.get("headers", {}))
        payload.properties.update(words.get("properties", {}))
        with pytest.raises(PublishRejected, match="half a character"):
            message.pack_header(payload)
    payload = tools.payload("q", id="\ud55c\uae00", group="\ud7ff\ue000")  # Hangul, which begins with the same byte
    raw = record(payload)
    assert isinstance(message.scan(raw)[0], Head)
    assert message.unpack(raw) == payload


def test_a_message_without_headers_is_of_protocol_1(tools: Any) -> None:
    payload = tools.payload("q")
    payload.headers.clear()
    assert message.scan(record(payload))[0] == Head("", "")


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reading(data: bytes) -> None:
    message.scan(data)
    try:
        message.unpack(data)
    except ValueError:
        pass  # what it promises


@given(st.data())
def test_a_damaged_message_is_read_or_refused(draw: st.DataObject) -> None:
    payload = Payload(b"body", "application/json", "utf-8", {"task": "t", "id": "i"}, {"priority": 3}, None)  # type: ignore[arg-type]
    raw = bytearray(record(payload))
    for _ in range(draw.draw(st.integers(1, 4))):
        raw[draw.draw(st.integers(0, len(raw) - 1))] = draw.draw(st.integers(0, 255))
    message.scan(bytes(raw))
    try:
        message.unpack(bytes(raw))
        message.split_record(bytes(raw))
    except ValueError:
        pass  # what they promise


def test_our_headers_are_added_and_every_other_byte_stays(tools: Any) -> None:
    payload = tools.payload("q", odd=-1, deep={"a": [None, 1.5]})
    _, _, header, body = message.split_record(record(payload))
    changed = message.with_headers(header, {"x-celeriac-reason": "crash"})
    assert message.write_table(payload.headers)[4:] in changed
    again = message.unpack(b"\0\1q" + changed[4:] + body)
    assert again.headers == {**payload.headers, "x-celeriac-reason": "crash"}
    assert again.properties == payload.properties
    twice = message.unpack(b"\0\1q" + message.with_headers(changed, {"x-celeriac-reason": "other"})[4:] + body)
    assert twice.headers["x-celeriac-reason"] == "other"


def test_the_brokers_count_of_returns_does_not_travel(tools: Any) -> None:
    payload = tools.payload("q")
    payload.headers["x-delivery-count"] = 2
    assert message.scan(record(payload))[1] == message.Marks(2, 0, None)
    _, _, header, body = message.split_record(record(payload))
    moved = b"\0\1q" + message.with_headers(header, {message.LOST_HEADER: 2})[4:] + body
    assert message.scan(moved)[1] == message.Marks(0, 2, None)
    given_up = b"\0\1q" + message.with_headers(header, {message.LOST_HEADER: 2, message.SPARED_HEADER: 1})[4:] + body
    assert message.scan(given_up)[1] == message.Marks(0, 2, None, spared=1)


def test_a_header_amqp_cannot_carry_is_refused_by_name(tools: Any) -> None:
    with pytest.raises(PublishRejected, match="my-header"):
        message.pack_header(tools.payload("q", **{"my-header": object()}))
    with pytest.raises(PublishRejected, match="255"):
        message.pack_header(tools.payload("q", properties={"correlation_id": "x" * 256}))


def test_the_exact_time_travels_in_the_eta_or_beside_it(tools: Any) -> None:
    due = 1893456000.25
    for headers, expected in (
        ({"eta": "2030-01-01T00:00:00.250000+00:00"}, None),
        ({"eta": "2030-01-01T00:00:00.250000Z"}, None),
        ({"eta": "2031-01-01T00:00:00+00:00"}, due),
        ({"eta": "nonsense"}, due),
        ({}, due),
        ({"x-death": [{}], "x-first-death-queue": "q", "x-celeriac-due": 1.5}, due),
    ):
        payload = tools.payload("q", **headers)
        header = message.with_due(message.pack_header(payload), due, payload.headers)
        raw = b"\0\1q" + header[4:] + payload.body
        got = message.unpack(raw).headers
        assert got.get("x-celeriac-due") == expected
        assert not message.DEATH_HEADERS & got.keys()
        _, marks = message.scan(raw)
        assert marks is not None
        assert marks.due == due
