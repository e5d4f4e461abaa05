"""Keeps results in a table of one SQLite file and wakes those who wait for them.

Used with the sqlite broker on the same file, results are written by the consumer in the transaction that
acknowledges their messages: `commands` gives it the statement, the rows, and whom to wake.
"""

from __future__ import annotations

import json
import select
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from celeriac.exceptions import BackendLost, BackendUnreachable, SettingError
from celeriac.spec import CLAIM_S, Chord, ChordClaim, ChordPart, Document, Host, Serializer, StoredResult, Watch
from celeriac.spec.diagnosis import Finding
from celeriac.spec.results import ResultCompression
from celeriac.states import READY_STATES
from celeriac_backend_sqlite.chords import SqliteChords
from celeriac_support_sqlite import health
from celeriac_support_sqlite.file import Database, Location, StoreTrouble, cannot_listen, column, is_odd
from celeriac_support_sqlite.state import SqliteState
from celeriac_support_sqlite.wake import Bell, Ear, folder_of, topic

VERSION: Final = 2
SCHEMA: Final = (
    """CREATE TABLE celeriac_results (
        id INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, ready INTEGER NOT NULL,
        data BLOB NOT NULL, expires REAL, fence REAL)""",
    "CREATE INDEX celeriac_results_expires ON celeriac_results (expires) WHERE expires IS NOT NULL",
)
UPGRADES: Final = {1: ("ALTER TABLE celeriac_results ADD COLUMN fence REAL",)}
#: R3 in one statement: a success is final, and what is ready is not undone by what is not. Parameter 6 is now. R13:
#: parameter 7 is when the message of this run was received, and 8 the same if that is to keep earlier ones out.
STORE: Final = """INSERT INTO celeriac_results (task_id, state, ready, data, expires, fence)
    VALUES (?1, ?2, ?3, ?4, ?5, ?8) ON CONFLICT (task_id) DO UPDATE
    SET state = excluded.state, ready = excluded.ready, data = excluded.data, expires = excluded.expires,
        fence = excluded.fence
    WHERE (celeriac_results.state <> 'SUCCESS' AND celeriac_results.ready <= excluded.ready
           AND (celeriac_results.fence IS NULL OR ?7 IS NULL OR celeriac_results.fence <= ?7))
       OR celeriac_results.expires <= ?6"""
FETCH: Final = """SELECT task_id, data FROM celeriac_results
    WHERE task_id IN (SELECT value FROM json_each(?1)) AND (expires IS NULL OR expires > ?2)"""
#: For an id that `json_each` does not give back.
FETCH_ONE: Final = "SELECT data FROM celeriac_results WHERE task_id = ?1 AND (expires IS NULL OR expires > ?2)"
#: The oldest that have expired, a bounded number.
EXPIRE: Final = """DELETE FROM celeriac_results WHERE id IN
    (SELECT id FROM celeriac_results WHERE expires <= ?1 ORDER BY expires LIMIT ?2)"""
EXPIRED_PER_CLEANUP: Final = 10_000
#: Every store removes what has expired: at most this many, or twice as many as it brings, so that it keeps pace.
EXPIRED_PER_STORE: Final = 32
#: A wake-up can be lost, so a watch looks by itself this often.
LOOK_S: Final = 0.5
#: Watches of a closed wait that are kept, for a new one costs two files.
SPARE_EARS: Final = 4


class SqliteBackend:
    """Results in one SQLite file."""

    abilities = frozenset(
        {"push", "expire", "persistent", "joint", "shared", "state", "count", "groups", "fence", "diagnose"}
    )

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        options = settings.get("result_backend_transport_options") or {}
        location = Location(url, options.get("durability"))
        self.joint: str | None = location.joint
        self._url = location.url
        self._database = Database(location, "backend", VERSION, SCHEMA, UPGRADES)
        self._state = SqliteState(location, self._errors)
        self._bell = Bell(location.path)
        self._lifetime_s = _lifetime_s(settings.get("result_expires"))
        chord_lifetime_s = _lifetime_s(settings.get("result_chord_expires")) or self._lifetime_s
        self._chords = SqliteChords(location, chord_lifetime_s, self._lifetime_s)
        self._serializer_name: str = settings.get("result_serializer") or "json"
        self._compression = ResultCompression(settings)
        self._host = host
        self._has_tables = False
        self._spare: list[Ear] = []

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        return self._compression.pack(serializer.dumps(document), document.get("status"))

    def decode(self, data: bytes) -> Document:
        document: Document = self._host.serializer(self._serializer_name).loads(self._compression.unpack(data))
        return document

    def store(self, batch: Sequence[StoredResult]) -> None:
        statements = self._statements(batch)
        with self._errors(), self._database.transaction() as conn:
            for sql, rows in statements:
                conn.executemany(sql, rows)
        self._bell.ring(_topics(batch))

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """`(statements, topics)`: pairs of SQL and rows for a transaction on this file, and whom to wake after it."""
        if not self._has_tables or self._database.is_replaced():
            with self._errors(), self._database.connection():
                self._has_tables = True  # connecting makes them
        return self._statements(batch), _topics(batch)

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        wanted = json.dumps(list(task_ids))
        with self._errors():
            found = dict(self._database.read(lambda conn: conn.execute(FETCH, (wanted, time.time())).fetchall()))
            if "\\u0000" in wanted or "\\ud" in wanted:
                found.update(self._database.read(lambda conn: self._fetch_odd(conn, task_ids)))
        return found

    @staticmethod
    def _fetch_odd(conn: sqlite3.Connection, task_ids: Sequence[str]) -> list[tuple[str, bytes]]:
        odd, now = filter(is_odd, task_ids), time.time()
        return [(id, data) for id in odd for (data,) in conn.execute(FETCH_ONE, (column(id), now)).fetchall()]

    def watch(self, task_ids: Sequence[str]) -> Watch:
        with self._errors():
            watch = SqliteWatch(self, self._take_ear())
        watch.add(task_ids)
        return watch

    def forget(self, task_ids: Sequence[str]) -> None:
        with self._errors(), self._database.transaction() as conn:
            conn.executemany(
                "DELETE FROM celeriac_results WHERE task_id = ?", [(column(task_id),) for task_id in task_ids]
            )

    def state(self) -> SqliteState:
        return self._state

    def cleanup(self) -> int:
        with self._errors(), self._database.transaction() as conn:
            cursor = conn.execute(EXPIRE, (time.time(), EXPIRED_PER_CLEANUP))
            return cursor.rowcount

    # chords and groups

    def open_chords(self, chords: Sequence[Chord]) -> None:
        with self._errors():
            self._chords.open(chords)

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        with self._errors():
            return self._chords.join(parts, claim_s)

    def grow_chord(self, group: str, task_id: str) -> None:
        with self._errors():
            self._chords.grow(group)

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        with self._errors():
            self._chords.close_chords(claims)

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        with self._errors():
            return self._chords.overdue(limit, claim_s)

    def save_group(self, group_id: str, members: Any) -> None:
        data = self._host.serializer(self._serializer_name).dumps(members)
        with self._errors():
            self._chords.save_group(group_id, data)

    def load_group(self, group_id: str) -> Any:
        with self._errors():
            data = self._chords.load_group(group_id)
        return None if data is None else self._host.serializer(self._serializer_name).loads(data)

    def delete_group(self, group_id: str) -> None:
        with self._errors():
            self._chords.delete_group(group_id)

    # life

    def ping(self, timeout_s: float) -> str:
        try:
            with self._database.transaction(timeout_s):
                pass
        except StoreTrouble as exc:
            raise BackendUnreachable(f"sqlite backend: {exc.message}", url=self._url, hint=exc.hint) from exc
        return f"SQLite {sqlite3.sqlite_version}, {self._database.path}"

    def diagnose(self, *, longest_task_s: float | None, timeout_s: float) -> list[Finding]:
        """See `Diagnoses.diagnose`."""
        with self._errors():
            return health.examine(self._database)

    def after_fork(self) -> None:
        self._database.forget()
        self._state.after_fork()
        self._chords.forget()
        self._spare = []

    def close(self) -> None:
        self._database.close()
        self._state.close()
        self._chords.close()
        self._bell.close()
        while self._spare:
            self._spare.pop().close()

    def release(self, ear: Ear) -> None:
        """Take back the ear of a watch that was closed."""
        ear.rise()
        if len(self._spare) < SPARE_EARS and ear.is_open:
            self._spare.append(ear)
        else:
            ear.close()

    def _take_ear(self) -> Ear:
        while self._spare:
            ear = self._spare.pop()
            if ear.is_open and not ear.is_given_up():  # a process that forked us has its own; the folder may be new
                return ear
            ear.close()
        with self._database.connection():
            pass  # what is wrong with the file itself is said first
        try:
            return Ear(self._database.path)
        except OSError as exc:
            raise cannot_listen(folder_of(self._database.path), exc) from exc

    def _statements(self, batch: Sequence[StoredResult]) -> list[tuple[str, list[tuple[Any, ...]]]]:
        """What storing this batch means in SQL: statements and their rows."""
        now = time.time()
        expires = None if self._lifetime_s is None else now + self._lifetime_s
        rows: list[tuple[Any, ...]] = []
        for result in batch:
            ready, received = result.state in READY_STATES, result.received
            fence = received if ready and result.redelivered else None
            id, state = column(result.task_id), column(result.state)
            rows.append((id, state, ready, result.data, expires, now, received, fence))
        return [(STORE, rows), (EXPIRE, [(now, max(EXPIRED_PER_STORE, 2 * len(rows)))])]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what is wrong with the file into errors of celeriac's."""
        try:
            yield
        except StoreTrouble as exc:
            if exc.kind == "unreachable":
                raise BackendUnreachable(f"sqlite backend: {exc.message}", url=self._url, hint=exc.hint) from exc
            raise BackendLost(f"sqlite backend: {exc}") from exc


class SqliteWatch:
    """Waits for states of some tasks: sleeps on an ear, then reads."""

    def __init__(self, backend: SqliteBackend, ear: Ear) -> None:
        self._backend = backend
        self._ear = ear
        self._ready_to_read = select.poll()
        self._ready_to_read.register(ear.fd, select.POLLIN)
        self._told: dict[str, bytes | None] = {}  # task id → the last data we reported
        self._read_next = 0.0
        self._closed = False

    def add(self, ids: Sequence[str]) -> None:
        fresh = [task_id for task_id in dict.fromkeys(ids) if task_id not in self._told]
        self._told.update(dict.fromkeys(fresh))
        self._ear.listen(map(result_topic, fresh))

    def discard(self, ids: Sequence[str]) -> None:
        known = [task_id for task_id in dict.fromkeys(ids) if task_id in self._told]
        for task_id in known:
            del self._told[task_id]
        self._ear.ignore(map(result_topic, known))

    def wait(self, timeout_s: float) -> list[tuple[str, bytes]]:
        deadline = time.monotonic() + timeout_s
        while True:
            self._ear.drain()
            self._ear.sleep()  # before reading, so that what is stored after the look wakes us
            news = self._read()
            left_s = deadline - time.monotonic()
            if news or left_s <= 0:
                self._ear.rise()
                return news
            self._ready_to_read.poll(max(min(left_s, LOOK_S) * 1000, 1))
            # Reading thousands of tasks takes a while: leave the store at least twice as long to itself.
            time.sleep(max(min(self._read_next - time.monotonic(), deadline - time.monotonic()), 0.0))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.discard(list(self._told))
            self._backend.release(self._ear)

    def _read(self) -> list[tuple[str, bytes]]:
        if not self._told:
            return []
        started = time.monotonic()
        found = self._backend.fetch(list(self._told))
        now = time.monotonic()
        self._read_next = now + 2 * (now - started)
        news = [(task_id, data) for task_id, data in found.items() if self._told[task_id] != data]
        self._told.update(news)
        return news


def result_topic(task_id: str) -> int:
    """What those who wait for this task care about."""
    return topic(f"result {task_id}")


def _topics(batch: Iterable[StoredResult]) -> list[int]:
    return [result_topic(result.task_id) for result in batch]


def _lifetime_s(expires: Any) -> float | None:
    """`result_expires` in seconds; None when results are kept for ever.

    Raises:
        SettingError: Neither a number nor a timedelta.
    """
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    try:
        return float(expires) if expires else None
    except (TypeError, ValueError):
        raise SettingError(
            f"sqlite backend: result_expires is {expires!r}; give seconds or a timedelta", setting="result_expires"
        ) from None
