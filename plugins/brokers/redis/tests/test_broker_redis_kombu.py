"""Side by side with kombu, the stranger that Celery speaks through, on the same keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import kombu
import pytest

from celeriac.spec import QueueSpec


class Stranger:
    """A Celery worker's half: kombu's own connection, with acknowledgement."""

    def __init__(self, url: str, queues: list[kombu.Queue], **options: Any) -> None:
        self.connection = kombu.Connection(url, transport_options=options)
        self.channel = self.connection.default_channel
        self.messages: list[kombu.Message] = []
        self.consumer = kombu.Consumer(self.channel, queues, on_message=self._note, accept=["json"])
        self.consumer.consume()

    def _note(self, message: kombu.Message) -> None:
        self.messages.append(message)

    def receive(self, count: int, within_s: float = 30.0) -> list[kombu.Message]:
        deadline = time.monotonic() + within_s
        while len(self.messages) < count and time.monotonic() < deadline:
            try:
                self.connection.drain_events(timeout=0.2)
            except TimeoutError:
                continue
        found, self.messages = self.messages, []
        return found

    def die(self) -> None:
        """End without giving anything back."""
        self.channel.qos._delivered.clear()
        self.close()

    def close(self) -> None:
        """End as a Celery worker does: what is not acknowledged goes back, now and not at the exit of the process."""
        self.consumer.cancel()
        self.connection.close()
        self.channel.qos._delivered.clear()


@pytest.fixture
def queue() -> kombu.Queue:
    return kombu.Queue("celery", kombu.Exchange("celery", "direct"), "celery")


@pytest.fixture
def stranger(redis_url: str, queue: kombu.Queue) -> Iterator[Stranger]:
    made = Stranger(redis_url, [queue])
    yield made
    made.close()


@pytest.fixture
def producer(redis_url: str) -> Iterator[kombu.Producer]:
    with kombu.Connection(redis_url) as connection:
        yield kombu.Producer(connection.default_channel)


HEADERS = {"lang": "py", "task": "proj.add", "id": "U1", "eta": None, "timelimit": [None, 5], "stamps": {}}


def test_what_kombu_publishes_we_receive(producer: Any, queue: kombu.Queue, desk: Any) -> None:
    producer.publish(
        [[2, 3], {}, {}], serializer="json", routing_key="celery", headers=HEADERS, correlation_id="U1",
        reply_to="OID", declare=[queue], priority=0, expiration=60,
    )  # fmt: skip
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)
    payload = desk.transport.unpack(delivery.raw)
    assert json.loads(payload.body) == [[2, 3], {}, {}]
    assert (payload.content_type, payload.content_encoding, payload.headers) == ("application/json", "utf-8", HEADERS)
    assert payload.properties["correlation_id"] == "U1"
    assert payload.properties["expiration"] == "60000"
    assert delivery.head.timelimit == [None, 5]  # type: ignore[union-attr]
    desk.settle(consumer, [delivery])


def test_what_we_send_kombu_receives_and_acknowledges(stranger: Stranger, desk: Any, server: Any) -> None:
    desk.send("U1", priority=6)
    (message,) = stranger.receive(1)
    assert message.payload == [[2, 3], {}, {}]
    assert message.headers["id"] == "U1"
    assert message.delivery_info["routing_key"] == "celery"
    assert message.properties["priority"] == 6
    message.ack()
    assert server.call("HLEN", "unacked") == 0


def test_priorities_mean_the_same_to_both(desk: Any, producer: Any, redis_url: str, queue: kombu.Queue) -> None:
    for priority in (9, 4, 0, 7):
        desk.send(f"p{priority}", priority=priority)
    stranger = Stranger(redis_url, [queue])
    found = stranger.receive(4)
    order = [message.headers["id"] for message in found]
    for message in found:
        message.ack()
    stranger.close()
    for priority in (9, 4, 0, 7):
        producer.publish([], routing_key="celery", headers={**HEADERS, "id": f"p{priority}"}, priority=priority)
    assert order == desk.take(desk.consumer(), 4) == ["p0", "p4", "p7", "p9"]


def test_exchanges_route_alike(redis_url: str, desk: Any, producer: Any) -> None:
    topic, direct = kombu.Exchange("topics", "topic"), kombu.Exchange("media", "direct")
    queues = [
        kombu.Queue("logs", topic, "log.#"),
        kombu.Queue("errors", topic, "*.error"),
        kombu.Queue("v", direct, "vv"),
    ]
    stranger = Stranger(redis_url, queues)
    desk.send("by key", exchange="topics", exchange_type="topic", key="log.error")
    desk.send("by name", exchange="media", exchange_type="direct", key="vv")
    found = stranger.receive(3)
    assert sorted(message.headers["id"] for message in found) == ["by key", "by key", "by name"]
    for message in found:
        message.ack()
    stranger.close()

    desk.transport.declare([QueueSpec("logs2", "topics2", "topic", "log.#"), QueueSpec("w", "media2", "direct", "ww")])
    consumer = desk.consumer("logs2", "w")
    for exchange, key in ((kombu.Exchange("topics2", "topic"), "log.x.y"), (kombu.Exchange("media2", "direct"), "ww")):
        producer.publish([], exchange=exchange, routing_key=key, headers={**HEADERS, "id": key}, declare=[exchange])
    assert sorted(desk.take(consumer, 2)) == ["log.x.y", "ww"]


def test_a_broadcast_of_ours_reaches_kombus_fanout_queues(redis_url: str, desk: Any, server: Any) -> None:
    exchange = kombu.Exchange("celery.pidbox", "fanout")
    stranger = Stranger(redis_url, [kombu.Queue("w1.celery.pidbox", exchange, durable=False, auto_delete=True)])
    desk.until(lambda: stranger.receive(1, within_s=0.1) or server.call("PUBSUB", "NUMPAT"))  # it listens
    desk.send("ping", exchange="celery.pidbox", exchange_type="fanout", key="")
    (message,) = stranger.receive(1)
    assert message.headers["id"] == "ping"
    stranger.close()


def test_kombu_takes_over_what_we_left_when_its_timeout_has_passed(
    redis_url: str, queue: kombu.Queue, desk: Any
) -> None:
    desk.send("left")
    consumer = desk.consumer()
    desk.receive(consumer, 1)
    time.sleep(1.2)
    stranger = Stranger(redis_url, [queue], visibility_timeout=1, unacked_restore_throttle=1)
    stranger.channel.qos.restore_visible(num=10, interval=1)
    (message,) = stranger.receive(1)
    assert message.headers["id"] == "left"
    assert message.headers["redelivered"] is True
    assert len(consumer.renew()) == 1
    message.ack()
    stranger.close()


def test_renewal_keeps_kombu_from_taking_what_is_still_held(
    redis_url: str, queue: kombu.Queue, desk: Any, server: Any
) -> None:
    desk.send("held")
    consumer = desk.consumer()
    (held,) = desk.receive(consumer, 1)
    stranger = Stranger(redis_url, [queue], visibility_timeout=60)
    tag = consumer._tag % held.tag
    for _ in range(3):
        assert server.call("ZADD", "unacked_index", "XX", "CH", time.time() - 100, tag) == 1  # so long ago it was seen
        assert consumer.renew() == []
        stranger.channel.qos._vrestore_count = 0
        stranger.channel.qos.restore_visible(num=10, interval=1)
    assert stranger.receive(1, within_s=0.3) == []
    desk.settle(consumer, [held])
    stranger.close()


def test_our_sentinel_and_garbage_do_no_harm_to_kombus_restore(
    redis_url: str, queue: kombu.Queue, desk: Any, server: Any
) -> None:
    server.call("LPUSH", "celery", b"\xff\x00garbage")
    consumer = desk.consumer()
    (bad,) = desk.receive(consumer, 1)
    stranger = Stranger(redis_url, [queue], visibility_timeout=0.1)
    time.sleep(1.2)
    stranger.channel.qos.restore_visible(num=10, interval=1)
    desk.settle(consumer, [bad], "dead", reason="malformed")
    assert server.call("XLEN", "celeriac.dead.celery") == 1
    stranger.close()


def test_what_a_dead_celery_worker_left_comes_back(
    redis_url: str, queue: kombu.Queue, desks: Any, producer: Any
) -> None:
    stranger = Stranger(redis_url, [queue])
    for name, priority in (("a", 0), ("b", 9)):
        producer.publish([], routing_key="celery", headers={**HEADERS, "id": name}, priority=priority)
    taken = time.time()
    assert len(stranger.receive(2)) == 2
    stranger.die()
    desk = desks(redis_url, visibility_timeout=1)
    consumer = desk.consumer()
    found: list[Any] = desk.receive(consumer, 1, within_s=0.3)
    assert not found or time.time() > taken + 1
    time.sleep(1.0)
    desk.until(lambda: (consumer.renew(), found.extend(desk.receive(consumer, 2, within_s=0.3)), len(found) == 2)[2])
    assert {(one.head.id, one.attempt, one.redelivered) for one in found} == {("a", 2, True), ("b", 2, True)}
    desk.settle(consumer, found)


def test_what_a_celery_worker_gives_back_at_its_end_we_receive(stranger: Stranger, desk: Any) -> None:
    desk.send("a")
    assert len(stranger.receive(1)) == 1
    stranger.close()
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)
    assert (delivery.head.id, delivery.attempt, delivery.redelivered) == ("a", 2, True)
    desk.settle(consumer, [delivery])


def test_a_message_flagged_by_both_keeps_its_count(redis_url: str, queue: kombu.Queue, desk: Any) -> None:
    """Ours was lost twice, then a Celery worker had it and gave it back: the count stays, and goes on."""
    desk.send("a")
    consumer = desk.consumer()
    for attempt in (1, 2):
        (delivery,) = desk.receive(consumer, 1)
        assert delivery.attempt == attempt
        desk.settle(consumer, [delivery], "requeue", started=True)
    consumer.stop()
    stranger = Stranger(redis_url, [queue])
    (message,) = stranger.receive(1)
    message.requeue()
    stranger.close()
    successor = desk.consumer()
    (delivery,) = desk.receive(successor, 1)
    assert (delivery.attempt, delivery.redelivered) == (3, True)
    desk.settle(successor, [delivery])
