"""Tasks that are coroutine functions, in a real worker with each pool."""

from __future__ import annotations

import time

import pytest
from tests.integration.conftest import House

from celeriac.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celeriac.result import ResultSet

pytestmark = pytest.mark.services


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "asyncio"])
def test_every_pool_runs_them(sqlite_house: House, pool: str) -> None:
    sqlite_house.worker("-P", pool)
    assert sqlite_house.send("anap", 0.01).get(timeout=30) == "slept"
    assert sqlite_house.send("add", 1, 2).get(timeout=30) == 3
    assert sqlite_house.send("aretry", 2).get(timeout=30) == 2


def test_prefork_raises_the_soft_limit_in_them(sqlite_house: House) -> None:
    sqlite_house.worker("-P", "prefork")
    result = sqlite_house.send("anap", 60, soft_time_limit=0.3)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=30)
    assert sqlite_house.ran() == ["soft limit in a coroutine"]
    assert sqlite_house.send("anap", 0.01).get(timeout=30) == "slept"


def test_one_process_runs_a_thousand_at_once_with_limits(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-P", "asyncio", "-c", "1000")
    begun = time.monotonic()
    results = [sqlite_house.send("anap", 1.0) for _ in range(1000)]
    assert ResultSet(results).get(timeout=100) == ["slept"] * 1000
    assert time.monotonic() - begun < 100  # one after the other: 1,000 s
    soft = sqlite_house.send("anap", 60, soft_time_limit=0.3)
    hard = sqlite_house.send("anap", 60, time_limit=0.3)
    with pytest.raises(SoftTimeLimitExceeded):
        soft.get(timeout=30)
    with pytest.raises(TimeLimitExceeded):
        hard.get(timeout=30)
    assert sqlite_house.ran() == ["soft limit in a coroutine"]
    assert worker.stop() == 0
