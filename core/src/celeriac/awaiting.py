"""Results awaited by coroutines: one thread watches the store for all of them.

`await result` must hold up no event loop, and thousands of them must not take a thread each. Called by
`celeriac.result`; asks the store as a caller in a thread would.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celeriac.exceptions import BackendError, OperationalError
from celeriac.states import READY_STATES

if TYPE_CHECKING:
    from celeriac.resultstore import ResultStore
    from celeriac.spec.backend import Document, ResultBackend, Watch

#: How soon the thread looks for new ids while it watches others: at once while some are young, else now and then.
BRISK_S: Final = 0.002
CALM_S: Final = 0.02
YOUNG_S: Final = 1.0
REREAD_S: Final = 5.0
HINT_S: Final = 2.0
#: Waits asked about in one round of hints.
HINTED: Final = 20
#: So long the thread stays when nobody waits.
IDLE_S: Final = 5.0

T = TypeVar("T")

_log = logging.getLogger("celeriac.results")


async def within(waiting: Awaitable[T], timeout_s: float | None, late: Callable[[], T]) -> T:
    """What is waited for; if it does not come in time what `late` returns or raises, which may ask the store."""
    try:
        return await asyncio.wait_for(waiting, timeout_s)
    except asyncio.TimeoutError:
        pass
    return await aside(late)


async def aside(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What a function returns that may wait for a server: called in a thread, in the caller's context."""
    return await asyncio.to_thread(function, *args, **kwargs)


async def together(waiting: Iterable[Awaitable[T]]) -> list[T]:
    """All of them at once, in order; at the first error, or when cancelled, none is waited for any more."""
    tasks = [asyncio.ensure_future(each) for each in waiting]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Wait:
    """One coroutine that waits for one task."""

    __slots__ = ("future", "loop", "since", "task_id")

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Document] = self.loop.create_future()
        self.since = time.monotonic()

    def settle(self, document: Document | None, exc: BaseException | None = None) -> None:
        """From any thread."""

        def set_it() -> None:
            if self.future.done():
                return
            if exc is not None:
                self.future.set_exception(exc)
            elif document is not None:
                self.future.set_result(document)

        try:
            self.loop.call_soon_threadsafe(set_it)
        except RuntimeError:
            pass  # its loop is closed: nobody waits any more


class Awaiter:
    """Waits for results of one store."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waits: dict[str, list[Wait]] = {}
        self._thread: threading.Thread | None = None

    async def document(self, task_id: str) -> Document:
        """The document of a task that has ended; returns when it has.

        Raises:
            BackendError, OperationalError: The store cannot be reached at all.
            BackendMismatch: A worker ran the task and keeps its results elsewhere.
        """
        if self._pid != os.getpid():
            self._begin()  # a forked child has neither the thread nor those who waited
        wait = Wait(task_id)
        with self._changed:
            self._waits.setdefault(task_id, []).append(wait)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="celeriac-awaiter", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            return await wait.future
        finally:
            self._drop(wait)

    def _drop(self, wait: Wait) -> None:
        with self._changed:
            others = self._waits.get(wait.task_id, [])
            if wait in others:
                others.remove(wait)
            if not others:
                self._waits.pop(wait.task_id, None)

    # -- in the thread --------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Until nobody has waited for a while."""
        plugin = self._store.plugin
        reached, pause_s = False, 0.1
        while self._somebody_waits():
            try:
                if plugin is None:
                    self._store.find("")  # says that there is no result backend
                elif "push" in plugin.abilities:
                    self._watch(plugin)
                else:
                    self._poll(plugin)
                reached, pause_s = True, 0.1
            except BaseException as exc:
                if self._store.is_away(exc):
                    _log.warning("awaiting results, but their store is away: %s", exc)
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, REREAD_S)
                    continue
                if reached and isinstance(exc, (BackendError, OperationalError)):
                    time.sleep(pause_s)  # it was there a moment ago
                    pause_s = min(pause_s * 2, REREAD_S)
                    continue
                self._fail(exc)

    def _somebody_waits(self) -> bool:
        with self._changed:
            if not self._waits:
                self._changed.wait(IDLE_S)
            if not self._waits:
                self._thread = None
            return self._thread is not None

    def _watch(self, plugin: ResultBackend) -> None:
        """Until nobody waits."""
        watch = plugin.watch([])
        try:
            watched: set[str] = set()
            reread_at, hint_at = time.monotonic() + REREAD_S, time.monotonic() + HINT_S
            while True:
                wanted, young = self._wanted()
                self._follow(watch, watched, wanted)
                if not wanted:
                    return
                ended = self._arrived(watch.wait(BRISK_S if young else CALM_S))
                now = time.monotonic()
                if now >= reread_at:
                    reread_at = now + REREAD_S
                    ended |= self._arrived(plugin.fetch(list(watched)).items())
                if ended:  # who asks for one of them only now must be told anew
                    self._follow(watch, watched, watched - ended)
                if now >= hint_at:
                    hint_at = now + HINT_S
                    self._hint(plugin)
        finally:
            watch.close()

    @staticmethod
    def _follow(watch: Watch, watched: set[str], wanted: set[str]) -> None:
        gone, new = watched - wanted, wanted - watched
        if gone:
            watch.discard(list(gone))
            watched -= gone
        if new:
            watch.add(list(new))
            watched |= new

    def _poll(self, plugin: ResultBackend) -> None:
        """Until nobody waits, of a store that cannot push."""
        hint_at = time.monotonic() + HINT_S
        while True:
            wanted, young = self._wanted()
            if not wanted:
                return
            begun = time.monotonic()
            self._arrived(plugin.fetch(list(wanted)).items())
            if time.monotonic() >= hint_at:
                hint_at = time.monotonic() + HINT_S
                self._hint(plugin)
            # The store gets twice the time that it took, however many are asked for.
            time.sleep(max(5 * BRISK_S if young else 5 * CALM_S, 2 * (time.monotonic() - begun)))

    def _wanted(self) -> tuple[set[str], bool]:
        """The ids that somebody waits for, and whether somebody began to only now."""
        horizon = time.monotonic() - YOUNG_S
        with self._changed:
            newest = max((waits[-1].since for waits in self._waits.values()), default=horizon)
            return set(self._waits), newest > horizon

    def _arrived(self, states: Iterable[tuple[str, bytes]]) -> set[str]:
        """Tell who waits; returns the ids of those that have ended."""
        ended = set()
        for task_id, data in states:
            try:
                document = self._store.decode(task_id, data)
            except Exception as exc:  # it says which result and why
                ended.add(task_id)
                self._settle(task_id, None, exc)
                continue
            if document["status"] in READY_STATES:
                ended.add(task_id)
                self._settle(task_id, document)
        return ended

    def _settle(self, task_id: str, document: Any, exc: BaseException | None = None) -> None:
        with self._changed:
            waits = self._waits.pop(task_id, [])
        for wait in waits:
            wait.settle(document, exc)

    def _hint(self, plugin: ResultBackend) -> None:
        """Whether what is waited for long can never come."""
        with self._changed:
            longest = [task_id for task_id, waits in self._waits.items() if time.monotonic() - waits[0].since >= HINT_S]
        for task_id in longest[:HINTED]:
            trouble = self._store.why_missing(task_id)
            if trouble is not None and not plugin.fetch([task_id]):
                self._settle(task_id, None, trouble)

    def _fail(self, exc: BaseException) -> None:
        with self._changed:
            waits = [wait for each in self._waits.values() for wait in each]
            self._waits.clear()
        for wait in waits:
            wait.settle(None, exc)
