"""Keeps results in a dict of this process and hands news to those who wait.

Every backend of this process with the same URL shares one `Shelf`. Results are kept as bytes, made by the
result serializer, so that a program meets here what it would meet with a server.
"""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final

from msgspec import Struct

from celeriac.exceptions import BackendUnreachable, SettingError, Unsupported
from celeriac.spec import (
    CLAIM_S,
    DONE_S,
    OVERDUE_S,
    Chord,
    ChordClaim,
    ChordPart,
    Document,
    Host,
    Serializer,
    StoredResult,
    Watch,
)
from celeriac.spec.results import ResultCompression
from celeriac.states import READY_STATES, SUCCESS

#: Expired results removed by one `store`, at most: a bound for the time it may take.
EXPIRED_PER_STORE: Final = 64
#: Chords and groups from which on those that have expired are looked for.
EXPIRE_CHORDS_AT: Final = 1024


class _Kept(Struct):
    state: str
    data: bytes
    expires: float  # time.monotonic; infinite when results are kept for ever
    fence: float | None = None


class _Join(Struct):
    """A chord, or the parts of one that nobody has opened (yet). Times are time.monotonic."""

    expires: float
    size: int | None = None
    body: bytes = b""
    patience_s: float = math.inf
    overdue_at: float = math.inf
    parts: dict[tuple[str, int | None], bytes] = {}
    token: str = ""
    claimed_until: float = 0.0
    done: bool = False

    def keep(self, now: float, lifetime_s: float) -> None:
        """From now on for so long, and for as long as parts may come."""
        self.expires = now + (lifetime_s if self.size is None else max(lifetime_s, self.patience_s + OVERDUE_S))

    def claim(self, group: str, now: float, claim_s: float) -> ChordClaim:
        if self.claimed_until > now:
            return ChordClaim(group, "", self.claimed_until - now)
        self.token, self.claimed_until = uuid.uuid4().hex, now + claim_s
        self.overdue_at = self.claimed_until  # if its holder dies
        parts = sorted(self.parts.items(), key=lambda item: math.inf if item[0][1] is None else item[0][1])
        return ChordClaim(
            group, self.token, 0.0, self.size or 0, [(index, data) for (_, index), data in parts], self.body
        )


class Chords:
    """The chords and the saved groups of one URL. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._joins: dict[str, _Join] = {}
        self._groups: dict[str, tuple[float, bytes]] = {}
        self._expire_at = EXPIRE_CHORDS_AT

    def open(self, chords: Iterable[Chord], lifetime_s: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._expire_some(now)
            for chord in chords:
                join = self._of(chord.group, now, lifetime_s)
                if join.done or join.size is not None:
                    continue
                join.size, join.body, join.patience_s = chord.size, chord.body, chord.patience_s
                join.overdue_at = now + chord.patience_s
                join.keep(now, lifetime_s)

    def join(self, parts: Iterable[ChordPart], lifetime_s: float, claim_s: float) -> list[ChordClaim]:
        with self._lock:
            now = time.monotonic()
            touched: dict[str, _Join] = {}
            for part in parts:
                join = touched[part.group] = self._of(part.group, now, lifetime_s)
                if not join.done:
                    join.parts[part.task_id, part.index] = part.data
                    join.overdue_at = max(join.overdue_at, now + join.patience_s)
            return [
                join.claim(group, now, claim_s)
                for group, join in touched.items()
                if not join.done and join.size is not None and len(join.parts) >= join.size
            ]

    def grow(self, group: str) -> None:
        with self._lock:
            join = self._joins.get(group)
            if join is not None and join.size is not None:
                join.size += 1

    def close(self, claims: Iterable[ChordClaim]) -> None:
        with self._lock:
            now = time.monotonic()
            for claim in claims:
                join = self._joins.get(claim.group)
                if join is not None and join.token == claim.token and not join.done:
                    self._joins[claim.group] = _Join(max(join.expires, now + DONE_S), done=True)

    def overdue(self, limit: int, claim_s: float) -> list[ChordClaim]:
        with self._lock:
            now = time.monotonic()
            late = [group for group, join in self._joins.items() if join.overdue_at <= now and not join.done]
            claims = [self._joins[group].claim(group, now, claim_s) for group in late[:limit]]
            return [claim for claim in claims if claim.token]

    def save_group(self, group_id: str, data: bytes, lifetime_s: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._expire_some(now)
            self._groups[group_id] = now + lifetime_s, data

    def load_group(self, group_id: str) -> bytes | None:
        with self._lock:
            expires, data = self._groups.get(group_id, (0.0, b""))
            return data if expires > time.monotonic() else None

    def delete_group(self, group_id: str) -> None:
        with self._lock:
            self._groups.pop(group_id, None)

    def expire(self) -> int:
        with self._lock:
            return self._expire(time.monotonic())

    def _expire_some(self, now: float) -> None:
        """When they are twice as many as were left the last time: so that looking at all costs each little."""
        if len(self._joins) + len(self._groups) >= self._expire_at:
            self._expire(now)
            self._expire_at = max(EXPIRE_CHORDS_AT, 2 * (len(self._joins) + len(self._groups)))

    def _expire(self, now: float) -> int:
        joins = [group for group, join in self._joins.items() if join.expires <= now]
        groups = [group for group, (expires, _) in self._groups.items() if expires <= now]
        for group in joins:
            del self._joins[group]
        for group in groups:
            del self._groups[group]
        return len(joins) + len(groups)

    def _of(self, group: str, now: float, lifetime_s: float) -> _Join:
        join = self._joins.get(group)
        if join is None or join.expires <= now:
            join = self._joins[group] = _Join(now + lifetime_s)
        elif not join.done:
            join.keep(now, lifetime_s)
        return join


class Shelf:
    """The results of one URL and the watches on them. Safe for threads."""

    def __init__(self) -> None:
        self.chords = Chords()
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}  # the oldest first
        self._watches: dict[str, set[MemoryWatch]] = {}

    def store(self, batch: Iterable[StoredResult], lifetime_s: float) -> None:
        with self._lock:
            now = time.monotonic()
            for result in batch:
                kept = self._kept.get(result.task_id)
                if kept is not None and kept.expires > now and not _replaces(result, kept):
                    continue
                self._kept.pop(result.task_id, None)
                fence = result.received if result.redelivered and result.state in READY_STATES else None
                self._kept[result.task_id] = _Kept(result.state, result.data, now + lifetime_s, fence)
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

    abilities = frozenset({"push", "expire", "count", "groups", "fence"})
    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self._url = url
        self._shelf = _shelf_of(url)
        self._lifetime_s = lifetime_s(settings.get("result_expires"))
        self._chord_lifetime_s = lifetime_s(settings.get("result_chord_expires") or settings.get("result_expires"))
        self._serializer_name: str = settings.get("result_serializer") or "json"
        self._compression = ResultCompression(settings)
        self._host = host
        self._pid = os.getpid()

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        return self._compression.pack(serializer.dumps(document), document.get("status"))

    def decode(self, data: bytes) -> Document:
        document: Document = self._host.serializer(self._serializer_name).loads(self._compression.unpack(data))
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
        return self._shelf.expire() + self._shelf.chords.expire()

    # chords and groups

    def open_chords(self, chords: Sequence[Chord]) -> None:
        self._require_own_process()
        self._shelf.chords.open(chords, self._chord_lifetime_s)

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        self._require_own_process()
        return self._shelf.chords.join(parts, self._chord_lifetime_s, claim_s)

    def grow_chord(self, group: str, task_id: str) -> None:
        self._require_own_process()
        self._shelf.chords.grow(group)

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        self._shelf.chords.close(claims)

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        return self._shelf.chords.overdue(limit, claim_s)

    def save_group(self, group_id: str, members: Any) -> None:
        self._require_own_process()
        self._shelf.chords.save_group(group_id, self._serializer().dumps(members), self._lifetime_s)

    def load_group(self, group_id: str) -> Any:
        self._require_own_process()
        data = self._shelf.chords.load_group(group_id)
        return None if data is None else self._serializer().loads(data)

    def delete_group(self, group_id: str) -> None:
        self._shelf.chords.delete_group(group_id)

    def _serializer(self) -> Serializer:
        return self._host.serializer(self._serializer_name)

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


def _replaces(new: StoredResult, old: _Kept) -> bool:
    """R3: a success is final, and what is ready is not undone by what is not. R13: nor by a stale receiver."""
    if old.state == SUCCESS or (old.state in READY_STATES and new.state not in READY_STATES):
        return False
    return old.fence is None or new.received is None or new.received >= old.fence


_shelves: dict[str, Shelf] = {}
_shelves_lock = threading.Lock()


def _shelf_of(url: str) -> Shelf:
    name = url.partition("://")[2].split("?")[0].strip("/")
    with _shelves_lock:
        return _shelves.setdefault(name, Shelf())
