"""What the asyncio pool promises for coroutines: they share one loop, have limits, and can be cancelled."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celeriac.spec import Job, JobReport, Pool, PoolOptions, SlotProgram
from celeriac.testing.kit import eventually
from celeriac.testing.pool_suite import PATIENCE_S, PoolConformance, PoolDriver, ScriptedProgram, job
from celeriac_pool_asyncio import pool as asyncio_pool
from celeriac_pool_asyncio.pool import AsyncioPool


class CoroutineProgram(ScriptedProgram):
    """Its coroutines sleep as long as `raw` says, or until all go home; with `stubborn` before it, whoever cancels
    them; with `leave`, they leave a call of `sys.exit` in the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []
        self.all_go_home = False

    async def arun(self, job: Job, emit: Callable[[JobReport], None]) -> JobReport:
        verb, _, seconds = job.raw.decode().partition(" ")
        if job.announce:
            emit(JobReport(job.token, "accepted"))
        if verb == "leave":
            asyncio.get_running_loop().call_soon(sys.exit)
        until = time.monotonic() + float(seconds)
        while (left := until - time.monotonic()) > 0 and not self.all_go_home:
            try:
                await asyncio.sleep(min(left, 0.05) if verb == "stubborn" else left)
            except asyncio.CancelledError:
                if verb != "stubborn":
                    self.ended.append("cancelled")
                    raise
        self.ended.append("returned")
        return JobReport(job.token, "succeeded")


def nap(seconds: float, verb: str = "sleep", **fields: object) -> Job:
    return job(f"{verb} {seconds}", coroutine=True, **fields)


class _Suite(PoolConformance):
    """For its driver; its tests are run elsewhere."""

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return AsyncioPool(program, options)


@pytest.fixture
def program() -> CoroutineProgram:
    return CoroutineProgram()


def pool(program: CoroutineProgram, slots: int = 100) -> Any:
    return _Suite().started(program, slots=slots)


def running(driver: PoolDriver, jobs: list[Job]) -> None:
    """Wait until these, which announce themselves, run."""
    wanted = {job.token for job in jobs}
    driver.until(
        lambda: wanted <= {report.token for report in driver.reports if report.outcome == "accepted"}, "that they run"
    )


def test_a_thousand_sleep_side_by_side(program: CoroutineProgram) -> None:
    with pool(program, slots=1000) as driver:
        jobs = [nap(0.5) for _ in range(1000)]
        begun = time.monotonic()
        driver.submit(*jobs)
        assert set(driver.outcomes(jobs)) == {"succeeded"}
        assert time.monotonic() - begun < 60  # one after the other: 500 s


def test_no_more_run_at_once_than_there_are_slots(program: CoroutineProgram) -> None:
    with pool(program, slots=2) as driver:
        first, rest = [nap(600, announce=True) for _ in range(2)], [nap(0.01, announce=True) for _ in range(3)]
        driver.submit(*first, *rest)
        running(driver, first)
        driver.idle(0.2)
        assert {report.token for report in driver.reports} == {job.token for job in first}
        driver.pool.resize(3)
        assert driver.outcomes(rest) == ["succeeded"] * 3
        for one in first:
            assert driver.pool.cancel(one.token)
        assert driver.outcomes(first) == ["cancelled"] * 2


def test_a_cancelled_coroutine_ends_at_its_await_and_the_others_go_on(program: CoroutineProgram) -> None:
    with pool(program) as driver:
        one, other = nap(600, announce=True), nap(0.5, announce=True)
        driver.submit(one, other)
        running(driver, [one, other])
        assert driver.pool.cancel(one.token)
        assert driver.final(one).outcome == "cancelled"
        assert driver.final(other).outcome == "succeeded"
        assert sorted(program.ended) == ["cancelled", "returned"]
        assert not driver.pool.cancel(one.token)


def test_one_that_overruns_its_hard_limit_is_cancelled_and_said_so(program: CoroutineProgram) -> None:
    with pool(program) as driver:
        late, good = nap(600, hard_limit_s=0.2), nap(0.01, hard_limit_s=60)
        driver.submit(late, good)
        report = driver.final(late)
        assert (report.outcome, report.detail) == ("timed_out", "0.2")
        assert driver.final(good).outcome == "succeeded"
        assert sorted(program.ended) == ["cancelled", "returned"]


def test_one_that_will_not_end_is_answered_for_all_the_same(program: CoroutineProgram) -> None:
    with pool(program, slots=1) as driver:
        late = nap(600, "stubborn", hard_limit_s=0.1)
        driver.submit(late)
        assert driver.final(late).outcome == "timed_out"
        follower = nap(0.01)
        driver.submit(follower)
        assert driver.final(follower).outcome == "succeeded"
        program.all_go_home = True
        eventually(lambda: driver.turn() or len(program.ended) == 2, PATIENCE_S)
        driver.idle(0.1)  # a second report would fail the driver
        assert program.ended == ["returned"] * 2


def test_stopping_gives_up_what_still_runs(program: CoroutineProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio_pool, "PATIENCE_S", 60.0)  # however late the loop hears of it
    with pool(program) as driver:
        jobs = [nap(600, announce=True) for _ in range(5)]
        driver.submit(*jobs)
        running(driver, jobs)
        driver.stop(grace_s=0.1)
        assert driver.outcomes(jobs) == ["lost"] * 5
        assert program.ended == ["cancelled"] * 5


def test_a_plain_job_does_not_hold_up_the_loop(program: CoroutineProgram, tmp_path: Path) -> None:
    with pool(program) as driver:
        plain, coroutine = job(f"until {tmp_path / 'go-on'}"), nap(0.05)
        driver.submit(plain)
        driver.submit(coroutine)
        assert driver.final(coroutine).outcome == "succeeded"
        assert plain.token in driver.open
        (tmp_path / "go-on").touch()
        assert driver.final(plain).outcome == "succeeded"


def test_a_function_for_which_there_is_no_thread_waits_until_there_is_one(
    program: CoroutineProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([True, True])
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "celeriac-function" and next(refusals, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pool(program, slots=1) as driver:
        first, second = job("pass"), job("pass")
        driver.submit(first, second)
        assert driver.outcomes([first, second]) == ["succeeded", "succeeded"]


def test_a_call_of_exit_that_a_job_leaves_in_the_loop_ends_no_other_and_not_the_pool(program: CoroutineProgram) -> None:
    with pool(program) as driver:
        other = nap(0.2, announce=True)
        driver.submit(other)
        running(driver, [other])
        jobs = [other, nap(0.01, "leave"), nap(0.01)]
        driver.submit(*jobs[1:])
        assert driver.outcomes(jobs) == ["succeeded"] * 3
        assert driver.pool.stop(grace_s=0.0) == []
