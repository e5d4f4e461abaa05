"""What the gevent pool promises beyond the contract: limits hold beside a job that lets nobody else run."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.exceptions import PoolBroken
from celeriac.spec import Pool, PoolOptions, SlotProgram
from celeriac.testing.pool_suite import PoolConformance, ScriptedProgram, job
from celeriac_pool_gevent import pool as gevent_pool
from celeriac_pool_gevent.pool import GeventPool


class _Suite(PoolConformance):
    """For its driver; its tests are run elsewhere."""

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return GeventPool(program, options, patch_late=True)


def test_limits_and_cancelling_reach_one_that_waits_beside_one_that_computes() -> None:
    with _Suite().started(slots=4) as driver:
        busy = job("spin 6", announce=True)
        late, soft, cancelled = job("sleep 60", hard_limit_s=0.3), job("sleep 60", soft_limit_s=0.3), job("sleep 60")
        driver.submit(late, soft, cancelled, busy)
        driver.until(lambda: any(report.outcome == "accepted" for report in driver.reports), "the busy one")
        assert driver.pool.cancel(cancelled.token)
        assert driver.final(late).outcome == "timed_out"
        assert driver.final(soft).timed_out
        assert driver.final(cancelled).outcome == "cancelled"
        assert busy.token in driver.open
        assert driver.final(busy).outcome == "succeeded"


class Deaf(ScriptedProgram):
    """Its jobs let no signal in."""

    def run(self, job: Any, emit: Any) -> Any:
        if job.raw == b"deaf":
            import signal

            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            while True:
                pass
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


def test_a_process_that_was_not_patched_is_refused_with_what_to_do() -> None:
    suite = _Suite()
    suite.make_pool = GeventPool  # type: ignore[method-assign]
    with pytest.raises(PoolBroken, match="Give -P gevent on the command line"), suite.started():
        pass
