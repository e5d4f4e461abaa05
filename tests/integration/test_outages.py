"""The broker goes away and comes back: nothing is lost, and the worker consumes again by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import House, wait_until

from celeriac.result import ResultSet
from celeriac.testing.faults import FaultProxy
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


def test_redis_killed_and_restarted_under_load(redis_house: tuple[House, RedisService]) -> None:
    house, server = redis_house
    worker = house.worker("-c", "2")
    results = send_some(house, 20, 0.1)
    wait_until(lambda: len(house.ran()) > 4, what="some tasks")
    server.kill()
    worker.wait_for("Lost the broker")
    time.sleep(1)
    server.restart()
    worker.wait_for("The broker is back")
    assert results.get(timeout=60) == [f"n{n}" for n in range(20)]
    assert worker.stop() == 0


def test_connections_killed_by_redis_are_made_anew(redis_house: tuple[House, RedisService]) -> None:
    import redis

    house, server = redis_house
    worker = house.worker("-c", "2")
    assert house.send("add", 1, 1).get(timeout=30) == 2
    with redis.Redis.from_url(server.url) as admin:
        for _ in range(5):
            admin.client_kill_filter(_type="normal", skipme=True)
            admin.client_kill_filter(_type="pubsub", skipme=True)
            assert house.send("add", 2, 2).get(timeout=30) == 4
    assert worker.stop() == 0


@pytest.mark.xdist_group("rabbitmq")
def test_a_run_goes_on_when_its_connection_is_lost_and_its_message_comes_again(
    tmp_path: Path, rabbitmq_service: RabbitMQService
) -> None:
    with FaultProxy(rabbitmq_service.fresh_url()) as wire:
        house = House(tmp_path, wire.url, "rpc://")
        try:
            worker = house.worker("-P", "threads", "-c", "1")
            house.send("hold", "long")
            wait_until(lambda: house.ran(), what="the task")
            wire.cut()
            worker.wait_for("came again; its run goes on")
            house.release("long")
            wait_until(lambda: len(house.ran()) > 1, what="its end")
            wait_until(lambda: house.app.transport.depth("celery") == 0)
            assert worker.stop() == 0
            assert [line.split()[0] for line in house.ran()] == ["start", "end"]
            assert house.app.transport.depth("celery") == 0, "it was acknowledged"
        finally:
            house.close()


def test_a_worker_that_may_not_wait_for_its_broker_ends_and_loses_nothing(
    redis_house: tuple[House, RedisService],
) -> None:
    house, server = redis_house
    worker = house.worker("-c", "1", "broker.connection_retry=False")
    results = ResultSet([house.send("hold", name) for name in ("n0", "n1")])
    wait_until(lambda: house.ran(), what="the first task")
    server.kill()
    house.release("n0", "n1")
    assert worker.process.wait(60) == 69
    assert "Ending, for broker_connection_retry is False" in worker.log
    assert "2 finished" not in worker.log, "it began nothing after that"
    late = house.worker("-c", "1", ready=False)
    late.wait_for("trying again in 2 s")
    server.restart()
    assert results.get(timeout=60) == ["n0", "n1"]


@pytest.mark.xdist_group("rabbitmq")
def test_a_run_is_cancelled_when_its_connection_is_lost_if_that_is_wished_and_that_is_no_crash(
    tmp_path: Path, rabbitmq_service: RabbitMQService
) -> None:
    with FaultProxy(rabbitmq_service.fresh_url()) as wire:
        house = House(tmp_path, wire.url, "rpc://")
        try:
            wish = "worker.cancel_long_running_tasks_on_connection_loss=True"
            worker = house.worker("-c", "1", wish, SUITE_CRASHES="1")
            result = house.send("hold", "long")
            wait_until(lambda: house.ran(), what="the task")
            wire.cut()
            worker.wait_for("] cancelled: the broker was lost")
            house.release("long")
            wait_until(lambda: len(house.ran()) == 3, what="its end")
            assert [line.split()[0] for line in house.ran()] == ["start", "start", "end"]
            assert result.state != "REVOKED"
            assert worker.stop() == 0
            assert house.app.transport.depth("celery") == 0, "it was acknowledged"
        finally:
            house.close()


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
            assert house.send("add", 1, 1).get(timeout=30) == 2
            assert worker.stop() == 0
        finally:
            house.close()


STORE_AND_BROKER = [
    pytest.param("sqlite"),
    pytest.param("amqp", marks=pytest.mark.xdist_group("rabbitmq")),
]


@pytest.mark.parametrize("broker", STORE_AND_BROKER)
def test_results_wait_for_a_store_that_is_away_and_nothing_is_acknowledged_unstored(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Broker and result store are two servers; the second is away for a while, the first goes on."""
    request.getfixturevalue("redis_service")
    url = f"sqlite:///{tmp_path}/broker.db" if broker == "sqlite" else request.getfixturevalue("amqp_url")
    with RedisService(durable=True) as store:
        house = House(tmp_path, url, store.url)
        try:
            worker = house.worker("-c", "2", "worker.spool_results=5", "worker.prefetch_multiplier=1")
            assert house.send("add", 1, 1).get(timeout=30) == 2
            store.kill()
            sent = [house.app.send_task("suite_app.sleep", (0.01, f"n{n}"), ignore_result=None) for n in range(20)]
            worker.wait_for("The result store is away")
            wait_until(lambda: len(begun(house)) >= 5, what="tasks that run although the store is away")
            time.sleep(1)
            # Two slots may have had one each when the spool had become full.
            assert 5 <= len(begun(house)) <= 7, "it takes no more than it can hold results of"
            store.restart()
            assert ResultSet(sent).get(timeout=60) == [f"n{n}" for n in range(20)]
            assert len(begun(house)) == 20, "none ran twice"
            worker.wait_for("The result store is back")
            assert worker.stop() == 0
        finally:
            house.close()


def begun(house: House) -> list[str]:
    return [line for line in house.ran() if line.startswith("start")]


def test_a_worker_that_slept_longer_than_its_lease_does_nothing_for_what_others_have_by_now(
    redis_house: tuple[House, RedisService],
) -> None:
    """Stopped for longer than a lease while its child ends the task: another worker has run it meanwhile."""
    house, _ = redis_house
    sleeper = house.worker("-c", "1", "-n", "sleeper@%h")
    result = house.app.send_task(
        "suite_app.pid_after", (3.0,), link=house.app.signature("suite_app.silent", immutable=True, args=("linked",))
    )
    wait_until(house.ran, what="the task")
    sleeper.send(signal.SIGSTOP)
    other = house.worker("-c", "1", "-n", "other@%h")
    other.wait_for("succeeded")
    sleeper.send(signal.SIGCONT)
    assert other.stop() == 0
    assert house.send("add", 1, 1).get(timeout=30) == 2, "by the one that slept, which has ended the other run before"
    assert result.get(timeout=30) != int(house.ran()[0].split()[-1]), "the other's result stands"
    assert sleeper.stop() == 0
    assert house.ran().count("silent linked") == 1
    assert result.get(timeout=30) != int(house.ran()[0].split()[-1])


def test_a_worker_without_its_broker_still_ends_in_time(redis_house: tuple[House, RedisService]) -> None:
    house, server = redis_house
    worker = house.worker("-c", "1")
    house.send("sleep", 1.0, "x")
    wait_until(lambda: house.ran(), what="the task")
    server.kill()
    assert worker.stop() in (0, 1)
    assert not os.path.exists(f"/proc/{worker.pid}")
