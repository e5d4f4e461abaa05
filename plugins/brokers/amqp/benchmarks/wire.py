"""This plugin and py-amqp, client against client, on one RabbitMQ: `python wire.py [amqp url]`.

Without a URL it starts a private server. Rounds are interleaved; printed are medians of messages a second and of the
client's CPU a message. Messages are persistent, the queue is durable and classic.
"""

from __future__ import annotations

import select
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import amqp
from kombu import Connection
from steps import make_payload

from celeriac.spec import Delivery, Payload, QueueSpec, Route, Settlement
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp.transport import AmqpTransport

ONE_BY_ONE = 400
MANY = 8_000
ROUNDS = 5
SPEC = QueueSpec("wire", exchange="wire", routing_key="wire")


class Poller:
    def __init__(self) -> None:
        self.fds: set[int] = set()

    def watch(self, fd: int) -> None:
        self.fds.add(fd)

    def unwatch(self, fd: int) -> None:
        self.fds.discard(fd)


def make_payloads(count: int) -> list[Payload]:
    payloads = [make_payload() for _ in range(count)]
    for payload in payloads:
        payload.route = Route("wire")
    return payloads


def send_one_by_one(transport: AmqpTransport) -> Callable[[], int]:
    payloads = make_payloads(ONE_BY_ONE)

    def run() -> int:
        for payload in payloads:
            transport.send([payload])
        return ONE_BY_ONE

    return run


def send_many(transport: AmqpTransport) -> Callable[[], int]:
    payloads = make_payloads(MANY)

    def run() -> int:
        for at in range(0, MANY, 1000):
            transport.send(payloads[at : at + 1000], timeout_s=60)
        return MANY

    return run


def publish_with_amqp(url: str, *, confirmed: bool, count: int) -> Callable[[], int]:
    payloads = make_payloads(count)

    def run() -> int:
        with Connection(url) as connection:
            raw: amqp.Connection = connection.connection
            raw.confirm_publish = confirmed
            channel = raw.channel()
            for payload in payloads:
                message = amqp.Message(
                    payload.body,
                    content_type="application/json",
                    content_encoding="utf-8",
                    application_headers=payload.headers,
                    **payload.properties,
                )
                channel.basic_publish(message, "", "wire")
        return count

    return run


def receive(transport: AmqpTransport) -> Callable[[], int]:
    def run() -> int:
        poller = Poller()
        consumer = transport.consumer([SPEC], owner="bench", poller=poller, window=256)
        got = 0
        while got < MANY:
            deliveries: list[Delivery] = consumer.receive(256)
            if deliveries:
                consumer.settle([Settlement(delivery.tag) for delivery in deliveries])
                got += len(deliveries)
            else:
                select.select(list(poller.fds), [], [], 1.0)
        consumer.flush(10)
        consumer.close()
        return got

    return run


def receive_with_amqp(url: str, *, batch: int) -> Callable[[], int]:
    def run() -> int:
        got = 0

        def take(message: amqp.Message) -> None:
            nonlocal got
            got += 1
            if got % batch == 0 or got == MANY:
                channel.basic_ack(message.delivery_tag, multiple=True)

        with Connection(url) as connection:
            channel = connection.connection.channel()
            channel.basic_qos(0, 1024, False)
            channel.basic_consume("wire", callback=take)
            while got < MANY:
                connection.connection.drain_events(timeout=10)
        return got

    return run


def main() -> None:
    with ExitStack() as stack:
        url = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(RabbitMQService()).url
        transport = AmqpTransport(url, {})
        stack.callback(transport.close)
        transport.declare([SPEC])
        sending: dict[str, Callable[[], int]] = {
            "celeriac: sent one by one, confirmed": send_one_by_one(transport),
            "py-amqp: sent one by one, confirmed": publish_with_amqp(url, confirmed=True, count=ONE_BY_ONE),
            "py-amqp: sent, not confirmed": publish_with_amqp(url, confirmed=False, count=MANY),
            "celeriac: sent by the thousand, confirmed": send_many(transport),
        }
        receiving: dict[str, Callable[[], int]] = {
            "celeriac: received, acknowledged by 256": receive(transport),
            "py-amqp: received, acknowledged by 256": receive_with_amqp(url, batch=256),
            "py-amqp: received, acknowledged one by one": receive_with_amqp(url, batch=1),
        }
        rates: dict[str, list[float]] = {}
        costs: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, work in {**sending, **receiving}.items():
                transport.purge("wire")
                if name in receiving:
                    send_many(transport)()
                wall, cpu = time.perf_counter(), time.process_time()
                count = work()
                rates.setdefault(name, []).append(count / (time.perf_counter() - wall))
                costs.setdefault(name, []).append((time.process_time() - cpu) / count * 1e6)
        transport.delete("wire")
        for name in rates:
            rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
            sys.stdout.write(f"{name:<45}{rate:>9,.0f} /s{cost:>9.1f} µs\n")


if __name__ == "__main__":
    main()
