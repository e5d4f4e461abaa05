"""The solo pool: runs jobs in the caller's thread, inside `collect`.

Made by the plugin's hook. While a job runs, the worker does nothing else: no process, no thread, and time limits end
nothing: a job that runs beyond its hard limit is only told of, to the worker's other threads.
Good for debugging, for tests, and where another supervisor multiplies whole workers.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from celeriac.exceptions import PoolBroken
from celeriac.spec import Job, JobReport, SlotProgram

#: One `collect` runs brief jobs for about so long, then the worker gets its turn.
TURN_S: Final = 0.005


class SoloPool:
    """Runs jobs one after another, each when the worker asks for reports."""

    abilities = frozenset({"stuck"})

    def __init__(self, program: SlotProgram) -> None:
        self._program = program
        self._backlog: deque[Job] = deque()
        self._done: list[JobReport] = []
        self._running: tuple[Job, float] | None = (
            None  # with the time at which it will be stuck; only if it has a limit
        )
        self._pid = 0

    @property
    def slots(self) -> int:
        return 1

    def pids(self) -> list[int]:
        return [os.getpid()]

    def start(self) -> None:
        try:
            self._program.begin()
        except Exception as exc:
            raise PoolBroken(f"pool solo: the slot could not begin: {exc!r}") from exc
        self._pid = os.getpid()

    def submit(self, jobs: Sequence[Job]) -> None:
        if self._pid:
            self._backlog.extend(jobs)
        else:
            self._give_back(jobs)

    def collect(self) -> list[JobReport]:
        """Run the job at the front, and further brief ones for a few milliseconds. Returns their reports."""
        backlog, reports = self._backlog, self._done
        self._done = []
        until = time.monotonic() + TURN_S
        while backlog:
            job = backlog.popleft()
            reports.append(self._run(job, reports))
            if job.cost_s > TURN_S or not backlog or backlog[0].cost_s > TURN_S or time.monotonic() >= until:
                break
        return reports

    def deadline(self) -> float | None:
        return time.monotonic() if self._backlog or self._done else None

    def withdraw(self) -> None:
        self._give_back(self._backlog)
        self._backlog.clear()

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        for job in self._backlog:
            if job.token == token:
                self._backlog.remove(job)
                self._done.append(JobReport(token, "cancelled"))
                return True
        return False

    def stuck(self) -> dict[int, float]:
        running = self._running
        if running is None or running[1] > time.monotonic():
            return {}
        job = running[0]
        return {job.token: job.hard_limit_s or 0.0}

    def resize(self, slots: int) -> None:
        """Does nothing: there is one thread that calls. The ability `resize` is not declared."""

    def stop(self, *, grace_s: float) -> list[JobReport]:
        self.withdraw()
        if self._pid:
            self._pid = 0
            self._program.end()
        reports, self._done = self._done, []
        return reports

    def _run(self, job: Job, reports: list[JobReport]) -> JobReport:
        if job.hard_limit_s:
            self._running = job, time.monotonic() + job.hard_limit_s
        try:
            report = self._program.run(job, reports.append)
        except BaseException as exc:
            report = JobReport(job.token, "lost", detail=f"the slot's program raised {exc!r}")
            if isinstance(exc, KeyboardInterrupt):
                self._done = [*reports, report]  # the caller's thread is the main one: its Ctrl-C goes on to it
                raise
        finally:
            self._running = None
            if os.getpid() != self._pid:
                os._exit(0)  # a process that the job forked has come back out of it
        report.pid = self._pid
        return report

    def _give_back(self, jobs: Sequence[Job] | deque[Job]) -> None:
        self._done.extend(JobReport(job.token, "returned") for job in jobs)
