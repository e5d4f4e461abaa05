"""What the memory broker promises beyond the contract: one process, and nothing lost in it."""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Iterator

import pytest

from celeriac.exceptions import PublishRejected, TransportLost, TransportUnreachable, Unsupported
from celeriac.spec import QueueSpec, Route, Settlement
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench
from celeriac_broker_memory import celeriac_make_transport, place
from celeriac_broker_memory.transport import MemoryConsumer, MemoryTransport


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def transport(url: str) -> MemoryTransport:
    return MemoryTransport(url)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def consumer(transport: MemoryTransport, bench: Bench) -> Iterator[MemoryConsumer]:
    consumer = transport.consumer([QueueSpec("q")], owner="w@here", poller=bench, window=8)
    yield consumer
    consumer.close()


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_transport("redis://localhost") is None


def test_transports_of_one_url_share_their_messages_and_others_do_not(url: str) -> None:
    MemoryTransport(url).send([make_payload("q")])
    assert MemoryTransport(f"{url}/").depth("q") == 1
    assert MemoryTransport("memory://elsewhere-" + uuid.uuid4().hex).depth("q") == 0


def test_B11_a_consumer_that_nobody_refers_to_any_more_gives_back_what_it_held(
    transport: MemoryTransport, consumer: MemoryConsumer, bench: Bench
) -> None:
    forgotten = transport.consumer([QueueSpec("q")], owner="gone", poller=Bench(), window=8)
    transport.send([make_payload("q"), make_payload("q")])
    assert len(forgotten.receive(2)) == 2
    bench.take_none(consumer, 0.05)
    del forgotten
    gc.collect()
    taken = bench.take(consumer, 2)
    assert [(one.attempt, one.redelivered) for one in taken] == [(2, True), (2, True)]


def test_send_takes_all_messages_or_none(transport: MemoryTransport) -> None:
    transport.declare([QueueSpec("q", "shop", "direct", "known")])
    with pytest.raises(PublishRejected, match=r"'shop'.*'unknown'"):
        transport.send([make_payload("q"), make_payload(route=Route("unknown", "shop"))])
    assert transport.depth("q") == 0


def test_a_fanout_without_listeners_is_no_error(transport: MemoryTransport) -> None:
    transport.send([make_payload(route=Route("", "news", "fanout"))])


def test_a_closed_consumer_says_so(transport: MemoryTransport, consumer: MemoryConsumer) -> None:
    consumer.close()
    with pytest.raises(TransportLost, match="is closed"):
        consumer.receive(1)


def test_results_cannot_ride_along_and_are_not_dropped_in_silence(consumer: MemoryConsumer) -> None:
    with pytest.raises(Unsupported):
        consumer.settle([], joined=object())


def test_the_consumer_asks_to_be_asked_when_the_next_message_is_due(
    transport: MemoryTransport, consumer: MemoryConsumer
) -> None:
    assert consumer.poll_interval_s == 1.0
    due = time.time() + 0.5
    transport.send([make_payload("q", due=due)])
    asked = time.time()
    interval_s = consumer.poll_interval_s
    assert interval_s is not None
    assert max(due - time.time(), 0.0) <= interval_s <= max(due - asked, 0.0)


def test_a_dead_letter_keeps_its_bytes_and_its_story(
    transport: MemoryTransport, consumer: MemoryConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.send([make_payload("q")])
    (delivery,) = consumer.receive(1)
    consumer.settle([Settlement(delivery.tag, "dead", reason="malformed", error="E" * 20_000)])
    (letter,) = transport.browse_dead("q")
    assert (letter.raw, letter.reason, letter.error, letter.attempt) == (delivery.raw, "malformed", "E" * 8192, 1)
    assert place.DEAD_KEPT == 10_000


def test_a_forked_child_is_told_that_its_messages_would_reach_nobody(transport: MemoryTransport, bench: Bench) -> None:
    pid = os.fork()
    if pid == 0:  # pragma: no cover - runs in the child
        try:
            transport.after_fork()
            transport.send([make_payload("q")])
        except TransportUnreachable as exc:
            os._exit(0 if "sqlite:///" in str(exc) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert transport.depth("q") == 0
