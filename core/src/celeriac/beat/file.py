"""Shared state in a SQLite file of beat's own, for apps whose broker and backend keep none.

A crash leaves a SQLite file whole. One that is broken all the same, or that is no such file (Celery's shelve of the
same name), is set aside and begun anew: a scheduler starts whatever it finds.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from celeriac.exceptions import ImproperlyConfigured
from celeriac.log import get_logger
from celeriac.spec.state import Change, Entry, Snapshot, holds

LOCK_TIMEOUT_S: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS state (space TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, expires REAL,
    value BLOB NOT NULL, PRIMARY KEY (space, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (space TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
"""
_log = get_logger("celeriac.beat")


class FileState:
    """See `celeriac.spec.SharedState`. Safe for threads, and for several processes of one machine.

    Args:
        path: The file; made when it is not there.
        clock: Unix time now.
    Raises:
        ImproperlyConfigured: The file cannot be made or written.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self.path = os.path.abspath(path)
        self._clock = clock
        self._lock = threading.RLock()
        self._conn: sqlite3.Connection | None = None
        self._pid = os.getpid()
        with self._connection():
            pass

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        """See `SharedState.write`."""
        with self._connection() as conn:
            now = self._clock()
            conn.execute("BEGIN IMMEDIATE")
            try:
                if given and not holds(_entries(conn, space, list(given), now), given):
                    conn.execute("ROLLBACK")
                    return None
                version = max(_version(conn, space) + 1, int(now * 1_000_000))
                conn.execute("REPLACE INTO versions VALUES (?, ?)", (space, version))
                for change in changes:
                    conn.execute("DELETE FROM state WHERE space = ? AND key = ?", (space, change.key))
                    if change.value is not None:
                        expires = None if change.ttl_s is None else now + change.ttl_s
                        row = (space, change.key, version, expires, change.value)
                        conn.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?)", row)
                conn.execute("COMMIT")
            except BaseException:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
            return version

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        """See `SharedState.read`."""
        with self._connection() as conn:
            now = self._clock()
            conn.execute("BEGIN")
            try:
                return Snapshot(_version(conn, space), now, _entries(conn, space, keys, now))
            finally:
                conn.execute("COMMIT")

    def version(self, space: str) -> int:
        """See `SharedState.version`."""
        with self._connection() as conn:
            return _version(conn, space)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The connection; when the file turns out to be broken, one to a new file, and the step is done again by
        whoever asks next."""
        with self._lock:
            if self._pid != os.getpid():  # a parent's connection is never closed here: that would drop its locks
                self._conn, self._pid = None, os.getpid()
            if self._conn is None:
                self._conn = self._open()
            try:
                yield self._conn
            except sqlite3.DatabaseError as exc:
                if not _is_broken(exc):
                    raise
                self._set_aside(exc)
                raise

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as exc:
            if not _is_broken(exc):
                raise ImproperlyConfigured(
                    f"the schedule file {self.path} cannot be used: {exc}. Give another with --schedule (-s) or the "
                    f"setting beat_schedule_filename."
                ) from exc
            self._set_aside(exc)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = FULL")
            conn.executescript(_SCHEMA)
            if conn.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("database disk image is malformed")
        except BaseException:
            conn.close()
            raise
        return conn

    def _set_aside(self, exc: Exception) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
        aside = f"{self.path}.bad-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self._clock()))}"
        for ending in ("", "-wal", "-shm"):
            if os.path.exists(self.path + ending):
                os.replace(self.path + ending, aside + ending)
        _log.error("schedule_file.set_aside", file=self.path, kept_as=aside, error=str(exc))


def _is_broken(exc: sqlite3.DatabaseError) -> bool:
    return any(words in str(exc) for words in ("malformed", "not a database", "file is encrypted"))


def _version(conn: sqlite3.Connection, space: str) -> int:
    row = conn.execute("SELECT version FROM versions WHERE space = ?", (space,)).fetchone()
    return 0 if row is None else int(row[0])


def _entries(conn: sqlite3.Connection, space: str, keys: Sequence[str] | None, now: float) -> dict[str, Entry]:
    query = "SELECT key, value, version, expires FROM state WHERE space = ? AND (expires IS NULL OR expires > ?)"
    words: list[object] = [space, now]
    if keys is not None:
        query += f" AND key IN ({','.join('?' * len(keys))})"
        words += keys
    return {key: Entry(value, version, expires) for key, value, version, expires in conn.execute(query, words)}
