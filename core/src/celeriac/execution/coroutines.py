"""Tasks that are coroutines: driven to their end in a slot that has nothing else to do, or awaited among others.

Called by `execute`. Importing asyncio is its business; nothing of it is needed for plain functions.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Final

from celeriac.exceptions import SoftTimeLimitExceeded

#: So long may take to end what a coroutine has left behind in its loop, once it was cancelled.
LEFT_TASKS_S: Final = 10.0

_local = threading.local()
_log = logging.getLogger("celeriac.task")


class Interruptible:
    """Awaits a coroutine, into which an exception can be raised where it waits.

    Attributes:
        cancelled: A cancellation has reached it from outside.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[Any] | None = None
        self._exc: BaseException | None = None
        self.cancelled = False

    def interrupt(self, exc: BaseException) -> None:
        """Raise `exc` in the coroutine at its present `await`. From the loop's thread; no-op once it has ended."""
        if self._task is not None and not self._task.done():
            self._exc = exc
            self._task.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        self._task = asyncio.current_task()
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        try:
            while True:
                try:
                    waits_for = step(value)
                except StopIteration as stop:
                    return stop.value
                step = self._coroutine.throw
                try:
                    value, step = (yield waits_for), self._coroutine.send
                except asyncio.CancelledError as exc:
                    value = self._why(exc)
                except BaseException as exc:
                    value = exc
        finally:
            self._task = None

    def _why(self, cancellation: BaseException) -> BaseException:
        """What a cancellation of our task means: our own interruption, or somebody's wish that it end."""
        exc, self._exc = self._exc, None
        if exc is None:
            self.cancelled = True
            return cancellation
        if hasattr(self._task, "uncancel"):  # since 3.11: `asyncio.timeout` within the coroutine counts these
            self._task.uncancel()  # type: ignore[union-attr]
        return exc


def _leave_loop() -> None:
    """In a forked process: what the kernel keeps of the loop is the parent's, who would lose wakes and events to us.

    So it is neither used nor closed, which would change it there; and kept, for one that is collected closes itself.
    """
    _left_behind.append(getattr(_local, "loop", None))
    _local.loop = None


os.register_at_fork(after_in_child=_leave_loop)
_left_behind: Final[list[asyncio.AbstractEventLoop | None]] = []


async def _await(waiting: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What it returns, or what it raises: asyncio is not shown the error, for it asks of which class that is, and one
    that raises at being asked would leave the loop running for ever."""
    try:
        return await waiting, None
    except BaseException as exc:
        return None, exc


def _unfold(ended: tuple[Any, BaseException | None]) -> Any:
    value, exc = ended
    if exc is None:
        return value
    try:
        raise exc
    finally:
        del ended, exc  # else it, its traceback and this frame hold each other


def complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end in this thread's own loop, which is kept for the next one.

    A soft time limit that strikes while it waits is raised in the coroutine, which may catch it. Tasks that it leaves
    behind are cancelled, as `asyncio.run` does: they would go on in the midst of somebody else's run.

    Where a loop runs in this thread already (a coroutine calls a task eagerly), another thread runs the coroutine.

    Raises:
        BaseException: Whatever the coroutine raises; and what strikes this thread meanwhile, such as `SystemExit`.
    """
    if asyncio._get_running_loop() is not None:
        with ThreadPoolExecutor(1) as beside:
            return _unfold(beside.submit(copy_context().run, asyncio.run, _await(coroutine)).result())
    loop: asyncio.AbstractEventLoop | None = getattr(_local, "loop", None)
    if loop is None or loop.is_closed():
        loop = _local.loop = asyncio.new_event_loop()
    waiting = Interruptible(coroutine)
    task = loop.create_task(_await(waiting))
    try:
        while True:
            try:
                return _unfold(loop.run_until_complete(task))
            except SoftTimeLimitExceeded as exc:
                if task.done():
                    raise
                waiting.interrupt(exc)
    finally:
        _tidy(loop)


def _tidy(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left and loop.run_until_complete(asyncio.wait(left, timeout=LEFT_TASKS_S))[1]:
        # They hold on: the outcome of the run is known, so nobody waits, and what runs next has a loop without them.
        names = ", ".join(sorted({_name_of(task) for task in left if not task.done()}))
        _log.warning(
            "A coroutine has left tasks behind that run on %g s after they were cancelled; they are given up where "
            "they are: %s. A task has to let CancelledError through.",
            LEFT_TASKS_S, names,
        )  # fmt: skip
        loop.close()


def _name_of(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", None) or task.get_name()
