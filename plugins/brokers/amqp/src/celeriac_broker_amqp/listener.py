"""A listener: a queue of its own, bound to an exchange, whose messages are pushed without acknowledgement.

The queue goes with the connection. What is not read in time stays at the broker, as long as the queue's
`x-message-ttl` lets it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from celeriac.exceptions import TransportLost
from celeriac.spec import ExchangeSpec, Poller, QueueSpec
from celeriac_broker_amqp import methods
from celeriac_broker_amqp.link import ChannelClosed, Link
from celeriac_broker_amqp.topology import scratch

CHANNEL: Final = 1


class AmqpListener:
    """See `celeriac.spec.Listener`."""

    dropped = 0

    def __init__(self, link: Link, exchange: ExchangeSpec, queue: QueueSpec, poller: Poller) -> None:
        self._link = link
        self._poller = poller
        self._heard: deque[bytes] = deque()
        self._closed = False
        channel = self._channel = link.open_channel(CHANNEL)
        declare = methods.declare_queue(
            queue.name,
            durable=queue.durable,
            exclusive=queue.exclusive,
            auto_delete=queue.auto_delete,
            arguments=queue.arguments,
        )
        try:
            declare_exchange(link, exchange)
            link.call(channel, declare, methods.QUEUE_DECLARE_OK)
            link.call(channel, methods.bind_queue(queue.name, exchange.name, queue.routing_key), methods.QUEUE_BIND_OK)
            link.call(channel, methods.consume(queue.name, "listener", no_ack=True), methods.BASIC_CONSUME_OK)
        except ChannelClosed as exc:
            raise TransportLost(f"RabbitMQ at {link.where} lets nobody listen at {queue.name!r}: {exc}") from exc
        poller.watch(link.fileno())

    @property
    def poll_interval_s(self) -> float | None:
        """So often a heartbeat is due."""
        return self._link.heartbeat_s / 3 if self._link.heartbeat_s else None

    def receive(self, limit: int) -> list[bytes]:
        if self._closed:
            raise TransportLost(f"this listener to RabbitMQ at {self._link.where} is closed")
        if len(self._heard) < limit:
            self._link.pump()
            self._link.beat()
            deliveries, self._link.deliveries = self._link.deliveries, []
            self._heard.extend(record for _, _, _, record in deliveries)
            if self._channel.cancelled or self._channel.closed is not None:
                raise TransportLost(f"RabbitMQ at {self._link.where} removed a listener's queue")
        return [self._heard.popleft() for _ in range(min(limit, len(self._heard)))]

    def drop(self) -> None:
        """In a forked child: let go without a word."""
        self._closed = True
        self._link.drop()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._poller.unwatch(self._link.fileno())
            self._link.close()


def declare_exchange(link: Link, exchange: ExchangeSpec) -> None:
    """Make an exchange exist. One that is there and is not the same is used as it is.

    Raises:
        TransportLost: The broker refuses for another reason.
    """
    try:
        with scratch(link) as channel:
            declare = methods.declare_exchange(exchange.name, exchange.type, durable=exchange.durable)
            link.call(channel, declare, methods.EXCHANGE_DECLARE_OK)
    except ChannelClosed as exc:
        if exc.code != methods.PRECONDITION_FAILED:
            raise TransportLost(f"exchange {exchange.name!r} at {link.where}: {exc}") from exc
