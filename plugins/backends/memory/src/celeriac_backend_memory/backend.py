"""Keeps results in a dict of this process and hands news to those who wait.

Every backend of this process with the same URL shares one `Shelf`. Results are kept as bytes, made by the
result serializer, so that a program meets here what it would meet with a server.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final

from msgspec import Struct

from celeriac.exceptions import BackendUnreachable, SettingError, Unsupported
from celeriac.spec import Document, Host, Serializer, StoredResult, Watch
from celeriac.states import READY_STATES, SUCCESS

#: Expired results removed by one `store`, at most: a bound for the time it may take.
EXPIRED_PER_STORE: Final = 64


class _Kept(Struct):
    state: str
    data: bytes
    expires: float  # time.monotonic; infinite when results are kept for ever


class Shelf:
    """The results of one URL and the watches on them. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}  # the oldest first
        self._watches: dict[str, set[MemoryWatch]] = {}

    def store(self, batch: Iterable[StoredResult], lifetime_s: float) -> None:
        with self._lock:
            now = time.monotonic()
            for result in batch:
                kept = self._kept.get(result.task_id)
                if kept is not None and kept.expires > now and not _replaces(result.state, kept.state):
                    continue
                self._kept.pop(result.task_id, None)
                self._kept[result.task_id] = _Kept(result.state, result.data, now + lifetime_s)
                for watch in self._watches.get(result.task_id, ()):
                    watch.news.put((result.task_id, result.data))
            self._expire(now, EXPIRED_PER_STORE)

    def fetch(self, task_ids: Iterable[str]) -> dict[str, bytes]:
        with self._lock:
            return self._fetch(task_ids)

    def forget(self, task_ids: Iterable[str]) -> None:
        with self._lock:
            for task_id in task_ids:
                self._kept.pop(task_id, None)

    def watch(self, watch: MemoryWatch, task_ids: Sequence[str]) -> None:
        """Send it what is there already, and everything that comes: one step, so that nothing falls between."""
        with self._lock:
            for task_id in task_ids:
                self._watches.setdefault(task_id, set()).add(watch)
            for item in self._fetch(task_ids).items():
                watch.news.put(item)

    def unwatch(self, watch: MemoryWatch, task_ids: Iterable[str]) -> None:
        with self._lock:
            for task_id in task_ids:
                watches = self._watches.get(task_id)
                if watches is not None:
                    watches.discard(watch)
                    if not watches:
                        del self._watches[task_id]

    def expire(self) -> int:
        with self._lock:
            return self._expire(time.monotonic(), len(self._kept))

    def _fetch(self, task_ids: Iterable[str]) -> dict[str, bytes]:
        now = time.monotonic()
        found = ((task_id, self._kept.get(task_id)) for task_id in task_ids)
        return {task_id: kept.data for task_id, kept in found if kept is not None and kept.expires > now}

    def _expire(self, now: float, limit: int) -> int:
        """Remove the oldest, as far as they have expired."""
        expired: list[str] = []
        for task_id, kept in self._kept.items():
            if kept.expires > now or len(expired) >= limit:
                break
            expired.append(task_id)
        for task_id in expired:
            del self._kept[task_id]
        return len(expired)


class MemoryWatch:
    """A queue of news about some tasks."""

    def __init__(self, shelf: Shelf) -> None:
        self.news: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
        self._shelf = shelf
        self._ids: set[str] = set()

    def add(self, ids: Sequence[str]) -> None:
        self._ids.update(ids)
        self._shelf.watch(self, ids)

    def discard(self, ids: Sequence[str]) -> None:
        self._ids.difference_update(ids)
        self._shelf.unwatch(self, ids)

    def wait(self, timeout_s: float) -> list[tuple[str, bytes]]:
        arrived: list[tuple[str, bytes]] = []
        try:
            arrived.append(self.news.get(timeout=max(timeout_s, 0.0)))
            while True:
                arrived.append(self.news.get_nowait())
        except Empty:
            # News of a task may have been waiting when it was discarded.
            return [item for item in arrived if item[0] in self._ids]

    def close(self) -> None:
        self.discard(list(self._ids))


class MemoryBackend:
    """Results between the threads of one process."""

    abilities = frozenset({"push", "expire"})
    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self._url = url
        self._shelf = _shelf_of(url)
        self._lifetime_s = lifetime_s(settings.get("result_expires"))
        self._serializer_name: str = settings.get("result_serializer") or "json"
        self._host = host
        self._pid = os.getpid()

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        return serializer.dumps(document)

    def decode(self, data: bytes) -> Document:
        document: Document = self._host.serializer(self._serializer_name).loads(data)
        return document

    def store(self, batch: Sequence[StoredResult]) -> None:
        self._require_own_process()
        self._shelf.store(batch, self._lifetime_s)

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        raise Unsupported("memory backend: results cannot ride in a broker's transaction")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        self._require_own_process()
        return self._shelf.fetch(task_ids)

    def watch(self, task_ids: Sequence[str]) -> Watch:
        self._require_own_process()
        watch = MemoryWatch(self._shelf)
        watch.add(task_ids)
        return watch

    def forget(self, task_ids: Sequence[str]) -> None:
        self._shelf.forget(task_ids)

    def cleanup(self) -> int:
        return self._shelf.expire()

    def ping(self, timeout_s: float) -> str:
        self._require_own_process()
        return f"{self._url} in process {self._pid}"

    def after_fork(self) -> None:
        """The child keeps a copy that nobody reads, so its verbs refuse: see `_require_own_process`."""

    def close(self) -> None:
        """Nothing to let go of: the results stay for the other backends of this URL."""

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            raise BackendUnreachable(
                f"memory backend: its results live in process {self._pid} and cannot be reached from process "
                f"{os.getpid()}.",
                url=self._url,
                hint="A sqlite:/// URL keeps results for several processes and needs no server.",
            )


def lifetime_s(expires: Any) -> float:
    """`result_expires` in seconds; None and 0 keep for ever.

    Raises:
        SettingError: Neither a number nor a timedelta.
    """
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if expires is None or expires == 0:
        return float("inf")
    try:
        return float(expires)
    except (TypeError, ValueError):
        raise SettingError(
            f"memory backend: result_expires is {expires!r}; give seconds or a timedelta", setting="result_expires"
        ) from None


def _replaces(new: str, old: str) -> bool:
    """R3: a success is final, and what is ready is not undone by what is not."""
    return old != SUCCESS and (old not in READY_STATES or new in READY_STATES)


_shelves: dict[str, Shelf] = {}
_shelves_lock = threading.Lock()


def _shelf_of(url: str) -> Shelf:
    name = url.partition("://")[2].split("?")[0].strip("/")
    with _shelves_lock:
        return _shelves.setdefault(name, Shelf())
