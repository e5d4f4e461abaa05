"""Helpers of these tests: a poller, payloads as Celery makes them, and transports that are closed at the end."""

from __future__ import annotations

import os
import select
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac.spec import Delivery, Payload, QueueSpec, Route
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp.consumer import AmqpConsumer
from celeriac_broker_amqp.transport import AmqpTransport

BODY = b'[[2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


class WaitingPoller:
    """The worker's half: sleeps on what it was told to watch."""

    def __init__(self) -> None:
        self.watched: set[int] = set()

    def watch(self, fd: int) -> None:
        self.watched.add(fd)

    def unwatch(self, fd: int) -> None:
        self.watched.discard(fd)

    def wait(self, timeout_s: float) -> bool:
        return bool(select.select(list(self.watched), [], [], timeout_s)[0])


def make_payload(queue: str, task: str = "proj.add", *, due: float | None = None, **headers: Any) -> Payload:
    """A call as Celery sends it."""
    task_id = headers.pop("id", None) or str(uuid.uuid4())
    properties = headers.pop("properties", {})
    body = headers.pop("body", BODY)
    return Payload(
        body,
        "application/json",
        "utf-8",
        {
            "lang": "py",
            "task": task,
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": "(2, 3)",
            "kwargsrepr": "{}",
            "origin": "gen1@host",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
            **headers,
        },
        {"correlation_id": task_id, "reply_to": "me", "delivery_mode": 2, "priority": 0, **properties},
        Route(queue),
        due,
    )


def queue_spec(name: str, **arguments: Any) -> QueueSpec:
    """A queue as Celery declares it."""
    return QueueSpec(
        name,
        exchange=name,
        routing_key=name,
        arguments={key.replace("_", "-"): value for key, value in arguments.items()},
    )


class Listener:
    """A consumer with its poller, and patience."""

    def __init__(self, consumer: AmqpConsumer, poller: WaitingPoller) -> None:
        self.consumer = consumer
        self.poller = poller

    def take(self, count: int, timeout_s: float = 30.0) -> list[Delivery]:
        """Exactly `count` deliveries, or an assertion."""
        out: list[Delivery] = []
        deadline = time.monotonic() + timeout_s
        while len(out) < count:
            out += self.consumer.receive(count - len(out))
            if len(out) < count:
                assert time.monotonic() < deadline, f"{len(out)} of {count} deliveries came within {timeout_s} s"
                interval_s = self.consumer.poll_interval_s
                self.poller.wait(0.2 if interval_s is None else min(interval_s, 0.2))
        return out

    def stay_empty(self, for_s: float) -> None:
        """Nothing comes for so long."""
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            assert self.consumer.receive(10) == []
            self.poller.wait(0.05)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closes waits for what was settled to be known: a test that looks afterwards must not find it given back
    because the broker was busy."""
    monkeypatch.setattr("celeriac_broker_amqp.consumer.CLOSE_TIMEOUT_S", 30.0)


@pytest.fixture
def open_transport(amqp_url: str) -> Iterator[Callable[..., AmqpTransport]]:
    """Makes transports; by default to this test's own virtual host."""
    opened: list[AmqpTransport] = []

    def make(url: str = amqp_url, **settings: Any) -> AmqpTransport:
        transport = AmqpTransport(url, {"broker_connection_timeout": 30.0, **settings})
        opened.append(transport)
        return transport

    yield make
    for transport in opened:
        transport.close()


@pytest.fixture
def transport(open_transport: Callable[..., AmqpTransport]) -> AmqpTransport:
    return open_transport()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Opens consumers: `listen(transport, spec, …, window=)`."""
    opened: list[AmqpConsumer] = []

    def make(transport: AmqpTransport, *queues: QueueSpec, window: int = 10) -> Listener:
        poller = WaitingPoller()
        owner = f"w{len(opened)}@here-{uuid.uuid4().hex[:8]}"
        consumer = transport.consumer(queues, owner=owner, poller=poller, window=window)
        opened.append(consumer)
        return Listener(consumer, poller)

    yield make
    for consumer in opened:
        consumer.close()


def evaluate(service: RabbitMQService, expressions: str) -> str:
    """Evaluate Erlang on the node of a service, and return the last value as Erlang writes it.

    Not by rabbitmqctl, which starts an Erlang of its own for seconds.
    """
    assert service.folder is not None
    cookie = (service.folder / ".erlang.cookie").read_text()
    environment = service.environment()
    done = subprocess.run(
        ["erl_call", "-sname", environment["RABBITMQ_NODENAME"], "-c", cookie, "-e"],
        env={**os.environ, **environment},
        input=f"{expressions}.\n",
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("{ok,"), (expressions, done.stdout, done.stderr)
    return done.stdout.removeprefix("{ok,").strip().removesuffix("}").strip()


def set_memory_alarm(service: RabbitMQService, alarm: bool) -> None:
    """Make the node believe that it has no memory left, or enough again, and wait until its connections know.

    The monitor of memory only notifies those who tell the connections: what is published before they did is taken.
    """
    limit = 1 if alarm else 2_000_000_000
    evaluate(service, f"vm_memory_monitor:set_vm_memory_high_watermark({{absolute, {limit}}})")
    wait_until(lambda: (evaluate(service, "rabbit_alarm:get_alarms()") != "[]") is alarm, "the node to know")


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions above, for test modules, which cannot import a conftest."""

    class Tools:
        payload = staticmethod(make_payload)
        spec = staticmethod(queue_spec)
        evaluate = staticmethod(evaluate)
        set_memory_alarm = staticmethod(set_memory_alarm)
        wait_until = staticmethod(wait_until)
        poller = WaitingPoller

    return Tools
