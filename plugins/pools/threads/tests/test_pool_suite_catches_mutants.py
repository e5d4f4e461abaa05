"""The pools' suite is worth its name: each pool below breaks one clause, and the named test finds it."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from celeriac.spec import Job, JobReport, Pool, PoolOptions, SlotProgram
from celeriac.testing.kit import eventually
from celeriac.testing.pool_suite import PATIENCE_S, PoolConformance
from celeriac_pool_threads.pool import ThreadsPool
from celeriac_support_pools.outbox import take_all


class Doubling(ThreadsPool):
    """Reports a finished job twice now and then."""

    def collect(self) -> list[JobReport]:
        reports = super().collect()
        return reports + [report for report in reports if report.token % 50 == 0]


class Forgetful(ThreadsPool):
    """Loses a report in a hundred."""

    def collect(self) -> list[JobReport]:
        return [report for report in super().collect() if report.token % 100]


class Silent(ThreadsPool):
    """Has reports, and does not wake the worker."""

    def __init__(self, program: SlotProgram, options: PoolOptions) -> None:
        super().__init__(program, options)
        self._tell = self._tell_nobody

    def _tell_nobody(self, report: JobReport) -> None:
        time.sleep(0.5)  # nor does it have them so early that the worker sees them before it sleeps
        self._outbox._reports.append(report)


class Grasping(ThreadsPool):
    """Says that it returns what waits, and runs it all the same."""

    def withdraw(self) -> None:
        jobs = take_all(self._backlog)
        self._give_back(jobs)
        self._backlog.extend(jobs)

    def collect(self) -> list[JobReport]:
        seen: dict[int, JobReport] = {}
        for report in super().collect():
            seen.setdefault(report.token, report)
        known = self.__dict__.setdefault("known", set())
        reports = [report for token, report in seen.items() if token not in known]
        known.update(seen)
        return reports


class Headlong(ThreadsPool):
    """Says that a job that waits is cancelled, and does not take it out."""

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        return any(job.token == token for job in self._backlog)


class Queueing(ThreadsPool):
    """Gives all jobs to one thread while the others are idle."""

    def start(self) -> None:
        super().start()
        eventually(lambda: len(self._idle) == self._target)  # a thread that has yet to sleep finds jobs by itself

    def _wake(self, count: int) -> None:
        super()._wake(count if self._leave else int(len(self._idle) == self._target))


class Hoarding(ThreadsPool):
    """Keeps every job it ever had."""

    def submit(self, jobs: Sequence[Job]) -> None:
        self.__dict__.setdefault("hoard", []).extend(jobs)
        super().submit(jobs)


class Holding(ThreadsPool):
    """Holds back what should go ahead of the final report."""

    def collect(self) -> list[JobReport]:
        held = self.__dict__.setdefault("held", [])
        held += super().collect()
        if all(report.outcome in ("accepted", "progress") for report in held):
            return []
        reports, held[:] = list(held), []
        return reports


class Boastful(ThreadsPool):
    """Declares what it cannot do."""

    abilities = frozenset({"resize", "soft_limit", "hard_limit", "terminate"})


class Blind(ThreadsPool):
    """Does not see that a job is stuck."""

    def stuck(self) -> dict[int, float]:
        return {}


class Alarmist(ThreadsPool):
    """Takes every job with a limit for stuck."""

    def stuck(self) -> dict[int, float]:
        return {token: limit_s for token, (_at, limit_s) in self._limits.copy().items()}


class Leaking(ThreadsPool):
    """Opens a descriptor and forgets it."""

    def start(self) -> None:
        super().start()
        os.dup(0)


class Eager(ThreadsPool):
    """Takes a long grace for a short one, and loses what is still busy."""

    def stop(self, *, grace_s: float) -> list[JobReport]:
        return [report for report in super().stop(grace_s=0.0) if report.outcome != "lost"]


class Unstarted(ThreadsPool):
    """Never lets the program begin."""

    def start(self) -> None:
        begin, self._program.begin = self._program.begin, lambda: None  # type: ignore[method-assign]
        super().start()
        self._program.begin = begin  # type: ignore[method-assign]


MUTANTS: list[tuple[type[ThreadsPool], str]] = [
    (Doubling, "test_P1_every_job_gets_exactly_one_final_report"),
    (Forgetful, "test_P1_every_job_gets_exactly_one_final_report"),
    (Silent, "test_P1_a_single_job_wakes_the_worker_by_itself"),
    (Grasping, "test_P1_withdraw_returns_what_has_not_started_and_nothing_else"),
    (Headlong, "test_P6_a_cancelled_job_that_waits_never_starts"),
    (Queueing, "test_P1_a_job_does_not_wait_behind_another_while_a_slot_is_idle"),
    (Hoarding, "test_P10_nothing_of_a_finished_job_is_kept"),
    (Holding, "test_P2_accepted_and_progress_come_while_the_job_runs_and_in_order"),
    (Boastful, "test_P3_the_soft_limit_is_raised_in_the_job_once"),
    (Boastful, "test_P3_the_hard_limit_ends_the_slot_and_another_takes_its_place"),
    (Blind, "test_P3_a_pool_that_cannot_end_a_job_says_that_it_is_stuck"),
    (Alarmist, "test_P3_a_pool_that_cannot_end_a_job_says_that_it_is_stuck"),
    (Boastful, "test_P6_cancelling_a_running_job_ends_it_or_says_no"),
    (Leaking, "test_P10_a_pool_that_has_stopped_leaves_no_descriptor_open"),
    (Eager, "test_P1_stop_lets_the_busy_end_within_their_grace_and_returns_the_rest"),
    (Unstarted, "test_P5_begin_and_end_are_called_once_in_each_process_with_slots"),
]


@pytest.mark.parametrize(("mutant", "clause"), MUTANTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_suite_finds_a_pool_that_breaks_a_clause(mutant: type[ThreadsPool], clause: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _run(mutant, clause, tmp_path, 3.0)


@pytest.mark.parametrize("clause", sorted({clause for _, clause in MUTANTS}))
def test_the_same_tests_pass_with_a_pool_that_keeps_them(clause: str, tmp_path: Path) -> None:
    _run(ThreadsPool, clause, tmp_path, PATIENCE_S)


def _run(pool_class: type[ThreadsPool], clause: str, tmp_path: Path, within_s: float) -> None:
    class Suite(PoolConformance):
        patience_s = within_s

        def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
            return pool_class(program, options)

    suite = Suite()
    test: Callable[..., Any] = getattr(suite, clause)
    given: dict[str, Any] = {"tmp_path": tmp_path}
    for mark in getattr(test, "pytestmark", []):  # the first of the parameters will do
        given[mark.args[0]] = mark.args[1][0]
    test(**{name: given[name] for name in inspect.signature(test).parameters})
