"""Messages held by a copy: longer than the broker lets them be held, and counted when they take workers with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.spec import Delivery, Head, Settlement
from celeriac.spec.data import PUBLISH_TRY_HEADER
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp import holding, topology
from celeriac_broker_amqp.holding import limit_of
from celeriac_broker_amqp.transport import AmqpTransport

pytestmark = pytest.mark.services

LIMIT_S = 5.0
KINDS = [pytest.param({}, id="classic"), pytest.param({"x_queue_type": "quorum"}, id="quorum")]


@pytest.fixture(scope="module")
def impatient(rabbitmq_service: RabbitMQService, tools: Any) -> Iterator[RabbitMQService]:
    """The shared node, with a short consumer_timeout for channels that are opened meanwhile."""
    setting = "application:set_env(rabbit, {}, {})"
    short = [setting.format("consumer_timeout", int(LIMIT_S * 1000)), setting.format("channel_tick_interval", 500)]
    usual = [setting.format("consumer_timeout", 1_800_000), setting.format("channel_tick_interval", 60_000)]
    tools.evaluate(rabbitmq_service, ", ".join(short))
    yield rabbitmq_service
    tools.evaluate(rabbitmq_service, ", ".join(usual))


def turn(*listeners: Any) -> list[Delivery]:
    """One turn of the worker's loop for each; what the last of them was given."""
    got: list[Delivery] = []
    for listener in listeners:
        got = listener.consumer.receive(10)
        listener.poller.wait(0.02)
    return got


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_longer_than_the_consumer_timeout_runs_once(
    impatient: RabbitMQService, open_transport: Any, listen: Any, tools: Any, kind: dict[str, Any]
) -> None:
    transport: AmqpTransport = open_transport(
        impatient.fresh_url(), broker_transport_options={"consumer_timeout": LIMIT_S}
    )
    holder = listen(transport, tools.spec("q", **kind), window=2)
    transport.send([tools.payload("q"), tools.payload("q")])
    first, second = holder.take(2)
    rival = listen(transport, tools.spec("q", **kind))
    ends = time.monotonic() + 2 * LIMIT_S
    while time.monotonic() < ends:
        assert turn(holder, rival) == []
    holder.consumer.stop()
    holder.consumer.settle([Settlement(first.tag), Settlement(second.tag, "requeue")])
    (again,) = rival.take(1)
    assert (again.attempt, again.redelivered) == (1, False), "it was given back as it came"
    assert transport.unpack(again.raw).headers == transport.unpack(second.raw).headers
    rival.consumer.settle([Settlement(again.tag)])
    holder.consumer.close()
    rival.consumer.close()
    assert transport.depth("q") == 0
    wait_until_gone(impatient, transport)


def test_what_waits_in_a_worker_is_held_by_a_copy_in_time_too(open_transport: Any, listen: Any, tools: Any) -> None:
    name = "q" * 250  # which leaves no room for the wait, so it is spent here
    transport: AmqpTransport = open_transport(broker_transport_options={"consumer_timeout": 1})
    holder = listen(transport, tools.spec(name))
    transport.send([tools.payload(name)])
    (delivery,) = holder.take(1)
    holder.consumer.settle([Settlement(delivery.tag, "requeue", due=time.time() + 600)])
    tools.wait_until(lambda: turn(holder) or holder.consumer._holding.place, "it is held by a copy")
    holder.consumer.close()
    assert transport.depth(name) == 1


def wait_until_gone(service: RabbitMQService, transport: AmqpTransport) -> None:
    """No queue of a consumer's own is left by those that were closed in good order."""
    vhost = transport._connector.url.rpartition("/")[2]
    deadline = time.monotonic() + 30
    while True:
        left = [queue["name"] for queue in service.api("GET", f"queues/{vhost}") if ".held." in queue["name"]]
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_a_limit_that_was_met_is_known_from_then_on(
    impatient: RabbitMQService, open_transport: Any, listen: Any, tools: Any
) -> None:
    transport: AmqpTransport = open_transport(impatient.fresh_url())
    holder = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q")])
    holder.take(1)
    with pytest.raises(Exception, match="timed out"):
        while True:
            turn(holder)
    assert transport._terms is not None
    assert transport._terms.limit_s == LIMIT_S


@pytest.mark.parametrize("kind", KINDS)
def test_what_takes_whole_workers_with_it_is_counted(
    transport: AmqpTransport, listen: Any, tools: Any, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "BACK_MS", 300)
    transport.declare([tools.spec("q", **kind)])
    transport.send([tools.payload("q")])
    attempts = []
    for _ in range(5):
        victim = listen(transport, tools.spec("q", **kind), window=2)
        (delivery,) = victim.take(1)
        attempts.append((delivery.attempt, delivery.redelivered))
        victim.consumer.flush(30.0)  # the broker knows that the copy is held instead; else it has two of it
        victim.consumer.drop()  # its process is gone
    assert attempts == [(1, False), (2, True), (2, True), (3, True), (4, True)]


def test_a_link_that_is_lost_again_and_again_leaves_one_queue_behind(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "BACK_MS", 300)
    transport.declare([tools.spec("q")])
    transport.send([tools.payload("q", id="1"), tools.payload("q", id="2")])
    held = set()
    for _ in range(4):
        consumer = listen(transport, tools.spec("q")).consumer
        came: list[Delivery] = []
        tools.wait_until(
            lambda came=came, consumer=consumer: came.extend(consumer.receive(9)) or len(came) == 2, "both", 30.0
        )
        held |= {nook.spec.name for nook in consumer._holding._nooks.values()}
        consumer.flush(30.0)  # what it has acknowledged does not come again
        consumer._link.drop()
        consumer.close()
        for name in held:
            tools.wait_until(
                lambda name=name: not transport._with_link(lambda link: topology.is_consumed(link, name)),
                "the broker notices",
                30.0,
            )
    assert len(held) == 1
    listener = listen(transport, tools.spec("q"))
    last = listener.take(2, 30.0)
    assert sorted(delivery.head.id for delivery in last if isinstance(delivery.head, Head)) == ["1", "2"]
    listener.consumer.settle([Settlement(delivery.tag) for delivery in last])
    listener.consumer.close()
    assert transport.depth("q") == 0


def test_copies_do_not_go_to_a_link_of_which_the_broker_does_not_know_that_it_is_lost(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    transport.send([tools.payload("q", id="1")])
    listen(transport, tools.spec("q")).consumer.close()
    lost = listen(transport, tools.spec("q"), window=1)
    (before,) = lost.take(1)
    assert before.tag in lost.consumer._holding.place
    lost.consumer.unsubscribe("q")
    lost.consumer._holding.leave()  # as when it is closed, of which no word may arrive
    transport.send([tools.payload("q", id=str(number)) for number in range(2, 8)])
    passing = listen(transport, tools.spec("q"))
    passing.take(6)
    passing.consumer.close()  # so that they come again
    ahead = listen(transport, tools.spec("q"))
    came = ahead.take(6)
    for delivery in came:
        ahead.consumer._holding.hold(delivery, 1, started=True)
    place = ahead.consumer._holding.place
    tools.wait_until(lambda: ahead.consumer.receive(0) or len(place) == 6, "all are held by copies", 30.0)
    assert not lost.consumer.receive(9)


def test_a_clean_return_of_what_came_again_counts_nothing(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    transport.send([tools.payload("q")])
    listen(transport, tools.spec("q")).consumer.close()
    for _ in range(4):
        listener = listen(transport, tools.spec("q"))
        (delivery,) = listener.take(1)
        assert delivery.attempt <= 2
        listener.consumer.settle([Settlement(delivery.tag, "requeue")])
        listener.consumer.close()


def test_what_came_again_and_is_given_back_says_so_to_whoever_gets_it(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    transport.send([tools.payload("q")])
    first = listen(transport, tools.spec("q"))
    first.take(1)
    first.consumer.drop()  # its task had begun
    second = listen(transport, tools.spec("q"))
    (suspect,) = second.take(1)
    assert suspect.redelivered
    second.consumer.settle([Settlement(suspect.tag, "requeue")])  # held by a copy, and begun by nobody
    second.consumer.close()
    third = listen(transport, tools.spec("q"))
    (delivery,) = third.take(1)
    assert delivery.redelivered or PUBLISH_TRY_HEADER in transport.unpack(delivery.raw).headers


@pytest.mark.parametrize("size", [70_000, 65_175])
def test_a_suspect_whose_headers_are_too_large_costs_no_worker(
    transport: AmqpTransport, listen: Any, tools: Any, size: int
) -> None:
    transport.send([tools.payload("q", text="x" * size)])
    listen(transport, tools.spec("q")).consumer.close()  # it was there already, and comes again
    listener = listen(transport, tools.spec("q"))
    (delivery,) = listener.take(1)
    listener.consumer.settle([Settlement(delivery.tag, "dead", reason="malformed")])
    listener.consumer.close()
    (letter,) = transport.browse_dead("q")
    assert letter.reason == "malformed"


def test_which_servers_limit_how_long_a_message_is_held() -> None:
    assert limit_of({"product": "RabbitMQ", "version": "3.8.15"}, None) == 1800.0
    assert limit_of({"product": "RabbitMQ", "version": "3.8.14"}, None) == 0.0
    assert limit_of({"product": "RabbitMQ", "version": "3.8.14"}, 60) == 60.0
    assert limit_of({"product": "LavinMQ", "version": "2.0"}, None) == 0.0
