"""An event loop in a thread of its own, for the jobs that are coroutines.

Made by `child` when the first such job comes. A real thread, whatever was patched: a loop counts as running for its
whole thread, so no greenlet beside it could run another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gevent import monkey

from celeriac.spec import Job, JobReport
from celeriac_support_pools.loops import serve

if TYPE_CHECKING:
    from celeriac_pool_gevent.child import Run


class Coroutines:
    """Awaits jobs side by side.

    Args:
        emit, finish: Called in the loop's thread with what a job reports on its way, and with its end.
    """

    def __init__(
        self, program: Any, emit: Callable[[JobReport], None], finish: Callable[[Run, JobReport], None]
    ) -> None:
        self._program: _Awaits = program
        self._emit = emit
        self._finish = finish
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        lock = monkey.get_original("_thread", "allocate_lock")()
        lock.acquire()
        self._is_up = lock
        monkey.get_original("_thread", "start_new_thread")(self._serve, ())
        lock.acquire()

    def begin(self, run: Run) -> None:
        """From the hub's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._start, run)

    def end(self, run: Run) -> None:
        """Cancel it where it awaits. From the hub's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._cancel, run.job.token)

    def _serve(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._is_up.release()
        serve(self._loop, lambda: False)  # it ends with the process

    def _start(self, run: Run) -> None:
        assert self._loop is not None
        self._tasks[run.job.token] = self._loop.create_task(self._await(run))

    def _cancel(self, token: int) -> None:
        task = self._tasks.get(token)
        if task is not None:
            task.cancel()

    async def _await(self, run: Run) -> None:
        token = run.job.token
        try:
            report = await self._program.arun(run.job, self._emit)
        except asyncio.CancelledError:
            report = run.verdict()
            report.detail = report.detail or ("" if run.ending else "its coroutine was cancelled, and not by the pool")
        except BaseException as exc:
            report = JobReport(token, "lost", detail=f"the slot's program raised {exc!r}")
        self._tasks.pop(token, None)
        self._finish(run, report)


class _Awaits(Protocol):
    """The part of a program that is needed here."""

    async def arun(self, job: Job, emit: Callable[[JobReport], None]) -> JobReport:
        """See `CoroutineProgram.arun`."""
