"""The conformance suite of pools: what `docs/plugins/delivery-contract.md` promises in P1 to P11, as tests.

For a plugin's own tests::

    class TestMyPool(PoolConformance):
        def make_pool(self, program, options):
            return MyPool(program, options)

The suite drives the pool as the worker does: one thread, sleeping on the descriptors that the pool watches and until
its `deadline`, never polling. A pool that does not wake the worker therefore fails. Where a clause hangs on an ability,
the test of a pool without it checks what holds instead, so nothing is skipped.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest

from celeriac.exceptions import PoolBroken
from celeriac.spec import FINAL_OUTCOMES, Job, JobReport, Pool, PoolOptions, SlotProgram
from celeriac.testing import scripted
from celeriac.testing.scripted import ScriptedProgram, append, descriptors

__all__ = ["PoolConformance", "PoolDriver", "ScriptedProgram", "brief", "job"]

#: What a test waits for comes long before; only a broken pool needs so much.
PATIENCE_S: Final = 40.0
#: What a busy machine may add to a bound of the contract.
SLACK_S: Final = 20.0
#: How long a job takes that the pool has to end before; longer than all that the contract and the machine may take.
ENDLESS_S: Final = 50

_tokens = iter(range(1, sys.maxsize))


def job(script: str, **fields: Any) -> Job:
    """A job for `ScriptedProgram`, with a token of its own and, unless given, an unknown cost."""
    return Job(next(_tokens), script.encode(), **fields)


def brief(script: str = "pass", **fields: Any) -> Job:
    """A job that the worker expects to take next to no time."""
    return job(script, cost_s=0.000_02, **fields)


class PoolDriver:
    """Uses a pool as the worker does, and keeps the books: every report, and who still owes one."""

    def __init__(self, pool: Pool, poller: _Poller, patience_s: float = PATIENCE_S) -> None:
        self.pool = pool
        self.patience_s = patience_s
        self.reports: list[JobReport] = []
        self.open: set[int] = set()
        self._poller = poller

    def submit(self, *jobs: Job) -> None:
        self.open.update(job.token for job in jobs)
        self.pool.submit(jobs)

    def final(self, job: Job) -> JobReport:
        """The final report of a job; waits for it."""
        self.until(lambda: job.token not in self.open, f"the report of {job.raw[:60]!r}")
        return next(report for report in self.reports if report.token == job.token and report.outcome in FINAL_OUTCOMES)

    def outcomes(self, jobs: Sequence[Job]) -> list[str]:
        """The final outcomes of these jobs, in their order; waits for them."""
        return [self.final(job).outcome for job in jobs]

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Serve the pool until something holds; only descriptors and deadlines end the sleep."""
        give_up = time.monotonic() + self.patience_s
        self.turn()
        while not reached():
            now, deadline = time.monotonic(), self.pool.deadline()
            self._poller.sleep((give_up if deadline is None else min(give_up, deadline)) - now)
            # Before another look: a report that nobody woke us for must not be found now.
            late = time.monotonic() >= give_up
            assert not late, f"{what} did not come in {self.patience_s:g} s; open: {sorted(self.open)[:20]}"
            self.turn()

    def turn(self) -> None:
        """One `collect`."""
        self.keep(self.pool.collect())

    def idle(self, seconds: float) -> None:
        """Serve the pool for some time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            deadline = self.pool.deadline()
            self._poller.sleep(min(left, left if deadline is None else max(0.0, deadline - time.monotonic())))
            self.turn()

    def stop(self, grace_s: float = 0.0) -> None:
        self.keep(self.pool.stop(grace_s=grace_s))

    def keep(self, reports: list[JobReport]) -> None:
        """Book reports; a second final one, or one for a job that was never submitted, fails the test."""
        for report in reports:
            if report.outcome in FINAL_OUTCOMES:
                assert report.token in self.open, f"a final report too many: {report}"
                self.open.discard(report.token)
            else:
                assert report.outcome in ("accepted", "progress"), report
                assert report.token in self.open, f"a report after the final one: {report}"
        self.reports += reports


class _Poller:
    """The worker's bed."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.watched: set[int] = set()

    def watch(self, fd: int) -> None:
        self.watched.add(fd)
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        if fd in self.watched:
            self.watched.discard(fd)
            self._poll.unregister(fd)

    def sleep(self, timeout_s: float) -> None:
        self._poll.poll(max(0.0, timeout_s) * 1000)


class _Started:
    """A pool that runs inside a `with`, and what it must leave behind: nothing."""

    def __init__(self, suite: PoolConformance, program: SlotProgram, options: dict[str, Any]) -> None:
        self._poller = _Poller()
        # Only `ScriptedProgram` and its like have a recipe.
        recipe = program.recipe if suite.spawns else None  # type: ignore[attr-defined]
        chosen: dict[str, Any] = {"slots": suite.slots, "start_timeout_s": 60.0, "recipe": recipe, **options}
        pool = suite.make_pool(program, PoolOptions(poller=self._poller, **chosen))
        self._driver = PoolDriver(pool, self._poller, suite.patience_s)

    def __enter__(self) -> PoolDriver:
        self._driver.pool.start()
        return self._driver

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pids = [pid for pid in self._driver.pool.pids() if pid != os.getpid()]
        self._driver.stop()
        if exc is None:
            assert not self._driver.open, f"never answered for: {sorted(self._driver.open)}"
            assert not [pid for pid in pids if _is_alive(pid)], "a child process is left behind"
            assert not self._poller.watched, "a descriptor is still watched"


def own_size_kib() -> int:
    """The resident set of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 10


class PoolConformance:
    """The tests; see the module's docstring for how to inherit them."""

    #: How many slots the tests ask for. 1 for a pool that cannot have more.
    slots = 2
    #: Whether jobs run while the worker does other things. False: they run inside `collect`.
    runs_beside = True
    #: Whether the pool, which has the ability `spawn`, is to make fresh interpreters.
    spawns = False
    #: What a test waits for at most.
    patience_s = PATIENCE_S

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        """Make the pool under test, not started."""
        raise NotImplementedError("a subclass says how to make its pool")

    def started(self, program: SlotProgram | None = None, **options: Any) -> _Started:
        """A running pool, for `with`; at the end every job must have its report, and no process is left."""
        return _Started(self, program or ScriptedProgram(), options)

    # -- P1: one final report for every job ------------------------------------------------------------------------

    @pytest.mark.parametrize("make", [job, brief])
    def test_P1_every_job_gets_exactly_one_final_report(self, make: Callable[..., Job]) -> None:
        with self.started() as driver:
            jobs = [make("raise" if number % 3 == 0 else "pass") for number in range(200)]
            for start in range(0, 200, 37):
                driver.submit(*jobs[start : start + 37])
            expected = ["failed" if number % 3 == 0 else "succeeded" for number in range(200)]
            assert driver.outcomes(jobs) == expected
            driver.idle(0.1)  # a second report would fail the driver
            assert {report.pid for report in driver.reports} <= set(driver.pool.pids())

    def test_P1_a_single_job_wakes_the_worker_by_itself(self) -> None:
        with self.started() as driver:
            for script in ("pass", "sleep 0.1", "pass", "sleep 0.2"):
                one = job(script)
                driver.submit(one)
                assert driver.final(one).outcome == "succeeded"

    def test_P1_a_job_does_not_wait_behind_another_while_a_slot_is_idle(self, tmp_path: Path) -> None:
        with self.started() as driver, self._long(tmp_path) as script:
            long, short = job(script), [job("pass") for _ in range(5)]
            driver.submit(long, *short)
            driver.outcomes(short)
            assert (long.token in driver.open) == (self.slots > 1)

    def test_P1_jobs_expected_to_be_brief_do_not_wait_behind_one_that_is_not(self, tmp_path: Path) -> None:
        with self.started() as driver, self._long(tmp_path) as script:
            first = brief(script)
            driver.submit(first, *(others := [brief() for _ in range(60)]))
            driver.outcomes(others)
            assert (first.token in driver.open) == (self.slots > 1)

    def test_P1_reports_do_not_wait_for_the_job_that_follows(self, tmp_path: Path) -> None:
        if not self.runs_beside:
            return  # where jobs run inside `collect`, it returns between them
        with self.started(slots=1) as driver, self._long(tmp_path) as script:
            before, long = [brief() for _ in range(10)], brief(script)
            driver.submit(*before, long)
            driver.outcomes(before)
            assert long.token in driver.open

    def test_P1_withdraw_returns_what_has_not_started_and_nothing_else(self, tmp_path: Path) -> None:
        ran, go_on = tmp_path / "ran", tmp_path / "go-on"
        with self.started() as driver:
            busy = [job(f"note {ran} busy; until {go_on}") for _ in range(self.slots)]
            waiting = [brief(f"note {ran} waiting") for _ in range(30)] + [job(f"note {ran} waiting") for _ in range(3)]
            driver.submit(*busy, *waiting)
            self._wait_until_they_run(driver, ran, len(busy))
            driver.pool.withdraw()
            assert driver.outcomes(waiting) == ["returned"] * len(waiting)
            go_on.touch()
            assert set(driver.outcomes(busy)) == {"succeeded" if self.runs_beside else "returned"}
            again = brief()
            driver.submit(again)
            assert driver.final(again).outcome == "succeeded"
            assert "waiting" not in lines(ran)

    def test_P1_withdraw_in_full_flight_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        with self.started() as driver:
            jobs = [brief(f"note {ran} {number}") for number in range(400)]
            for start in range(0, 400, 40):
                driver.submit(*jobs[start : start + 40])
                driver.turn()
                if start % 80 == 0:
                    driver.pool.withdraw()
            outcomes = driver.outcomes(jobs)
            assert set(outcomes) <= {"succeeded", "returned"}
            expected = [str(number) for number, outcome in enumerate(outcomes) if outcome == "succeeded"]
            assert sorted(lines(ran), key=int) == expected

    def test_P1_stop_lets_the_busy_end_within_their_grace_and_returns_the_rest(self, tmp_path: Path) -> None:
        ran, go_on = tmp_path / "ran", tmp_path / "go-on"
        with self.started() as driver:
            busy = [job(f"note {ran} x; until {go_on}") for _ in range(self.slots)]
            waiting = [job("pass") for _ in range(10)]
            driver.submit(*busy, *waiting)
            self._wait_until_they_run(driver, ran, len(busy))
            in_the_stop = threading.Timer(1.0, go_on.touch)
            in_the_stop.start()
            driver.stop(grace_s=PATIENCE_S)
            in_the_stop.join()
            assert set(driver.outcomes(busy)) == {"succeeded" if self.runs_beside else "returned"}
            assert driver.outcomes(waiting) == ["returned"] * 10
            assert driver.pool.stop(grace_s=1.0) == []

    def test_P1_stop_ends_what_is_busy_beyond_its_grace(self, tmp_path: Path) -> None:
        with self.started() as driver:
            busy = job(f"note {tmp_path / 'ran'} x; sleep {ENDLESS_S}")
            driver.submit(busy)
            self._wait_until_they_run(driver, tmp_path / "ran", 1)
            began = time.monotonic()
            driver.stop(grace_s=0.2)
            assert driver.outcomes([busy]) == ["lost" if self.runs_beside else "returned"]
            assert time.monotonic() - began < 0.2 + 2.0 + SLACK_S

    # -- P2: accepted and progress ---------------------------------------------------------------------------------

    def test_P2_accepted_and_progress_come_while_the_job_runs_and_in_order(self, tmp_path: Path) -> None:
        go_on = tmp_path / "go-on"
        with self.started() as driver:
            one = job(f"emit 3; until {go_on}" if self.runs_beside else "emit 3", announce=True)
            driver.submit(one)
            driver.until(lambda: len(driver.reports) >= 4, "accepted and three reports of progress")
            assert (one.token in driver.open) == self.runs_beside
            go_on.touch()
            assert driver.final(one).outcome == "succeeded"
            said = [(report.outcome, report.detail) for report in driver.reports]
            assert said[:4] == [("accepted", ""), ("progress", "0"), ("progress", "1"), ("progress", "2")]

    # -- P3: limits ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("how", ["sleep", "spin"])
    def test_P3_the_soft_limit_is_raised_in_the_job_once(self, how: str) -> None:
        with self.started() as driver:
            enforces = "soft_limit" in driver.pool.abilities
            slow = job(f"{how} {ENDLESS_S if enforces else 0.4}", soft_limit_s=0.2)
            quick = [brief(soft_limit_s=60.0) for _ in range(50)]
            began = time.monotonic()
            driver.submit(slow, *quick)
            report = driver.final(slow)
            # On a slow machine it may strike before the program has reached the script.
            assert (report.timed_out or report.outcome == "timed_out") == enforces
            assert time.monotonic() - began >= 0.2
            assert report.runtime_s < ENDLESS_S
            assert driver.outcomes(quick) == ["succeeded"] * 50

    def test_P3_a_soft_limit_never_strikes_the_next_job(self) -> None:
        with self.started() as driver:
            jobs = [job("sleep 0.02", soft_limit_s=0.02) if number % 2 else job("sleep 0.01") for number in range(60)]
            driver.submit(*jobs)
            for index, one in enumerate(jobs):
                report = driver.final(one)
                assert report.outcome == "succeeded" or (index % 2 and report.outcome in ("failed", "timed_out"))

    def test_P3_the_hard_limit_ends_the_slot_and_another_takes_its_place(self) -> None:
        with self.started() as driver:
            if "hard_limit" not in driver.pool.abilities:
                one = job("sleep 0.4", hard_limit_s=0.1)
                driver.submit(one)
                assert driver.final(one).outcome == "succeeded"
                return
            jobs = [job(f"stubborn {ENDLESS_S}", soft_limit_s=0.1, hard_limit_s=0.4) for _ in range(self.slots)]
            began = time.monotonic()
            driver.submit(*jobs, *(others := [brief() for _ in range(20)]))
            assert driver.outcomes(jobs) == ["timed_out"] * self.slots
            assert time.monotonic() - began < 0.4 + 1.0 + SLACK_S
            assert driver.outcomes(others) == ["succeeded"] * 20
            assert time.monotonic() - began < 0.4 + 2.0 + SLACK_S

    def test_P3_a_pool_that_cannot_end_a_job_says_that_it_is_stuck(self, tmp_path: Path) -> None:
        ran, go_on = tmp_path / "ran", tmp_path / "go-on"
        with self.started() as driver:
            if "stuck" not in driver.pool.abilities:
                return
            pool: Any = driver.pool
            script = f"note {ran} x; until {go_on}"
            late, in_time, free = job(script, hard_limit_s=0.1), job(script, hard_limit_s=600.0), job(script)
            seen: dict[int, float] = {}
            over = threading.Event()

            def look() -> None:  # as the watchdog does: beside the worker's thread
                while not over.wait(0.01):
                    all_run = len(lines(ran)) >= min(self.slots, 2)
                    seen.update(pool.stuck())
                    if all_run and late.token in seen:
                        go_on.touch()

            watch = threading.Thread(target=look)
            watch.start()
            try:
                driver.submit(late, in_time, free)
                assert driver.outcomes([late, in_time, free]) == ["succeeded"] * 3
                assert pool.stuck() == {}
            finally:
                over.set()
                watch.join()
                go_on.touch()
            assert seen == {late.token: 0.1}

    def test_P3_limits_of_brief_jobs_hold_too(self) -> None:
        with self.started() as driver:
            if "hard_limit" not in driver.pool.abilities:
                return
            jobs = [brief(hard_limit_s=60.0) for _ in range(40)]
            slow = brief(f"sleep {ENDLESS_S}", hard_limit_s=0.3)
            driver.submit(*jobs[:20], slow, *jobs[20:])
            report = driver.final(slow)
            assert (report.outcome, report.detail) == ("timed_out", "0.3")
            assert driver.outcomes(jobs) == ["succeeded"] * 40

    # -- P4: slots that die ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("script", "cause"),
        [("exit 3", "exit code 3"), ("exit 0", "exit code 0"), ("kill 9", "SIGKILL"), ("kill 11", "SIGSEGV")],
    )
    def test_P4_a_dead_slot_is_reported_with_its_cause_and_harms_no_other(self, script: str, cause: str) -> None:
        with self.started() as driver:
            if "processes" not in driver.pool.abilities:
                return  # a job that ends the process ends the worker: only `processes` promises more
            neighbour = job("sleep 0.5")
            doomed = job(f"sleep 0.1; {script}")
            driver.submit(neighbour, doomed, *(others := [job("pass") for _ in range(10)]))
            report = driver.final(doomed)
            assert (report.outcome, cause in report.detail) == ("lost", True)
            assert driver.outcomes([neighbour, *others]) == ["succeeded"] * 11
            assert report.pid not in driver.pool.pids()
            assert len(driver.pool.pids()) == self.slots

    def test_P4_brief_jobs_behind_the_one_that_kills_are_run_elsewhere(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        with self.started() as driver:
            if "processes" not in driver.pool.abilities:
                return
            killer = brief("kill 9")
            behind = [brief(f"note {ran} {number}") for number in range(60)]
            driver.submit(killer, *behind)
            assert driver.final(killer).outcome == "lost"
            assert driver.outcomes(behind) == ["succeeded"] * 60
            assert Counter(lines(ran)) == Counter(str(number) for number in range(60))

    def test_P4_a_program_that_breaks_its_contract_costs_its_job_only(self) -> None:
        with self.started() as driver:
            bad, good = job("leave"), [brief() for _ in range(20)]
            driver.submit(bad, *good)
            assert driver.final(bad).outcome == "lost"
            assert driver.outcomes(good) == ["succeeded"] * 20

    def test_P4_a_pool_whose_slots_cannot_begin_says_why(self) -> None:
        with (
            pytest.raises(PoolBroken, match="no database today"),
            self.started(ScriptedProgram(broken="no database today")),
        ):
            pass

    # -- P5: slots that are replaced -------------------------------------------------------------------------------

    @pytest.mark.parametrize("make", [job, brief])
    def test_P5_a_slot_is_replaced_after_so_many_jobs(self, make: Callable[..., Job], tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        with self.started(ScriptedProgram(notes), max_tasks_per_child=7) as driver:
            jobs = [make("pass") for _ in range(50)]
            driver.submit(*jobs)
            assert driver.outcomes(jobs) == ["succeeded"] * 50
            if "processes" in driver.pool.abilities:
                by_pid = Counter(report.pid for report in driver.reports)
                assert max(by_pid.values()) <= 7
                driver.until(
                    lambda: lines(notes).count("end") >= 50 // 7 - self.slots, "the orderly end of used-up slots"
                )

    def test_P5_a_slot_that_has_grown_is_replaced_between_jobs(self) -> None:
        # Above this process's own size, with which a forked child is born and which depends on the tests before.
        with self.started(max_memory_per_child_kib=own_size_kib() + (200 << 10)) as driver:
            first = job("grow 300")
            driver.submit(first)
            assert driver.final(first).outcome == "succeeded"
            if "processes" in driver.pool.abilities:
                driver.until(lambda: driver.final(first).pid not in driver.pool.pids(), "the end of the grown slot")
            others = [job("pass") for _ in range(20)]
            driver.submit(*others)
            assert driver.outcomes(others) == ["succeeded"] * 20
            assert len({driver.final(one).pid for one in others}) <= self.slots  # nobody else was replaced

    def test_P5_begin_and_end_are_called_once_in_each_process_with_slots(self, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        with self.started(ScriptedProgram(notes)) as driver:
            jobs = [job("pass") for _ in range(10)]
            driver.submit(*jobs)
            driver.outcomes(jobs)
            processes = len(driver.pool.pids())
            driver.until(lambda: lines(notes).count("begin") == processes, "all slots")
            driver.stop(grace_s=PATIENCE_S)
        assert Counter(lines(notes)) == {"begin": processes, "end": processes}

    # -- P6: cancel ------------------------------------------------------------------------------------------------

    def test_P6_a_cancelled_job_that_waits_never_starts(self, tmp_path: Path) -> None:
        ran, go_on = tmp_path / "ran", tmp_path / "go-on"
        with self.started() as driver:
            busy = [job(f"until {go_on}") for _ in range(self.slots)]
            waiting = [job(f"note {ran} {number}") for number in range(5)]
            driver.submit(*busy, *waiting)
            assert driver.pool.cancel(waiting[2].token)
            assert not driver.pool.cancel(waiting[2].token)
            go_on.touch()
            expected = ["succeeded", "succeeded", "cancelled", "succeeded", "succeeded"]
            assert driver.outcomes(waiting) == expected
            assert sorted(lines(ran)) == ["0", "1", "3", "4"]
            driver.outcomes(busy)

    def test_P6_cancelling_brief_jobs_in_full_flight_is_exact(self, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        with self.started() as driver:
            jobs = [brief(f"note {notes} {number}; sleep 0.0005") for number in range(300)]
            driver.submit(*jobs)
            for one in jobs[::7]:
                driver.pool.cancel(one.token, signal=signal.SIGURG)  # should one be running: harmless to a process
            finals = [driver.final(job) for job in jobs]
            assert {final.outcome for final in finals} <= {"succeeded", "cancelled"}  # all may be over before
            ran = Counter(lines(notes))
            for number, final in enumerate(finals):
                if final.outcome == "succeeded" or not final.pid:
                    assert ran[str(number)] == (final.outcome == "succeeded"), f"job {number}: {final}"
                else:  # it was ended while it ran, so it may have come to its note
                    assert ran[str(number)] <= 1, f"job {number}: {final}"

    def test_P6_cancelling_a_running_job_ends_it_or_says_no(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        if not self.runs_beside:
            return  # nobody can ask while it runs
        with self.started() as driver:
            terminates = "terminate" in driver.pool.abilities
            takes_s = ENDLESS_S if terminates else 0.3
            victim, neighbour = job(f"note {ran} x; sleep {takes_s}"), job(f"note {ran} x; sleep 0.6")
            driver.submit(victim, neighbour)
            self._wait_until_they_run(driver, ran, 2)
            assert driver.pool.cancel(victim.token) == terminates
            driver.pool.cancel(victim.token)
            assert driver.final(victim).outcome == ("cancelled" if terminates else "succeeded")
            assert driver.final(neighbour).outcome == "succeeded"
            assert not driver.pool.cancel(victim.token)

    def test_P6_signal_0_cancels_what_waits_and_leaves_what_runs(self, tmp_path: Path) -> None:
        ran, go_on = tmp_path / "ran", tmp_path / "go-on"
        if not self.runs_beside:
            return  # nobody can ask while it runs
        with self.started() as driver:
            busy = [job(f"note {ran} x; until {go_on}") for _ in range(self.slots)]
            waiting = job(f"note {ran} never")
            driver.submit(*busy, waiting)
            self._wait_until_they_run(driver, ran, self.slots)
            assert driver.pool.cancel(waiting.token, signal=0)
            assert not any(driver.pool.cancel(one.token, signal=0) for one in busy)
            go_on.touch()
            assert driver.final(waiting).outcome == "cancelled"
            assert driver.final(waiting).pid == 0, "it never started"
            assert driver.outcomes(busy) == ["succeeded"] * self.slots
            assert "never" not in lines(ran)

    def test_P6_cancelling_an_unknown_job_does_nothing(self) -> None:
        with self.started() as driver:
            one = job("sleep 0.1")
            driver.submit(one)
            assert not driver.pool.cancel(one.token + 10**9)
            assert driver.final(one).outcome == "succeeded"

    # -- P7: the worker dies ---------------------------------------------------------------------------------------

    def test_P7_slots_end_when_their_worker_is_killed(self, tmp_path: Path) -> None:
        pids_file = tmp_path / "pids"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of earlier tests; the child needs none
            worker = os.fork()
        if worker == 0:
            self._be_a_worker(pids_file)
        try:
            _poll(lambda: len(lines(pids_file)) >= 1, "the start of a pool")
        finally:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        pids = [int(pid) for pid in lines(pids_file)[0].split(",")]
        _poll(lambda: not any(_is_alive(pid) for pid in pids), "the end of its slots", patience_s=2.0 + SLACK_S)

    def _be_a_worker(self, pids_file: Path) -> None:
        try:
            with self.started() as driver:
                driver.submit(job(f"sleep {ENDLESS_S}"))
                append(pids_file, ",".join(map(str, driver.pool.pids())))
                driver.idle(60)
        finally:
            os._exit(1)

    # -- P8: jobs that behave badly --------------------------------------------------------------------------------

    def test_P8_a_vandal_harms_at_most_its_own_slot(self) -> None:
        with self.started() as driver:
            if "processes" not in driver.pool.abilities:
                return
            folder, handler, mask = os.getcwd(), signal.getsignal(signal.SIGTERM), os.umask(0o22)
            os.umask(mask)
            one = job("vandal")
            driver.submit(one)
            driver.final(one)
            others = [job("pass") for _ in range(20)]
            driver.submit(*others)
            assert driver.outcomes(others) == ["succeeded"] * 20
            assert (os.getcwd(), signal.getsignal(signal.SIGTERM)) == (folder, handler)
            assert os.umask(mask) == mask
            os.fstat(1)

    def test_P8_a_process_that_a_job_forks_ends_with_that_job(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        with self.started(slots=1) as driver:
            forks, others = brief("fork 0.2"), [brief(f"note {ran} {number}") for number in range(10)]
            driver.submit(forks, *others)
            assert driver.outcomes([forks, *others]) == ["succeeded"] * 11
            if "hard_limit" in driver.pool.abilities:
                slow = job(f"fork {ENDLESS_S}", hard_limit_s=0.4)
                driver.submit(slow)
                assert driver.final(slow).outcome == "timed_out"
            driver.idle(0.1)
        assert sorted(lines(ran), key=int) == [str(number) for number in range(10)]

    # -- P9: size --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [50_000, 64 << 10, 200_000, 3 << 20])
    def test_P9_big_jobs_and_big_reports_pass_both_ways_at_once(self, size: int) -> None:
        with self.started() as driver:
            padding = "x" * size
            jobs = [(brief if number % 2 else job)(f"echo {size}; padded {padding}") for number in range(30)]
            driver.submit(*jobs)
            time.sleep(0.2)  # let all pipes fill up
            for one in jobs:
                report = driver.final(one)
                assert (report.outcome, len(report.stored[0].data)) == ("succeeded", size)

    def test_P9_a_quarter_of_a_gibibyte_gets_through(self) -> None:
        with self.started() as driver:
            one = job("echo 1000; padded ")
            one.raw += b"x" * (256 << 20)
            driver.submit(one)
            assert driver.final(one).outcome == "succeeded"

    # -- P10: memory -----------------------------------------------------------------------------------------------

    def test_P10_nothing_of_a_finished_job_is_kept(self) -> None:
        with self.started() as driver:
            jobs = [job("pass"), *(brief() for _ in range(50)), job("padded " + "x" * 300_000)]
            before = [(sys.getrefcount(one), sys.getrefcount(one.raw)) for one in jobs]
            driver.submit(*jobs)
            driver.outcomes(jobs)
            # A thread lets go of a job only after it has reported it.
            _poll(
                lambda: [(sys.getrefcount(one), sys.getrefcount(one.raw)) for one in jobs] == before,
                "the end of all that is kept of the jobs",
                patience_s=self.patience_s,
                between=driver.turn,
            )

    def test_P10_a_pool_that_has_stopped_leaves_no_descriptor_open(self) -> None:
        gc.collect()  # what tests before have left open
        for _ in range(2):  # the first round opens what stays open for good, such as /dev/urandom
            before = descriptors()
            with self.started() as driver:
                jobs = [brief("echo 100000") for _ in range(20)]
                driver.submit(*jobs)
                driver.outcomes(jobs)
        assert descriptors() == before

    # -- P11: processes that share nothing -------------------------------------------------------------------------

    def test_P11_a_spawned_process_inherits_neither_memory_nor_descriptors(self, tmp_path: Path) -> None:
        ours, theirs = socket.socketpair()
        theirs.set_inheritable(True)  # as C libraries leave theirs
        scripted.SECRET.append("of the worker")
        program = ScriptedProgram(tmp_path / "notes")
        try:
            with self.started(program, slots=1, recipe=program.recipe) as driver:
                if "spawn" not in driver.pool.abilities:
                    return
                one = job(f"inherits {descriptors()[str(theirs.fileno())]}")
                driver.submit(one)
                assert driver.final(one).detail == "descriptor: False, memory: False"
                driver.stop(grace_s=PATIENCE_S)
            assert lines(tmp_path / "notes") == ["begin", "end"]
        finally:
            scripted.SECRET.clear()
            ours.close()
            theirs.close()

    # -- size of the pool ------------------------------------------------------------------------------------------

    def test_resize_adds_and_takes_away_slots_without_harm_to_jobs(self, tmp_path: Path) -> None:
        with self.started() as driver:
            assert driver.pool.slots == self.slots
            if "resize" not in driver.pool.abilities:
                return
            driver.pool.resize(4)
            assert driver.pool.slots == 4
            jobs = [job(f"note {tmp_path / 'ran'} x; sleep 0.5") for _ in range(4)]
            driver.submit(*jobs)
            self._wait_until_they_run(driver, tmp_path / "ran", 4)
            driver.pool.resize(1)
            assert driver.pool.slots == 1
            assert driver.outcomes(jobs) == ["succeeded"] * 4
            driver.until(lambda: len(driver.pool.pids()) == 1, "the end of three slots")
            more = [job("sleep 0.05") for _ in range(6)]
            began = time.monotonic()
            driver.submit(*more)
            assert driver.outcomes(more) == ["succeeded"] * 6
            assert time.monotonic() - began >= 0.29

    # -- helpers ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _long(self, folder: Path) -> Iterator[str]:
        """The script of a job that others must not wait for: it takes as long as the block, where jobs run beside."""
        go_on = folder / "go-on"
        try:
            yield f"until {go_on}" if self.runs_beside else "sleep 0.2"
        finally:
            go_on.touch()

    def _wait_until_they_run(self, driver: PoolDriver, path: Path, count: int) -> None:
        if not self.runs_beside:
            return
        _poll(lambda: len(lines(path)) >= count, f"{count} running jobs", between=driver.turn)


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it does not exist."""
    return path.read_text().splitlines() if path.exists() else []


def _poll(
    reached: Callable[[], bool],
    what: str,
    *,
    patience_s: float = PATIENCE_S,
    between: Callable[[], None] = lambda: None,
) -> None:
    give_up = time.monotonic() + patience_s
    while not reached():
        assert time.monotonic() < give_up, f"{what} did not come in {patience_s:g} s"
        between()
        time.sleep(0.005)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
