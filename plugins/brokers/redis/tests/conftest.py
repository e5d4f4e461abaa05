"""A worker's half of the contract, small: enough to receive, settle and be woken."""

from __future__ import annotations

import itertools
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac.spec import Delivery, Payload, QueueSpec, Route, Settlement
from celeriac.testing.services import free_ports
from celeriac_broker_redis.consumer import RedisConsumer
from celeriac_broker_redis.transport import RedisTransport, make_transport
from celeriac_support_redis.wire import Wire, connect, parse_url

PATIENCE_S = 30.0


class Sleeper:
    """The worker's poller."""

    def __init__(self) -> None:
        self.fds: set[int] = set()

    def watch(self, fd: int) -> None:
        assert fd >= 0
        self.fds.add(fd)

    def unwatch(self, fd: int) -> None:
        self.fds.discard(fd)

    def sleep(self, timeout_s: float) -> None:
        select.select(list(self.fds), [], [], timeout_s)


class Desk:
    """One transport and its consumers, as a worker would use them."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        options = {"socket_connect_timeout": PATIENCE_S, "socket_timeout": PATIENCE_S, **options}
        self.transport: RedisTransport = make_transport(url, {"broker_transport_options": options})  # type: ignore[assignment]
        self.sleepers: dict[RedisConsumer, Sleeper] = {}
        self.count = itertools.count()

    def payload(self, name: str = "", *, queue: str = "celery", **more: Any) -> Payload:
        name = name or f"task-{next(self.count)}"
        properties = {"correlation_id": name, "delivery_mode": 2, "priority": more.get("priority", 0)}
        route = Route(more.get("key", queue), more.get("exchange", ""), more.get("exchange_type", "direct"), queue)
        headers = {"lang": "py", "task": "proj.add", "id": name, "eta": None, "stamps": {}, "stamped_headers": []}
        return Payload(b"[[2, 3], {}, {}]", "application/json", "utf-8", headers, properties, route, more.get("due"))

    def send(self, *names: str, **more: Any) -> None:
        self.transport.send([self.payload(name, **more) for name in names])

    def consumer(self, *queues: str | QueueSpec, owner: str = "w1@here", window: int = 10) -> RedisConsumer:
        specs = [QueueSpec(queue) if isinstance(queue, str) else queue for queue in queues or ("celery",)]
        sleeper = Sleeper()
        consumer = self.transport.consumer(specs, owner=owner, poller=sleeper, window=window)
        self.sleepers[consumer] = sleeper
        return consumer

    def receive(
        self, consumer: RedisConsumer, count: int, *, within_s: float = PATIENCE_S, room: int = 0
    ) -> list[Delivery]:
        """`count` deliveries, or fewer when the time is over; more if there is more room for them."""
        found: list[Delivery] = []
        deadline = time.monotonic() + within_s
        while len(found) < count and time.monotonic() < deadline:
            found += consumer.receive(max(count, room) - len(found))
            if len(found) < count:
                self.sleepers[consumer].sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        return found

    def take(self, consumer: RedisConsumer, count: int) -> list[str]:
        """Receive so many and acknowledge them; their names."""
        deliveries = self.receive(consumer, count)
        self.settle(consumer, deliveries)
        return self.names(deliveries)

    def idle(self, consumer: RedisConsumer) -> None:
        """Come back when the consumer waits on its lists."""
        self.until(lambda: not consumer.receive(10) and consumer._waits.armed > 0)

    def settle(self, consumer: RedisConsumer, deliveries: list[Delivery], verb: Any = "ack", **more: Any) -> None:
        consumer.settle([Settlement(delivery.tag, verb, **more) for delivery in deliveries])
        consumer.flush(PATIENCE_S)

    @staticmethod
    def names(deliveries: list[Delivery]) -> list[str]:
        return [delivery.head.id for delivery in deliveries]  # type: ignore[union-attr]

    @staticmethod
    def until(true: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
        """Poll until it is true; returns what it returned."""
        deadline = time.monotonic() + within_s
        while not (found := true()):
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.01)
        return found


@pytest.fixture
def desks() -> Iterator[Callable[..., Desk]]:
    """Makes desks, and clears them away."""
    made: list[Desk] = []

    def make(url: str, **options: Any) -> Desk:
        made.append(Desk(url, **options))
        return made[-1]

    yield make
    for desk in made:
        for consumer in desk.sleepers:
            consumer.close()
        desk.transport.close()


@pytest.fixture
def desk(desks: Callable[..., Desk], redis_url: str) -> Desk:
    """A desk at an empty database."""
    return desks(redis_url)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle consumer waits until something comes, and what came stays unrecorded until it is settled: however long
    the test takes for its next step, it finds it there."""
    monkeypatch.setattr("celeriac_broker_redis.consumer.IDLE_S", (60.0, 60.0))
    monkeypatch.setattr("celeriac_broker_redis.consumer.ADOPT_S", 60.0)


@pytest.fixture
def server(redis_url: str) -> Iterator[Wire]:
    """A connection to look at the server's keys with."""
    wire = connect(parse_url(redis_url)[0])
    yield wire
    wire.close()


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody listens."""
    (port,) = free_ports(1)
    return port
