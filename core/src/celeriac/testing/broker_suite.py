"""The conformance suite of brokers: clauses B1 to B31 of `docs/plugins/delivery-contract.md`, as tests.

For a plugin's own tests::

    class TestMyBroker(BrokerConformance):
        plugin = "celeriac_broker_mine"
        abilities = MyTransport.abilities

        @pytest.fixture
        def url(self):
            return "mine://..."  # a place where nobody else's messages are

A test's name begins with its clause. Tests of abilities that the transport does not declare are left out
(`left_out` names them); one test makes sure that the declaration is the transport's own.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import pytest

from celeriac.exceptions import PublishRejected, TransportLost
from celeriac.kernel.shape import find_faults
from celeriac.spec import (
    Consumer,
    DeadLetters,
    Delivery,
    Diagnoses,
    ExchangeSpec,
    Head,
    Malformed,
    Payload,
    QueueSpec,
    Route,
    Settlement,
    Transport,
)
from celeriac.testing.kit import (
    PATIENCE_S,
    RENEW_S,
    AbilityAware,
    Bench,
    ListenerBench,
    eventually,
    make_transport,
    needs,
)

__all__ = ["BrokerConformance", "make_payload"]

#: How often a living worker may give its signs of life too late before its message is taken for lost.
HOLD_TRIES = 5

OpenConsumer = Callable[..., Consumer]
OpenListener = Callable[..., ListenerBench]

#: Takes deliveries and is killed with them. Arguments: plugin, url, settings (a repr), queue, how many.
_VICTIM = """
import os, sys, time
from celeriac.spec import QueueSpec
from celeriac.testing.kit import Bench, make_transport
plugin, url, settings, queue, count = sys.argv[1:]
bench, transport = Bench(), make_transport(plugin, url, eval(settings))
consumer = transport.consumer([QueueSpec(queue)], owner=f"victim-{os.getpid()}", poller=bench, window=1)
taken = bench.take(consumer, int(count))
print("taken", len(taken), flush=True)
time.sleep(600)
"""

MALFORMED = [
    b"",
    b"\x00",
    b"null",
    b"[]",
    b"{}",
    b'{"headers": 1}',
    b'{"headers": {"id": 5, "task": []}}',
    b'{"headers": {}, "properties": [], "body": 1}',
    b'{"body": "!!!", "headers": {}, "properties": {"body_encoding": "base64"}}',
    b'{"body": "", "headers": {}, "properties": {"body_encoding": ["x"]}}',
    b"[" * 100_000,
    b"\xff\xfe" * 100,
]


def make_payload(queue: str = "", body: bytes = b"[[], {}, {}]", **fields: Any) -> Payload:
    """A call to a task `kit.task` in Celery's protocol 2; `headers`, `properties`, `route`, `due` may be given."""
    task_id = str(uuid.uuid4())
    headers = {"lang": "py", "task": "kit.task", "id": task_id, "eta": None, "expires": None, "retries": 0}
    return Payload(
        body,
        fields.get("content_type", "application/json"),
        fields.get("content_encoding", "utf-8"),
        {**headers, **fields.get("headers", {})},
        {"correlation_id": task_id, "delivery_mode": 2, "priority": 0, **fields.get("properties", {})},
        fields.get("route") or Route(queue, queue=queue),
        fields.get("due"),
    )


_ENDINGS: dict[str, Callable[[Any], Settlement]] = {
    "ack": Settlement,
    "requeue": lambda tag: Settlement(tag, "requeue"),
    "lost": lambda tag: Settlement(tag, "requeue", started=True),
    "dead": lambda tag: Settlement(tag, "dead", reason="kit"),
}


class BrokerConformance(AbilityAware):
    """Subclass it in a plugin's tests.

    Attributes:
        settings: For the plugin's hook.
        urgent_first: Priorities in the order in which the broker serves them, (9, 0) or (0, 9); None: either is right.
        keeps_place: A message given back comes before those behind it (B20); False where the store cannot do that.
        recovery_s: How soon a killed worker's messages come back (B11): at first a lease and 5 s, which all must keep.
            Say less where you promise less.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    urgent_first: tuple[int, int] | None = None
    keeps_place: bool = True
    recovery_s: float = 20.0

    # -- fixtures -----------------------------------------------------------------------------------------

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError("say where the broker under test is: a fixture `url`")

    @pytest.fixture
    def transport(self, url: str) -> Iterator[Transport]:
        transport = make_transport(self.plugin, url, self.settings)
        yield transport
        transport.close()

    @pytest.fixture
    def queue(self, transport: Transport) -> Iterator[str]:
        name = f"kit-{uuid.uuid4().hex[:12]}"
        transport.declare([QueueSpec(name)])
        yield name
        transport.delete(name)

    @pytest.fixture
    def bench(self) -> Bench:
        return Bench()

    @pytest.fixture
    def open_listener(self, transport: Any) -> Iterator[OpenListener]:
        """Opens listeners: `open_listener(exchange, key="")`; they are closed after the test."""
        opened: list[ListenerBench] = []

        def open_one(exchange: ExchangeSpec, key: str = "") -> ListenerBench:
            name = f"kit-{uuid.uuid4().hex[:12]}"
            queue = QueueSpec(name, exchange.name, exchange.type, key, durable=False, auto_delete=True, exclusive=True)
            opened.append(ListenerBench(transport, exchange, queue))
            return opened[-1]

        yield open_one
        for ear in opened:
            ear.close()

    @pytest.fixture
    def open_consumer(self, transport: Transport, bench: Bench) -> Iterator[OpenConsumer]:
        """Opens consumers: `open_consumer(queue, …, poller=bench, window=64)`; they are closed after the test."""
        opened: list[Consumer] = []

        def open_one(*queues: str, poller: Bench = bench, window: int = 64) -> Consumer:
            owner = f"kit-{len(opened)}@here-{uuid.uuid4().hex[:8]}"
            specs = [QueueSpec(name) for name in queues]
            opened.append(transport.consumer(specs, owner=owner, poller=poller, window=window))
            return opened[-1]

        yield open_one
        for consumer in opened:
            consumer.close()

    # -- publishing ---------------------------------------------------------------------------------------

    def test_it_has_the_abilities_it_was_said_to_have(self, transport: Transport) -> None:
        assert transport.abilities == self.abilities

    def test_its_consumers_have_every_member_of_their_contract(self, queue: str, open_consumer: OpenConsumer) -> None:
        assert find_faults("consumer", open_consumer(queue)) == []

    def test_S3_what_was_sent_is_received_byte_for_byte(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        sent = make_payload(
            queue,
            bytes(range(256)),
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={
                "note": "grün \N{SNOWMAN} \x00 \"'",
                "nested": {"a": [1, 2.5, None, True]},
                "x-celeriac-claim": "token group",
            },
            properties={"reply_to": "me"},
        )
        transport.send([sent])
        (delivery,) = bench.take(open_consumer(queue), 1)
        head = delivery.head
        assert isinstance(head, Head)
        assert (head.id, head.task, head.claim) == (sent.headers["id"], "kit.task", "token group")
        assert delivery.queue == queue
        assert (delivery.attempt, delivery.redelivered) == (1, False)
        got = transport.unpack(delivery.raw)
        assert (got.body, got.content_type, got.content_encoding) == (sent.body, sent.content_type, "binary")
        assert {key: got.headers.get(key) for key in sent.headers} == sent.headers
        assert {key: got.properties.get(key) for key in sent.properties} == sent.properties

    def test_S3_a_message_of_five_megabytes_arrives_whole(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        body = os.urandom(5 * 1024 * 1024)
        transport.send([make_payload(queue, body)])
        (delivery,) = bench.take(open_consumer(queue), 1)
        assert transport.unpack(delivery.raw).body == body

    @needs("depth")
    def test_B01_what_send_returned_for_is_in_the_broker(self, transport: Transport, queue: str) -> None:
        transport.send([make_payload(queue) for _ in range(300)])
        assert transport.depth(queue) == 300

    @needs("shared")
    def test_B01_another_transport_has_it_after_the_sender_closed(
        self, url: str, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        sender = make_transport(self.plugin, url, self.settings)
        sender.send([make_payload(queue)])
        sender.close()
        assert len(bench.take(open_consumer(queue), 1)) == 1

    def test_B03_a_message_that_no_queue_is_bound_for_is_refused(self, transport: Transport, queue: str) -> None:
        exchange = f"kit-{uuid.uuid4().hex[:8]}"
        transport.declare([QueueSpec(queue, exchange, "direct", "bound")])
        lost = make_payload(route=Route("unbound", exchange, "direct"))
        with pytest.raises(PublishRejected):
            transport.send([lost])

    def test_B05_senders_in_many_threads_lose_nothing(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        def send() -> None:
            for _ in range(10):
                transport.send([make_payload(queue) for _ in range(5)])

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = bench.take(open_consumer(queue, window=256), 200)
        assert len({_id(delivery) for delivery in taken}) == 200

    def test_messages_of_one_sender_keep_their_order(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        sent = [make_payload(queue) for _ in range(40)]
        transport.send(sent[:30])
        for payload in sent[30:]:
            transport.send([payload])
        consumer = open_consumer(queue, window=1)
        got: list[str] = []
        while len(got) < 40:
            deliveries = bench.take(consumer, 1)
            got += [_id(delivery) for delivery in deliveries]
            consumer.settle([Settlement(delivery.tag) for delivery in deliveries])
        assert got == [payload.headers["id"] for payload in sent]

    def test_a_topic_exchange_feeds_the_queues_whose_patterns_match(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        exchange, other = f"kit-{uuid.uuid4().hex[:8]}", f"{queue}-b"
        transport.declare(
            [QueueSpec(queue, exchange, "topic", "sport.#"), QueueSpec(other, exchange, "topic", "*.news")]
        )
        try:
            for key in ("sport.news", "sport.live.ski", "city.news"):
                transport.send([make_payload(body=key.encode(), route=Route(key, exchange, "topic"))])
            sport = bench.take(open_consumer(queue), 2)
            news = bench.take(open_consumer(other), 2)
            assert {transport.unpack(one.raw).body for one in sport} == {b"sport.news", b"sport.live.ski"}
            assert {transport.unpack(one.raw).body for one in news} == {b"sport.news", b"city.news"}
        finally:
            transport.delete(other)

    # -- acquiring ----------------------------------------------------------------------------------------

    def test_B07_what_one_consumer_has_no_other_gets(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue)])
        first = open_consumer(queue)
        assert len(bench.take(first, 1)) == 1
        other = Bench()
        other.take_none(open_consumer(queue, poller=other))

    def test_B08_two_consumers_share_a_queue_without_overlap(
        self, transport: Transport, queue: str, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(60)])
        benches = Bench(), Bench()
        consumers = [open_consumer(queue, poller=bench, window=4) for bench in benches]
        seen: list[str] = []
        deadline = time.monotonic() + Bench.patience_s
        while len(seen) < 60 and time.monotonic() < deadline:
            for bench, consumer in zip(benches, consumers, strict=True):
                taken = bench.take(consumer, 4, 0.02)
                seen += [_id(delivery) for delivery in taken]
                consumer.settle([Settlement(delivery.tag) for delivery in taken])
        assert len(seen) == len(set(seen)) == 60

    def test_B15_receive_gives_no_more_than_was_asked_for(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(20)])
        consumer = open_consumer(queue)
        assert consumer.receive(0) == []
        assert len(bench.take(consumer, 3)) == 3
        consumer.resize(128)
        assert len(bench.take(consumer, 17)) == 17
        assert consumer.receive(0) == []

    def test_B16_a_full_queue_does_not_starve_another(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        other = f"{queue}-b"
        transport.declare([QueueSpec(other)])
        try:
            transport.send([make_payload(queue) for _ in range(200)])
            transport.send([make_payload(other)])
            consumer = open_consumer(queue, other, window=5)
            for _ in range(30):
                taken = bench.take(consumer, 5)
                if any(delivery.queue == other for delivery in taken):
                    return
                consumer.settle([Settlement(delivery.tag) for delivery in taken])
            pytest.fail("150 messages of the full queue came, and the other queue's one did not")
        finally:
            transport.delete(other)

    @needs("priority")
    def test_B16_the_urgent_come_first(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        queue = f"{queue}-p"
        transport.declare([QueueSpec(queue, arguments={"x-max-priority": 9})])
        try:
            for priority in (0, 9, 0, 9):
                transport.send([make_payload(queue, properties={"priority": priority})])
            spec = QueueSpec(queue, arguments={"x-max-priority": 9})
            consumer = transport.consumer([spec], owner="kit-p@here", poller=bench, window=4)
            got = [transport.unpack(one.raw).properties["priority"] for one in bench.take(consumer, 4)]
            consumer.close()
            orders = [self.urgent_first] if self.urgent_first else [(9, 0), (0, 9)]
            assert got in [[urgent, urgent, patient, patient] for urgent, patient in orders]
        finally:
            transport.delete(queue)

    def test_B17_a_message_wakes_an_idle_consumer(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        consumer = open_consumer(queue)
        bench.take_none(consumer)
        waits: list[float] = []
        while len([wait for wait in waits if wait < 1.5]) < 3:  # on a busy machine some come late
            assert len(waits) < 15, f"most of the messages came late: {waits}"
            assert len(waits) < 5 or min(waits) < 1.5, f"all of the messages came late: {waits}"
            timer = threading.Timer(0.1, transport.send, ([make_payload(queue)],))
            timer.start()
            started = time.monotonic()
            (delivery,) = bench.take(consumer, 1)
            waits.append(time.monotonic() - started)
            timer.join()
            consumer.settle([Settlement(delivery.tag)])

    def test_queues_may_be_added_and_dropped_while_consuming(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        other = f"{queue}-b"
        consumer = open_consumer(queue)
        try:
            consumer.subscribe(QueueSpec(other))
            transport.send([make_payload(other)])
            (delivery,) = bench.take(consumer, 1)
            assert delivery.queue == other
            consumer.unsubscribe(other)
            consumer.settle([Settlement(delivery.tag)])
            transport.send([make_payload(other)])
            bench.take_none(consumer)
            transport.send([make_payload(queue)])
            assert [one.queue for one in bench.take(consumer, 1)] == [queue]
        finally:
            transport.delete(other)

    # -- leases -------------------------------------------------------------------------------------------

    @needs("lease", "shared")
    def test_B11_B13_a_killed_worker_s_message_comes_back_flagged(
        self, url: str, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue)])
        consumer = open_consumer(queue, window=1)
        consumer.stop()  # the victim is to have it, but somebody is there who can see it die
        consumer.close()
        with self._victim(url, queue, 1) as victim:
            consumer = open_consumer(queue)
            bench.take_none(consumer)
            killed = time.monotonic()
            victim.send_signal(signal.SIGKILL)
            (delivery,) = bench.take(consumer, 1, self.recovery_s + 1)
            assert time.monotonic() - killed < self.recovery_s
        assert delivery.redelivered
        if "attempts" in self.abilities:
            assert delivery.attempt == 2

    @needs("lease", "shared")
    def test_B11_of_several_dead_workers_each_is_found_among_the_living(
        self, url: str, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        elsewhere = f"{queue}-elsewhere"
        transport.declare([QueueSpec(elsewhere)])
        open_consumer(elsewhere, poller=Bench())  # lives, and was there first
        with self._victim(url, elsewhere, 0) as idle, ExitStack() as stack:
            victims = [idle]
            for _ in range(2):
                transport.send([make_payload(queue)])
                victims.append(stack.enter_context(self._victim(url, queue, 1)))
            open_consumer(elsewhere, poller=Bench())
            consumer = open_consumer(queue)
            bench.take_none(consumer)
            for victim in victims:
                victim.kill()
            deliveries = bench.take(consumer, 2, self.recovery_s + 1)
        flags = [delivery.redelivered for delivery in deliveries]
        assert flags == [True, True], f"of two messages of dead workers came back: {flags}"
        transport.delete(elsewhere)

    @contextmanager
    def _victim(self, url: str, queue: str, count: int) -> Iterator[subprocess.Popen[str]]:
        """A process that has taken so many messages; whether it was killed or not, it is gone at the end."""
        words = [self.plugin, url, repr(dict(self.settings)), queue, str(count)]
        victim = subprocess.Popen([sys.executable, "-c", _VICTIM, *words], stdout=subprocess.PIPE, text=True)
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == f"taken {count}\n"
            yield victim
        finally:
            victim.kill()
            victim.communicate()

    def test_B12_a_living_worker_keeps_what_it_has(
        self, transport: Transport, queue: str, open_consumer: OpenConsumer
    ) -> None:
        rounds = 9 if "lease" in self.abilities else 2  # however long its task runs
        self._hold(transport, queue, open_consumer, rounds, lambda holder: holder.renew)

    @needs("lease", "shared")
    def test_B9_what_stands_in_for_a_worker_keeps_its_lease(
        self, transport: Transport, queue: str, open_consumer: OpenConsumer
    ) -> None:
        def stand_in(holder: Any) -> Callable[[], Any]:
            if not hasattr(holder, "stand_in"):
                pytest.skip("this consumer's lease is not kept by another process")
            where, words = json.loads(json.dumps(holder.stand_in()))
            module, _, name = where.partition(":")
            renew: Callable[[], Any] = getattr(importlib.import_module(module), name)(**words).renew
            return renew

        self._hold(transport, queue, open_consumer, 9, stand_in)

    @staticmethod
    def _hold(
        transport: Transport,
        queue: str,
        open_consumer: OpenConsumer,
        rounds: int,
        signs_of: Callable[[Consumer], Callable[[], Any]],
    ) -> None:
        """Hold a message by signs of life while a rival wants it. Whoever gave them too late, on a machine that is busy
        with other things, has lost it rightly, and tries again."""
        transport.send([make_payload(queue)])
        for tries_left in reversed(range(HOLD_TRIES)):
            pace, bench, other = _Pace(), Bench(), Bench()
            holder = open_consumer(queue, poller=bench)
            (delivery,) = bench.take(holder, 1)
            rival, renew = open_consumer(queue, poller=other), signs_of(holder)
            try:
                for _ in range(rounds):
                    lost = pace.give(renew) or []
                    assert lost == []
                    other.take_none(rival, 0.3)
                assert pace.give(holder.renew) == []
                holder.settle([Settlement(delivery.tag)])
                holder.flush(PATIENCE_S)
                other.take_none(rival)
                return
            except (AssertionError, TransportLost):
                if pace.was_kept() or not tries_left:
                    raise
            rival.close()
            holder.close()

    @needs("attempts")
    def test_B13_a_message_lost_after_its_start_is_counted_and_flagged(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue)])
        consumer = open_consumer(queue)
        for attempt in (1, 2, 3):
            (delivery,) = bench.take(consumer, 1)
            assert (delivery.attempt, delivery.redelivered) == (attempt, attempt > 1)
            consumer.settle([Settlement(delivery.tag, "requeue", started=True)])

    def test_B13_a_clean_return_is_neither_counted_nor_flagged(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue)])
        consumer = open_consumer(queue)
        for _ in range(3):
            (delivery,) = bench.take(consumer, 1)
            if "attempts" in self.abilities:
                assert (delivery.attempt, delivery.redelivered) == (1, False)
            consumer.settle([Settlement(delivery.tag, "requeue")])

    @needs("spares")
    def test_B14_an_attempt_given_up_on_purpose_is_flagged_and_is_no_crash(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue)])
        consumer = open_consumer(queue)

        def came(attempt: int, spared: int) -> Delivery:
            (delivery,) = bench.take(consumer, 1)
            assert (delivery.attempt, delivery.redelivered, delivery.spared) == (attempt, attempt > 1, spared)
            return delivery

        consumer.settle([Settlement(came(1, 0).tag, "requeue", started=True, spared=True)])
        consumer.settle([Settlement(came(2, 1).tag, "requeue", started=True)])
        consumer.settle([Settlement(came(3, 1).tag, "requeue")])
        due = time.time() + 0.2 if "delay" in self.abilities else None
        consumer.settle([Settlement(came(3, 1).tag, "requeue", due=due, started=True, spared=True)])
        consumer.settle([Settlement(came(4, 2).tag)])
        consumer.flush(PATIENCE_S)
        bench.take_none(consumer)

    # -- finishing ----------------------------------------------------------------------------------------

    def test_B18_an_acknowledged_message_never_comes_back(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(3)])
        consumer = open_consumer(queue)
        taken = bench.take(consumer, 3)
        consumer.settle([Settlement(delivery.tag) for delivery in taken])
        consumer.flush(PATIENCE_S)
        consumer.close()
        bench.take_none(open_consumer(queue))

    def test_B18_acknowledging_twice_or_what_one_never_had_changes_nothing(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue), make_payload(queue)])
        consumer = open_consumer(queue, window=1)
        (first,) = bench.take(consumer, 1)
        consumer.settle([Settlement(first.tag)])
        consumer.settle([Settlement(first.tag), Settlement(first.tag, "requeue", started=True)])
        consumer.flush(PATIENCE_S)
        (second,) = bench.take(consumer, 1)
        assert _id(second) != _id(first)
        consumer.settle([Settlement(second.tag)])
        bench.take_none(consumer)

    def test_B20_a_message_given_back_comes_before_those_behind_it(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(3)])
        consumer = open_consumer(queue, window=1)
        (first,) = bench.take(consumer, 1)
        consumer.settle([Settlement(first.tag, "requeue")])
        order = []
        for _ in range(3):
            (delivery,) = bench.take(consumer, 1)
            order.append(_id(delivery))
            consumer.settle([Settlement(delivery.tag)])
        assert _id(first) in order
        assert not self.keeps_place or order[0] == _id(first)

    @needs("dead_letter")
    def test_B21_a_dead_message_is_never_delivered_again(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue), make_payload(queue)])
        consumer = open_consumer(queue, window=1)
        (dead,) = bench.take(consumer, 1)
        consumer.settle([Settlement(dead.tag, "dead", reason="malformed: \udcff", error="\udcff" + "x" * 20_000)])
        (alive,) = bench.take(consumer, 1)
        assert _id(alive) != _id(dead)
        consumer.settle([Settlement(alive.tag)])
        consumer.flush(PATIENCE_S)
        consumer.close()
        bench.take_none(open_consumer(queue))

    @needs("dead_letter", "browse_dead")
    def test_B21_what_was_set_aside_is_shown_whole_and_page_by_page(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        sent = [make_payload(queue, bytes(range(256)), headers={"note": "grün"}) for _ in range(5)]
        transport.send(sent)
        consumer = open_consumer(queue)
        before = time.time()
        for delivery in bench.take(consumer, 5):
            consumer.settle([Settlement(delivery.tag, "dead", reason="kit", error="é" * 20_000)])
        consumer.flush(PATIENCE_S)
        box = self._box(transport, queue)
        eventually(lambda: box.dead_boxes([queue])[0].count == 5)
        assert [letter.reason for letter in box.browse_dead(queue)] == ["kit"] * 5
        pages = [box.browse_dead(queue, limit=2)]
        while pages[-1]:
            pages.append(box.browse_dead(queue, after=pages[-1][-1].id, limit=2))
        letters = [letter for page in pages for letter in page]
        assert [len(page) for page in pages] == [2, 2, 1, 0]
        assert len({letter.id for letter in letters}) == 5
        for letter, payload in zip(letters, sent, strict=True):
            head, got = transport.read_head(letter.raw), transport.unpack(letter.raw)
            assert isinstance(head, Head)
            assert head.id == payload.headers["id"]
            assert got.body == payload.body
            assert {key: got.headers.get(key) for key in payload.headers} == payload.headers
            assert not [key for key in got.headers if key.startswith("x-celeriac")]
            assert (letter.queue, letter.attempt) == (queue, 1)
            assert letter.owner.startswith("kit-0@here")
            assert 4000 < len(letter.error) <= 8192
            assert not letter.error.strip("é\ufffd")
            assert before - 5 < letter.at < time.time() + 5
        assert transport.browse_dead("kit-nobody") == []  # type: ignore[attr-defined]

    @needs("dead_letter", "browse_dead")
    def test_B21_a_dead_message_given_back_begins_anew(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue, bytes(range(256)))])
        consumer = open_consumer(queue)
        for spared in (False, True):
            (delivery,) = bench.take(consumer, 1)
            consumer.settle([Settlement(delivery.tag, "requeue", started=True, spared=spared)])
        (delivery,) = bench.take(consumer, 1)
        first = delivery.head
        consumer.settle([Settlement(delivery.tag, "dead", reason="kit")])
        consumer.flush(PATIENCE_S)
        box = self._box(transport, queue)
        eventually(lambda: box.dead_boxes([queue])[0].count == 1)
        (letter,) = box.browse_dead(queue)
        if "attempts" in self.abilities:
            assert letter.attempt == 3
        assert box.requeue_dead(queue, [letter.id, "gone", "12-3"]) == 1
        (delivery,) = bench.take(consumer, 1)
        assert delivery.head == first
        assert (delivery.attempt, delivery.redelivered, delivery.spared) == (1, False, 0)
        assert transport.unpack(delivery.raw).body == bytes(range(256))
        assert box.requeue_dead(queue, [letter.id]) == 0
        assert box.browse_dead(queue) == []
        consumer.settle([Settlement(delivery.tag)])
        consumer.flush(PATIENCE_S)
        bench.take_none(consumer)

    @needs("dead_letter", "browse_dead")
    def test_B21_a_dead_message_can_be_dropped_and_the_others_stay(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(3)])
        consumer = open_consumer(queue)
        for delivery in bench.take(consumer, 3):
            consumer.settle([Settlement(delivery.tag, "dead", reason="kit")])
        consumer.flush(PATIENCE_S)
        box = self._box(transport, queue)
        eventually(lambda: box.dead_boxes([queue])[0].count == 3)
        first, second, third = [letter.id for letter in box.browse_dead(queue)]
        assert box.drop_dead(queue, [second, second, "gone"]) == 1
        assert [letter.id for letter in box.browse_dead(queue)] == [first, third]
        eventually(lambda: queue in [found.queue for found in box.dead_boxes([queue]) if found.count == 2])
        bench.take_none(consumer)

    @staticmethod
    def _box(transport: Transport, queue: str) -> DeadLetters:
        box: DeadLetters = transport  # type: ignore[assignment]
        assert [(found.queue, found.count) for found in box.dead_boxes([queue]) if found.queue == queue] in (
            [(queue, number)] for number in range(10)
        )
        return box

    def test_R12_what_follows_is_sent_with_the_settlement(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue)])
        consumer = open_consumer(queue)
        seen = []
        for step in range(5):
            (delivery,) = bench.take(consumer, 1)
            seen.append(_id(delivery))
            follow = [make_payload(queue)] if step < 4 else []
            consumer.settle([Settlement(delivery.tag)], publish=follow)
        consumer.flush(PATIENCE_S)
        bench.take_none(consumer)
        assert len(set(seen)) == 5

    def test_B03_what_follows_and_has_nowhere_to_go_costs_neither_the_consumer_nor_others(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        exchange = f"kit-{uuid.uuid4().hex[:8]}"
        transport.declare([QueueSpec(queue, exchange, "direct", "bound")])
        transport.send([make_payload(queue) for _ in range(2)])
        consumer = open_consumer(queue, window=2)
        first, second = bench.take(consumer, 2)
        lost, late = make_payload(route=Route("unbound", exchange, "direct")), True
        try:
            consumer.settle([Settlement(first.tag)], publish=[lost])
        except PublishRejected:  # else the consumer sees to that message by itself, and tells of it
            late = False
        consumer.settle([Settlement(first.tag), Settlement(second.tag)])
        consumer.flush(PATIENCE_S)
        if late and hasattr(consumer, "unsent"):
            ((told, why),) = consumer.unsent()
            assert (told.headers["id"], bool(why), consumer.unsent()) == (lost.headers["id"], True, [])
        transport.send([make_payload(queue)])
        (other,) = bench.take(consumer, 1)
        assert not other.redelivered
        consumer.settle([Settlement(other.tag)])
        consumer.flush(PATIENCE_S)
        consumer.close()
        bench.take_none(open_consumer(queue))

    def test_B29_stop_takes_no_more_and_settle_still_works(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(10)])
        consumer = open_consumer(queue, window=4)
        (held,) = bench.take(consumer, 1)
        consumer.stop()
        bench.take_none(consumer)
        consumer.settle([Settlement(held.tag)])
        consumer.flush(PATIENCE_S)
        other = Bench()
        taken = other.take(open_consumer(queue, poller=other), 9)
        assert len(taken) == 9
        assert all((delivery.attempt, delivery.redelivered) == (1, False) for delivery in taken)

    def test_B29_close_gives_back_and_may_be_called_twice(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(5)])
        consumer = open_consumer(queue)
        assert len(bench.take(consumer, 5)) == 5
        started = time.monotonic()
        consumer.close()
        consumer.close()
        assert time.monotonic() - started < 20
        other = Bench()
        assert len(other.take(open_consumer(queue, poller=other), 5)) == 5

    @pytest.mark.parametrize("seed", range(3))
    def test_S1_S2_whatever_is_done_nothing_vanishes_and_nothing_doubles(
        self, seed: int, transport: Transport, queue: str, open_consumer: OpenConsumer
    ) -> None:
        dice = random.Random(seed)  # so that a failure can be repeated
        benches = [Bench(), Bench()]
        consumers = [open_consumer(queue, poller=bench, window=8) for bench in benches]
        held: list[dict[Any, str]] = [{}, {}]
        sent: set[str] = set()
        ended: set[str] = set()
        endings = ["ack", "ack", "requeue", "lost", *(["dead"] if "dead_letter" in self.abilities else [])]
        for _ in range(80):
            which = dice.randrange(2)
            action = dice.choice(["send", "receive", "receive", "settle", "settle", "reopen"])
            if action == "send":
                batch = [make_payload(queue) for _ in range(dice.randrange(1, 6))]
                transport.send(batch)
                sent |= {payload.headers["id"] for payload in batch}
            elif action == "receive":
                for delivery in benches[which].take(consumers[which], dice.randrange(1, 5), 0.02):
                    assert _id(delivery) not in ended, "a message that had ended came again"
                    assert _id(delivery) not in {*held[0].values(), *held[1].values()}, "a message has two holders"
                    held[which][delivery.tag] = _id(delivery)
            elif action == "settle" and held[which]:
                settlements = []
                for tag in dice.sample(sorted(held[which], key=str), dice.randrange(1, len(held[which]) + 1)):
                    verb, task_id = dice.choice(endings), held[which].pop(tag)
                    if verb in ("ack", "dead"):
                        ended.add(task_id)
                    settlements.append(_ENDINGS[verb](tag))
                follow = [make_payload(queue)] if dice.random() < 0.3 else []
                sent |= {payload.headers["id"] for payload in follow}
                consumers[which].settle(settlements, publish=follow)
                if dice.random() < 0.5:
                    consumers[which].flush(PATIENCE_S)
            elif action == "reopen" and dice.random() < 0.3:
                consumers[which].close()
                benches[which] = Bench()
                consumers[which] = open_consumer(queue, poller=benches[which], window=8)
                held[which] = {}
        for consumer in consumers:
            consumer.close()
        left = sent - ended
        bench = Bench()
        last = open_consumer(queue, poller=bench, window=256)
        assert sorted(_id(delivery) for delivery in bench.take(last, len(left))) == sorted(left)
        bench.take_none(last)

    # -- once ---------------------------------------------------------------------------------------------

    @needs("once")
    def test_B32_a_message_sent_once_is_taken_one_time_whoever_sends_it(
        self, transport: Any, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        key, message = uuid.uuid4().hex, make_payload(queue)
        barrier, answers = threading.Barrier(4), []

        def send() -> None:
            barrier.wait()
            answers.append(transport.send_once([message], key=key, keep_s=60.0))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [False, False, False, True]
        assert transport.send_once([make_payload(queue)], key=uuid.uuid4().hex, keep_s=60.0)
        consumer = open_consumer(queue)
        found = bench.take(consumer, 2)
        bench.take_none(consumer)
        assert message.headers["id"] in [_id(delivery) for delivery in found]
        consumer.settle([Settlement(delivery.tag) for delivery in found])
        assert not transport.send_once([message], key=key, keep_s=60.0)

    @needs("once")
    def test_B32_a_key_is_forgotten_in_time(self, transport: Any, queue: str) -> None:
        key = uuid.uuid4().hex
        assert transport.send_once([make_payload(queue)], key=key, keep_s=0.2)
        deadline = time.monotonic() + 30
        while not transport.send_once([make_payload(queue)], key=key, keep_s=0.2):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    # -- delay --------------------------------------------------------------------------------------------

    @needs("delay")
    def test_B24_a_delayed_message_comes_on_time_and_never_early(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        consumer = open_consumer(queue)
        bench.take_none(consumer)

        def delay() -> float:
            due = time.time() + 1.2
            transport.send([make_payload(queue, due=due)], timeout_s=PATIENCE_S)
            (delivery,) = bench.take(consumer, 1)
            late = time.time() - due
            assert (delivery.attempt, delivery.redelivered) == (1, False)
            consumer.settle([Settlement(delivery.tag)])
            return late

        self._assert_punctual(delay)

    @needs("delay", "depth")
    def test_B23_what_waits_for_its_time_is_not_counted_and_can_be_purged(
        self, transport: Transport, queue: str, open_consumer: OpenConsumer
    ) -> None:
        open_consumer(queue).close()  # a queue that was never served may be read by programs that know of no delays
        later = make_payload(queue, due=time.time() + 3600)
        transport.send([make_payload(queue), later], timeout_s=PATIENCE_S)
        eventually(lambda: transport.depth(queue) == 1)

    @needs("delay")
    def test_B23_what_was_due_already_comes_at_once(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue, due=time.time() - 60)])
        assert len(bench.take(open_consumer(queue), 1)) == 1

    @needs("delay")
    def test_B24_what_was_sent_and_fell_due_earlier_is_served_earlier(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        now = time.time()
        early = [make_payload(queue, due=now + 0.6) for _ in range(20)]
        late = [make_payload(queue, due=now + 1.8) for _ in range(20)]
        transport.send([*early, *late], timeout_s=PATIENCE_S)
        consumer = open_consumer(queue)
        taken = bench.take(consumer, 5)
        time.sleep(max(0.0, now + 3.0 - time.time()))  # a backlog: the others fall due while nobody asks
        taken += bench.take(consumer, 35)
        ids = [payload.headers["id"] for payload in early]
        assert sorted(transport.unpack(delivery.raw).headers["id"] for delivery in taken[:20]) == sorted(ids)

    @needs("delay")
    def test_B24_a_message_returned_until_later_comes_later(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue)])
        consumer = open_consumer(queue)
        (delivery,) = bench.take(consumer, 1)

        def give_back() -> float:
            nonlocal delivery
            due = time.time() + 1.1
            consumer.settle([Settlement(delivery.tag, "requeue", due=due)])
            (delivery,) = bench.take(consumer, 1)
            late = time.time() - due
            if "attempts" in self.abilities:
                assert (delivery.attempt, delivery.redelivered) == (1, False)
            return late

        self._assert_punctual(give_back)

    @staticmethod
    def _assert_punctual(lateness: Callable[[], float]) -> None:
        """It is never early, and seldom late: of three tries on a busy machine not each."""
        late: list[float] = []
        while not late or (late[-1] > 1.5 and len(late) < 3):
            late.append(lateness())
            assert late[-1] >= -0.001, "it came early"
        assert late[-1] <= 1.5, f"it came late each time: {late}"

    # -- faults -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:24]))
    def test_B26_any_bytes_give_a_value_and_no_surprise(self, transport: Transport, raw: bytes) -> None:
        head = transport.read_head(raw)
        assert isinstance(head, (Head, Malformed))
        try:
            payload = transport.unpack(raw)
        except ValueError:
            return
        assert isinstance(payload, Payload)

    @needs("shared")
    def test_B28_a_forked_child_speaks_for_itself(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        consumer = open_consumer(queue)
        transport.send([make_payload(queue)])
        pid = os.fork()
        if pid == 0:  # pragma: no cover - runs in the child
            code = 1
            try:
                transport.after_fork()
                transport.send([make_payload(queue) for _ in range(3)])
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        transport.send([make_payload(queue)])
        taken = bench.take(consumer, 5)
        assert len({_id(delivery) for delivery in taken}) == 5
        assert consumer.renew() == []

    # -- broadcasts ---------------------------------------------------------------------------------------

    @needs("fanout")
    def test_B31_a_broadcast_reaches_every_listener_and_none_that_comes_later(
        self, transport: Any, open_listener: OpenListener
    ) -> None:
        exchange = _fanout_exchange()
        transport.broadcast(exchange, [_broadcast(exchange, b"[0]")])  # nobody listens, which is no error
        ears = [open_listener(exchange) for _ in range(3)]
        transport.broadcast(exchange, [_broadcast(exchange, b"[%d]" % number) for number in (1, 2, 3)])
        for ear in ears:
            assert [transport.unpack(raw).body for raw in ear.take(3)] == [b"[1]", b"[2]", b"[3]"]
        late = open_listener(exchange)
        transport.broadcast(exchange, [_broadcast(exchange, b"[4]")])
        assert [transport.unpack(raw).body for raw in late.take(1)] == [b"[4]"]

    @needs("fanout")
    def test_B31_a_broadcast_arrives_with_its_headers(self, transport: Any, open_listener: OpenListener) -> None:
        exchange = _fanout_exchange()
        ear = open_listener(exchange)
        sent = _broadcast(exchange, b'{"method": "ping"}', headers={"clock": 7, "expires": 0})
        transport.broadcast(exchange, [sent])
        (raw,) = ear.take(1)
        got = transport.unpack(raw)
        assert (got.body, got.content_type, got.headers["clock"]) == (sent.body, sent.content_type, 7)

    @needs("fanout")
    def test_B31_a_listener_hears_only_the_topics_that_it_wants(
        self, transport: Any, open_listener: OpenListener
    ) -> None:
        exchange = ExchangeSpec(f"kit-{uuid.uuid4().hex[:12]}", "topic", durable=True)
        all_of_it, workers = open_listener(exchange, "#"), open_listener(exchange, "worker.#")
        for key in ("task.multi", "worker.heartbeat", "worker.online"):
            transport.broadcast(exchange, [_broadcast(exchange, key.encode(), key=key)])
        assert [transport.unpack(raw).body for raw in all_of_it.take(3)] == [
            b"task.multi", b"worker.heartbeat", b"worker.online",
        ]  # fmt: skip
        assert [transport.unpack(raw).body for raw in workers.take(2)] == [b"worker.heartbeat", b"worker.online"]

    @needs("fanout")
    def test_B31_a_reply_reaches_the_one_who_asked(self, transport: Any, open_listener: OpenListener) -> None:
        exchange = ExchangeSpec(f"kit-{uuid.uuid4().hex[:12]}", "direct")
        one, other = open_listener(exchange, "one"), open_listener(exchange, "other")
        transport.broadcast(exchange, [_broadcast(exchange, b"[%d]" % number, key="one") for number in (1, 2)])
        transport.broadcast(exchange, [_broadcast(exchange, b"[3]", key="nobody")])
        transport.broadcast(exchange, [_broadcast(exchange, b"[4]", key="other")])
        assert [transport.unpack(raw).body for raw in one.take(2)] == [b"[1]", b"[2]"]
        assert [transport.unpack(raw).body for raw in other.take(1)] == [b"[4]"]

    @needs("fanout")
    def test_B31_a_listener_that_does_not_read_holds_up_nobody(
        self,
        transport: Any,
        queue: str,
        bench: Bench,
        open_consumer: OpenConsumer,
        open_listener: OpenListener,
    ) -> None:
        exchange = _fanout_exchange()
        open_listener(exchange)
        consumer = open_consumer(queue)
        for _ in range(120):
            transport.broadcast(exchange, [_broadcast(exchange, b"[0]") for _ in range(100)])
        transport.send([make_payload(queue)])
        (delivery,) = bench.take(consumer, 1)
        consumer.settle([Settlement(delivery.tag)])
        consumer.flush(PATIENCE_S)

    @needs("fanout")
    def test_B31_a_closed_listener_says_so(self, transport: Any, open_listener: OpenListener) -> None:
        ear = open_listener(_fanout_exchange())
        ear.close()
        ear.close()
        with pytest.raises(TransportLost):
            ear.listener.receive(1)

    # -- queues -------------------------------------------------------------------------------------------

    @needs("purge")
    def test_purge_drops_what_waits_and_says_how_much(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(25)])
        assert transport.purge(queue) == 25
        assert transport.purge(queue) == 0
        assert transport.purge(f"{queue}-unknown") == 0
        transport.send([make_payload(queue)])
        assert len(bench.take(open_consumer(queue), 1)) == 1

    def test_delete_removes_the_messages_and_is_harmless_for_unknown_queues(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: OpenConsumer
    ) -> None:
        transport.send([make_payload(queue) for _ in range(3)])
        transport.delete(queue)
        transport.delete(queue)
        bench.take_none(open_consumer(queue))

    @needs("diagnose")
    def test_a_diagnosis_of_a_working_broker_finds_no_error_and_leaves_nothing_behind(
        self, transport: Transport, queue: str
    ) -> None:
        transport.send([make_payload(queue)])
        assert isinstance(transport, Diagnoses)
        found = transport.diagnose(longest_task_s=60.0, timeout_s=PATIENCE_S)
        assert all(one.about and one.text for one in found)
        assert [one for one in found if one.level == "error"] == []
        eventually(lambda: transport.depth(queue) == 1)

    def test_ping_names_the_broker(self, transport: Transport) -> None:
        assert transport.ping(PATIENCE_S)

    def test_a_transport_may_be_closed_twice(self, url: str) -> None:
        transport = make_transport(self.plugin, url, self.settings)
        transport.close()
        transport.ping(PATIENCE_S)
        transport.close()
        transport.close()


class _Pace:
    """Whether signs of life were given as often as it is a worker's part, by its own watch."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._last_at = time.monotonic()

    def give(self, renew: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        answer = renew()
        self._longest_s = max(self._longest_s, time.monotonic() - self._last_at)
        self._last_at = begun
        return answer

    def was_kept(self) -> bool:
        return max(self._longest_s, time.monotonic() - self._last_at) <= RENEW_S


def _fanout_exchange() -> ExchangeSpec:
    return ExchangeSpec(f"kit-{uuid.uuid4().hex[:12]}")


def _broadcast(exchange: ExchangeSpec, body: bytes, *, key: str = "", headers: Mapping[str, Any] = {}) -> Payload:
    properties = {"delivery_mode": 1, "priority": 0}
    route = Route(key, exchange.name, exchange.type)
    return Payload(body, "application/json", "utf-8", dict(headers), properties, route)


def _id(delivery: Any) -> str:
    assert isinstance(delivery.head, Head), delivery.head
    return delivery.head.id
