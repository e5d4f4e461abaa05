"""Chords in two tables of our own beside Celery's; made when the first one is opened or joined.

Each verb is one transaction. Whoever changes a chord writes its row first, and so holds its lock until the end: the
others wait, in the order of their keys. Times are unix seconds of the database's clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from celeriac.spec import DONE_S, OVERDUE_S, Chord, ChordClaim, ChordPart
from celeriac_backend_database.tables import (
    Blob,
    Id,
    LongText,
    Name,
    insert_or_leave,
    read_text,
    unix_now,
    write_text,
)

#: The place of parts that were added later: after all others.
LAST: Final = 2**62
EXPIRED_AT_ONCE: Final = 100

metadata: Final = sa.MetaData()
CHORD: Final = sa.Table(
    "celeriac_chords",
    metadata,
    sa.Column("chord_key", Name, primary_key=True),
    sa.Column("group_id", LongText, nullable=False),
    sa.Column("size", sa.Integer),
    sa.Column("body", Blob),
    sa.Column("patience", sa.Double),
    sa.Column("overdue", sa.Double, index=True),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("claimed", sa.Double, nullable=False),
    sa.Column("done", sa.SmallInteger, nullable=False),
    sa.Column("expires", sa.Double, index=True),
)
PART: Final = sa.Table(
    "celeriac_chord_parts",
    metadata,
    sa.Column("chord_key", Name, primary_key=True),
    sa.Column("task_key", Name, primary_key=True),
    sa.Column("place", Id, primary_key=True, autoincrement=False),
    sa.Column("data", Blob, nullable=False),
)
_KEY: Final[sa.BindParameter[str]] = sa.bindparam("key")
OPEN: Final = (
    sa.update(CHORD)
    .where(CHORD.c.chord_key == _KEY, CHORD.c.size.is_(None), CHORD.c.done == 0)
    .values(
        size=sa.bindparam("new_size"),
        body=sa.bindparam("new_body"),
        patience=sa.bindparam("new_patience"),
        overdue=sa.bindparam("new_overdue"),
        expires=sa.bindparam("new_expires"),
    )
)
_UNTIL: Final[sa.BindParameter[float | None]] = sa.bindparam("until", type_=sa.Double())
_KEPT: Final[sa.BindParameter[float]] = sa.bindparam("kept", type_=sa.Double())
#: A part shows that its chord is alive.
TOUCH: Final = (
    sa.update(CHORD)
    .where(CHORD.c.chord_key == _KEY)
    .values(
        expires=sa.case(
            (CHORD.c.done != 0, CHORD.c.expires),
            (CHORD.c.patience + _KEPT > _UNTIL, CHORD.c.patience + _KEPT),  # nothing is greater than NULL, for ever
            else_=_UNTIL,
        ),
        overdue=sa.case(
            (CHORD.c.claimed > sa.bindparam("now", type_=sa.Double()), CHORD.c.overdue),
            else_=sa.bindparam("now", type_=sa.Double()) + CHORD.c.patience,
        ),
    )
)
NO_PART: Final = sa.delete(PART).where(
    PART.c.chord_key == _KEY, PART.c.task_key == sa.bindparam("task"), PART.c.place == sa.bindparam("at")
)


class Chords:
    """The chords of one database.

    Args:
        lifetime_s: How long a chord without news is kept; None for ever.
        key_of: An id as a column holds it.
    """

    def __init__(self, lifetime_s: float | None, key_of: Callable[[str], str]) -> None:
        self._lifetime_s = lifetime_s
        self._key_of = key_of

    def open(self, conn: sa.Connection, chords: Sequence[Chord]) -> None:
        now = unix_now(conn)
        self._expire(conn, now)
        by_key = {self._key_of(chord.group): chord for chord in chords}
        self._ensure(conn, {key: chord.group for key, chord in by_key.items()}, now)
        for key in sorted(by_key):
            chord = by_key[key]
            values: dict[str, Any] = {"new_size": chord.size, "new_body": chord.body, "new_patience": chord.patience_s}
            values.update(new_overdue=now + chord.patience_s, new_expires=self._end(now, chord.patience_s + OVERDUE_S))
            conn.execute(OPEN, {"key": key, **values})

    def join(self, conn: sa.Connection, parts: Sequence[ChordPart], claim_s: float) -> list[ChordClaim]:
        now = unix_now(conn)
        groups = {self._key_of(part.group): part.group for part in parts}
        self._ensure(conn, groups, now)
        for key in sorted(groups):
            conn.execute(TOUCH, {"key": key, "now": now, "until": self._end(now), "kept": now + OVERDUE_S})
        query = sa.select(CHORD.c.chord_key, CHORD.c.size).where(
            CHORD.c.chord_key.in_(sorted(groups)), CHORD.c.done == 0
        )
        sizes: dict[str, int | None] = dict(conn.execute(query).all())
        rows = {}
        for part in parts:
            key, task = self._key_of(part.group), self._key_of(part.task_id)
            if key in sizes:
                rows[key, task, LAST if part.index is None else part.index] = part.data
        if rows:
            conn.execute(NO_PART, [{"key": key, "task": task, "at": place} for key, task, place in rows])
            names = ("chord_key", "task_key", "place")
            values = [{**dict(zip(names, row, strict=True)), "data": data} for row, data in rows.items()]
            conn.execute(sa.insert(PART), values)
        counts = sa.select(PART.c.chord_key, sa.func.count()).where(PART.c.chord_key.in_(sorted(sizes)))
        come: dict[str, int] = dict(conn.execute(counts.group_by(PART.c.chord_key)).all())
        complete = [key for key, size in sizes.items() if size is not None and come.get(key, 0) >= size]
        return [self._claim(conn, key, groups[key], now, claim_s) for key in sorted(complete)]

    def grow(self, conn: sa.Connection, group: str, task_id: str) -> None:
        mine = sa.and_(CHORD.c.chord_key == self._key_of(group), CHORD.c.done == 0)
        if not conn.execute(sa.update(CHORD).where(mine).values(size=CHORD.c.size + 1)).rowcount:
            return
        note = {"chord_key": self._added_key(group), "task_key": self._key_of(task_id), "place": LAST}
        known = sa.select(PART.c.place).where(*(PART.c[name] == value for name, value in note.items()))
        if conn.execute(known).first() is None:
            conn.execute(sa.insert(PART), {**note, "data": b""})
        else:  # the answer to the first time was lost on its way
            conn.execute(sa.update(CHORD).where(mine).values(size=CHORD.c.size - 1))

    def close(self, conn: sa.Connection, claims: Sequence[ChordClaim]) -> None:
        now = unix_now(conn)
        for key, token, group in sorted((self._key_of(claim.group), claim.token, claim.group) for claim in claims):
            held = sa.and_(CHORD.c.chord_key == key, CHORD.c.token == token, CHORD.c.done == 0)
            # Not for ever, even if results are.
            remembered = sa.case((CHORD.c.expires > now + DONE_S, CHORD.c.expires), else_=now + DONE_S)
            ended = sa.update(CHORD).where(held).values(done=1, body=b"", overdue=None, expires=remembered)
            if conn.execute(ended).rowcount:
                conn.execute(sa.delete(PART).where(PART.c.chord_key.in_((key, self._added_key(group)))))

    def late(self, conn: sa.Connection, limit: int) -> list[tuple[str, str]]:
        """Keys and ids of chords that are overdue, for `claim`: in a transaction of its own, which sees all parts."""
        overdue = sa.and_(CHORD.c.overdue <= unix_now(conn), CHORD.c.done == 0)
        query = sa.select(CHORD.c.chord_key, CHORD.c.group_id).where(overdue).order_by(CHORD.c.overdue).limit(limit)
        return sorted((key, read_text(group)) for key, group in conn.execute(query))

    def claim(self, conn: sa.Connection, late: Iterable[tuple[str, str]], claim_s: float) -> list[ChordClaim]:
        now = unix_now(conn)
        claims = [self._claim(conn, key, group, now, claim_s, CHORD.c.overdue <= now) for key, group in late]
        return [claim for claim in claims if claim.token]

    def _claim(
        self, conn: sa.Connection, key: str, group: str, now: float, claim_s: float, *more: sa.ColumnElement[bool]
    ) -> ChordClaim:
        token = uuid.uuid4().hex
        free = sa.and_(CHORD.c.chord_key == key, CHORD.c.claimed <= now, CHORD.c.done == 0, *more)
        until = now + claim_s
        if not conn.execute(sa.update(CHORD).where(free).values(token=token, claimed=until, overdue=until)).rowcount:
            held = conn.execute(sa.select(CHORD.c.claimed).where(CHORD.c.chord_key == key)).scalar()
            return ChordClaim(group, "", max(0.0, (held or now) - now))
        size, body = conn.execute(sa.select(CHORD.c.size, CHORD.c.body).where(CHORD.c.chord_key == key)).one()
        query = sa.select(PART.c.place, PART.c.data).where(PART.c.chord_key == key)
        rows = conn.execute(query.order_by(PART.c.place, PART.c.task_key))
        parts = [(None if place == LAST else place, bytes(data)) for place, data in rows]
        return ChordClaim(group, token, 0.0, size or 0, parts, bytes(body or b""))

    def _ensure(self, conn: sa.Connection, groups: Mapping[str, str], now: float) -> None:
        """Rows for these, so that there is something to lock."""
        until = self._end(now)
        rows: list[dict[str, Any]] = [
            {
                "chord_key": key,
                "group_id": write_text(groups[key]),
                "token": "",
                "claimed": 0.0,
                "done": 0,
                "expires": until,
            }
            for key in sorted(groups)
        ]
        statement = insert_or_leave(conn.dialect.name, CHORD)
        if statement is not None:
            conn.execute(statement, rows)
            return
        for row in rows:
            if conn.execute(sa.select(CHORD.c.done).where(CHORD.c.chord_key == row["chord_key"])).first() is None:
                try:
                    with conn.begin_nested():
                        conn.execute(sa.insert(CHORD), row)
                except sa.exc.IntegrityError:
                    continue  # another was quicker

    def _added_key(self, group: str) -> str:
        """Under which it is noted among the parts, but not as one, for which tasks a chord has grown."""
        return self._key_of(f"celeriac-added {group}")

    def _end(self, now: float, least_s: float = 0.0) -> float | None:
        return None if self._lifetime_s is None else now + max(self._lifetime_s, least_s)

    def _expire(self, conn: sa.Connection, now: float) -> None:
        query = sa.select(CHORD.c.chord_key, CHORD.c.group_id).where(CHORD.c.expires <= now)
        found = conn.execute(query.order_by(CHORD.c.chord_key).limit(EXPIRED_AT_ONCE)).all()
        keys = [key for key, _ in found]
        if keys:
            added = [self._added_key(read_text(group)) for _, group in found]
            conn.execute(sa.delete(PART).where(PART.c.chord_key.in_([*keys, *added])))
            conn.execute(sa.delete(CHORD).where(CHORD.c.chord_key.in_(keys)))
