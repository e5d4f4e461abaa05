"""The broker goes away and comes back: nothing is lost, and the worker consumes again by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import House, wait_until

from celeriac.result import ResultSet
from celeriac.testing.services import RabbitMQService, RedisService

pytestmark = pytest.mark.services


@pytest.fixture
def redis_house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[House, RedisService]]:
    """On a Redis of its own that keeps what it is told, so that a test may kill it."""
    request.getfixturevalue("redis_service")  # says what to do where there is none
    with RedisService(durable=True) as server:
        house = House(tmp_path, server.url, server.url)
        yield house, server
        house.close()


def send_some(house: House, count: int, seconds: float) -> ResultSet:
    return ResultSet([house.send("sleep", seconds, f"n{n}") for n in range(count)])


@pytest.mark.xdist_group("redis")
def test_redis_killed_and_restarted_under_load(redis_house: tuple[House, RedisService]) -> None:
    house, server = redis_house
    worker = house.worker("-c", "2")
    results = send_some(house, 20, 0.1)
    wait_until(lambda: len(house.ran()) > 4, what="some tasks")
    server.kill()
    worker.wait_for("Lost the broker")
    time.sleep(1)
    server.restart()
    begun = time.monotonic()
    worker.wait_for("The broker is back")
    assert time.monotonic() - begun < 10
    assert results.get(timeout=60) == [f"n{n}" for n in range(20)]
    assert worker.stop() == 0


@pytest.mark.xdist_group("redis")
def test_connections_killed_by_redis_are_made_anew(redis_house: tuple[House, RedisService]) -> None:
    import redis

    house, server = redis_house
    worker = house.worker("-c", "2")
    assert house.send("add", 1, 1).get(timeout=10) == 2
    with redis.Redis.from_url(server.url) as admin:
        for _ in range(5):
            admin.client_kill_filter(_type="normal", skipme=True)
            admin.client_kill_filter(_type="pubsub", skipme=True)
            assert house.send("add", 2, 2).get(timeout=20) == 4
    assert worker.stop() == 0


@pytest.mark.xdist_group("rabbitmq")
def test_rabbitmq_restarted_under_load(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("rabbitmq_service")
    with RabbitMQService() as server:
        house = House(tmp_path, server.url, f"sqlite:///{tmp_path}/results.db")
        try:
            worker = house.worker("-c", "2")
            results = send_some(house, 20, 0.1)
            wait_until(lambda: len(house.ran()) > 4, what="some tasks")
            server.stop()
            worker.wait_for("Lost the broker")
            server.restart()
            worker.wait_for("The broker is back")
            assert results.get(timeout=60) == [f"n{n}" for n in range(20)]
            assert house.send("add", 1, 1).get(timeout=20) == 2
            assert worker.stop() == 0
        finally:
            house.close()


@pytest.mark.xdist_group("redis")
def test_results_wait_for_a_store_that_is_away_and_nothing_is_acknowledged_unstored(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Broker and result store are two servers; the second is down for a while."""
    request.getfixturevalue("redis_service")
    with RedisService(durable=True) as store:
        house = House(tmp_path, f"sqlite:///{tmp_path}/broker.db", store.url)
        try:
            worker = house.worker("-c", "2")
            assert house.send("add", 1, 1).get(timeout=10) == 2
            store.kill()
            sent = [house.app.send_task("suite_app.sleep", (0.01, f"n{n}"), ignore_result=None) for n in range(5)]
            worker.wait_for("result store")
            store.restart()
            assert ResultSet(sent).get(timeout=30) == [f"n{n}" for n in range(5)]
            assert len([line for line in house.ran() if line.startswith("start")]) == 5
            assert worker.stop() == 0
        finally:
            house.close()


@pytest.mark.xdist_group("redis")
def test_a_worker_without_its_broker_still_ends_in_time(redis_house: tuple[House, RedisService]) -> None:
    house, server = redis_house
    worker = house.worker("-c", "1")
    house.send("sleep", 1.0, "x")
    wait_until(lambda: house.ran(), what="the task")
    server.kill()
    begun = time.monotonic()
    assert worker.stop(timeout_s=20) in (0, 1)
    assert time.monotonic() - begun < 15
    assert not os.path.exists(f"/proc/{worker.pid}")
