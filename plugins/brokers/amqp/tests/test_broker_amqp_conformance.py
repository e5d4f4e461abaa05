"""The amqp broker keeps the contract of brokers."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.spec import Settlement, Transport
from celeriac.testing.broker_suite import BrokerConformance, make_payload
from celeriac.testing.kit import Bench
from celeriac_broker_amqp.transport import AmqpTransport


class TestAmqpBroker(BrokerConformance):
    plugin = "celeriac_broker_amqp"
    abilities = AmqpTransport.abilities
    settings = {"broker_connection_timeout": 30.0}  # noqa: RUF012 - a fixed mapping
    urgent_first = (9, 0)
    recovery_s = 20.0

    #: Its lease is its connection, which nobody else can keep.
    test_B9_what_stands_in_for_a_worker_keeps_its_lease = None  # type: ignore[assignment]

    @pytest.fixture
    def url(self, amqp_url: str) -> str:
        return amqp_url

    def test_B29_stop_takes_no_more_and_settle_still_works(
        self, transport: Transport, queue: str, bench: Bench, open_consumer: Any
    ) -> None:
        """As the suite's, but that RabbitMQ flags whatever it has handed out before."""
        transport.send([make_payload(queue) for _ in range(10)])
        consumer = open_consumer(queue, window=4)
        (held,) = bench.take(consumer, 1)
        consumer.stop()
        bench.take_none(consumer)
        consumer.settle([Settlement(held.tag)])
        consumer.flush(30)
        other = Bench()
        assert len(other.take(open_consumer(queue, poller=other), 9)) == 9
        other.take_none(open_consumer(queue, poller=other))
