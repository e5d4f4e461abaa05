"""kombu, Celery's own messaging library, as the stranger on the other end."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

from kombu import Connection, Exchange, Queue

from celeriac.spec import Route, Settlement
from celeriac_broker_amqp.transport import AmqpTransport

HEADERS: dict[str, Any] = {
    "task": "proj.add", "id": "an-id", "none": None, "yes": True, "no": False, "int": -5, "long": 2**40,
    "low": -(2**40), "float": 1.25, "text": "grüße ✓", "list": [1, "a", None, [2.5, {"x": False}]],
    "table": {"a": {"b": [None]}},
    "decimal": Decimal("-1.50"), "empty": {}, "nothing": [], "": "no name",
}  # fmt: skip


def test_a_message_of_kombu_is_read_with_every_type_of_header(
    transport: AmqpTransport, listen: Any, tools: Any, amqp_url: str
) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    queue = Queue("q", Exchange("q", type="direct"), routing_key="q")
    with Connection(amqp_url) as connection, connection.Producer(serializer="json") as producer:
        producer.publish(
            [[1], {}, {}],
            exchange="",
            routing_key="q",
            declare=[queue],
            headers={**HEADERS, "moment": moment},
            correlation_id="an-id",
            reply_to="me",
            priority=4,
            expiration=60,
            timestamp=1_800_000_000,
            message_id="m1",
        )
    (delivery,) = listen(transport, tools.spec("q")).take(1)  # 406 here would mean that we declare otherwise
    assert (delivery.head.id, delivery.head.task) == ("an-id", "proj.add")
    payload = transport.unpack(delivery.raw)
    assert payload.headers == {**HEADERS, "moment": moment.replace(tzinfo=datetime.timezone.utc)}
    assert payload.body == b"[[1], {}, {}]"
    assert (payload.content_type, payload.content_encoding) == ("application/json", "utf-8")
    assert payload.properties == {
        "delivery_mode": 2, "priority": 4, "correlation_id": "an-id", "reply_to": "me", "expiration": "60000",
        "message_id": "m1", "timestamp": 1_800_000_000,
    }  # fmt: skip


def test_kombu_reads_a_message_of_ours(transport: AmqpTransport, tools: Any, amqp_url: str) -> None:
    payload = tools.payload("q", properties={"priority": 7, "expiration": "60000"})
    payload.headers.update(HEADERS)
    transport.send([payload])
    queue = Queue("q", Exchange("q", type="direct"), routing_key="q")
    with Connection(amqp_url) as connection:
        message = queue(connection.default_channel).get()
        queue(connection.default_channel).declare()
        assert message is not None
        assert message.headers == payload.headers
        assert message.decode() == [[2, 3], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        assert {key: message.properties[key] for key in payload.properties} == payload.properties
        assert message.delivery_info["routing_key"] == "q"
        assert not message.delivery_info["redelivered"]
        message.ack()
    assert transport.depth("q") == 0


def test_queues_with_arguments_are_declared_alike(transport: AmqpTransport, tools: Any, amqp_url: str) -> None:
    transport.declare([tools.spec("p", x_max_priority=10), tools.spec("k", x_queue_type="quorum")])
    with Connection(amqp_url) as connection:
        channel = connection.default_channel
        Queue("p", Exchange("p"), routing_key="p", max_priority=10)(channel).declare()
        Queue("k", Exchange("k"), routing_key="k", queue_arguments={"x-queue-type": "quorum"})(channel).declare()


def test_a_topic_exchange_is_shared(transport: AmqpTransport, listen: Any, tools: Any, amqp_url: str) -> None:
    exchange = Exchange("topics", type="topic")
    with Connection(amqp_url) as connection:
        Queue("theirs", exchange, routing_key="a.*")(connection.default_channel).declare()
        payload = tools.payload("theirs")
        payload.route = Route("a.b", "topics", "topic", "theirs")
        transport.send([payload])
        message = Queue("theirs", exchange, routing_key="a.*")(connection.default_channel).get()
        assert message is not None
        assert message.delivery_info["exchange"] == "topics"
        message.reject(requeue=True)
    (delivery,) = listen(transport, tools.spec("theirs")).take(1)
    assert delivery.redelivered
    assert transport.unpack(delivery.raw).route == Route("a.b", "topics")


def test_a_message_given_back_by_us_is_taken_by_kombu(
    transport: AmqpTransport, listen: Any, tools: Any, amqp_url: str
) -> None:
    listener = listen(transport, tools.spec("q"))
    transport.send([tools.payload("q")])
    listener.consumer.settle([Settlement(listener.take(1)[0].tag, "requeue", started=True)])
    listener.consumer.stop()
    with Connection(amqp_url) as connection:
        tools.wait_until(lambda: transport.depth("q") == 1, "given back")
        message = Queue("q")(connection.default_channel).get()
        assert message is not None
        assert message.headers["x-celeriac-attempts"] == 1
