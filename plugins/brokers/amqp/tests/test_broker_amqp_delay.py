"""Delays at the broker: never early, soon after, and only to the queue they are for."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from celeriac.spec import Payload, QueueSpec, Settlement
from celeriac.testing.kit import Bench
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp import consumer as consumer_module
from celeriac_broker_amqp import delays
from celeriac_broker_amqp.transport import AmqpTransport


@pytest.fixture(params=["classic", "quorum"])
def delaying(request: pytest.FixtureRequest, open_transport: Callable[..., AmqpTransport]) -> AmqpTransport:
    return open_transport(broker_native_delayed_delivery_queue_type=request.param, broker_connection_timeout=30.0)


def iso(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).isoformat()


def test_a_message_waits_at_the_broker_and_comes_when_it_is_due(
    delaying: AmqpTransport, listen: Any, tools: Any
) -> None:
    listener = listen(delaying, tools.spec("my.queue"), tools.spec("queue"))
    delaying.send([tools.payload("queue")], timeout_s=30)
    listener.take(1)
    due = time.time() + 2.5
    delaying.send([tools.payload("my.queue", due=due)], timeout_s=30)
    if time.time() < due - 0.5:
        assert delaying.depth("my.queue") == 0
    (delivery,) = listener.take(1)
    assert due <= time.time() < due + 10.0
    assert delivery.queue == "my.queue"
    route = delaying.unpack(delivery.raw).route
    assert (route.exchange, route.routing_key) == ("", "my.queue")
    listener.stay_empty(0.3)


def test_a_message_that_says_when_it_is_due_comes_on_the_dot(
    open_transport: Callable[..., AmqpTransport], listen: Any, tools: Any
) -> None:
    transport = open_transport(broker_native_delayed_delivery_queue_type="classic")
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q", due=time.time() + 1)], timeout_s=30)  # makes the delay queues
    listener.consumer.settle([Settlement(listener.take(1)[0].tag)])
    late: list[float] = []
    while not late or late[-1] >= 0.3:
        assert len(late) < 8, f"it came late each time: {late}"
        due = time.time() + 2.5
        transport.send([tools.payload("q", due=due, eta=iso(due))], timeout_s=30)
        (delivery,) = listener.take(1)
        late.append(time.time() - due)
        assert late[-1] >= 0
        assert (delivery.attempt, delivery.redelivered) == (1, False)
        listener.consumer.settle([Settlement(delivery.tag)])
    listener.consumer.close()
    assert transport.depth("q") == 0


def test_a_delivery_is_put_off_without_a_change_and_without_a_flag(
    delaying: AmqpTransport, listen: Any, tools: Any
) -> None:
    listener = listen(delaying, tools.spec("q"))
    sent = tools.payload("q", odd=[None, {"a": -1}])
    delaying.send([sent])
    (delivery,) = listener.take(1)
    due = time.time() + 3
    listener.consumer.settle([Settlement(delivery.tag, "requeue", due=due)])
    listener.consumer.flush(30.0)
    assert not listener.consumer._waiting or time.time() > due - consumer_module.HOLD_S
    (again,) = listener.take(1)
    assert time.time() >= due
    assert (again.attempt, again.redelivered) == (1, False)
    payload = delaying.unpack(again.raw)
    assert payload.body == sent.body
    assert {key: payload.headers[key] for key in sent.headers} == sent.headers
    listener.consumer.settle([Settlement(again.tag, "requeue", due=time.time() + 3, started=True)])
    (third,) = listener.take(1)
    assert (third.attempt, third.redelivered) == (2, True)
    retry = delaying.unpack(third.raw)  # with the marks of its way through the delay queues among its headers
    retry.route, retry.due = sent.route, time.time() + 3
    delaying.send([retry])
    assert len(listener.take(1)) == 1


def test_a_short_wait_is_spent_here(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q")])
    (delivery,) = listener.take(1)
    due = time.time() + 0.4
    listener.consumer.settle([Settlement(delivery.tag, "requeue", due=due)])
    interval_s = listener.consumer.poll_interval_s
    assert interval_s is not None
    assert interval_s <= 0.4
    (again,) = listener.take(1)
    assert time.time() >= due
    assert listener.consumer.poll_interval_s is None
    listener.consumer.settle([Settlement(again.tag, "requeue", due=time.time() + 1)])
    listener.consumer.stop()  # given back early, for somebody else to hold
    tools.wait_until(lambda: transport.depth("q") == 1, "given back")


def test_a_wait_is_spent_digit_by_digit_and_none_is_needed_for_a_0(
    amqp_url: str,
    rabbitmq_service: RabbitMQService,
    open_transport: Callable[..., AmqpTransport],
    tools: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delays, "whole_seconds", lambda due: 0x603)  # however long the way to it takes to make
    transport = open_transport(broker_native_delayed_delivery_queue_type="classic")
    transport.send([tools.payload("q", due=time.time() + 0x603)], timeout_s=30)
    assert transport.depth(f"celeriac.delay.{0x600}") == 1
    _, queues, _ = topology(rabbitmq_service, amqp_url.rsplit("/", 1)[1])
    assert [name for name, *_ in queues] == [f"celeriac.delay.{0x600}", "celeriac.delay.3", "q"]


@pytest.mark.parametrize("delay_s", [1, 15, 16, 17, 0xA00003, delays.MAX_DELAY_S])
def test_the_parts_of_a_wait_make_it_up(delay_s: int) -> None:
    parts = list(delays.waits_of(delay_s))
    assert sum(parts) == delay_s
    assert len(parts) <= delays.DIGITS
    digits = delays.key_of(delay_s, "my.queue").split(".")
    assert digits[delays.DIGITS :] == ["my", "queue"]
    assert int("".join(digits[: delays.DIGITS]), 16) == delay_s
    first = next(place for place, digit in enumerate(digits) if digit != "0")
    assert delays.way_in(delay_s) == f"celeriac.delay.digit-{delays.DIGITS - 1 - first}"


def test_of_a_wait_that_is_too_long_for_the_digits_the_longest_is_taken(delaying: AmqpTransport, tools: Any) -> None:
    delaying.send([tools.payload("q", due=time.time() + 2 * delays.MAX_DELAY_S)], timeout_s=30)
    assert delaying.depth(f"celeriac.delay.{15 << 24}") == 1


def test_a_delay_queue_that_somebody_removes_is_made_anew_for_the_next_message(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def later(task_id: str) -> Payload:
        return tools.payload("q", id=task_id, due=time.time() + 48)  # type: ignore[no-any-return]

    monkeypatch.setattr(delays, "whole_seconds", lambda due: 48)  # however long the way to it takes to make

    listener = listen(transport, tools.spec("q"))
    transport.send([later("sent"), tools.payload("q")], timeout_s=30)
    (delivery,) = listener.take(1)
    listener.consumer.settle([], publish=[later("followed")])
    listener.consumer.flush(30.0)
    assert transport.depth("celeriac.delay.48") == 2
    transport.delete("celeriac.delay.48")
    transport.send([later("sent"), later("sent")])
    assert transport.depth("celeriac.delay.48") == 2
    transport.delete("celeriac.delay.48")
    listener.consumer.settle([Settlement(delivery.tag)], publish=[later("followed")])
    listener.consumer.flush(30.0)
    assert transport.depth("celeriac.delay.48") == 1


def test_celerys_delay_queues_are_made_as_celery_makes_them(
    amqp_url: str, rabbitmq_service: RabbitMQService, open_transport: Callable[..., AmqpTransport], tools: Any
) -> None:
    from kombu import Connection
    from kombu.transport.native_delayed_delivery import declare_native_delayed_delivery_exchanges_and_queues

    transport = open_transport(broker_native_delayed_delivery_queue_type="classic")
    quorum = QueueSpec("q", exchange="e", exchange_type="topic", routing_key="q", arguments={"x-queue-type": "quorum"})
    transport.consumer([quorum], owner="me", poller=Bench(), window=1).close()
    vhost = amqp_url.rsplit("/", 1)[1]
    before = topology(rabbitmq_service, vhost)
    with Connection(amqp_url) as connection:
        declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")
    assert topology(rabbitmq_service, vhost) == before


def test_delay_queues_that_are_there_are_used_as_they_are(
    open_transport: Callable[..., AmqpTransport], listen: Any, tools: Any
) -> None:
    listener = listen(open_transport(), QueueSpec("bare"))
    for kind in ("classic", "quorum"):  # the second finds those of the first
        sender = open_transport(broker_native_delayed_delivery_queue_type=kind)
        sender.send([tools.payload("bare", due=time.time() + 1.5)], timeout_s=30)
        assert len(listener.take(1)) == 1
        listener.consumer.settle([Settlement(one) for one in list(listener.consumer._owned)])


def topology(service: RabbitMQService, vhost: str) -> Any:
    bindings = service.api("GET", f"bindings/{vhost}")
    queues = service.api("GET", f"queues/{vhost}?columns=name,arguments,durable")
    return (
        sorted((one["source"], one["destination"], one["destination_type"], one["routing_key"]) for one in bindings),
        sorted((one["name"], one["durable"], sorted(one["arguments"].items())) for one in queues),
        sorted(one["name"] for one in service.api("GET", f"exchanges/{vhost}")),
    )


def test_a_queue_that_was_made_anew_gets_its_delayed_messages(
    transport: AmqpTransport, open_transport: Any, listen: Any, tools: Any
) -> None:
    """Its bindings go with a queue (an `auto_delete` one, with its last worker); senders do not hear of it."""
    first = listen(transport, tools.spec("q"))
    sender = open_transport()
    sender.send([tools.payload("q", due=time.time() + 1.5)], timeout_s=30)
    first.take(1)
    transport.delete("q")
    first.consumer.close()
    second = listen(open_transport(), tools.spec("q"))
    sender.send([tools.payload("q", due=time.time() + 1.5)], timeout_s=30)
    second.take(1)
    transport.delete("q")
    tools.wait_until(lambda: second.consumer.receive(1) == [] and second.consumer._asked == 2, "consuming anew")
    sender.send([tools.payload("q", due=time.time() + 1.5)], timeout_s=30)
    second.take(1)


def test_a_broker_user_who_may_not_have_delay_queues_has_workers_hold_what_is_for_later(
    rabbitmq_service: RabbitMQService,
    amqp_url: str,
    open_transport: Any,
    listen: Any,
    tools: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = urlsplit(amqp_url)
    user, vhost, backend = "limited", address.path[1:], "rabbit_auth_backend_internal"
    allowed = '<<"^(q|next)$">>, <<".*">>, <<".*">>'
    tools.evaluate(rabbitmq_service, f'{backend}:add_user(<<"{user}">>, <<"pw">>, <<"me">>)')
    tools.evaluate(rabbitmq_service, f'{backend}:set_permissions(<<"{user}">>, <<"{vhost}">>, {allowed}, <<"me">>)')
    transport = open_transport(f"amqp://{user}:pw@{address.hostname}:{address.port}{address.path}")
    due = time.time() + 600.0
    transport.send([tools.payload("q", due=due, eta=iso(due)) for _ in range(3)], timeout_s=30)
    listener = listen(transport, tools.spec("q"), window=1)
    transport.send([tools.payload("q", id="now")])
    while (delivery := listener.take(1)[0]).head.id != "now":
        listener.consumer.settle([Settlement(delivery.tag, "requeue", due=due)])
    assert time.time() < due, "what is held takes nobody's place"
    listener.consumer.settle([], publish=[tools.payload("next", due=due, eta=iso(due))])
    listener.consumer.settle([Settlement(delivery.tag)])
    clock = SimpleNamespace(time=lambda: time.time() + 600.0, monotonic=time.monotonic)
    monkeypatch.setattr(consumer_module, "time", clock)
    got = [listener.take(1)[0] for _ in range(3)]
    listener.consumer.settle([Settlement(delivery.tag) for delivery in got])
    listener.consumer.close()
    assert (transport.depth("q"), transport.depth("next")) == (0, 1)


def test_a_queue_named_like_a_pattern_gets_no_delayed_messages_of_others(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    odd = listen(transport, tools.spec("jobs.*"))
    listener = listen(transport, tools.spec("jobs.a"))
    due = time.time() + 1.5
    transport.send([tools.payload(name, due=due, eta=iso(due)) for name in ("jobs.*", "jobs.a")], timeout_s=30)
    (delivery,) = odd.take(1)
    odd.consumer.settle([Settlement(delivery.tag, "requeue", due=time.time() + 600)])
    listener.take(1)
    odd.stay_empty(0.3)
    odd.consumer.close()
    assert transport.depth("jobs.*") == 1
