"""celeriac: `celery_app.py` with its import changed; many calls are a `group`, sent in bulk and read together."""

from __future__ import annotations

import time

import meter
from environment import BROKER_URL, QUEUE, RESULT_URL

from celeriac import Celery, group, uuid

app = Celery("bench", broker=BROKER_URL, backend=RESULT_URL or None)
app.conf.update(task_default_queue=QUEUE, broker_connection_retry_on_startup=True)


@app.task(name="bench.noop", ignore_result=True)
def noop() -> None:
    meter.tick()


@app.task(name="bench.echo")
def echo(value: int) -> int:
    return value


@app.task(name="bench.stamped", ignore_result=True)
def stamped(sent_ns: int) -> None:
    meter.stamp(sent_ns)


def open_client() -> None:
    pass


def close_client() -> None:
    app.close()


def enqueue(n: int) -> None:
    for _ in range(n):
        noop.delay()


def fill(n: int) -> None:
    """What a `group` does, without its id in the messages."""
    for first in range(0, n, 500):
        app.send_calls([(noop.name, (), {}, uuid(), {}) for _ in range(min(500, n - first))])


def bulk(n: int) -> None:
    group(noop.s() for _ in range(n)).apply_async()


def results(n: int) -> list[int]:
    return group(echo.s(value) for value in range(n)).apply_async().get(timeout=60)


def roundtrip(n: int) -> list[float]:
    latencies = []
    for value in range(n):
        began = time.perf_counter()
        assert echo.delay(value).get(timeout=60) == value
        latencies.append(time.perf_counter() - began)
    return latencies


def paced(sent_ns: int) -> None:
    stamped.delay(sent_ns)
