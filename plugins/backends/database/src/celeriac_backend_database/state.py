"""Shared state in two tables of our own beside Celery's; made when the state is first used.

Each verb is one transaction. Whoever writes a space first writes its row in the table of versions, and so holds the
lock until the end: others wait, and then see what was committed. Times are unix seconds of the database's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from celeriac.spec import Change, Entry, Snapshot
from celeriac.spec.state import holds
from celeriac_backend_database.rows import key_of
from celeriac_backend_database.tables import (
    Blob,
    LongText,
    Name,
    insert_or_leave,
    read_text,
    unix_now,
    write_text,
)

T = TypeVar("T")

metadata: Final = sa.MetaData()
SPACE: Final = sa.Table(
    "celeriac_state_versions",
    metadata,
    sa.Column("space", Name, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)
ENTRY: Final = sa.Table(
    "celeriac_state",
    metadata,
    sa.Column("space", Name, primary_key=True),
    sa.Column("entry_key", Name, primary_key=True),
    sa.Column("name", LongText, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.Double),
    sa.Column("value", Blob, nullable=False),
    sa.Index("celeriac_state_expires", "space", "expires"),
)
#: Expired entries removed by one write: a bound for how long it may take.
EXPIRED_PER_WRITE: Final = 500
#: Who asks for more keys is read all of the space: only one statement sees one instant.
KEYS_PER_STATEMENT: Final = 500
#: At least the time in microseconds, so that versions grow even if the tables were lost in between.
_ADVANCE: Final = (
    sa.update(SPACE)
    .where(SPACE.c.space == sa.bindparam("of"))
    .values(
        version=sa.case(
            (SPACE.c.version >= sa.bindparam("least", type_=sa.BigInteger()), SPACE.c.version + 1),
            else_=sa.bindparam("least", type_=sa.BigInteger()),
        )
    )
)


class Do(Protocol):
    """Runs a step in a transaction of the backend's, and again where that is the cure."""

    def __call__(self, work: Callable[[sa.Connection], T], /) -> T: ...


class DatabaseState:
    """See `celeriac.spec.SharedState`. Safe for threads and forks, as `do` is.

    Args:
        do: Sees to it that the tables of this module are there.
    """

    def __init__(self, do: Do) -> None:
        self._do = do

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        """See `SharedState.write`."""
        of = key_of(space)

        def step(conn: sa.Connection) -> int | None:
            now = unix_now(conn)
            if not conn.execute(_ADVANCE, {"of": of, "least": int(now * 1_000_000)}).rowcount:
                return 0
            if given and not holds(_entries(conn, of, list(given), now), given):
                conn.get_transaction().rollback()  # type: ignore[union-attr] # it runs in one
                return None
            version = _version(conn, of)
            _change(conn, of, changes, version, now)
            _expire(conn, of, now)
            return version

        while (version := self._do(step)) == 0:
            # In a transaction of its own: on MariaDB, two that have looked for the row would wait for each other.
            self._do(lambda conn: _make_space(conn, of))
        return version

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        """See `SharedState.read`."""

        def step(conn: sa.Connection) -> Snapshot:
            now = unix_now(conn)
            alive = sa.and_(ENTRY.c.space == SPACE.c.space, _is_alive(now), _is_one_of(keys))
            columns = (SPACE.c.version, ENTRY.c.name, ENTRY.c.value, ENTRY.c.version, ENTRY.c.expires)
            # One statement, for two would see two instants.
            query = sa.select(*columns).select_from(SPACE.outerjoin(ENTRY, alive)).where(SPACE.c.space == key_of(space))
            rows = conn.execute(query).all()
            entries = {read_text(row[1]): Entry(bytes(row[2]), *row[3:]) for row in rows if row[1] is not None}
            return Snapshot(rows[0][0] if rows else 0, now, _only(entries, keys))

        return self._do(step)

    def version(self, space: str) -> int:
        """See `SharedState.version`."""
        return self._do(lambda conn: _version(conn, key_of(space)))


def _make_space(conn: sa.Connection, of: str) -> None:
    statement = insert_or_leave(conn.dialect.name, SPACE)
    if statement is not None:
        conn.execute(statement, {"space": of, "version": 0})
        return
    try:
        with conn.begin_nested():
            conn.execute(sa.insert(SPACE), {"space": of, "version": 0})
    except sa.exc.IntegrityError:
        pass  # another was quicker


def _version(conn: sa.Connection, of: str) -> int:
    return conn.scalar(sa.select(SPACE.c.version).where(SPACE.c.space == of)) or 0


def _entries(conn: sa.Connection, of: str, keys: Sequence[str], now: float) -> dict[str, Entry]:
    columns = (ENTRY.c.name, ENTRY.c.value, ENTRY.c.version, ENTRY.c.expires)
    rows = conn.execute(sa.select(*columns).where(ENTRY.c.space == of, _is_alive(now), _is_one_of(keys)))
    return _only({read_text(name): Entry(bytes(value), *rest) for name, value, *rest in rows}, keys)


def _is_alive(now: float) -> sa.ColumnElement[bool]:
    return sa.or_(ENTRY.c.expires.is_(None), ENTRY.c.expires > now)


def _is_one_of(keys: Sequence[str] | None) -> sa.ColumnElement[bool]:
    if keys is None or len(keys) > KEYS_PER_STATEMENT:
        return sa.true()
    return ENTRY.c.entry_key.in_([key_of(key) for key in keys])


def _only(entries: dict[str, Entry], keys: Sequence[str] | None) -> dict[str, Entry]:
    return entries if keys is None else {key: entries[key] for key in keys if key in entries}


def _change(conn: sa.Connection, of: str, changes: Sequence[Change], version: int, now: float) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for change in changes:  # the last one of a key counts
        expires = None if change.ttl_s is None else now + change.ttl_s
        rows[key_of(change.key)] = {
            "space": of, "entry_key": key_of(change.key), "name": write_text(change.key), "version": version,
            "expires": expires, "value": change.value,
        }  # fmt: skip
    put = [row for row in rows.values() if row["value"] is not None]
    statement = _replace(conn.dialect.name)
    gone = [key for key, row in rows.items() if row["value"] is None or statement is None]
    for at in range(0, len(gone), KEYS_PER_STATEMENT):
        some = ENTRY.c.entry_key.in_(gone[at : at + KEYS_PER_STATEMENT])
        conn.execute(sa.delete(ENTRY).where(ENTRY.c.space == of, some))
    if put:
        conn.execute(sa.insert(ENTRY) if statement is None else statement, put)


def _replace(dialect: str) -> sa.sql.expression.Insert | None:
    """The statement that inserts an entry or replaces it; None where the dialect has none."""
    changed = ("version", "expires", "value")
    if dialect in ("postgresql", "sqlite"):
        insert: Any = (postgresql if dialect == "postgresql" else sqlite).insert(ENTRY)
        values = {name: insert.excluded[name] for name in changed}
        return insert.on_conflict_do_update(index_elements=["space", "entry_key"], set_=values)  # type: ignore[no-any-return]
    if dialect in ("mysql", "mariadb"):
        insert = mysql.insert(ENTRY)
        return insert.on_duplicate_key_update({name: insert.inserted[name] for name in changed})  # type: ignore[no-any-return]
    return None


def _expire(conn: sa.Connection, of: str, now: float) -> None:
    late = sa.select(ENTRY.c.entry_key).where(ENTRY.c.space == of, ENTRY.c.expires <= now).limit(EXPIRED_PER_WRITE)
    keys = conn.scalars(late).all()
    if keys:
        conn.execute(sa.delete(ENTRY).where(ENTRY.c.space == of, ENTRY.c.entry_key.in_(keys)))
