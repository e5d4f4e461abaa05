"""Celery, as its documentation writes it; many calls go through kombu's `batch`, the fastest way it has.

(`group` and `ResultSet.get` measured slower than this and than one `delay` and one `get` after another.)
"""

from __future__ import annotations

import time

import meter
from celery import Celery
from environment import BROKER_URL, QUEUE, RESULT_URL

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


def bulk(n: int) -> None:
    with app.producer_pool.acquire(block=True) as producer, producer.batch():
        for _ in range(n):
            noop.apply_async(producer=producer)


fill = bulk


def results(n: int) -> list[int]:
    with app.producer_pool.acquire(block=True) as producer, producer.batch():
        sent = [echo.apply_async((value,), producer=producer) for value in range(n)]
    return [result.get(timeout=60) for result in sent]


def roundtrip(n: int) -> list[float]:
    latencies = []
    for value in range(n):
        began = time.perf_counter()
        assert echo.delay(value).get(timeout=60) == value
        latencies.append(time.perf_counter() - began)
    return latencies


def paced(sent_ns: int) -> None:
    stamped.delay(sent_ns)
