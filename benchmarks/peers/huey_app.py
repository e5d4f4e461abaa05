"""Huey on Redis (blocking pop, pushed results) or on a SQLite file (polled every 5 ms)."""

from __future__ import annotations

import time

import meter
from environment import BROKER, BROKER_URL, QUEUE, RESULT_URL
from huey import RedisHuey, SqliteHuey

WITH_RESULTS = bool(RESULT_URL)

if BROKER == "redis":
    huey = RedisHuey(QUEUE, url=BROKER_URL, results=WITH_RESULTS, notify_result=WITH_RESULTS)
else:
    huey = SqliteHuey(QUEUE, filename=BROKER_URL, results=WITH_RESULTS)


@huey.task()
def noop() -> None:
    meter.tick()


@huey.task()
def echo(value: int) -> int:
    return value


@huey.task()
def stamped(sent_ns: int) -> None:
    meter.stamp(sent_ns)


def open_client() -> None:
    pass


def close_client() -> None:
    huey.storage.close()


def enqueue(n: int) -> None:
    for _ in range(n):
        noop()


def results(n: int) -> list[int]:
    sent = [echo(value) for value in range(n)]
    return [_wait(result) for result in sent]


def roundtrip(n: int) -> list[float]:
    latencies = []
    for value in range(n):
        began = time.perf_counter()
        assert _wait(echo(value)) == value
        latencies.append(time.perf_counter() - began)
    return latencies


def paced(sent_ns: int) -> None:
    stamped(sent_ns)


def _wait(result):  # type: ignore[no-untyped-def]
    """SQLite is polled: every 5 ms instead of Huey's 100 ms and more. On Redis these two numbers are not used."""
    return result.get(blocking=True, timeout=60, backoff=1.0, max_delay=0.005)
