"""Chords and saved groups, in tables of their own in the same file; made when the first one is.

Each verb is one transaction. Its times are unix seconds of this machine, which all processes on the file share.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Sequence
from typing import Final

from celeriac.spec import DONE_S, OVERDUE_S, Chord, ChordClaim, ChordPart
from celeriac_support_sqlite.file import Database, Location, column, text_of

VERSION: Final = 1
SCHEMA: Final = (
    """CREATE TABLE celeriac_chords (
        group_id TEXT PRIMARY KEY, size INTEGER, body BLOB NOT NULL DEFAULT x'', patience REAL, overdue REAL,
        token TEXT NOT NULL DEFAULT '', claimed REAL NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0,
        expires REAL)""",
    "CREATE INDEX celeriac_chords_overdue ON celeriac_chords (overdue) WHERE overdue IS NOT NULL",
    "CREATE INDEX celeriac_chords_expires ON celeriac_chords (expires) WHERE expires IS NOT NULL",
    """CREATE TABLE celeriac_chord_parts (
        group_id TEXT NOT NULL, task_id TEXT NOT NULL, place INTEGER NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (group_id, task_id, place)) WITHOUT ROWID""",
    "CREATE TABLE celeriac_groups (group_id TEXT PRIMARY KEY, data BLOB NOT NULL, expires REAL)",
)
#: The place of parts that were added later: after all others.
LAST: Final = 2**62
EXPIRED_AT_ONCE: Final = 100

OPEN: Final = """INSERT INTO celeriac_chords (group_id, size, body, patience, overdue, expires)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (group_id) DO UPDATE
    SET size = excluded.size, body = excluded.body, patience = excluded.patience, overdue = excluded.overdue,
        expires = excluded.expires
    WHERE size IS NULL AND NOT done"""
#: A part shows that its chord is alive.
TOUCH: Final = """INSERT INTO celeriac_chords (group_id, expires) VALUES (?1, ?2) ON CONFLICT (group_id) DO UPDATE
    SET expires = max(excluded.expires, ifnull(?3 + patience + ?4, excluded.expires)),
        overdue = max(overdue, ?3 + patience)
    WHERE NOT done"""
SET_PART: Final = """INSERT INTO celeriac_chord_parts (group_id, task_id, place, data)
    SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM celeriac_chords WHERE group_id = ?1 AND done)
    ON CONFLICT DO UPDATE SET data = excluded.data"""
IS_COMPLETE: Final = """SELECT 1 FROM celeriac_chords WHERE group_id = ?1 AND NOT done AND size <=
    (SELECT count(*) FROM celeriac_chord_parts WHERE group_id = ?1)"""
CLAIM: Final = """UPDATE celeriac_chords SET token = ?2, claimed = ?3, overdue = ?3
    WHERE group_id = ?1 AND claimed <= ?4 AND NOT done RETURNING size, body"""
#: What has ended is not kept for ever, even if results are.
CLOSE: Final = """UPDATE celeriac_chords
    SET done = 1, body = x'', overdue = NULL, expires = max(ifnull(expires, 0), ?3)
    WHERE group_id = ?1 AND token = ?2 AND NOT done RETURNING 1"""


class SqliteChords:
    """The chords and groups of one file; errors are `StoreTrouble`.

    Args:
        lifetime_s, group_lifetime_s: How long a chord without news, and a saved group, are kept; None for ever.
    """

    def __init__(self, location: Location, lifetime_s: float | None, group_lifetime_s: float | None) -> None:
        self._database = Database(location, "chords", VERSION, SCHEMA)
        self._lifetime_s = lifetime_s
        self._group_lifetime_s = group_lifetime_s

    def open(self, chords: Sequence[Chord]) -> None:
        now = time.time()
        rows = [
            (
                column(chord.group),
                chord.size,
                chord.body,
                chord.patience_s,
                now + chord.patience_s,
                self._end(now, chord.patience_s + OVERDUE_S),
            )
            for chord in chords
        ]
        with self._database.transaction() as conn:
            self._expire(conn, now)
            conn.executemany(OPEN, rows)

    def join(self, parts: Sequence[ChordPart], claim_s: float) -> list[ChordClaim]:
        now = time.time()
        groups = dict.fromkeys(part.group for part in parts)
        rows = [(column(p.group), column(p.task_id), LAST if p.index is None else p.index, p.data) for p in parts]
        with self._database.transaction() as conn:
            conn.executemany(TOUCH, [(column(group), self._end(now), now, OVERDUE_S) for group in groups])
            conn.executemany(SET_PART, rows)
            complete = [group for group in groups if conn.execute(IS_COMPLETE, (column(group),)).fetchone()]
            return [self._claim(conn, group, now, claim_s) for group in complete]

    def grow(self, group: str) -> None:
        with self._database.transaction() as conn:
            conn.execute("UPDATE celeriac_chords SET size = size + 1 WHERE group_id = ? AND NOT done", (column(group),))

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        remembered = time.time() + DONE_S
        with self._database.transaction() as conn:
            for claim in claims:
                key = column(claim.group)
                if conn.execute(CLOSE, (key, claim.token, remembered)).fetchall():
                    conn.execute("DELETE FROM celeriac_chord_parts WHERE group_id = ?", (key,))

    def overdue(self, limit: int, claim_s: float) -> list[ChordClaim]:
        now = time.time()
        query = "SELECT group_id FROM celeriac_chords WHERE overdue <= ? AND NOT done ORDER BY overdue LIMIT ?"
        late = self._database.read(lambda conn: conn.execute(query, (now, limit)).fetchall())
        if not late:
            return []
        with self._database.transaction() as conn:
            claims = [self._claim(conn, text_of(group), now, claim_s) for (group,) in late]
        return [claim for claim in claims if claim.token]

    def save_group(self, group_id: str, data: bytes) -> None:
        now = time.time()
        expires = None if self._group_lifetime_s is None else now + self._group_lifetime_s
        with self._database.transaction() as conn:
            self._expire(conn, now)
            conn.execute("INSERT OR REPLACE INTO celeriac_groups VALUES (?, ?, ?)", (column(group_id), data, expires))

    def load_group(self, group_id: str) -> bytes | None:
        query = "SELECT data FROM celeriac_groups WHERE group_id = ? AND (expires IS NULL OR expires > ?)"
        row = self._database.read(lambda conn: conn.execute(query, (column(group_id), time.time())).fetchone())
        return row[0] if row else None

    def delete_group(self, group_id: str) -> None:
        with self._database.transaction() as conn:
            conn.execute("DELETE FROM celeriac_groups WHERE group_id = ?", (column(group_id),))

    def forget(self) -> None:
        """In a forked child: let go of the parent's connections."""
        self._database.forget()

    def close(self) -> None:
        """Let go of all connections. Idempotent."""
        self._database.close()

    def _claim(self, conn: sqlite3.Connection, group: str, now: float, claim_s: float) -> ChordClaim:
        token, key = uuid.uuid4().hex, column(group)
        won = conn.execute(CLAIM, (key, token, now + claim_s, now)).fetchall()
        if not won:
            row = conn.execute("SELECT claimed FROM celeriac_chords WHERE group_id = ?", (key,)).fetchone()
            return ChordClaim(group, "", max(0.0, row[0] - now) if row else 0.0)
        ((size, body),) = won
        query = "SELECT place, data FROM celeriac_chord_parts WHERE group_id = ? ORDER BY place, task_id"
        parts = [(None if place == LAST else place, data) for place, data in conn.execute(query, (key,))]
        return ChordClaim(group, token, 0.0, size or 0, parts, body)

    def _end(self, now: float, least_s: float = 0.0) -> float | None:
        return None if self._lifetime_s is None else now + max(self._lifetime_s, least_s)

    @staticmethod
    def _expire(conn: sqlite3.Connection, now: float) -> None:
        rows = conn.execute(
            "DELETE FROM celeriac_chords WHERE group_id IN "
            "(SELECT group_id FROM celeriac_chords WHERE expires <= ? LIMIT ?) RETURNING group_id",
            (now, EXPIRED_AT_ONCE),
        ).fetchall()
        conn.executemany("DELETE FROM celeriac_chord_parts WHERE group_id = ?", rows)
        conn.execute("DELETE FROM celeriac_groups WHERE expires <= ?", (now,))
