"""Random jobs, random deaths, random orders from the worker: the prefork pool's books always balance."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from celeriac.spec import Job, Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance, PoolDriver, brief, job, lines
from celeriac_pool_prefork import birth
from celeriac_pool_prefork.pool import PreforkPool

STORM_S = 2.0
#: What may happen to a job, and how often the pool may have begun to run it.
RUNS = {"succeeded": {1}, "failed": {1}, "returned": {0}, "cancelled": {0, 1}, "timed_out": {1}, "lost": {0, 1}}


class Prefork(PoolConformance):
    __test__ = False
    slots = 3

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return PreforkPool(program, options)


@pytest.mark.parametrize("seed", range(3))
def test_every_job_is_answered_once_and_run_once_in_a_storm_of_kills(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(birth, "PAUSE_S", (0.05, 0.2))  # many die idle here; the guard has its own test
    chance, ran = random.Random(seed), tmp_path / "ran"
    jobs: list[Job] = []
    with Prefork().started(max_tasks_per_child=chance.choice([None, 40])) as driver:
        end = time.monotonic() + STORM_S
        while time.monotonic() < end:
            batch = [_any_job(chance, ran) for _ in range(chance.choice([1, 1, 5, 40]))]
            jobs += batch
            driver.submit(*batch)
            driver.idle(chance.random() * 0.03)
            _disturb(chance, driver, jobs)
            while len(driver.open) > 300:
                driver.idle(0.01)
        driver.pool.resize(3)
        outcomes = driver.outcomes(jobs)
        driver.until(lambda: len(driver.pool.pids()) == 3, "three slots after the storm")
        pids = driver.pool.pids()
    runs = Counter(lines(ran))
    for one, outcome in zip(jobs, outcomes, strict=True):
        often = {0, 1} if one.soft_limit_s and outcome != "returned" else RUNS[outcome]  # a limit may strike before
        assert runs[str(one.token)] in often, (driver.final(one), runs[str(one.token)], one)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def _any_job(chance: random.Random, ran: Path) -> Job:
    """A job that notes its token, then does something random; sometimes expected to be brief and not being it."""
    size = chance.choice([0, 0, 0, 5_000, 100_000])
    script = chance.choice(
        ["pass"] * 12
        + ["sleep 0.001"] * 4
        + ["sleep 0.03", "sleep 0.1", "raise", "raise", "emit 3", "exit 3", "kill 9", "kill 15"]
        + [f"echo {size}"] * 4
    )
    make = brief if chance.random() < 0.8 else job
    one = make("", announce=chance.random() < 0.2)
    if chance.random() < 0.05:
        one.soft_limit_s, one.hard_limit_s = 0.02, 0.05
    one.raw = f"note {ran} {one.token}; {script}; padded {'x' * size}".encode()
    return one


def _disturb(chance: random.Random, driver: PoolDriver, jobs: list[Job]) -> None:
    what = chance.random()
    pids = driver.pool.pids()
    if what < 0.30 and pids:
        os.kill(chance.choice(pids), chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGALRM]))
    elif what < 0.40:
        driver.pool.cancel(chance.choice(jobs[-60:]).token)
    elif what < 0.45:
        driver.pool.withdraw()
    elif what < 0.50:
        driver.pool.resize(chance.randint(1, 4))
