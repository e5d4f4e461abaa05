"""A client that is a coroutine: it sends and awaits results, and its loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.integration.conftest import House

from celeriac import Celery, group
from celeriac.exceptions import TimeoutError
from celeriac.result import ResultSet
from celeriac.resultstore import NoResultBackend

pytestmark = pytest.mark.services


def sig(house: House, task: str, *args: Any, **options: Any) -> Any:
    return house.app.signature(f"suite_app.{task}", args, **options)


def test_calls_are_sent_and_awaited(house: House) -> None:
    house.worker()

    async def client() -> None:
        result = await sig(house, "add", 2, 3).adelay()
        assert await result == 5
        assert await result == 5
        bad = await sig(house, "fail", 7).aapply_async()
        with pytest.raises(Exception, match="bad"):
            await bad
        assert isinstance(await bad.aget(propagate=False), Exception)
        results = [await sig(house, "add", n, n).adelay() for n in range(50)]
        assert await asyncio.gather(*results) == [2 * n for n in range(50)]
        many = await group(sig(house, "add", n, 1) for n in range(200)).adelay()
        assert await many == [n + 1 for n in range(200)]

    asyncio.run(asyncio.wait_for(client(), 100))


def test_the_loop_goes_on_while_a_result_is_awaited(sqlite_house: House) -> None:
    sqlite_house.worker()

    async def client() -> None:
        result = await sig(sqlite_house, "hold", "till-it-ticked").adelay()

        async def tick() -> None:
            for _ in range(20):
                await asyncio.sleep(0.01)
            sqlite_house.release("till-it-ticked")

        ticking = asyncio.ensure_future(tick())
        assert await result.aget(timeout=60) == "till-it-ticked"
        await ticking

    asyncio.run(client())


def test_a_wait_that_is_too_long_ends_and_says_so(sqlite_house: House) -> None:
    async def client() -> None:
        result = await sig(sqlite_house, "add", 1, 1).adelay()
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no result of .* within 0\.2 s"):
            await result.aget(timeout=0.2)
        assert time.monotonic() - begun < 60
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            await ResultSet([result]).aget(timeout=0.2)
        sqlite_house.worker()
        assert await result.aget(timeout=60) == 2

    asyncio.run(client())


def test_a_set_with_a_failure_does_not_wait_for_the_others(sqlite_house: House) -> None:
    sqlite_house.worker()

    async def client() -> None:
        endless = await sig(sqlite_house, "hold", "for-ever").adelay()
        results = ResultSet([endless, await sig(sqlite_house, "fail", 1).adelay()])
        with pytest.raises(Exception, match="bad"):
            await asyncio.wait_for(results.aget(), 60)

    asyncio.run(client())


def test_an_app_without_results_says_so() -> None:
    app = Celery(broker="memory://asyncio-client", set_as_current=False)

    async def client() -> None:
        with pytest.raises(NoResultBackend):
            await asyncio.wait_for(app.AsyncResult("some-id").aget(), 60)

    asyncio.run(client())


def test_waits_given_up_leave_no_trace_and_the_thread_serves_several_loops(sqlite_house: House) -> None:
    sqlite_house.worker()

    async def give_up() -> None:
        waits = [asyncio.ensure_future(sqlite_house.app.AsyncResult(f"never-{n}").aget()) for n in range(100)]
        await asyncio.sleep(0.1)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    asyncio.run(give_up())
    assert not sqlite_house.app.backend.awaiter._waits

    values: list[int] = []

    async def client(n: int) -> None:
        values.append(await (await sig(sqlite_house, "add", n, n).adelay()))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(client(n))) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(values) == [0, 2, 4, 6, 8]
    assert not sqlite_house.app.backend.awaiter._waits
