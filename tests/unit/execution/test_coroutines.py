"""Tasks that are coroutines: run to their end where nothing else runs, and awaited among others."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from celeriac.exceptions import SoftTimeLimitExceeded
from celeriac.execution import coroutines
from celeriac.execution.coroutines import Interruptible, complete


def test_it_returns_what_the_coroutine_returns_and_raises_what_it_raises() -> None:
    async def work(value: int) -> int:
        await asyncio.sleep(0)
        if value < 0:
            raise KeyError(value)
        return value

    assert complete(work(3)) == 3
    with pytest.raises(KeyError):
        complete(work(-1))
    assert complete(work(4)) == 4


def test_the_loop_is_kept_for_the_next_one_and_each_thread_has_its_own() -> None:
    async def loop_of() -> Any:
        return asyncio.get_running_loop()

    first = complete(loop_of())
    assert complete(loop_of()) is first
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.append(complete(loop_of())))
    thread.start()
    thread.join()
    assert others[0] is not first
    others[0].close()


def test_what_a_coroutine_leaves_behind_does_not_run_on_in_the_next() -> None:
    seen: list[str] = []

    async def straggler() -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def work() -> None:
        asyncio.get_running_loop().create_task(straggler())
        await asyncio.sleep(0)

    complete(work())
    assert seen == ["cancelled"]


def test_tasks_left_behind_that_swallow_their_cancellation_hold_up_neither_the_outcome_nor_the_next_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coroutines, "LEFT_TASKS_S", 0.01)

    async def clinger() -> None:
        with suppress(GeneratorExit):
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(600)

    async def work() -> str:
        asyncio.get_running_loop().create_task(clinger())
        await asyncio.sleep(0)
        return "done"

    assert ended(work()) == "done"
    assert "clinger" in caplog.text


class Secretive(Exception):
    """Does not say what it is."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("none of your business")

    @__class__.setter
    def __class__(self, kind: type) -> None: ...


def test_an_error_that_raises_when_asked_what_it_is_is_raised_like_any_other() -> None:
    async def work(eager: bool = False) -> None:
        if eager:
            complete(work())
        await asyncio.sleep(0)
        raise Secretive

    for eager in (False, True):
        assert type(ended(work(eager))) is Secretive


def ended(coroutine: Any) -> Any:
    """What it returns or raises, where it is an error and not a hang that it never ends."""
    ends: list[Any] = []

    def run() -> None:
        try:
            ends.append(complete(coroutine))
            ends.append(complete(asyncio.sleep(0)))  # and so does the next
        except BaseException as exc:
            ends.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert ends, "it still runs"
    return ends[0]


@pytest.fixture
def alarm() -> Any:
    """Raises the soft limit in this thread, as a pool's child does it."""

    def strike(signum: int, frame: Any) -> None:
        raise SoftTimeLimitExceeded(0.1)

    before = signal.signal(signal.SIGALRM, strike)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_soft_limit_that_strikes_while_it_waits_is_raised_where_it_waits(alarm: Any) -> None:
    async def work() -> str:
        try:
            alarm(0.1)
            await asyncio.sleep(600)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0.01)  # it may still await, to clean up
            return "cleaned up"
        return "slept"

    assert complete(work()) == "cleaned up"


def test_a_soft_limit_that_nobody_catches_comes_out(alarm: Any) -> None:
    async def work() -> None:
        alarm(0.1)
        await asyncio.gather(asyncio.sleep(600), asyncio.sleep(600))

    with pytest.raises(SoftTimeLimitExceeded):
        complete(work())

    async def after() -> int:
        await asyncio.sleep(0.01)
        return 1

    assert complete(after()) == 1


def test_a_soft_limit_that_strikes_while_it_computes_is_raised_there(alarm: Any) -> None:
    async def work() -> str:
        try:
            alarm(0.1)
            until = time.monotonic() + 600
            while time.monotonic() < until:
                pass
        except SoftTimeLimitExceeded:
            return "stopped"
        return "done"

    assert complete(work()) == "stopped"


def test_an_interruption_is_no_cancellation() -> None:
    async def scenario() -> None:
        async def work() -> str:
            try:
                async with asyncio.Lock():
                    await asyncio.sleep(600)
            except SoftTimeLimitExceeded:
                await asyncio.sleep(0)
                return "interrupted"
            return "slept"

        waiting = Interruptible(work())

        async def wait() -> str:
            result: str = await waiting
            return result

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiting.interrupt(SoftTimeLimitExceeded(1))
        assert await task == "interrupted"
        assert not waiting.cancelled
        waiting.interrupt(SoftTimeLimitExceeded(1))  # too late: nothing happens

    asyncio.run(scenario())


def test_a_cancellation_from_outside_is_known_as_one() -> None:
    async def scenario() -> None:
        waiting = Interruptible(asyncio.sleep(600))

        async def wait() -> None:
            await waiting

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiting.cancelled

    asyncio.run(scenario())


def test_a_forked_process_has_a_loop_of_its_own_and_leaves_the_parents_alone() -> None:
    async def loop_of() -> Any:
        await asyncio.to_thread(int)  # wakes the loop through what the kernel keeps of it
        return asyncio.get_running_loop()

    first = complete(loop_of())
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.alarm(30)  # with the parent's loop it may wait for ever
        try:
            code = 0 if complete(loop_of()) is not first and not first.is_closed() else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert complete(loop_of()) is first


def test_a_coroutine_within_another_is_run_beside_it_in_the_same_context() -> None:
    async def inner(value: int) -> int:
        await asyncio.sleep(0)
        if value < 0:
            raise KeyError(value)
        return value + mark.get()

    async def outer() -> int:
        mark.set(10)
        value: int = complete(inner(1))
        with pytest.raises(KeyError):
            complete(inner(-1))
        await asyncio.sleep(0)  # it was not cancelled
        return value

    mark: ContextVar[int] = ContextVar("mark", default=0)
    assert complete(outer()) == 11
