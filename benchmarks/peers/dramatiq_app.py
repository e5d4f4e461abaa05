"""Dramatiq: default middleware, or none at all (`lean`) with only what results need."""

from __future__ import annotations

import time

import dramatiq
import meter
from dramatiq.middleware import default_middleware
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from environment import BROKER, BROKER_URL, QUEUE, RESULT_URL, SETUP

middleware = [] if SETUP == "lean" else [make() for make in default_middleware]
if RESULT_URL:
    middleware.append(Results(backend=RedisBackend(url=RESULT_URL)))
if BROKER == "redis":
    from dramatiq.brokers.redis import RedisBroker

    broker: dramatiq.Broker = RedisBroker(url=BROKER_URL, middleware=middleware)
else:
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    broker = RabbitmqBroker(url=BROKER_URL, middleware=middleware)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE)
def noop() -> None:
    meter.tick()


@dramatiq.actor(queue_name=QUEUE, **({"store_results": True} if RESULT_URL else {}))
def echo(value: int) -> int | None:
    return value if RESULT_URL else None


@dramatiq.actor(queue_name=QUEUE)
def stamped(sent_ns: int) -> None:
    meter.stamp(sent_ns)


def open_client() -> None:
    pass


def close_client() -> None:
    broker.close()


def enqueue(n: int) -> None:
    for _ in range(n):
        noop.send()


def results(n: int) -> list[int]:
    sent = [echo.send(value) for value in range(n)]
    return [message.get_result(block=True, timeout=60_000) for message in sent]


def roundtrip(n: int) -> list[float]:
    latencies = []
    for value in range(n):
        began = time.perf_counter()
        assert echo.send(value).get_result(block=True, timeout=60_000) == value
        latencies.append(time.perf_counter() - began)
    return latencies


def paced(sent_ns: int) -> None:
    stamped.send(sent_ns)
