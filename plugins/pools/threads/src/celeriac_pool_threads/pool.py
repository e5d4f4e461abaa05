"""The threads pool: runs jobs in threads of the worker's process.

Made by the plugin's hook. All threads take from one shared deque, job by job: a job never stands behind
another one that runs, and the worker can take every job back that has not been started. Taking one is
atomic, so each job goes to exactly one side.

Threads cannot be ended from outside. So running jobs cannot be cancelled, and time limits end nothing: a job that runs
beyond its hard limit is only told of.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from celeriac.exceptions import PoolBroken
from celeriac.spec import Job, JobReport, PoolOptions, SlotProgram
from celeriac_support_pools.outbox import Outbox, take_all
from celeriac_support_pools.process import COPIES

#: Brief jobs wake one thread for about so much work, since more threads would only fight for the interpreter.
SHARE_S: Final = 0.001
#: If brief jobs still wait after so long, they are not brief: the idle threads get up too.
HELP_S: Final = 0.010


class ThreadsPool:
    """Runs jobs in threads."""

    abilities = frozenset({"resize", "stuck"})

    def __init__(self, program: SlotProgram, options: PoolOptions) -> None:
        self._program = program
        self._outbox = Outbox(options.poller)
        self._tell = self._outbox.put
        self._node = options.node
        self._target = options.slots
        self._backlog: deque[Job] = deque()
        self._idle: deque[threading.Lock] = deque()
        self._leave: deque[None] = deque()  # a ticket for each thread that is too many
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count(1)
        self._running: dict[int, threading.Thread] = {}  # by token; who takes a token out answers for the job
        self._limits: dict[int, tuple[float, float]] = {}  # by token: when a running job will be stuck, and its limit
        self._done: list[JobReport] = []
        self._help_at = math.inf
        self._pid = self._copies = 0

    @property
    def slots(self) -> int:
        return self._target

    def pids(self) -> list[int]:
        return [os.getpid()]

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        try:
            self._program.begin()
        except Exception as exc:
            raise PoolBroken(f"pool threads: the slots could not begin: {exc!r}") from exc
        self._pid = os.getpid()
        self._copies = COPIES.count
        self._outbox.open()
        for _ in range(self._target):
            self._add_thread()

    def resize(self, slots: int) -> None:
        change, self._target = slots - self._target, slots
        for _ in range(change):
            if self._leave:
                self._leave.pop()
            else:
                self._add_thread()
        self._leave.extend([None] * -change)
        self._wake(len(self._idle))

    def stop(self, *, grace_s: float) -> list[JobReport]:
        if not self._pid:
            return []
        self.withdraw()
        self._leave.extend([None] * len(self._threads))
        self._wake(len(self._threads))
        patience = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, patience - time.monotonic()))
        busy = self._give_up(f"still running {grace_s:g} s after the pool was told to stop; a thread cannot be ended")
        reports = self.collect()
        self._pid = 0
        self._outbox.close(is_quiet=not busy)
        self._program.end()
        return reports

    def _give_up(self, reason: str) -> bool:
        """Report the jobs that still run as lost, and see the other threads end; whether any job still runs."""
        busy: set[threading.Thread] = set()
        while ending := [thread for thread in self._threads if thread.is_alive() and thread not in busy]:
            for token in list(self._running):
                runner = self._running.pop(token, None)
                if runner is not None:
                    busy.add(runner)
                    self._done.append(JobReport(token, "lost", detail=reason, pid=self._pid))
            ending[0].join(0.01)  # no longer: it may have taken a job in the last moment, and begin it now
        return bool(busy)

    # -- jobs ---------------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        if not self._pid:
            self._give_back(jobs)
            return
        self._backlog.extend(jobs)
        if self._idle:
            wanted = sum(min(job.cost_s / SHARE_S, 1.0) for job in jobs)
            self._wake(math.ceil(wanted))
            if self._idle:
                self._help_at = min(self._help_at, time.monotonic() + HELP_S)

    def collect(self) -> list[JobReport]:
        reports, self._done = self._done, []
        if self._pid:
            reports += self._outbox.take()
        if self._help_at <= time.monotonic():
            self._help_at = math.inf
            self._wake(len(self._backlog))
        return reports

    def deadline(self) -> float | None:
        if self._done:
            return time.monotonic()
        return None if self._help_at == math.inf else self._help_at

    def withdraw(self) -> None:
        self._give_back(take_all(self._backlog))

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        waiting = take_all(self._backlog)
        kept = [job for job in waiting if job.token != token]
        self._backlog.extend(kept)
        self._wake(len(kept))  # a thread may have found the backlog empty just now
        if len(kept) == len(waiting):
            return False
        self._done.append(JobReport(token, "cancelled"))
        return True

    def stuck(self) -> dict[int, float]:
        now = time.monotonic()
        return {token: limit_s for token, (at, limit_s) in self._limits.copy().items() if at <= now}

    def _give_back(self, jobs: Iterable[Job]) -> None:
        self._done.extend(JobReport(job.token, "returned") for job in jobs)

    def _wake(self, count: int) -> None:
        """Wake so many threads, if so many are idle."""
        for _ in range(min(count, len(self._idle))):
            try:
                self._idle.pop().release()
            except IndexError:
                return  # one has got up by itself

    # -- in the threads -----------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        name = f"celeriac-slot-{next(self._numbers)}"
        # A daemon: a job that never ends must not keep the worker's process from ending.
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        bed = threading.Lock()
        bed.acquire()
        while True:
            if self._leave and self._takes_ticket():
                return
            try:
                job = self._backlog.popleft()
            except IndexError:
                self._sleep(bed)
            else:
                self._run(job)
                del job  # while this thread sleeps it must not keep the last message alive

    def _takes_ticket(self) -> bool:
        try:
            self._leave.pop()
        except IndexError:
            return False
        return True

    def _sleep(self, bed: threading.Lock) -> None:
        """Wait for work. To be found by `_wake` comes first, looking once more second: so no work is missed."""
        self._idle.append(bed)
        if self._backlog or self._leave:
            try:
                self._idle.remove(bed)
                return
            except ValueError:
                pass  # somebody is waking us already
        bed.acquire()

    def _run(self, job: Job) -> None:
        token, running = job.token, self._running
        running[token] = threading.current_thread()
        if job.hard_limit_s:
            self._limits[token] = time.monotonic() + job.hard_limit_s, job.hard_limit_s

        def emit(report: JobReport) -> None:
            if token in running:
                self._tell(report)

        try:
            report = self._program.run(job, emit)
        except BaseException as exc:
            report = JobReport(token, "lost", detail=f"the slot's program raised {exc!r}")
        if COPIES.count != self._copies:
            os._exit(0)  # a process that the job forked has come back out of it
        report.pid = self._pid
        if job.hard_limit_s:
            del self._limits[token]
        if running.pop(token, None) is not None:  # else `stop` has given us up
            self._tell(report)
