"""Shared state in a SQLite file: what the broker and the result store of celeriac both offer (`SharedState`).

Both in one file keep one and the same state. The clock is the host's, which all processes of the file share.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Final

from celeriac.spec import Change, Entry, Snapshot
from celeriac.spec.state import holds
from celeriac_support_sqlite.file import Database, Location, column, is_odd, text_of

VERSION: Final = 1
SCHEMA: Final = (
    """CREATE TABLE celeriac_state (
        space TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, expires REAL, value BLOB NOT NULL,
        PRIMARY KEY (space, key)) WITHOUT ROWID""",
    "CREATE INDEX celeriac_state_expires ON celeriac_state (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE celeriac_state_versions (space TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
)
#: Expired entries removed by one write: a bound for how long it may take.
EXPIRED_PER_WRITE: Final = 1_000
_PUT: Final = "INSERT OR REPLACE INTO celeriac_state (space, key, version, expires, value) VALUES (?, ?, ?, ?, ?)"
_DELETE: Final = "DELETE FROM celeriac_state WHERE space = ? AND key = ?"
_READ: Final = """SELECT key, value, version, expires FROM celeriac_state
    WHERE space = ?1 AND (expires IS NULL OR expires > ?3)
    AND (?2 IS NULL OR key IN (SELECT value FROM json_each(?2)))"""
_EXPIRE: Final = """DELETE FROM celeriac_state WHERE (space, key) IN
    (SELECT space, key FROM celeriac_state WHERE expires <= ? ORDER BY expires LIMIT ?)"""

Errors = Callable[[], AbstractContextManager[None]]


class SqliteState:
    """See `celeriac.spec.SharedState`. Safe for threads and forks.

    Args:
        errors: Turns the file's troubles into errors of the plugin that offers the state.
    """

    def __init__(self, location: Location, errors: Errors) -> None:
        self._database = Database(location, "state", VERSION, SCHEMA)
        self._errors = errors

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        with self._errors(), self._database.transaction() as conn:
            now = time.time()
            if given and not holds(_entries(conn, space, list(given), now), given):
                return None
            # At least the time in microseconds, so that versions grow even if the file was lost in between.
            version = max(_version(conn, space) + 1, int(now * 1_000_000))
            conn.execute("INSERT OR REPLACE INTO celeriac_state_versions VALUES (?, ?)", (column(space), version))
            for change in changes:
                if change.value is None:
                    conn.execute(_DELETE, (column(space), column(change.key)))
                else:
                    expires = None if change.ttl_s is None else now + change.ttl_s
                    conn.execute(_PUT, (column(space), column(change.key), version, expires, change.value))
            conn.execute(_EXPIRE, (now, EXPIRED_PER_WRITE))
            return version

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        def step(conn: sqlite3.Connection) -> Snapshot:
            now = time.time()
            conn.execute("BEGIN")
            try:
                return Snapshot(_version(conn, space), now, _entries(conn, space, keys, now))
            finally:
                conn.execute("COMMIT")

        with self._errors():
            return self._database.read(step)

    def version(self, space: str) -> int:
        with self._errors():
            return self._database.read(lambda conn: _version(conn, space))

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        self._database.forget()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


def _version(conn: sqlite3.Connection, space: str) -> int:
    row = conn.execute("SELECT version FROM celeriac_state_versions WHERE space = ?", (column(space),)).fetchone()
    return 0 if row is None else int(row[0])


def _entries(conn: sqlite3.Connection, space: str, keys: Sequence[str] | None, now: float) -> dict[str, Entry]:
    if keys is not None and any(map(is_odd, keys)):
        entries = _entries(conn, space, None, now)
        return {key: entries[key] for key in keys if key in entries}
    wanted = None if keys is None else json.dumps(list(keys))
    rows = conn.execute(_READ, (column(space), wanted, now)).fetchall()
    return {text_of(key): Entry(value, version, expires) for key, value, version, expires in rows}
