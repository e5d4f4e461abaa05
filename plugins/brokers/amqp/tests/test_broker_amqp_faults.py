"""What the broker and the network do to us: every one ends in a clear error within its time, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from celeriac.exceptions import OperationalError, PublishUncertain, TransportLost, TransportUnreachable
from celeriac.spec import ExchangeSpec, Payload, QueueSpec, Route, Settlement
from celeriac.testing.faults import DOWN, FaultProxy
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp.transport import AmqpTransport


@pytest.fixture
def proxy(amqp_url: str) -> Iterator[FaultProxy]:
    with FaultProxy(amqp_url) as wire:
        yield wire


def test_a_black_hole_makes_a_send_uncertain_within_its_time(
    open_transport: Callable[..., AmqpTransport], proxy: FaultProxy, tools: Any
) -> None:
    transport = open_transport(proxy.url, broker_connection_timeout=4.0)
    transport.send([tools.payload("q")])
    proxy.hold()
    started = time.monotonic()
    with pytest.raises(PublishUncertain, match="did not confirm 1"):
        transport.send([tools.payload("q")], timeout_s=1.0)
    with pytest.raises(OperationalError):
        transport.send([tools.payload("q", body=bytes(30_000_000))], timeout_s=1.0)
    with pytest.raises(OperationalError):
        transport.depth("q")
    assert time.monotonic() - started < 25.0
    proxy.heal()
    transport.send([tools.payload("q")])
    assert transport.depth("q") >= 2


def test_connections_closed_by_an_operator_cost_a_sender_nothing_and_a_worker_a_reconnect(
    transport: AmqpTransport, listen: Any, tools: Any, rabbitmq_service: RabbitMQService
) -> None:
    transport.send([tools.payload("q"), tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    first, _ = listener.take(2)
    listener.consumer.settle([Settlement(first.tag)], publish=[tools.payload("next")])
    listener.consumer.flush(30.0)
    close = 'catch rabbit_networking:close_connection(One, <<"because">>)'  # one that is going needs no closing
    tools.evaluate(rabbitmq_service, f"[({close}) || One <- rabbit_networking:connections()]")
    with pytest.raises(TransportLost, match="320 CONNECTION_FORCED - because"):
        listener.take(1)
    with pytest.raises(TransportLost):
        listener.consumer.settle([Settlement(99)], publish=[tools.payload("next")])
        listener.consumer.flush(30.0)
    started = time.monotonic()
    listener.consumer.close()
    assert time.monotonic() - started < 29.0
    transport.send([tools.payload("q")])
    again = listen(transport, tools.spec("q")).take(2)
    assert sorted(delivery.redelivered for delivery in again) == [False, True]


def test_a_memory_alarm_stops_publishing_in_time_and_lets_acknowledgements_through(
    open_transport: Callable[..., AmqpTransport],
    listen: Any,
    tools: Any,
    rabbitmq_service: RabbitMQService,
) -> None:
    transport = open_transport()
    transport.send([tools.payload("q") for _ in range(4)])
    listener = listen(transport, tools.spec("q"))
    one, two, three, _ = listener.take(4)
    listener.consumer.settle([Settlement(one.tag)], publish=[tools.payload("next")])
    listener.consumer.flush(30.0)
    tools.set_memory_alarm(rabbitmq_service, True)
    try:
        with pytest.raises(PublishUncertain, match="blocks publishers: low on memory"):
            transport.send([tools.payload("q")], timeout_s=4.0)
        started = time.monotonic()
        listener.consumer.settle([Settlement(two.tag)], publish=[tools.payload("next")])
        listener.consumer.receive(0)
        listener.consumer.settle([Settlement(three.tag)])
        listener.stay_empty(0.5)
        listener.consumer.settle([], publish=[tools.payload("next")])
        assert time.monotonic() - started < 15.0
        assert listener.consumer._followers.count == 2
    finally:
        tools.set_memory_alarm(rabbitmq_service, False)
    listener.consumer.flush(30.0)
    tools.wait_until(lambda: transport.depth("next") == 3, "published when the alarm was over")
    listener.consumer._link.drop()
    # The fourth comes back when the server has noticed; the uncertain one may have arrived, at any time.
    tools.wait_until(lambda: transport.depth("q") >= 1, "the unsettled one given back")
    assert transport.depth("q") <= 2


def test_a_blocked_connection_refuses_to_write(
    transport: AmqpTransport, tools: Any, rabbitmq_service: RabbitMQService
) -> None:
    transport.send([tools.payload("q")])
    publisher = transport._idle[0]
    publisher.link.blocked = "low on memory"  # as the broker would have said
    before = publisher.link.bytes_sent
    started = time.monotonic()
    with pytest.raises(OperationalError, match="takes no messages: low on memory"):
        transport.send([tools.payload("q")], timeout_s=0.5)
    assert time.monotonic() - started < 10.0
    assert publisher.link.bytes_sent == before


def test_a_broadcast_that_may_have_gone_out_is_not_sent_again(
    transport: AmqpTransport, open_transport: Callable[..., AmqpTransport], proxy: FaultProxy, tools: Any
) -> None:
    exchange, poller = ExchangeSpec("news"), tools.poller()
    listener = transport.listen(exchange, QueueSpec("mine", auto_delete=True, durable=False), poller=poller)
    sender = open_transport(proxy.url, broker_connection_timeout=20.0)
    payload = Payload(b"{}", "application/json", "utf-8", {}, {}, Route("", "news", "fanout"))
    sender.broadcast(exchange, [payload])
    heard: list[bytes] = []

    def hears(count: int) -> bool:
        heard.extend(listener.receive(10))
        return len(heard) >= count

    tools.wait_until(lambda: hears(1), "the first one")
    proxy.hold(DOWN)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(sender.broadcast, exchange, [payload])
        tools.wait_until(lambda: hears(2), "the second one")
        proxy.cut()
        proxy.heal()
        with pytest.raises(PublishUncertain):
            second.result(20)
    transport.broadcast(exchange, [payload])
    tools.wait_until(lambda: hears(3), "one that comes after all of that")
    assert len(heard) == 3
    transport._with_link(lambda link: link.call(link.open_channel(3), b"\0\x28\0\x14\0\0\4news\0", (40 << 16) + 21))
    sender.broadcast(exchange, [payload])  # to an exchange that is gone by now
    listener.close()


def test_a_cut_wire_is_noticed_at_once(
    open_transport: Callable[..., AmqpTransport], listen: Any, proxy: FaultProxy, tools: Any
) -> None:
    transport = open_transport(proxy.url)
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q")])
    listener.take(1)
    proxy.cut()
    with pytest.raises(TransportLost):
        listener.take(1)
    transport.send([tools.payload("q")])
    assert len(listen(transport, tools.spec("q")).take(2)) == 2


def test_what_a_failing_queue_had_is_uncertain_for_it_may_have_been_handed_out(
    open_transport: Callable[..., AmqpTransport],
    listen: Any,
    tools: Any,
    rabbitmq_service: RabbitMQService,
    amqp_url: str,
) -> None:
    vhost = amqp_url.rsplit("/", 1)[1]
    store = f'Store = rabbit_vhost_msg_store:vhost_store_pid(<<"{vhost}">>, msg_store_persistent)'
    queue = f'{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"q">>))'
    transport, other, large = open_transport(), open_transport(), bytes(8192)  # as large, it goes by the store
    transport.send([tools.payload("q", "first"), tools.payload("other")])
    listener = listen(transport, tools.spec("q"))
    (first,) = listener.take(1)
    tools.evaluate(rabbitmq_service, f"{store}, sys:suspend(Store)")  # a slow disk: it confirms nothing
    try:
        with ThreadPoolExecutor(1) as threads:
            sent = [tools.payload("q", "sent", body=large), tools.payload("other")]
            sending = threads.submit(other.send, sent, timeout_s=60.0)
            assert [delivery.head.task for delivery in listener.take(1)] == ["sent"], "so it was handed out"
            listener.consumer.settle([Settlement(first.tag)], publish=[tools.payload("q", "follows", body=large)])
            (follower,) = listener.take(1)
            tools.evaluate(rabbitmq_service, f"{queue}, exit(amqqueue:get_pid(Queue), kill)")
            with pytest.raises(PublishUncertain, match="does not answer for 1 of 2") as caught:
                sending.result(60)
    finally:
        tools.evaluate(rabbitmq_service, f"{store}, sys:resume(Store)")
    assert caught.value.task_ids == [sent[0].headers["id"]], "of the other it is certain"
    assert caught.value.payloads[0] == sent[0]
    listener.consumer.flush(30.0)
    listener.consumer.close()
    again = listen(other, tools.spec("q"))
    while True:  # what the queue had on its disk comes too
        (delivery,) = again.take(1)
        if delivery.head.id == follower.head.id and "x-celeriac-publish-try" in other.unpack(delivery.raw).headers:
            break


@pytest.mark.slow
def test_a_killed_broker_keeps_what_it_confirmed(
    private_service: Callable[[RabbitMQService], RabbitMQService],
    open_transport: Callable[..., AmqpTransport],
    listen: Any,
    tools: Any,
) -> None:
    service = private_service(RabbitMQService())
    transport = open_transport(service.url, broker_connection_timeout=20.0)
    spec = tools.spec("q")
    sent = [tools.payload("q") for _ in range(40)]
    transport.send(sent)
    listener = listen(transport, spec, window=40)
    got = listener.take(40)
    listener.consumer.settle([Settlement(delivery.tag) for delivery in got[:10]])
    listener.consumer.flush(30.0)
    service.kill()
    with pytest.raises(TransportLost):
        listener.take(1)
    with pytest.raises((TransportUnreachable, PublishUncertain)):  # the latter if this connection has not heard yet
        transport.send([tools.payload("q")], timeout_s=3.0)
    service.restart()
    transport.send([tools.payload("q")])
    missing = {payload.headers["id"] for payload in sent} - {delivery.head.id for delivery in got[:10]}
    again = listen(transport, spec, window=40)
    ids: set[str] = set()
    while not missing <= ids:  # acknowledgements that it had not written down yet are forgotten, and those come too
        ids.add(again.take(1)[0].head.id)
