"""A rate that holds for all workers together, with two worker processes on each broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import BROKERS, House, make_house, wait_until

from celeriac.result import ResultSet

COUNT = 16
PERIOD_S = 0.1


@pytest.fixture(params=[BROKERS[0], BROKERS[2]])  # Redis is seen to below
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """On RabbitMQ, which has no shared state, with results in SQLite, which has."""
    made = make_house(request.param, request, tmp_path)
    if request.param == "amqp":
        made.close()
        made = House(tmp_path, made.broker, f"sqlite:///{tmp_path}/results.db")
    yield made
    made.close()


def send(house: House, task: str, *args: Any) -> Any:
    return house.app.send_task(f"rates.{task}", args)


def starts(house: House, kind: str) -> list[float]:
    """When runs of a kind started, in order."""
    return sorted(float(line.split()[3]) for line in house.ran() if line.startswith(kind))


def two_workers(house: House) -> list[Any]:
    workers = [house.worker("-n", f"w{n}@%h", app="rates_app", ready=False) for n in (1, 2)]
    return [worker.wait_for("ready") for worker in workers]


def assert_paced(found: list[float], began: float, period_s: float) -> None:
    """No start came sooner than the rate allows, counted from before the first call was sent."""
    for number, start in enumerate(found):
        assert start >= began + period_s * number, f"start {number} of {len(found)} came {start - began:.3f} s on"


def test_a_rate_holds_over_two_workers_and_holds_up_nobody_else(house: House) -> None:
    workers = two_workers(house)
    for _ in range(COUNT):
        send(house, "crawl")
    began = time.time()
    for number in range(COUNT):
        send(house, "limited", str(number))
        send(house, "of_tenant", "ab"[number % 2])
    assert ResultSet([send(house, "free", n) for n in range(10)]).get(timeout=50) == list(range(10))
    assert len(starts(house, "crawl")) < 3, "what is not limited waited for all that is"
    wait_until(lambda: len(starts(house, "limited")) == COUNT, 60, "all limited tasks")
    wait_until(lambda: len(starts(house, "tenant-")) == COUNT, 60, "all tasks of tenants")
    assert_paced(starts(house, "limited"), began, PERIOD_S)
    for tenant in "ab":
        assert_paced(starts(house, f"tenant-{tenant}"), began, 2 * PERIOD_S)
    told = [stats["cluster_rates"] for stats in house.app.control.inspect(timeout=60, limit=2).stats().values()]
    assert sum(stats["taken"] for stats in told) >= 2 * COUNT
    assert [stats["trouble"] for stats in told] == ["", ""]
    assert [worker.stop() for worker in workers] == [0, 0]


def test_a_killed_worker_takes_near_slots_with_it_and_a_rate_that_is_changed_keeps_its_scope(
    redis_url: str, tmp_path: Path
) -> None:
    house = House(tmp_path, f"{redis_url}?lease=3", redis_url)
    try:
        first, second = two_workers(house)
        began = time.time()
        names = {str(number) for number in range(3 * COUNT)}
        for name in sorted(names):
            send(house, "limited", name)
        wait_until(lambda: len(starts(house, "limited")) >= COUNT // 2, 60, "some limited tasks")
        first.kill_group()
        changed = house.app.control.rate_limit("rates.limited", "20/s", reply=True, timeout=60, limit=1)
        assert [list(reply.values()) for reply in changed] == [[{"ok": "new rate limit set successfully"}]]
        (known,) = house.app.control.inspect(timeout=60, limit=1).registered().values()
        assert "rates.limited [rate_limit=20/s rate_limit_scope=cluster]" in known
        wait_until(lambda: {line.split()[1] for line in house.ran()} == names, 60, "all limited tasks")
        assert_paced(starts(house, "limited"), began, PERIOD_S / 2)
        assert second.stop() == 0
    finally:
        house.close()
