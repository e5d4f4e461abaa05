"""Receiving and settling on a real RabbitMQ: nothing lost, nothing twice, everything told."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu import Connection

from celeriac.exceptions import ImproperlyConfigured, PublishRejected, TransportLost
from celeriac.spec import DeadLetter, Delivery, Head, Malformed, Payload, QueueSpec, Route, Settlement
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp import consumer as module
from celeriac_broker_amqp import deadletters
from celeriac_broker_amqp.consumer import AmqpConsumer, Settled, _choose_worn_at
from celeriac_broker_amqp.transport import AmqpTransport

KINDS = [pytest.param({}, id="classic"), pytest.param({"x_queue_type": "quorum"}, id="quorum")]


def acks(deliveries: list[Delivery]) -> list[Settlement]:
    return [Settlement(delivery.tag) for delivery in deliveries]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_acknowledged_is_gone_and_the_rest_comes_back(
    transport: AmqpTransport, listen: Any, tools: Any, kind: dict[str, Any]
) -> None:
    first = listen(transport, tools.spec("q", **kind), window=100)
    sent = [tools.payload("q") for _ in range(50)]
    transport.send(sent)
    got = first.take(50)
    assert [transport.unpack(delivery.raw).headers for delivery in got] == [payload.headers for payload in sent]
    assert {delivery.attempt for delivery in got} == {1}
    done = [*got[:10], *got[20:30], got[45]]
    first.consumer.settle(acks(done))
    first.consumer.flush(30.0)
    first.consumer._link.drop()  # as a killed worker would
    rest = listen(transport, tools.spec("q", **kind), window=100).take(29)
    assert {delivery.head.id for delivery in rest} == {d.head.id for d in got} - {d.head.id for d in done}
    assert {(delivery.attempt, delivery.redelivered) for delivery in rest} == {(2, True)}


def test_settling_in_any_order_leaves_nothing(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    listener = listen(transport, tools.spec("q"), window=100)
    transport.send([tools.payload("q") for _ in range(60)])
    got = listener.take(60)
    for batch in (got[5::7], got[3::7], got[0::7], got[6::7], got[1::7], got[2::7], got[4::7]):
        listener.consumer.settle(acks(batch))
    listener.consumer.settle(acks(got))  # stale now: changes nothing
    listener.consumer.flush(30.0)
    settled = listener.consumer._settled
    assert (settled.low, settled._lasts, settled._firsts) == (60, {}, {})
    listener.consumer.close()
    assert transport.depth("q") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_started_message_given_back_is_flagged(
    transport: AmqpTransport, listen: Any, tools: Any, kind: dict[str, Any]
) -> None:
    listener = listen(transport, tools.spec("q", **kind))
    transport.send([tools.payload("q")])
    for attempt in (1, 2):
        (delivery,) = listener.take(1)
        assert (delivery.attempt, delivery.redelivered) == (attempt, attempt > 1)
        listener.consumer.settle([Settlement(delivery.tag, "requeue", started=True)])
    (delivery,) = listener.take(1)
    assert delivery.redelivered
    assert delivery.attempt == 3, "what RabbitMQ does not count is counted in the message"


def test_no_more_than_the_window_is_handed_out_and_small_windows_leave_the_rest_to_others(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    transport.send([tools.payload("q") for _ in range(20)])
    greedy = listen(transport, tools.spec("q"), window=4)
    assert len(greedy.take(4)) == 4
    greedy.stay_empty(0.3)
    other = listen(transport, tools.spec("q"), window=16)
    assert len(other.take(16)) == 16


def test_a_narrower_window_gives_back_what_waits_and_a_wider_one_asks_for_more(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    transport.send([tools.payload("q") for _ in range(300)])
    first = listen(transport, tools.spec("q"), window=64)
    got = first.take(10)
    first.consumer.resize(2)
    first.consumer.resize(64)  # only a hiccup
    assert first.consumer._shrink_at is None
    first.consumer.resize(2)
    tools.wait_until(lambda: first.consumer.receive(0) == [] and first.consumer._prefetch == 2, "it stays narrow")
    tools.wait_until(lambda: transport.depth("q") == 300 - 10 - 2, "the surplus is back")
    second = listen(transport, tools.spec("q"), window=64)
    ids = {delivery.head.id for delivery in got}
    rest = second.take(256)
    second.consumer.settle(acks(rest))
    ids |= {delivery.head.id for delivery in rest}
    first.consumer.settle(acks(got))
    second.consumer.settle(acks(tail := second.take(32)))
    ids |= {delivery.head.id for delivery in tail}
    ids |= {delivery.head.id for delivery in first.take(2)}
    assert len(ids) == 300
    first.consumer.resize(64)
    transport.send([tools.payload("q") for _ in range(20)])
    second.consumer.stop()
    assert len(first.take(20)) == 20


def test_stop_gives_back_what_was_not_handed_out_and_settling_still_works(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    transport.send([tools.payload("q") for _ in range(20)])
    listener = listen(transport, tools.spec("q"), window=20)
    got = listener.take(5)
    listener.consumer.stop()
    listener.consumer.stop()
    tools.wait_until(lambda: transport.depth("q") == 15, "given back")
    listener.consumer.settle(acks(got))
    listener.consumer.flush(30.0)
    assert listener.consumer.receive(10) == []
    listener.consumer.close()
    listener.consumer.close()
    assert transport.depth("q") == 15


def test_several_queues_get_equal_turns(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    names = ["a", "b", "c"]
    transport.send([tools.payload(name) for name in names for _ in range(30)])
    listener = listen(transport, *map(tools.spec, names), window=30)

    def has_some_of_each() -> bool:
        listener.consumer.receive(0)
        return all(len(one.ready) >= 10 for one in listener.consumer._subscriptions.values())

    tools.wait_until(has_some_of_each, "messages of each queue")
    got = listener.take(30)
    counts = {name: sum(delivery.queue == name for delivery in got) for name in names}
    assert min(counts.values()) >= 5
    listener.consumer.unsubscribe("b")
    tools.wait_until(lambda: transport.depth("b") == 30 - counts["b"], "unsubscribed")
    listener.consumer.settle(acks(got))
    listener.consumer.subscribe(tools.spec("d"))
    transport.send([tools.payload("d")])
    rest = listener.take(61 - counts["a"] - counts["c"])
    assert {delivery.queue for delivery in rest} == {"a", "c", "d"}


def test_the_highest_priority_comes_first(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    transport.declare([tools.spec("q", x_max_priority=10)])
    transport.send([tools.payload("q", properties={"priority": number}) for number in (0, 5, 9, 3, 9)])
    listener = listen(transport, tools.spec("q", x_max_priority=10))
    got = [transport.unpack(delivery.raw).properties["priority"] for delivery in listener.take(5)]
    assert got == [9, 9, 5, 3, 0]


# -- what must be safe before the acknowledgement -----------------------------------------------------------


def test_followers_are_stored_before_the_delivery_goes(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q"), tools.payload("q")])
    got = listener.take(2)
    listener.consumer.settle(acks(got[:1]), publish=[tools.payload("next"), tools.payload("other")])
    listener.consumer.settle(acks(got[1:]))
    listener.consumer.flush(30.0)
    assert (transport.depth("next"), transport.depth("other")) == (1, 1)
    listener.consumer.close()
    assert transport.depth("q") == 0


def test_a_worker_that_dies_before_the_confirm_loses_nothing(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q")])
    (delivery,) = listener.take(1)
    listener.consumer.settle(acks([delivery]), publish=[tools.payload("next")])
    listener.consumer._followers._publisher.link.drop()
    with pytest.raises(TransportLost):
        listener.consumer.flush(30.0)
    listener.consumer._link.drop()
    (again,) = listen(transport, tools.spec("q")).take(1)
    assert again.head.id == delivery.head.id


def test_a_full_queue_holds_the_delivery_until_there_is_room(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    transport.declare([tools.spec("next", **limits)])
    transport.send([tools.payload("next"), tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    (delivery,) = listener.take(1)
    listener.consumer.settle(acks([delivery]), publish=[tools.payload("next")])
    before, followers = listener.consumer._followers._publisher, listener.consumer._followers
    tools.wait_until(lambda: listener.consumer.receive(1) or followers.retry_in_s is not None, "it is refused")
    assert followers.count == 1
    assert transport.purge("next") == 1
    tools.wait_until(
        lambda: listener.consumer.receive(1) == [] and not listener.consumer._followers.count, "tried again"
    )
    assert listener.consumer._followers._publisher is not before, "over another channel"
    assert transport.depth("next") == 1


def test_a_full_queue_goes_on_being_worked_on_although_what_follows_has_no_room_in_it(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    spec = tools.spec("q", x_max_length=3, x_overflow="reject-publish")
    listener = listen(transport, spec, window=2)
    transport.send([tools.payload("q"), tools.payload("q")])
    first, second = listener.take(2)
    with pytest.raises(PublishRejected):
        while True:
            transport.send([tools.payload("q")])
    again = tools.payload("q", id="again")
    listener.consumer.settle([Settlement(first.tag)], publish=[again])
    listener.consumer.settle([Settlement(second.tag)], publish=[tools.payload("q")])
    came: list[Any] = []  # all that may be held at once is held, and there is room only if more comes
    while "again" not in came:
        (delivery,) = listener.take(1, timeout_s=30.0)
        listener.consumer.settle([Settlement(delivery.tag)])
        came.append(delivery.head.id if isinstance(delivery.head, Head) else None)
    assert listener.consumer._prefetch > 2
    tools.wait_until(
        lambda: (listener.consumer.receive(9), listener.consumer._prefetch)[1] == 2,
        "asks for no more than its window again",
        30.0,
    )


def test_a_follower_that_no_queue_takes_is_set_aside(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    transport.declare([QueueSpec("t", exchange="topics", exchange_type="topic", routing_key="a.*")])
    transport.send([tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    (delivery,) = listener.take(1)
    follower = tools.payload("t")
    follower.route = Route("b.b", "topics", "topic", "t")
    listener.consumer.settle(acks([delivery]), publish=[follower])
    listener.consumer.flush(30.0)
    (dead,) = listen(transport, QueueSpec("celeriac.dead.b.b", arguments=DEAD)).take(1)
    headers = transport.unpack(dead.raw).headers
    assert headers["id"] == follower.headers["id"]
    assert headers["x-celeriac-reason"] == "unroutable"
    listener.consumer.close()
    assert transport.depth("q") == 0


@pytest.mark.parametrize("headers", [{"bad": object()}, {"huge": "x" * 200_000}])
def test_a_follower_that_amqp_cannot_carry_is_set_aside(
    transport: AmqpTransport, listen: Any, tools: Any, headers: dict[str, Any]
) -> None:
    transport.send([tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    follower = tools.payload("next", **headers)
    listener.consumer.settle(acks(listener.take(1)), publish=[follower])
    ((unsent, problem),) = listener.consumer.unsent()
    assert unsent is follower, "it has failed, for others may wait for it"
    assert "header" in problem
    listener.consumer.flush(30.0)
    (dead,) = listen(transport, QueueSpec("celeriac.dead.next", arguments=DEAD)).take(1)
    payload = transport.unpack(dead.raw)
    assert payload.body == follower.body
    assert payload.headers["x-celeriac-reason"] == "unsendable"
    assert follower.headers["id"] in payload.headers["x-celeriac-headers"]
    listener.consumer.close()
    assert transport.depth("q") == 0


DEAD = {"x-message-ttl": 7 * 24 * 3600 * 1000, "x-max-length": 10_000}


def test_a_dead_letter_keeps_its_bytes_and_says_why(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    listener = listen(transport, tools.spec("q"))
    sent = tools.payload("q", odd={"deep": [None, 1.5]})
    transport.send([sent])
    (delivery,) = listener.take(1)
    listener.consumer.settle([Settlement(delivery.tag, "dead", reason="crash", error="boom " * 5000, started=True)])
    listener.consumer.flush(30.0)
    (dead,) = listen(transport, QueueSpec("celeriac.dead.q", arguments=DEAD)).take(1)
    payload = transport.unpack(dead.raw)
    assert payload.body == sent.body
    assert payload.properties == sent.properties
    ours = {key: value for key, value in payload.headers.items() if key.startswith("x-celeriac-")}
    assert {key: value for key, value in payload.headers.items() if key not in ours} == sent.headers
    assert ours["x-celeriac-reason"] == "crash"
    assert len(ours["x-celeriac-error"]) == 8192
    assert (ours["x-celeriac-queue"], ours["x-celeriac-attempts"]) == ("q", 1)
    listener.consumer.close()
    assert transport.depth("q") == 0


@pytest.mark.parametrize(
    ("body", "headers"),
    [(os.urandom(500), {}), (b"", {}), (b"{}", {"task": 5, "id": ["x"]}), (b"[]", {"task": b"\xff\xfe", "id": "1"})],
)
def test_garbage_is_told_apart_and_can_be_set_aside(
    transport: AmqpTransport, listen: Any, tools: Any, body: bytes, headers: dict[str, Any]
) -> None:
    transport.send([Payload(body, "", "", headers, {}, Route("q")), tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    bad, good = listener.take(2)
    assert isinstance(bad.head, Malformed) or bad.head.task == ""
    assert isinstance(good.head, Head)
    assert good.head.task == "proj.add"
    listener.consumer.settle([Settlement(bad.tag, "dead", reason="malformed"), Settlement(good.tag)])
    listener.consumer.flush(30.0)
    (dead,) = listen(transport, QueueSpec("celeriac.dead.q", arguments=DEAD)).take(1)
    assert transport.unpack(dead.raw).body == body


# -- the broker's own doings ----------------------------------------------------------------------------------


def test_a_queue_deleted_under_the_consumer_is_made_anew(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q")])
    listener.consumer.settle(acks(listener.take(1)))
    listener.consumer.flush(30.0)
    transport.delete("q")
    listener.stay_empty(0.3)
    transport.send([tools.payload("q")])
    assert len(listener.take(1)) == 1


def test_a_consumer_of_a_queue_that_is_different_is_refused_at_the_start(
    open_transport: Callable[..., AmqpTransport], listen: Any, tools: Any
) -> None:
    open_transport().declare([tools.spec("q", x_queue_type="quorum")])
    with pytest.raises(ImproperlyConfigured, match="x-queue-type"):
        listen(open_transport(), tools.spec("q"))


def test_a_queue_made_anew_and_differently_does_not_end_a_running_worker(
    transport: AmqpTransport, open_transport: Callable[..., AmqpTransport], listen: Any, tools: Any
) -> None:
    listener = listen(transport, tools.spec("q"))
    transport.delete("q")
    open_transport().declare([tools.spec("q", x_queue_type="quorum")])
    listener.stay_empty(0.3)
    listener.consumer.close()
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q")])
    assert len(listener.take(1)) == 1


def test_a_delivery_acknowledged_twice_by_mistake_is_a_lost_transport(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    listener = listen(transport, tools.spec("q"))
    listener.consumer._link.send(b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50" + b"\x00" * 7 + b"\x63\x00\xce")
    with pytest.raises(TransportLost, match="unknown delivery tag"):
        listener.take(1)


def test_a_flood_of_large_messages_does_not_fill_the_memory(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac_broker_amqp.consumer.MAX_READY_BYTES", 1_000_000)
    listener = listen(transport, tools.spec("q"), window=64)
    transport.send([tools.payload("q", body=bytes(100_000)) for _ in range(60)])
    got: list[Delivery] = []
    deadline = time.monotonic() + 60
    while len(got) < 60:
        assert time.monotonic() < deadline
        got += listener.consumer.receive(1)
        assert listener.consumer._ready_bytes < 1_400_000
    listener.consumer.settle(acks(got))
    listener.consumer.close()
    assert transport.depth("q") == 0


def test_heartbeats_keep_an_idle_worker_and_silence_is_noticed(
    open_transport: Callable[..., AmqpTransport], listen: Any, tools: Any, rabbitmq_service: RabbitMQService
) -> None:
    assert listen(open_transport(), tools.spec("other")).consumer.renew_interval_s == 2.0
    transport = open_transport(broker_heartbeat=2)
    listener = listen(transport, tools.spec("q"))
    busy_until = time.monotonic() + 7.0  # the server waits for two intervals, and looks once in each
    while time.monotonic() < busy_until:  # the worker's thread is busy; the lease thread is not
        assert listener.consumer.renew() == []
        time.sleep(0.2)
    transport.send([tools.payload("q")])
    assert len(listener.take(1)) == 1
    link = listener.consumer._link
    link.pump()
    link._last_received -= 3.0
    with pytest.raises(TransportLost, match="sent nothing"):
        while True:
            link._last_received -= 3.0
            link.pump()


def test_a_window_that_widens_at_every_turn_costs_no_connection(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    """RabbitMQ's channel crashes if a consumer is cancelled before it has said that it is open."""
    listener = listen(transport, tools.spec("q"), window=1)
    for _ in range(10):
        for window in range(2, 33):
            listener.consumer.resize(window)
            listener.consumer.receive(0)  # raises when the connection is lost
        listener.consumer._shrink_to = 1
        listener.consumer._shrink()
    for window in range(2, 33):
        listener.consumer.resize(window)
    transport.send([tools.payload("q") for _ in range(40)])
    got = listener.take(32)  # the last width counts
    assert len(got) == 32
    listener.consumer.settle(acks(got))
    assert len(listener.take(8)) == 8


def test_settled_tags_are_known_by_few_numbers_however_many_pass_one_that_is_held() -> None:
    settled, plain, chance = Settled(), set[int](), random.Random(5)
    order = list(range(2, 2000))
    for at in range(0, len(order), 50):  # mostly in turn
        piece = order[at : at + 50]
        chance.shuffle(piece)
        order[at : at + 50] = piece
    while order:
        count = chance.randint(1, 20)
        batch, order = order[:count], order[count:]
        settled.add(batch)
        plain.update(batch)
        assert settled.low == 0
        runs = {(first, last) for first, last in settled._lasts.items()}
        assert sorted(tag for first, last in runs for tag in range(first, last + 1)) == sorted(plain)
        assert runs == {(first, last) for last, first in settled._firsts.items()}
        assert len(runs) <= 26
    settled.add([1])
    assert (settled.low, settled._lasts, settled._firsts) == (1999, {}, {})


def test_a_link_that_is_lost_while_a_consumer_opens_says_so(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(consumer: AmqpConsumer, request: bytes, reply: int) -> None:
        consumer._link._fail("gone")

    monkeypatch.setattr(AmqpConsumer, "_call", lose)
    with pytest.raises(TransportLost, match="gone"):
        listen(transport, tools.spec("q"))


def test_a_queue_that_cannot_be_used_now_costs_the_others_nothing(
    transport: AmqpTransport, listen: Any, tools: Any, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY_WAIT_S", 0.2)
    with Connection(amqp_url) as somebody:
        channel = somebody.channel()
        channel.queue_declare("b", durable=False, exclusive=True, auto_delete=False)
        listener = listen(transport, tools.spec("a"), tools.spec("b"))
        transport.send([tools.payload("a")])
        assert [delivery.queue for delivery in listener.take(1, 30.0)] == ["a"]
        interval_s = listener.consumer.poll_interval_s
        assert interval_s is not None
        assert interval_s <= 0.2, "it is asked for again"
    tools.wait_until(lambda: listener.consumer.receive(0) or not listener.consumer._away, "its own again", 30.0)
    transport.send([tools.payload("b")])
    assert [delivery.queue for delivery in listener.take(1, 30.0)] == ["b"]
    with Connection(amqp_url) as somebody:
        channel = somebody.channel()
        channel.queue_delete("b")
        channel.queue_declare("b", durable=False, exclusive=True, auto_delete=False)
        tools.wait_until(lambda: listener.consumer.receive(0) or listener.consumer._away, "it was taken away", 30.0)
        transport.send([tools.payload("a")])
        assert [delivery.queue for delivery in listener.take(1, 30.0)] == ["a"]
        listener.consumer.unsubscribe("b")
        assert listener.consumer.poll_interval_s is None


def test_a_consumer_none_of_whose_queues_can_be_used_is_none(
    transport: AmqpTransport, listen: Any, tools: Any, amqp_url: str
) -> None:
    def open_again() -> Any:
        try:
            return listen(transport, tools.spec("b"))
        except TransportLost as exc:
            return exc

    listener = listen(transport, tools.spec("b"))
    with Connection(amqp_url) as somebody:
        channel = somebody.channel()
        channel.queue_delete("b")
        channel.queue_declare("b", durable=False, exclusive=True, auto_delete=False)
        with pytest.raises(TransportLost, match=r"queue 'b' .*405"):
            tools.wait_until(lambda: listener.consumer.receive(0), "it hears that its only queue is away", 30.0)
        assert "405" in str(open_again())
    tools.wait_until(lambda: not isinstance(open_again(), TransportLost), "its own again", 30.0)
    transport.send([tools.payload("b")])
    tools.wait_until(lambda: transport.depth("b") == 0, "somebody has it", 30.0)


def test_a_queue_that_may_not_be_read_any_more_costs_the_others_one_link(
    open_transport: Callable[..., AmqpTransport],
    transport: AmqpTransport,
    listen: Any,
    tools: Any,
    amqp_url: str,
    rabbitmq_service: RabbitMQService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AWAY_WAIT_S", 0.2)
    vhost, user = urlsplit(amqp_url).path[1:], f"reader-{os.urandom(4).hex()}"
    rabbitmq_service.api("PUT", f"users/{user}", {"password": "secret", "tags": ""})

    def let(read: str) -> None:
        rights = {"configure": ".*", "write": ".*", "read": read}
        rabbitmq_service.api("PUT", f"permissions/{vhost}/{user}", rights)

    let(".*")
    limited = open_transport(amqp_url.replace("guest:guest", f"{user}:secret"))
    listen(limited, tools.spec("a"), tools.spec("b")).consumer.close()
    let("^a$")
    transport.send([tools.payload("a"), tools.payload("b")])
    with pytest.raises(TransportLost, match="access to queue 'b'"):
        listen(limited, tools.spec("a"), tools.spec("b"))
    listener = listen(limited, tools.spec("a"), tools.spec("b"))
    assert [delivery.queue for delivery in listener.take(1, 30.0)] == ["a"]
    assert list(listener.consumer._away) == ["b"]
    let(".*")
    assert [delivery.queue for delivery in listener.take(1, 30.0)] == ["b"]
    listener.consumer.close()
    tools.wait_until(lambda: transport.depth("a") == transport.depth("b") == 1, "each is given back", 30.0)


def test_dead_letters_in_a_quorum_queue_are_not_dropped_for_being_looked_at(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "WORN_AT", 2)
    monkeypatch.setattr(deadletters, "SILENCE_S", 0.3)  # it may say that it has more than are left
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 4}
    transport.declare([QueueSpec("celeriac.dead.q", arguments=arguments)])
    transport.send([tools.payload("q"), tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    listener.consumer.settle([Settlement(one.tag, "dead", reason="crash") for one in listener.take(2)])
    listener.consumer.close()
    for _ in range(8):  # a quorum queue takes a moment to say what it has
        tools.wait_until(lambda: len(transport.browse_dead("q")) == 2, "both are seen", 30.0)
    ids: set[str] = set()
    tools.wait_until(
        lambda: ids.update(letter.id for letter in transport.browse_dead("q")) or len(ids) == 2, "both are named", 30.0
    )
    tools.wait_until(
        lambda: (transport.requeue_dead("q", list(ids)), transport.depth("q"))[1] == 2, "both are back", 30.0
    )


def test_a_stream_is_refused_for_it_would_lose_calls(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="'log' is declared as a stream"):
        listen(transport, tools.spec("log", x_queue_type="stream"))


def test_what_comes_back_to_a_quorum_queue_again_and_again_is_not_dropped(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    spec = tools.spec("q", x_queue_type="quorum", x_delivery_limit=2)
    transport.declare([spec])
    sent = [tools.payload("q") for _ in range(5)]
    transport.send(sent)
    for number in range(6):  # workers that stop, or die, before they come to any of it
        consumer = listen(transport, spec).consumer
        ready = consumer._subscriptions["q"].ready
        tools.wait_until(
            lambda consumer=consumer, ready=ready: consumer.receive(0) or len(ready) == 5, "all are here", 30.0
        )
        consumer.flush(10.0)
        if number % 2:
            consumer._link.drop()
        consumer.close()
    listener = listen(transport, spec)
    came = listener.take(5, timeout_s=30.0)
    assert {delivery.head.id for delivery in came if isinstance(delivery.head, Head)} == {
        payload.headers["id"] for payload in sent
    }
    listener.consumer.settle(acks(came))
    listener.consumer.close()
    assert transport.depth("q") == 0, "none is there twice"


@pytest.mark.parametrize(
    ("arguments", "way", "worn_at"),
    [
        ({}, None, 10),
        ({"x-delivery-limit": 50}, None, 10),
        ({"x-delivery-limit": 5}, None, 2),
        ({"x-delivery-limit": 1}, None, 1),
        ({"x-delivery-limit": -1}, None, None),
        ({}, Route("dead"), 10),
        ({"x-delivery-limit": 5}, Route("dead"), None),
    ],
)
def test_how_often_a_message_comes_back_before_it_is_published_anew(
    arguments: dict[str, Any], way: Route | None, worn_at: int | None
) -> None:
    assert _choose_worn_at(QueueSpec("q", arguments=arguments), way) == worn_at


def test_a_user_who_may_not_declare_queues_uses_those_that_are_there(
    rabbitmq_service: RabbitMQService,
    amqp_url: str,
    transport: AmqpTransport,
    open_transport: Any,
    listen: Any,
    tools: Any,
) -> None:
    address = urlsplit(amqp_url)
    vhost, backend = address.path[1:], "rabbit_auth_backend_internal"
    user = f"guarded-{vhost}"
    tools.evaluate(rabbitmq_service, f'{backend}:add_user(<<"{user}">>, <<"pw">>, <<"me">>)')
    allowed = '<<"^$">>, <<".*">>, <<".*">>'
    tools.evaluate(rabbitmq_service, f'{backend}:set_permissions(<<"{user}">>, <<"{vhost}">>, {allowed}, <<"me">>)')
    guarded = open_transport(f"amqp://{user}:pw@{address.hostname}:{address.port}{address.path}")
    with pytest.raises(ImproperlyConfigured, match="may not declare queue 'q'"):
        guarded.declare([tools.spec("q")])
    transport.declare([tools.spec("q")])
    guarded.declare([tools.spec("q")])
    guarded.send([tools.payload("q")])
    listener = listen(guarded, tools.spec("q"))
    listener.consumer.settle(acks(listener.take(1)))


def test_dead_letters_are_given_back_although_the_idle_connection_had_died(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.send([tools.payload("q") for _ in range(2)])
    listener = listen(transport, tools.spec("q"))
    listener.consumer.settle([Settlement(one.tag, "dead", reason="crash") for one in listener.take(2)])
    listener.consumer.flush(30.0)
    ids = [letter.id for letter in transport.browse_dead("q")]
    (publisher,) = transport._idle
    read_letter = deadletters.read_letter

    def lose_it(queue: str, record: bytes) -> DeadLetter:
        with suppress(OSError):  # it is closed the second time
            publisher.link._sock.shutdown(2)
        return read_letter(queue, record)

    monkeypatch.setattr(deadletters, "read_letter", lose_it)
    assert transport.requeue_dead("q", ids) == 2
    assert len(listener.take(2)) == 2


def test_of_dead_letters_that_find_their_queue_full_those_that_did_not_are_dead_no_more(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    small = tools.spec("q", x_max_length=2, x_overflow="reject-publish")
    transport.declare([small])
    listener = listen(transport, small, window=6)
    for _ in range(3):
        transport.send([tools.payload("q") for _ in range(2)])
        listener.consumer.settle([Settlement(one.tag, "dead", reason="crash") for one in listener.take(2)])
        listener.consumer.flush(30.0)
    listener.consumer.close()
    ids = [letter.id for letter in transport.browse_dead("q")]
    with pytest.raises(PublishRejected, match="full") as caught:
        transport.requeue_dead("q", ids)
    ready = transport.depth("q")
    assert ready == 6 - len(caught.value.task_ids) > 0
    assert len(transport.browse_dead("q")) == 6 - ready


def test_dead_letters_whose_queue_is_removed_while_somebody_looks_are_gone_without_an_error(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.send([tools.payload("q") for _ in range(2)])
    listener = listen(transport, tools.spec("q"))
    listener.consumer.settle([Settlement(one.tag, "dead", reason="crash") for one in listener.take(2)])
    listener.consumer.flush(30.0)
    read_letter = deadletters.read_letter

    def remove_it(queue: str, record: bytes) -> DeadLetter:
        transport.delete("celeriac.dead.q")
        return read_letter(queue, record)

    monkeypatch.setattr(deadletters, "read_letter", remove_it)
    assert len(transport.browse_dead("q")) in (1, 2)
    assert transport.browse_dead("q") == []


def test_B30_a_queue_that_is_gone_when_its_worker_comes_back_is_told_of(
    transport: AmqpTransport, listen: Any, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    listen(transport, tools.spec("q")).consumer.close()
    listen(transport, tools.spec("q")).consumer.close()
    assert "lost" not in caplog.text
    transport.delete("q")  # as a server does that comes back without its data
    listen(transport, tools.spec("q"))
    assert "Queue q, which was consumed here before, was not there any more" in caplog.text


def test_a_consumer_that_is_stopped_takes_no_more_whatever_it_is_told(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    listener = listen(transport, tools.spec("q"), window=2)
    listener.consumer.stop()
    listener.consumer.resize(64)
    listener.consumer.subscribe(tools.spec("other"))
    listener.consumer.flush(30.0)
    transport.send([tools.payload("q"), tools.payload("other")])
    assert (transport.depth("q"), transport.depth("other")) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_that_says_where_its_dead_letters_go_has_them_there(
    transport: AmqpTransport, listen: Any, tools: Any, kind: dict[str, Any]
) -> None:
    own = QueueSpec("own", exchange="dlx", routing_key="q")
    transport.declare([own])
    spec = tools.spec("q", x_dead_letter_exchange="dlx", **kind)
    listener = listen(transport, spec, window=10)
    transport.send([tools.payload("q", id=str(number)) for number in range(6)])
    got = listener.take(6)
    listener.consumer.settle([Settlement(got[1].tag, "dead", reason="crash")], publish=[tools.payload("next")])
    listener.consumer.settle(acks([got[0]]))
    listener.consumer.settle([Settlement(got[3].tag, "dead"), Settlement(got[2].tag, "ack")])
    listener.consumer.settle([Settlement(got[4].tag, "ack"), Settlement(got[5].tag, "dead")])
    listener.consumer.flush(30.0)
    listener.consumer.close()
    dead = {delivery.head.id: transport.unpack(delivery.raw).headers for delivery in listen(transport, own).take(3)}
    assert {name: headers["x-death"][0]["reason"] for name, headers in dead.items()} == dict.fromkeys("135", "rejected")
    assert [transport.depth(name) for name in ("q", "celeriac.dead.q", "next")] == [0, 0, 1]


def test_a_message_held_by_a_copy_goes_where_its_queue_says_too(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    own = QueueSpec("own", exchange="dlx", routing_key="q")
    spec = tools.spec("q", x_dead_letter_exchange="dlx")
    transport.declare([own, spec])
    transport.send([tools.payload("q")])
    first = listen(transport, spec)
    first.take(1)
    first.consumer._link.drop()  # as a killed worker would
    second = listen(transport, spec)
    (again,) = second.take(1)
    assert again.tag in second.consumer._holding.place
    second.consumer.settle([Settlement(again.tag, "dead", reason="crash")])
    second.consumer.flush(30.0)
    second.consumer.close()
    listen(transport, own).take(1)
    assert transport.depth("q") == transport.depth("celeriac.dead.q") == 0


def test_a_queue_whose_dead_letters_would_go_nowhere_keeps_them(
    transport: AmqpTransport, listen: Any, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    listener = listen(transport, tools.spec("q", x_dead_letter_exchange="nowhere"))
    assert "no exchange 'nowhere'" in caplog.text
    transport.send([tools.payload("q")])
    listener.consumer.settle([Settlement(listener.take(1)[0].tag, "dead", reason="crash")])
    listener.consumer.flush(30.0)
    assert transport.depth("celeriac.dead.q") == 1


def test_a_queue_that_was_made_anew_keeps_what_was_taken_from_the_one_before(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    transport.declare([QueueSpec("own", exchange="dlx", routing_key="q")])
    listener = listen(transport, tools.spec("q", x_dead_letter_exchange="dlx"))
    transport.send([tools.payload("q")])
    (delivery,) = listener.take(1)
    transport.delete("q")
    tools.wait_until(lambda: listener.consumer.receive(0) or not listener.consumer._ways, "it has been declared anew")
    listener.consumer.settle([Settlement(delivery.tag, "dead", reason="crash")])
    listener.consumer.flush(30.0)
    assert transport.depth("own") + transport.depth("celeriac.dead.q") == 1


def test_an_exchange_that_lasts_otherwise_is_used_as_it_is_unless_it_is_of_another_type(
    transport: AmqpTransport, tools: Any
) -> None:
    transport.declare([QueueSpec("lasting", "news", "topic", "a")])
    transport.declare([QueueSpec("passing", "news", "topic", "a", durable=False)])
    sent = tools.payload("a")
    sent.route = Route("a", "news", "topic")
    transport.send([sent])
    assert (transport.depth("lasting"), transport.depth("passing")) == (1, 1)
    with pytest.raises(ImproperlyConfigured, match="type"):
        transport.declare([QueueSpec("other", "news", "direct", "a")])


def test_a_queue_at_a_headers_exchange_gets_what_its_binding_asks_for(transport: AmqpTransport, tools: Any) -> None:
    for kind in ("pdf", "png"):
        wanted = {"x-match": "all", "kind": kind}
        transport.declare([QueueSpec(kind, "files", "headers", binding_arguments=wanted)])
    for kind in ("pdf", "pdf", "png"):
        payload = tools.payload("", kind=kind)
        payload.route = Route("", "files", "headers")
        transport.send([payload])
    assert (transport.depth("pdf"), transport.depth("png")) == (2, 1)


def test_a_queue_that_is_not_to_be_declared_is_used_as_it_is(
    transport: AmqpTransport, open_transport: Any, listen: Any, tools: Any
) -> None:
    foreign = QueueSpec("q", "q", routing_key="q", no_declare=True)
    other = open_transport()
    other.declare([foreign])
    with pytest.raises(PublishRejected, match="found no queue"):
        other.send([tools.payload("q")])
    transport.declare([tools.spec("q", x_max_length=5)])
    other.send([tools.payload("q")])
    listen(other, foreign).take(1)
