"""The asyncio pool: as many coroutines at once as there are slots, in one event loop in a thread of its own.

Made by the plugin's hook. The worker's thread hands jobs over in a deque and nudges the loop; the loop begins as many
as there are free slots.

A job whose task is no coroutine function would hold up all others, so it runs in a thread of its own and takes a slot
like the others. It cannot be ended before its own end; when it, or a coroutine that blocks the loop, runs beyond its
hard limit, that is told.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

from celeriac.exceptions import PoolBroken
from celeriac.spec import CoroutineProgram, Job, JobReport, PoolOptions, SlotProgram
from celeriac_support_pools.loops import serve
from celeriac_support_pools.outbox import Outbox, take_all
from celeriac_support_pools.process import COPIES

#: So long a coroutine may take to end once it was cancelled; then its slot is given up.
PATIENCE_S: Final = 1.0
#: If the system gives no thread, it is asked again after so long.
NO_THREAD_S: Final = 0.5


class Run:
    """A job on its way: who takes it out of `AsyncioPool._running` answers for it.

    Attributes:
        task: None for a job in a thread.
        why: What a cancellation means: the outcome to report, and its detail.
        stuck_at: The `time.monotonic` from which on it is stuck.
    """

    __slots__ = ("job", "limit", "stuck_at", "task", "why")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.task: asyncio.Task[None] | None = None
        self.limit: asyncio.TimerHandle | None = None
        self.why: tuple[str, str] | None = None
        self.stuck_at = math.inf
        if job.hard_limit_s:
            # A coroutine is stuck only if it cannot even be given up, because it blocks the loop.
            self.stuck_at = time.monotonic() + job.hard_limit_s + (2 * PATIENCE_S if job.coroutine else 0.0)


class AsyncioPool:
    """Runs jobs as coroutines."""

    abilities = frozenset({"resize", "coroutines", "stuck"})

    def __init__(self, program: SlotProgram, options: PoolOptions) -> None:
        self._program = cast("CoroutineProgram", program)
        self._outbox = Outbox(options.poller)
        self._tell = self._outbox.put
        self._target = options.slots
        self._backlog: deque[Job] = deque()
        self._done: list[JobReport] = []
        self._running: dict[int, Run] = {}
        self._is_short = False  # of threads, for which it asks again in a moment
        self._telling: set[Run] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_over = False
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
            raise PoolBroken(f"pool asyncio: the slots could not begin: {exc!r}") from exc
        self._pid = os.getpid()
        self._copies = COPIES.count
        self._outbox.open()
        self._loop = asyncio.new_event_loop()
        # A daemon: a coroutine that blocks the loop must not keep the worker's process from ending.
        self._thread = threading.Thread(
            target=serve, args=(self._loop, lambda: self._is_over), name="celeriac-loop", daemon=True
        )
        self._thread.start()

    def resize(self, slots: int) -> None:
        self._target = slots
        self._nudge(self._begin_some)

    def stop(self, *, grace_s: float) -> list[JobReport]:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return []
        self.withdraw()
        self._wait_until_idle(grace_s)
        self._nudge(self._cancel_all)
        self._wait_until_idle(PATIENCE_S)
        for token in list(self._running):
            if self._running.pop(token, None) is not None:
                detail = f"still running {grace_s:g} s after the pool was told to stop; it cannot be ended"
                self._done.append(JobReport(token, "lost", detail=detail, pid=self._pid))
        reports = self.collect()
        self._is_over = True
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        self._loop = self._thread = None
        self._pid = 0
        has_ended = not thread.is_alive()
        if has_ended:
            _close(loop)
        self._outbox.close(is_quiet=has_ended)
        self._program.end()
        return reports

    def _wait_until_idle(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (self._running or self._telling) and time.monotonic() < until:
            time.sleep(0.005)

    # -- jobs ---------------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        if self._loop is None:
            self._give_back(jobs)
            return
        self._backlog.extend(jobs)
        self._nudge(self._begin_some)

    def collect(self) -> list[JobReport]:
        reports, self._done = self._done, []
        if self._pid:
            reports += self._outbox.take()
        return reports

    def deadline(self) -> float | None:
        return time.monotonic() if self._done else None

    def withdraw(self) -> None:
        self._give_back(take_all(self._backlog))

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        waiting = take_all(self._backlog)
        kept = [job for job in waiting if job.token != token]
        self._backlog.extend(kept)
        if len(kept) < len(waiting):
            self._done.append(JobReport(token, "cancelled"))
        self._nudge(self._begin_some)  # it may have found the backlog empty just now
        if len(kept) < len(waiting):
            return True
        run = self._running.get(token)
        if run is None or not run.job.coroutine:
            return False
        self._nudge(lambda: self._end(token, "cancelled", ""))
        return True

    def stuck(self) -> dict[int, float]:
        now = time.monotonic()
        return {
            token: run.job.hard_limit_s or 0.0 for token, run in self._running.copy().items() if run.stuck_at <= now
        }

    def _give_back(self, jobs: Iterable[Job]) -> None:
        self._done.extend(JobReport(job.token, "returned") for job in jobs)

    def _nudge(self, step: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(step)

    # -- in the loop --------------------------------------------------------------------------------------

    def _begin_some(self) -> None:
        while len(self._running) < self._target:
            try:
                job = self._backlog.popleft()
            except IndexError:
                return
            if not self._begin(job):
                self._backlog.appendleft(job)
                if not self._is_short:
                    self._is_short = True
                    cast("asyncio.AbstractEventLoop", self._loop).call_later(NO_THREAD_S, self._try_again)
                return

    def _try_again(self) -> None:
        self._is_short = False
        self._begin_some()

    def _begin(self, job: Job) -> bool:
        """Begin a job; False if there is no thread to be had for it now."""
        run = self._running[job.token] = Run(job)
        if not job.coroutine:
            context = contextvars.copy_context()
            work = threading.Thread(target=context.run, args=(self._run, run), name="celeriac-function", daemon=True)
            try:
                work.start()
            except RuntimeError:
                del self._running[job.token]
                return False
            return True
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        run.task = loop.create_task(self._await(run))
        if job.hard_limit_s:
            run.limit = loop.call_later(job.hard_limit_s, self._end, job.token, "timed_out", f"{job.hard_limit_s:g}")
        return True

    async def _await(self, run: Run) -> None:
        job = run.job
        try:
            report = await self._program.arun(job, self._emitter(run))
        except asyncio.CancelledError:
            outcome, detail = run.why or ("lost", "its coroutine was cancelled, and not by the pool")
            report = JobReport(job.token, outcome, detail=detail)
        except BaseException as exc:
            report = JobReport(job.token, "lost", detail=f"the slot's program raised {exc!r}")
        if run.limit is not None:
            run.limit.cancel()
        self._finish(run, report)

    def _end(self, token: int, outcome: str, detail: str) -> None:
        """Cancel a coroutine, and do without it if it does not end."""
        run = self._running.get(token)
        if run is None or run.task is None or run.why is not None:
            return
        run.why = outcome, detail
        run.task.cancel()
        cast("asyncio.AbstractEventLoop", self._loop).call_later(PATIENCE_S, self._give_up, run)

    def _give_up(self, run: Run) -> None:
        outcome, detail = run.why or ("lost", "")
        self._finish(run, JobReport(run.job.token, outcome, detail=detail))

    def _cancel_all(self) -> None:
        for token, run in list(self._running.items()):
            if run.task is not None:
                self._end(token, "lost", "given up when the pool was stopped")

    # -- in any thread ------------------------------------------------------------------------------------

    def _run(self, run: Run) -> None:
        job = run.job
        try:
            report = self._program.run(job, self._emitter(run))
        except BaseException as exc:
            report = JobReport(job.token, "lost", detail=f"the slot's program raised {exc!r}")
        self._finish(run, report)

    def _emitter(self, run: Run) -> Callable[[JobReport], None]:
        def emit(report: JobReport) -> None:
            if run.job.token in self._running:
                self._tell(report)

        return emit

    def _finish(self, run: Run, report: JobReport) -> None:
        if COPIES.count != self._copies:
            os._exit(0)  # a process that the job forked has come back out of it
        report.pid = self._pid
        self._telling.add(run)  # before it is taken out, so that `stop` sees it in one place or the other
        mine = self._running.pop(run.job.token, None) is not None  # else somebody else has answered for it
        if mine:
            self._tell(report)
        self._telling.discard(run)
        if not mine:
            return
        loop = self._loop
        if self._backlog and loop is not None:
            if run.task is None:
                loop.call_soon_threadsafe(self._begin_some)
            else:
                self._begin_some()


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End what tasks have left behind in a loop that runs no more, and close it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE_S))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
