"""TaskIQ: a Redis list (at most once), a Redis stream (at least once), or RabbitMQ through aio-pika; uvloop, orjson."""

from __future__ import annotations

import asyncio
import time

import meter
import uvloop
from environment import BROKER, BROKER_URL, QUEUE, RESULT_URL, SETUP
from taskiq.serializers import ORJSONSerializer

POLL_S = 0.001
"""How often a waiting client asks for its result (TaskIQ's default is 0.2 s; it has no push)."""

if BROKER == "rabbitmq":
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

    broker = AioPikaBroker(
        BROKER_URL,
        qos=100,
        exchange=Exchange(name=QUEUE),
        task_queues=[Queue(name=QUEUE, type=QueueType.CLASSIC)],
        dead_letter_queue=Queue(name=QUEUE + ".dead", type=QueueType.CLASSIC),
    )
elif SETUP == "stream":
    from taskiq_redis import RedisStreamBroker

    broker = RedisStreamBroker(BROKER_URL, queue_name=QUEUE, consumer_id="0")
else:
    from taskiq_redis import ListQueueBroker

    broker = ListQueueBroker(BROKER_URL, queue_name=QUEUE)
broker = broker.with_serializer(ORJSONSerializer())
if RESULT_URL:
    from taskiq_redis import RedisAsyncResultBackend

    broker = broker.with_result_backend(RedisAsyncResultBackend(RESULT_URL, result_ex_time=3600))

_loop = uvloop.new_event_loop()


@broker.task(task_name="bench.noop")
async def noop() -> None:
    meter.tick()


@broker.task(task_name="bench.echo")
async def echo(value: int) -> int:
    return value


@broker.task(task_name="bench.stamped")
async def stamped(sent_ns: int) -> None:
    meter.stamp(sent_ns)


def open_client() -> None:
    asyncio.set_event_loop(_loop)
    _loop.run_until_complete(broker.startup())


def close_client() -> None:
    _loop.run_until_complete(broker.shutdown())


def enqueue(n: int) -> None:
    _loop.run_until_complete(_enqueue(n))


def results(n: int) -> list[int]:
    return _loop.run_until_complete(_results(n))


def roundtrip(n: int) -> list[float]:
    return _loop.run_until_complete(_roundtrip(n))


def paced(sent_ns: int) -> None:
    _loop.run_until_complete(stamped.kiq(sent_ns))


async def _enqueue(n: int) -> None:
    for _ in range(n):
        await noop.kiq()


async def _results(n: int) -> list[int]:
    sent = [await echo.kiq(value) for value in range(n)]
    return [(await task.wait_result(check_interval=POLL_S, timeout=60)).return_value for task in sent]


async def _roundtrip(n: int) -> list[float]:
    latencies = []
    for value in range(n):
        began = time.perf_counter()
        task = await echo.kiq(value)
        assert (await task.wait_result(check_interval=POLL_S, timeout=60)).return_value == value
        latencies.append(time.perf_counter() - began)
    return latencies
