"""Frames: however the bytes are cut by the network, the same messages come out; and nonsense ends the link."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.exceptions import TransportLost
from celeriac.spec import QueueSpec
from celeriac_broker_amqp import methods
from celeriac_broker_amqp.consumer import AmqpConsumer, _choose_prefetch
from celeriac_broker_amqp.holding import Terms
from celeriac_broker_amqp.link import Link
from celeriac_broker_amqp.publisher import Publisher


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


class NoPoller:
    def watch(self, fd: int) -> None: ...

    def unwatch(self, fd: int) -> None: ...


def delivery(tag: int, body: bytes, pieces: int = 1) -> bytes:
    method = b"\x00\x3c\x00\x3c" + b"\x03tag" + pack(">QB", tag, 0) + b"\x00\x01q"
    header = b"\x00\x3c\x00\x00" + pack(">QH", len(body), 0)
    size = max(-(-len(body) // pieces), 1)
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return frame(1, 1, method) + frame(2, 1, header) + b"".join(frame(3, 1, part) for part in parts)


def open_link(sock: socket.socket, frame_max: int = 131072) -> Link:
    return Link(sock, frame_max=frame_max, heartbeat_s=0, server={}, where="here", timeout_s=1.0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Link]]:
    ours, theirs = socket.socketpair()
    link = open_link(ours)
    yield theirs, link
    link.drop()
    theirs.close()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=60), st.integers(1, 3), st.booleans()), min_size=1, max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_messages_come_out_whole_however_they_are_cut(messages: list[tuple[bytes, int, bool]], cuts: list[int]) -> None:
    stream = b""
    for tag, (body, pieces, heartbeat) in enumerate(messages, 1):
        stream += delivery(tag, body, pieces) + (methods.HEARTBEAT_FRAME if heartbeat else b"")
    ours, theirs = socket.socketpair()
    link = open_link(ours)
    try:
        pos, turn = 0, 0
        while pos < len(stream):
            size = cuts[turn % len(cuts)]
            theirs.sendall(stream[pos : pos + size])
            pos, turn = pos + size, turn + 1
            link.pump(1.0)
        assert [tag for _, tag, _, _ in link.deliveries] == list(range(1, len(messages) + 1))
        for (body, _, _), (consumer_tag, _, _, record) in zip(messages, link.deliveries, strict=True):
            assert consumer_tag == b"tag"
            assert record == b"\x00\x01q" + pack(">QH", len(body), 0) + body
    finally:
        link.drop()
        theirs.close()


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=400))
def test_nonsense_from_the_other_end_ends_the_link_or_waits_for_more(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    link = open_link(ours)
    try:
        theirs.sendall(data)
        try:
            link.pump(1.0)
        except TransportLost:
            assert link.lost is not None
    finally:
        link.drop()
        theirs.close()


def test_a_frame_larger_than_agreed_is_refused_before_it_is_read(pair: tuple[socket.socket, Link]) -> None:
    theirs, link = pair
    theirs.sendall(pack(">BHI", 3, 1, 2**31) + b"xx")
    with pytest.raises(TransportLost, match="bytes"):
        link.pump(1.0)


def test_a_close_says_why_and_is_answered(pair: tuple[socket.socket, Link]) -> None:
    theirs, link = pair
    theirs.sendall(frame(1, 0, b"\x00\x0a\x00\x32" + pack(">H", 320) + b"\x08CLOSED -" + b"\0\0\0\0"))
    with pytest.raises(TransportLost, match="320 CLOSED"):
        link.pump(1.0)
    assert theirs.recv(100) == frame(1, 0, b"\x00\x0a\x00\x33")
    with pytest.raises(TransportLost, match="320 CLOSED"):
        link.send(b"more")


def test_a_window_without_bounds_asks_for_no_more_than_amqp_has_words_for() -> None:
    assert methods.limit_prefetch(_choose_prefetch(100_000)).endswith(b"\xff\xff\0")


def test_a_consumer_that_is_slow_to_open_has_the_time_of_any_answer(pair: tuple[socket.socket, Link]) -> None:
    theirs, link = pair
    link.timeout_s = 20.0
    for reply in (b"\x00\x14\x00\x0b\0\0\0\0", b"\x00\x3c\x00\x0b", b"\x00\x3c\x00\x15\x01a"):
        theirs.sendall(frame(1, 1, reply))
    consumer = AmqpConsumer(
        link,
        owner="me",
        poller=NoPoller(),
        window=1,
        open_publisher=lambda: Publisher(link, QueueSpec, "quorum"),
        declare=lambda *_: None,
        terms=Terms(0.0),
    )
    consumer.subscribe(QueueSpec("q"))
    consumer.resize(2)

    def answer() -> None:
        time.sleep(2.5)
        for reply in (b"\x00\x3c\x00\x0b", b"\x00\x3c\x00\x15\x01b", b"\x00\x3c\x00\x1f\x01b"):
            theirs.sendall(frame(1, 1, reply))

    broker = threading.Thread(target=answer)
    broker.start()
    try:
        consumer.stop()
        assert link.lost is None
    finally:
        broker.join()


def test_an_answer_that_is_here_counts_however_late_it_is_looked_for(pair: tuple[socket.socket, Link]) -> None:
    theirs, link = pair
    theirs.sendall(frame(1, 1, b"\x00\x14\x00\x0b\0\0\0\0"))
    channel, request = link.open_channel(1), methods.limit_prefetch(1)
    theirs.sendall(frame(1, 1, b"\x00\x3c\x00\x0b"))
    link.call(channel, request, methods.BASIC_QOS_OK, -1.0)  # as if we had been held up for longer than we would wait
    with pytest.raises(TransportLost, match="no answer"):
        link.call(channel, request, methods.BASIC_QOS_OK, -1.0)


def test_a_peer_that_does_not_read_is_given_up_within_the_deadline(pair: tuple[socket.socket, Link]) -> None:
    _, link = pair
    with pytest.raises(TransportLost, match="takes no bytes"):
        link.send(b"x" * 50_000_000)


def test_half_a_heartbeat_is_finished_before_anything_else(pair: tuple[socket.socket, Link]) -> None:
    theirs, link = pair
    link.heartbeat_s = 1.0
    link._last_sent -= 10
    link._unsent = methods.HEARTBEAT_FRAME[3:]
    link.beat()
    link.send(b"after")
    assert theirs.recv(100) == methods.HEARTBEAT_FRAME[3:] + b"after"
