"""The brokers' suite is worth its name: each broker below breaks one clause, and the named test finds it."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celeriac.spec import Consumer, Delivery, ExchangeSpec, Payload, QueueSpec, Settlement
from celeriac.testing import broker_suite
from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.kit import Bench, ListenerBench
from celeriac_broker_memory.transport import MemoryConsumer, MemoryTransport


class Consuming(MemoryTransport):
    """A transport whose consumers are of another class."""

    consumer_class: type[MemoryConsumer]

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Any, window: int) -> MemoryConsumer:
        return self.consumer_class(self, self._place, queues, poller)


def consuming(consumer: type[MemoryConsumer]) -> type[Consuming]:
    return type(consumer.__name__, (Consuming,), {"consumer_class": consumer, "__doc__": consumer.__doc__})


@consuming
class PopThenRecord(MemoryConsumer):
    """Takes messages out of the store and remembers them only here: the error of `RPOP` and of early acks."""

    def receive(self, limit: int) -> list[Delivery]:
        taken = super().receive(limit)
        self._holder.held.clear()
        return taken


@consuming
class AckBeforeRun(MemoryConsumer):
    """Acknowledges on delivery; giving back is then too late."""

    def receive(self, limit: int) -> list[Delivery]:
        taken = super().receive(limit)
        super().settle([Settlement(one.tag) for one in taken])
        return taken


class Doubling(MemoryTransport):
    """Stores now and then a second copy of a message."""

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        super().send([*payloads, *payloads[::5]])


class Forgetful(MemoryTransport):
    """Loses the last of a larger batch."""

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        super().send(payloads[:-1] if len(payloads) > 4 else payloads)


class Sharing(MemoryTransport):
    """Gives each consumer a copy of all there is."""

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Any, window: int) -> MemoryConsumer:
        consumer = super().consumer(queues, owner=owner, poller=poller, window=window)
        copies = [
            Delivery(f"copy-{entry.order}", entry.raw, self.read_head(entry.raw), entry.queue)
            for spec in queues
            for *_, entry in self._place._queue(spec.name).ready
        ]
        receive = consumer.receive

        def both(limit: int) -> list[Delivery]:
            taken, copies[:limit] = copies[:limit], []
            return taken or receive(limit)

        consumer.receive = both  # type: ignore[method-assign]
        return consumer


@consuming
class Deaf(MemoryConsumer):
    """Does not wake the worker, and does not say that it has to be asked."""

    poll_interval_s = None

    def receive(self, limit: int) -> list[Delivery]:
        taken = super().receive(limit)
        self._holder.idle = False
        return taken


@consuming
class Greedy(MemoryConsumer):
    """Hands out more than there is room for."""

    def receive(self, limit: int) -> list[Delivery]:
        return super().receive(limit + 2 if limit else 0)


@consuming
class Stealing(MemoryConsumer):
    """Takes over what others hold, whether they live or not."""

    def receive(self, limit: int) -> list[Delivery]:
        for holder in list(self._place._holders):
            if holder is not self._holder:
                self._place.release(holder)
        return super().receive(limit)


@consuming
class Starving(MemoryConsumer):
    """Empties its first queue before it looks at the next."""

    def receive(self, limit: int) -> list[Delivery]:
        self._holder.queues.sort(key=len)
        return super().receive(limit)


@consuming
class Unwilling(MemoryConsumer):
    """Drops what is given back."""

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        super().settle([Settlement(one.tag) for one in batch], publish=publish)


@consuming
class Unflagging(MemoryConsumer):
    """Does not tell a loss from a clean return."""

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        super().settle([Settlement(s.tag, s.verb, s.due, s.reason) for s in batch], publish=publish)


@consuming
class Suspicious(MemoryConsumer):
    """Takes every return for a loss."""

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        super().settle([Settlement(s.tag, s.verb, s.due, s.reason, started=True) for s in batch], publish=publish)


@consuming
class Undying(MemoryConsumer):
    """Puts the dead back into their queue."""

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        super().settle([Settlement(s.tag, "requeue" if s.verb == "dead" else s.verb) for s in batch], publish=publish)


@consuming
class Lazy(MemoryConsumer):
    """Forgets an acknowledgement in a hundred."""

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        super().settle(batch[:-1] if len(batch) == 3 else batch, publish=publish)


@consuming
class Guessing(MemoryConsumer):
    """Acknowledges something else when it does not know the tag."""

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        known = self._holder.held
        for settlement in batch:
            if settlement.tag not in known:
                taken = self._place.acquire(self._holder, 1)
                batch = [*batch, *[Settlement(tag) for tag, _ in taken]]
        super().settle(batch, publish=publish)


@consuming
class Silencing(MemoryConsumer):
    """Drops what follows from a task."""

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        super().settle(batch)


@consuming
class Unstoppable(MemoryConsumer):
    """Goes on after `stop`."""

    def stop(self) -> None:
        pass


class Backwards(MemoryTransport):
    """Serves the newest first."""

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        super().send(payloads[::-1])


class Classless(MemoryTransport):
    """Knows no priorities."""

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        packed = [(payload, raw) for payload, raw in self.pack(payloads)]
        for payload, _ in packed:
            payload.properties["priority"] = 0
        self._place.put(packed)


class Hasty(MemoryTransport):
    """Delivers delayed messages at once."""

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        for payload in payloads:
            payload.due = None
        super().send(payloads)


class Impolite(MemoryTransport):
    """Drops what no queue is bound for, and says that all is well."""

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        super().send([payload for payload in payloads if payload.route.routing_key != "unbound"])


class Trimming(MemoryTransport):
    """Takes bytes for text."""

    def unpack(self, raw: bytes) -> Payload:
        payload = super().unpack(raw)
        payload.body = payload.body.decode("utf-8", "replace").encode()
        return payload


class Explosive(MemoryTransport):
    """Lets a broken message end the worker."""

    def unpack(self, raw: bytes) -> Payload:
        try:
            return super().unpack(raw)
        except ValueError as exc:
            raise KeyError("body") from exc


class Boastful(MemoryTransport):
    """Declares what it cannot do."""

    abilities = MemoryTransport.abilities | {"durable"}


class Whispering(MemoryTransport):
    """Tells one listener what all should hear."""

    def broadcast(self, exchange: ExchangeSpec, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        for ear in self._place._ears[:1]:
            for _, raw in self.pack(payloads):
                ear.hear(raw)


class Hoarse(MemoryTransport):
    """Tells everybody everything, whatever they asked for."""

    def broadcast(self, exchange: ExchangeSpec, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        for ear in self._place._ears:
            for _, raw in self.pack(payloads):
                ear.hear(raw)


class Miscounting(MemoryTransport):
    """Counts what is not due yet."""

    def depth(self, queue: str) -> int:
        return super().depth(queue) + len(self._place._queue(queue).delayed)


MUTANTS: list[tuple[type[MemoryTransport], str]] = [
    (PopThenRecord, "test_B29_close_gives_back_and_may_be_called_twice"),
    (AckBeforeRun, "test_B13_a_clean_return_is_neither_counted_nor_flagged"),
    (PopThenRecord, "test_S1_S2_whatever_is_done_nothing_vanishes_and_nothing_doubles"),
    (Doubling, "test_S1_S2_whatever_is_done_nothing_vanishes_and_nothing_doubles"),
    (Unwilling, "test_S1_S2_whatever_is_done_nothing_vanishes_and_nothing_doubles"),
    (Undying, "test_S1_S2_whatever_is_done_nothing_vanishes_and_nothing_doubles"),
    (Doubling, "test_B08_two_consumers_share_a_queue_without_overlap"),
    (Forgetful, "test_B05_senders_in_many_threads_lose_nothing"),
    (Forgetful, "test_B01_what_send_returned_for_is_in_the_broker"),
    (Sharing, "test_B07_what_one_consumer_has_no_other_gets"),
    (Deaf, "test_B17_a_message_wakes_an_idle_consumer"),
    (Greedy, "test_B15_receive_gives_no_more_than_was_asked_for"),
    (Stealing, "test_B12_a_living_worker_keeps_what_it_has"),
    (Starving, "test_B16_a_full_queue_does_not_starve_another"),
    (Unwilling, "test_B20_a_message_given_back_comes_before_those_behind_it"),
    (Unflagging, "test_B13_a_message_lost_after_its_start_is_counted_and_flagged"),
    (Suspicious, "test_B13_a_clean_return_is_neither_counted_nor_flagged"),
    (Undying, "test_B21_a_dead_message_is_never_delivered_again"),
    (Lazy, "test_B18_an_acknowledged_message_never_comes_back"),
    (Guessing, "test_B18_acknowledging_twice_or_what_one_never_had_changes_nothing"),
    (Silencing, "test_R12_what_follows_is_sent_with_the_settlement"),
    (Unstoppable, "test_B29_stop_takes_no_more_and_settle_still_works"),
    (Backwards, "test_messages_of_one_sender_keep_their_order"),
    (Classless, "test_B16_the_urgent_come_first"),
    (Hasty, "test_B24_a_delayed_message_comes_on_time_and_never_early"),
    (Impolite, "test_B03_a_message_that_no_queue_is_bound_for_is_refused"),
    (Trimming, "test_S3_what_was_sent_is_received_byte_for_byte"),
    (Explosive, "test_B26_any_bytes_give_a_value_and_no_surprise"),
    (Boastful, "test_it_has_the_abilities_it_was_said_to_have"),
    (Whispering, "test_B31_a_broadcast_reaches_every_listener_and_none_that_comes_later"),
    (Hoarse, "test_B31_a_reply_reaches_the_one_who_asked"),
    (Miscounting, "test_B23_what_waits_for_its_time_is_not_counted_and_can_be_purged"),
]


@pytest.mark.parametrize(("mutant", "clause"), MUTANTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_suite_finds_a_broker_that_breaks_a_clause(
    mutant: type[MemoryTransport], clause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "patience_s", 2.0)  # more than B17 allows for a wake-up
    monkeypatch.setattr(broker_suite.eventually, "__defaults__", (0.3,))
    with pytest.raises((AssertionError, ValueError, KeyError, pytest.fail.Exception)):
        _run(mutant, clause)


@pytest.mark.parametrize("clause", sorted({clause for _, clause in MUTANTS}))
def test_the_same_tests_pass_with_a_broker_that_keeps_them(clause: str) -> None:
    _run(MemoryTransport, clause)


def _run(transport_class: type[MemoryTransport], clause: str) -> None:
    """Call one test of the suite as pytest would, once for each set of its parameters."""

    class Suite(BrokerConformance):
        abilities = MemoryTransport.abilities
        urgent_first = (9, 0)

    url, bench = f"memory://{uuid.uuid4().hex}", Bench()
    opened: list[Any] = []
    transport = transport_class(url)

    def open_consumer(*queues: str, poller: Bench = bench, window: int = 64) -> Consumer:
        specs = [QueueSpec(name) for name in queues]
        consumer = transport.consumer(specs, owner="kit", poller=poller, window=window)
        opened.append(consumer)
        return consumer

    def open_listener(exchange: ExchangeSpec, key: str = "") -> ListenerBench:
        ear = ListenerBench(transport, exchange, QueueSpec("kit", routing_key=key))
        opened.append(ear)
        return ear

    suite = Suite()
    test: Callable[..., Any] = getattr(suite, clause)
    fixtures = {
        "url": url,
        "transport": transport,
        "queue": "kit",
        "bench": bench,
        "open_consumer": open_consumer,
        "open_listener": open_listener,
    }
    rows = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    names = inspect.signature(test).parameters
    try:
        for values in [{rows[0][0]: value} for value in rows[0][1]] if rows else [{}]:
            test(**{name: {**fixtures, **values}[name] for name in names})
    finally:
        for made in opened:
            made.close()
