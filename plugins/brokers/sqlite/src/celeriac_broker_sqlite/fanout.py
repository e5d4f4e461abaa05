"""Broadcasts between the processes that share one SQLite file: a table that everybody reads from where they left off.

It lies in a file of its own, in the folder of wake-ups beside the broker's (`<file>.wake/fanout.db`), so a flood of
broadcasts never holds the write lock that messages of queues need. Nothing in it has to survive, so no commit waits
for the disk. A listener begins at the newest row; rows older than a minute, and all but the newest ten thousand,
are removed by whoever broadcasts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from celeriac.exceptions import TransportLost
from celeriac.spec import ExchangeSpec, Poller
from celeriac.spec.bindings import binds
from celeriac_support_sqlite.file import Database, Location, cannot_listen
from celeriac_support_sqlite.wake import Bell, Ear, folder_of, topic

VERSION: Final = 1
SCHEMA: Final = (
    """CREATE TABLE celeriac_fanout (
        id INTEGER PRIMARY KEY AUTOINCREMENT, exchange TEXT NOT NULL, kind TEXT NOT NULL, routing_key TEXT NOT NULL,
        raw BLOB NOT NULL, at REAL NOT NULL)""",
)
KEPT: Final = 10_000
KEPT_S: Final = 60.0
#: Old rows are looked for at every so many broadcasts of a process.
SWEEP_EVERY: Final = 64
#: A lost wake-up is made good after so long.
LOOK_S: Final = 0.5


class Fanout:
    """The table of one broker; safe for threads and forks."""

    def __init__(self, location: Location, bell: Bell) -> None:
        self.path = location.path
        self.bell = bell
        self._database: Database | None = None
        self._sent = 0

    @property
    def database(self) -> Database:
        folder = folder_of(self.path)
        if self._database is None or self._database.is_replaced():  # it may have been removed, and the folder with it
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as exc:
                raise cannot_listen(folder, exc) from exc
        if self._database is None:
            location = Location(f"sqlite:///{os.path.join(folder, 'fanout.db')}", "process")
            self._database = Database(location, "fanout", VERSION, SCHEMA)
        return self._database

    def broadcast(self, exchange: ExchangeSpec, packed: Sequence[tuple[str, bytes]], timeout_s: float) -> None:
        """Write these, `(routing key, raw)` each, and wake the listeners."""
        now = time.time()
        rows = [(exchange.name, exchange.type, key, raw, now) for key, raw in packed]
        self._sent += 1
        with self.database.transaction(timeout_s) as conn:
            conn.executemany(
                "INSERT INTO celeriac_fanout (exchange, kind, routing_key, raw, at) VALUES (?, ?, ?, ?, ?)", rows
            )
            if self._sent % SWEEP_EVERY == 1:
                conn.execute(
                    "DELETE FROM celeriac_fanout WHERE id <= (SELECT max(id) FROM celeriac_fanout) - ? OR at < ?",
                    (KEPT, now - KEPT_S),
                )
        self.bell.ring([topic(f"fanout {exchange.name}")])

    def last(self) -> int:
        """The number of the newest row there ever was."""
        row = self.database.read(
            lambda conn: conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'celeriac_fanout'").fetchone()
        )
        return 0 if row is None else int(row[0])

    def after(self, last: int, exchange: str, limit: int) -> list[tuple[int, str, str, bytes]]:
        """Rows of an exchange beyond this one: `(id, kind, routing key, raw)`."""
        return self.database.read(
            lambda conn: conn.execute(
                "SELECT id, kind, routing_key, raw FROM celeriac_fanout"
                " WHERE id > ? AND exchange = ? ORDER BY id LIMIT ?",
                (last, exchange, limit),
            ).fetchall()
        )

    def forget(self) -> None:
        if self._database is not None:
            self._database.forget()

    def close(self) -> None:
        if self._database is not None:
            self._database.close()


class SqliteListener:
    """Reads the table from where it left off. One that is too slow misses what was removed meanwhile."""

    poll_interval_s: float | None = LOOK_S

    def __init__(
        self,
        fanout: Fanout,
        errors: Callable[[], AbstractContextManager[Any]],
        exchange: ExchangeSpec,
        key: str,
        poller: Poller,
    ) -> None:
        self._fanout = fanout
        self._errors = errors
        self._exchange = exchange
        self._key = key
        self._poller = poller
        self._last = fanout.last()
        try:
            self._ear = Ear(fanout.path)
        except OSError as exc:
            raise cannot_listen(folder_of(fanout.path), exc) from exc
        self._ear.listen([topic(f"fanout {exchange.name}")])
        self._ear.sleep()
        poller.watch(self._ear.fd)
        #: Rows are removed unseen; whether there was anything for this listener among them, nobody knows any more.
        self.dropped = 0

    def receive(self, limit: int) -> list[bytes]:
        if not self._ear.is_open:
            raise TransportLost(f"sqlite broker: this listener of {self._fanout.path} is closed")
        if self._ear.is_given_up():  # a table made since would count its rows from one, and we beyond
            raise TransportLost(f"sqlite broker: {folder_of(self._fanout.path)} was removed or replaced while in use.")
        self._ear.drain()
        self._ear.live()
        self._ear.sleep()  # before looking, so that what comes after the look wakes us
        heard: list[bytes] = []
        while len(heard) < limit:
            with self._errors():
                rows = self._fanout.after(self._last, self._exchange.name, limit - len(heard))
            if not rows:
                break
            self._last = rows[-1][0]
            heard += [raw for _, kind, key, raw in rows if binds(kind, self._key, key)]
        return heard

    def close(self) -> None:
        if self._ear.is_open:
            self._poller.unwatch(self._ear.fd)
            self._ear.close()
