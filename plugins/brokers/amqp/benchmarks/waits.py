"""What a message for later costs RabbitMQ, and how late it comes: `python waits.py --first 400 --last 430`.

A private server; messages are due between `--first` and `--last` seconds after sending begins, and one consumer takes
them as they come. Printed are the server's CPU a message for the way in and for the way out. Two hundred others go
first, so that all queues are there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from steps import make_payload
from wire import Poller

from celeriac.spec import Payload, QueueSpec, Route, Settlement
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp import message
from celeriac_broker_amqp.transport import AmqpTransport

BATCH = 1000
WARM = 200
QUEUE = QueueSpec("waits")
TICKS = os.sysconf("SC_CLK_TCK")


def make_payloads(dues: list[float]) -> list[Payload]:
    payloads = [make_payload() for _ in dues]
    for payload, due in zip(payloads, dues, strict=True):
        payload.route, payload.due = Route(QUEUE.name), due
    return payloads


def server_cpu_s(server: RabbitMQService) -> float:
    """CPU seconds of the Erlang machine that runs this server."""
    mark, spent = os.fsencode(server.folder), 0.0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, _, figures = (process / "stat").read_text().rpartition(")")
            if "beam" in name and mark in (process / "environ").read_bytes():
                user, system = figures.split()[11:13]
                spent += (int(user) + int(system)) / TICKS
        except OSError:
            continue  # it has ended meanwhile
    return spent


def measure(server: RabbitMQService, transport: AmqpTransport, dues: list[float]) -> str:
    payloads = make_payloads(dues)
    begun, before_s = time.time(), server_cpu_s(server)
    for at in range(0, len(payloads), BATCH):
        transport.send(payloads[at : at + BATCH], timeout_s=60)
    sent, in_s = time.time(), server_cpu_s(server) - before_s
    consumer = transport.consumer([QUEUE], owner="waits", poller=Poller(), window=BATCH)
    late: list[float] = []
    while len(late) < len(dues):
        found = consumer.receive(BATCH)
        now = time.time()
        for delivery in found:
            marks = message.scan(delivery.raw)[1]
            assert marks is not None
            assert marks.due is not None
            late.append(now - marks.due)
        if found:
            consumer.settle([Settlement(delivery.tag) for delivery in found])
        else:
            time.sleep(0.01)
    consumer.close()
    out_s, count = server_cpu_s(server) - before_s - in_s, len(dues)
    late.sort()
    return (
        f"{count} messages: sent {count / (sent - begun):,.0f} a second; the server's CPU a message: in "
        f"{1000 * in_s / count:.2f} ms, out {1000 * out_s / count:.2f} ms; late: median {late[count // 2]:.2f} s, "
        f"p99 {late[int(count * 0.99)]:.2f} s, most {late[-1]:.2f} s, least {late[0]:.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What a message for later costs RabbitMQ.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=float, default=16.0)
    parser.add_argument("--last", type=float, default=34.0)
    parser.add_argument("--type", choices=("quorum", "classic"), default="quorum", help="of the delay queues")
    options = parser.parse_args()
    with RabbitMQService() as server:
        settings = {"broker_native_delayed_delivery_queue_type": options.type, "broker_connection_timeout": 60.0}
        transport = AmqpTransport(server.fresh_url(), settings)
        for count in (WARM, options.count):
            step_s, first = (options.last - options.first) / count, time.time() + options.first
            found = measure(server, transport, [first + n * step_s for n in range(count)])
        sys.stdout.write(f"{found}\n")
        transport.close()


if __name__ == "__main__":
    main()
