"""What the gevent pool promises beyond the contract: limits hold beside a job that lets nobody else run."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gevent import monkey
from msgspec import structs

from celeriac.exceptions import PoolBroken
from celeriac.spec import JobReport, Pool, PoolOptions, SlotProgram, StoredResult
from celeriac.testing.kit import eventually
from celeriac.testing.pool_suite import PoolConformance, ScriptedProgram, job
from celeriac_pool_gevent import pool as gevent_pool
from celeriac_pool_gevent.pool import GeventPool


class _Suite(PoolConformance):
    """For its driver; its tests are run elsewhere."""

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return GeventPool(program, options, patch_late=True)


class Computing(ScriptedProgram):
    """A job of its own computes until there is a file, and lets nobody else run."""

    def run(self, job: Any, emit: Any) -> Any:
        if job.raw.startswith(b"compute"):
            until = Path(job.raw.split()[1].decode())
            emit(JobReport(job.token, "accepted"))
            gives_up = time.monotonic() + 60.0
            while not until.exists() and time.monotonic() < gives_up:
                pass
            job = structs.replace(job, raw=b"pass", announce=False)
        return super().run(job, emit)


def test_limits_and_cancelling_reach_one_that_waits_beside_one_that_computes(tmp_path: Path) -> None:
    with _Suite().started(Computing(), slots=4) as driver:
        busy = job(f"compute {tmp_path / 'go-on'}")
        late, soft, cancelled = job("sleep 60", hard_limit_s=0.3), job("sleep 60", soft_limit_s=0.3), job("sleep 60")
        driver.submit(late, soft, cancelled, busy)
        driver.until(lambda: any(report.outcome == "accepted" for report in driver.reports), "the busy one")
        assert driver.pool.cancel(cancelled.token)
        assert driver.final(late).outcome == "timed_out"
        assert driver.final(soft).timed_out
        assert driver.final(cancelled).outcome == "cancelled"
        assert busy.token in driver.open
        (tmp_path / "go-on").touch()
        assert driver.final(busy).outcome == "succeeded"


def test_one_that_is_cancelled_on_its_way_into_a_slot_never_started(tmp_path: Path) -> None:
    with _Suite().started(slots=4) as driver:
        (child,) = driver.pool.pids()
        os.kill(child, signal.SIGSTOP)
        eventually(lambda: "State:\tT" in Path(f"/proc/{child}/status").read_text())  # it stands still
        one, another = job(f"note {tmp_path / 'ran'} one"), job("pass")
        driver.submit(one, another)
        assert driver.pool.cancel(one.token)
        os.kill(child, signal.SIGCONT)
        assert driver.final(another).pid == child
        assert (driver.final(one).outcome, driver.final(one).pid) == ("cancelled", 0)
        assert not (tmp_path / "ran").exists()


class Deaf(ScriptedProgram):
    """Jobs of its own let no signal in."""

    def run(self, job: Any, emit: Any) -> Any:
        if job.raw == b"deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            while True:
                pass
        if job.raw == b"deaf for long":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            monkey.get_original("time", "sleep")(2.5)  # which lets nobody else run
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            job = structs.replace(job, raw=b"pass", announce=False)
        return super().run(job, emit)


def test_what_no_signal_reaches_is_ended_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent_pool, "KILL_AFTER_S", 0.5)
    with _Suite().started(Deaf(), slots=3) as driver:
        neighbour, deaf = job("sleep 60"), job("deaf", hard_limit_s=0.2)
        driver.submit(neighbour, deaf)
        assert driver.final(deaf).outcome == "timed_out"
        report = driver.final(neighbour)
        assert (report.outcome, "SIGKILL" in report.detail) == ("lost", True)
        after = job("pass")
        driver.submit(after)
        assert driver.final(after).outcome == "succeeded"


def test_a_limit_does_not_strike_what_has_yet_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent_pool, "KILL_AFTER_S", 0.5)
    with _Suite().started(Deaf(), slots=2) as driver:
        deaf, late = job("deaf for long"), job("pass", announce=True, hard_limit_s=1.0)
        driver.submit(deaf)
        driver.submit(late)
        assert driver.outcomes([deaf, late]) == ["succeeded", "succeeded"]


class Slow(ScriptedProgram):
    """Its second process never begins."""

    def begin(self) -> None:
        assert self._notes is not None
        super().begin()
        while self._notes.read_text().count("begin") == 2:
            time.sleep(0.01)


def test_a_process_that_does_not_come_up_is_replaced(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with _Suite().started(Slow(notes)) as driver:
        driver.patience_s = 30.0
        killed, after = job("kill 9"), job("pass")
        driver.submit(killed)
        assert driver.final(killed).outcome == "lost"
        eventually(lambda: driver.turn() or notes.read_text().count("begin") == 2, 30.0)
        driver.pool._nest.ready_by = driver.pool._look_at = time.monotonic()  # it has had its time
        driver.submit(after)
        assert driver.final(after).outcome == "succeeded"


def test_a_lack_of_descriptors_delays_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with _Suite().started() as driver:
        with monkeypatch.context() as patch:

            def refuse() -> Any:
                raise OSError(errno.EMFILE, "Too many open files")

            patch.setattr(gevent_pool.socket, "socketpair", refuse)
            killed, after = job("kill 9"), job("pass")
            driver.submit(killed)
            assert driver.final(killed).outcome == "lost"
        driver.submit(after)
        assert driver.final(after).outcome == "succeeded"


def test_a_process_that_was_not_patched_is_refused_with_what_to_do() -> None:
    suite = _Suite()
    suite.make_pool = GeventPool  # type: ignore[method-assign]
    with pytest.raises(PoolBroken, match="Give -P gevent on the command line"), suite.started():
        pass


def test_a_report_that_cannot_be_read_costs_its_own_job_only() -> None:
    class Odd(ScriptedProgram):
        def run(self, job: Any, emit: Any) -> Any:
            report = super().run(job, emit)
            if job.raw == b"padded":
                report.stored = [StoredResult(5, "SUCCESS", b"")]  # type: ignore[arg-type]
            return report

    with _Suite().started(Odd(), slots=4) as driver:
        jobs = [job("padded" if number == 3 else "pass") for number in range(6)]
        driver.submit(*jobs)
        assert driver.outcomes(jobs) == ["succeeded"] * 3 + ["rejected"] + ["succeeded"] * 2


def test_a_greenlet_that_a_job_has_left_ends_nobody_by_calling_exit() -> None:
    class Leaving(ScriptedProgram):
        def run(self, job: Any, emit: Any) -> Any:
            if job.raw == b"leave":
                import gevent

                gevent.spawn(sys.exit, 3)
                gevent.sleep(0.05)
                job = structs.replace(job, raw=b"pass")
            return super().run(job, emit)

    with _Suite().started(Leaving(), slots=4) as driver:
        jobs = [job("sleep 0.2"), job("leave"), job("pass")]
        driver.submit(*jobs)
        assert driver.outcomes(jobs) == ["succeeded"] * 3


class Killer(ScriptedProgram):
    """A job of its own kills all greenlets that there are."""

    def run(self, job: Any, emit: Any) -> Any:
        if job.raw == b"kill all":
            import gc

            import gevent

            others = [
                one for one in gc.get_objects() if type(one) is gevent.Greenlet and one is not gevent.getcurrent()
            ]
            gevent.killall(others, block=False)
            gevent.sleep(60)
        return super().run(job, emit)


def test_a_child_whose_own_greenlets_a_job_has_killed_is_replaced_and_its_jobs_are_answered_for() -> None:
    with _Suite().started(Killer(), slots=2) as driver:
        killer = job("kill all")
        driver.submit(killer)
        assert driver.final(killer).outcome == "lost"
        after = job("pass")
        driver.submit(after)
        assert driver.final(after).outcome == "succeeded"
