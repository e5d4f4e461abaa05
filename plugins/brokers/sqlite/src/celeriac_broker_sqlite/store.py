"""The tables of the broker and the steps between them: the delivery contract's state machine in SQL.

A message is a row of `celeriac_messages`, which never changes, and a narrow row in exactly one of
`celeriac_ready`, `celeriac_delayed` and `celeriac_held`; a dead one is a row of `celeriac_dead` instead. Each step
moves narrow rows, so that a claim touches a page or two, however large the messages are.

Every function runs inside the caller's write transaction, `look` and `depth` excepted. They are clustered tables
(WITHOUT ROWID) in the order in which they are read: a claim takes the first rows of a queue, and because
nobody else writes meanwhile, the range up to the last one it read is what it removes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from celeriac.exceptions import PublishRejected
from celeriac.spec import DeadBox, DeadLetter, Payload, QueueSpec, Route, envelope
from celeriac.spec.bindings import binds

VERSION: Final = 2
_DROPPED: Final = "CREATE TABLE celeriac_dropped (queue TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID"
#: `redelivered` is 0 for a message on its first attempt, else 1 and how many of the attempts before were spared.
SCHEMA: Final = (
    "CREATE TABLE celeriac_messages (id INTEGER PRIMARY KEY, raw BLOB NOT NULL)",
    # rank is the priority with its sign turned, so that the first rows are the most urgent, then the oldest.
    """CREATE TABLE celeriac_ready (
        queue TEXT NOT NULL, rank INTEGER NOT NULL, id INTEGER NOT NULL,
        attempt INTEGER NOT NULL, redelivered INTEGER NOT NULL,
        PRIMARY KEY (queue, rank, id)) WITHOUT ROWID""",
    """CREATE TABLE celeriac_delayed (
        due REAL NOT NULL, id INTEGER NOT NULL, queue TEXT NOT NULL, rank INTEGER NOT NULL,
        attempt INTEGER NOT NULL, redelivered INTEGER NOT NULL,
        PRIMARY KEY (due, id)) WITHOUT ROWID""",
    """CREATE TABLE celeriac_held (
        owner INTEGER NOT NULL, id INTEGER NOT NULL, queue TEXT NOT NULL, rank INTEGER NOT NULL,
        attempt INTEGER NOT NULL, redelivered INTEGER NOT NULL,
        PRIMARY KEY (owner, id)) WITHOUT ROWID""",
    # AUTOINCREMENT: an owner's number is never used again, so it fences off whoever was given up.
    """CREATE TABLE celeriac_owners (
        id INTEGER PRIMARY KEY AUTOINCREMENT, page TEXT NOT NULL, node TEXT NOT NULL, since REAL NOT NULL)""",
    """CREATE TABLE celeriac_bindings (
        exchange TEXT NOT NULL, routing_key TEXT NOT NULL, queue TEXT NOT NULL, exchange_type TEXT NOT NULL,
        PRIMARY KEY (exchange, routing_key, queue)) WITHOUT ROWID""",
    """CREATE TABLE celeriac_dead (
        id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, raw BLOB NOT NULL, attempt INTEGER NOT NULL,
        reason TEXT NOT NULL, error TEXT NOT NULL, node TEXT NOT NULL, at REAL NOT NULL)""",
    "CREATE INDEX celeriac_dead_queue ON celeriac_dead (queue, id)",
    _DROPPED,
)
#: version → what makes the next one of it.
UPGRADES: Final = {1: (_DROPPED,)}

DEAD_KEPT: Final = 10_000
DEAD_KEPT_S: Final = 7 * 24 * 3600.0
ERROR_CHARS: Final = 8192
#: Delayed messages made ready in one transaction, and messages dropped in one: bounds for how long it may take.
RIPE_PER_STEP: Final = 1_000
PURGED_PER_STEP: Final = 10_000
#: Listeners are told of a delayed message that is due sooner than this; of others they learn when they look again.
SOON_S: Final = 1.0
_LAST_ID: Final = 2**63 - 1
_ID_DIGITS: Final = 18
#: Priorities beyond are this one: a column holds 64 bits.
_HIGHEST: Final = 2**31


class Packed(NamedTuple):
    """A message ready to be written."""

    route: Route
    rank: int
    due: float | None
    raw: bytes


class Claimed(NamedTuple):
    """A message that this owner now holds."""

    queue: str
    id: int
    attempt: int
    redelivered: int
    raw: bytes


def pack(payload: Payload, raw: bytes) -> Packed:
    return Packed(payload.route, _rank(payload), payload.due, raw)


def repack(raw: bytes, queue: str) -> Packed:
    """A message that was set aside, ready to be written anew. It may be any bytes."""
    try:
        rank = _rank(envelope.unpack(raw))
    except ValueError:
        rank = 0
    return Packed(Route(queue), rank, None, envelope.renew(raw))


def _rank(payload: Payload) -> int:
    priority = payload.properties.get("priority")
    return -max(-_HIGHEST, min(priority, _HIGHEST)) if type(priority) is int else 0


# -- publishing -------------------------------------------------------------------------------------------


def claim_once(conn: sqlite3.Connection, key: str, now: float, keep_s: float) -> bool:
    """Note that the message with this key is sent in this transaction; False if one was already."""
    # Few ever need it, so it is no part of the schema and costs no new version of the file.
    conn.execute("CREATE TABLE IF NOT EXISTS celeriac_once (key TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID")
    conn.execute("DELETE FROM celeriac_once WHERE until <= ?", (now,))
    return conn.execute("INSERT OR IGNORE INTO celeriac_once VALUES (?, ?)", (key, now + keep_s)).rowcount == 1


def put(conn: sqlite3.Connection, messages: Sequence[Packed], now: float) -> set[str]:
    """Write these messages; return the queues whose listeners must know of it now.

    Raises:
        PublishRejected: No queue is bound for one of them; the caller rolls back.
    """
    (last,) = conn.execute("SELECT ifnull(max(id), 0) FROM celeriac_messages").fetchone()
    bodies: list[tuple[int, bytes]] = []
    ready: list[tuple[str, int, int]] = []
    delayed: list[tuple[float, int, str, int]] = []
    changed: set[str] = set()
    for route, rank, due, raw in messages:
        for queue in (route.routing_key,) if not route.exchange else _targets(conn, route):
            last += 1
            bodies.append((last, raw))
            if due is None or due <= now:
                ready.append((queue, rank, last))
            else:
                delayed.append((due, last, queue, rank))
            if due is None or due <= now + SOON_S:
                changed.add(queue)
    conn.executemany("INSERT INTO celeriac_messages VALUES (?, ?)", bodies)
    if ready:
        conn.executemany("INSERT INTO celeriac_ready VALUES (?, ?, ?, 1, 0)", ready)
    if delayed:
        conn.executemany("INSERT INTO celeriac_delayed VALUES (?, ?, ?, ?, 1, 0)", delayed)
    return changed


def require_targets(conn: sqlite3.Connection, messages: Iterable[Packed]) -> None:
    """Raise what `put` would raise; needs no write lock."""
    for message in messages:
        if message.route.exchange:
            _targets(conn, message.route)


def declare(conn: sqlite3.Connection, specs: Iterable[QueueSpec]) -> None:
    conn.executemany("INSERT OR IGNORE INTO celeriac_bindings VALUES (?, ?, ?, ?)", _bindings(specs))


def is_declared(conn: sqlite3.Connection, specs: Iterable[QueueSpec]) -> bool:
    """Whether `declare` would change nothing; needs no write lock."""
    sql = "SELECT 1 FROM celeriac_bindings WHERE exchange = ? AND routing_key = ? AND queue = ?"
    return all(conn.execute(sql, binding[:3]).fetchone() for binding in _bindings(specs))


def _bindings(specs: Iterable[QueueSpec]) -> list[tuple[str, str, str, str]]:
    return [(spec.exchange, spec.routing_key, spec.name, spec.exchange_type) for spec in specs if spec.exchange]


def _targets(conn: sqlite3.Connection, route: Route) -> list[str]:
    rows = conn.execute(
        "SELECT routing_key, queue, exchange_type FROM celeriac_bindings WHERE exchange = ?", (route.exchange,)
    ).fetchall()
    targets = sorted({queue for key, queue, kind in rows if binds(kind, key, route.routing_key)})
    kind = rows[0][2] if rows else route.exchange_type
    if not targets and kind != "fanout":  # nobody listening is an ordinary state for a fanout
        raise PublishRejected(
            f"sqlite broker: no queue is bound to exchange {route.exchange!r} ({kind}) for routing key "
            f"{route.routing_key!r}; declare the queue first"
        )
    return targets


# -- acquiring --------------------------------------------------------------------------------------------


def look(conn: sqlite3.Connection, queues: Iterable[str], now: float) -> tuple[bool, float | None]:
    """Whether a claim on these queues would find something, and when the next delayed message is due."""
    row = conn.execute("SELECT due FROM celeriac_delayed ORDER BY due LIMIT 1").fetchone()
    due: float | None = None if row is None else row[0]
    if due is not None and due <= now:
        return True, due
    sql = "SELECT 1 FROM celeriac_ready WHERE queue = ? LIMIT 1"
    return any(conn.execute(sql, (queue,)).fetchone() for queue in queues), due


def ripen(conn: sqlite3.Connection, now: float) -> float | None:
    """Make ready what has become due; return when the next one is."""
    row = conn.execute("SELECT due FROM celeriac_delayed ORDER BY due LIMIT 1").fetchone()
    if row is None or row[0] > now:
        return None if row is None else float(row[0])
    bound = conn.execute(
        "SELECT due, id FROM celeriac_delayed WHERE due <= ? ORDER BY due, id LIMIT 1 OFFSET ?",
        (now, RIPE_PER_STEP - 1),
    ).fetchone() or (now, _LAST_ID)
    conn.execute(
        "INSERT INTO celeriac_ready SELECT queue, rank, id, attempt, redelivered FROM celeriac_delayed"
        " WHERE (due, id) <= (?, ?)",
        bound,
    )
    conn.execute("DELETE FROM celeriac_delayed WHERE (due, id) <= (?, ?)", bound)
    row = conn.execute("SELECT due FROM celeriac_delayed ORDER BY due LIMIT 1").fetchone()
    return None if row is None else float(row[0])


def claim(conn: sqlite3.Connection, owner: int, queue: str, limit: int) -> list[Claimed]:
    """Hand the first `limit` messages of a queue to this owner."""
    rows = conn.execute(
        "SELECT r.rank, r.id, r.attempt, r.redelivered, m.raw FROM celeriac_ready AS r"
        " CROSS JOIN celeriac_messages AS m ON m.id = r.id WHERE r.queue = ? ORDER BY r.rank, r.id LIMIT ?",
        (queue, limit),
    ).fetchall()
    if not rows:
        return []
    upto = (queue, rows[-1][0], rows[-1][1])
    conn.execute(
        "INSERT INTO celeriac_held SELECT ?, id, queue, rank, attempt, redelivered FROM celeriac_ready"
        " WHERE queue = ? AND (rank, id) <= (?, ?)",
        (owner, *upto),
    )
    conn.execute("DELETE FROM celeriac_ready WHERE queue = ? AND (rank, id) <= (?, ?)", upto)
    return [Claimed(queue, id, attempt, flag, raw) for _, id, attempt, flag, raw in rows]


# -- finishing --------------------------------------------------------------------------------------------


def ack(conn: sqlite3.Connection, owner: int, ids: Iterable[int]) -> None:
    """Remove messages that this owner holds. Neighbours go together, which is most of them."""
    runs = list(_runs(sorted(ids)))
    conn.executemany(
        "DELETE FROM celeriac_held WHERE owner = ? AND id BETWEEN ? AND ?",
        [(owner, first, last) for first, last in runs],
    )
    conn.executemany("DELETE FROM celeriac_messages WHERE id BETWEEN ? AND ?", runs)


def give_back(
    conn: sqlite3.Connection, owner: int, id: int, due: float | None, lost: bool, spared: bool = False
) -> str | None:
    """Return one held message to its old place, or until `due`; return its queue."""
    key = (owner, id)
    row = conn.execute("SELECT queue FROM celeriac_held WHERE owner = ? AND id = ?", key).fetchone()
    if row is None:
        return None
    attempts, flag = "attempt", "redelivered"
    if lost:
        attempts, flag = "attempt + 1", f"max(redelivered, 1) + {int(spared)}"
    if due is None:
        conn.execute(
            f"INSERT INTO celeriac_ready SELECT queue, rank, id, {attempts}, {flag} FROM celeriac_held"
            " WHERE owner = ? AND id = ?",
            key,
        )
    else:
        conn.execute(
            f"INSERT INTO celeriac_delayed SELECT ?, id, queue, rank, {attempts}, {flag} FROM celeriac_held"
            " WHERE owner = ? AND id = ?",
            (due, *key),
        )
    conn.execute("DELETE FROM celeriac_held WHERE owner = ? AND id = ?", key)
    return str(row[0])


def bury(conn: sqlite3.Connection, owner: int, id: int, reason: str, error: str, now: float) -> None:
    """Set one held message aside."""
    key = (owner, id)
    row = conn.execute(
        "INSERT INTO celeriac_dead (queue, raw, attempt, reason, error, node, at)"
        " SELECT h.queue, m.raw, h.attempt, ?, ?, o.node, ? FROM celeriac_held AS h"
        " JOIN celeriac_messages AS m ON m.id = h.id JOIN celeriac_owners AS o ON o.id = h.owner"
        " WHERE h.owner = ? AND h.id = ? RETURNING queue",
        (_plain(reason), _plain(error), now, *key),
    ).fetchone()
    if row is None:
        return
    conn.execute("DELETE FROM celeriac_held WHERE owner = ? AND id = ?", key)
    conn.execute("DELETE FROM celeriac_messages WHERE id = ?", (id,))
    forget_old(conn, row[0], now)


# -- the dead ---------------------------------------------------------------------------------------------


def forget_old(conn: sqlite3.Connection, queue: str, now: float) -> None:
    """Drop dead letters of a queue that are too many or too old, and count them."""
    # They lie in the order of their times: one that is young ends the search. To read the time of each is to walk
    # through its message, under the write lock.
    dropped = conn.execute(
        "DELETE FROM celeriac_dead WHERE queue = ?1 AND id < max("
        " ifnull((SELECT id FROM celeriac_dead WHERE queue = ?1 AND at > ?3 ORDER BY id LIMIT 1), ?4),"
        " ifnull((SELECT id FROM celeriac_dead WHERE queue = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2) + 1, 0))",
        (queue, DEAD_KEPT, now - DEAD_KEPT_S, _LAST_ID),
    ).rowcount
    if dropped:
        conn.execute(
            "INSERT INTO celeriac_dropped VALUES (?, ?)"
            " ON CONFLICT (queue) DO UPDATE SET count = count + excluded.count",
            (queue, dropped),
        )


def dead_boxes(conn: sqlite3.Connection, queues: Iterable[str], now: float) -> list[DeadBox]:
    """How much was set aside, of these queues and of others."""
    since = now - DEAD_KEPT_S
    counts = dict(conn.execute("SELECT queue, count(*) FROM celeriac_dead WHERE at > ? GROUP BY queue", (since,)))
    dropped = dict(conn.execute("SELECT queue, count FROM celeriac_dropped"))
    for queue, old in conn.execute("SELECT queue, count(*) FROM celeriac_dead WHERE at <= ? GROUP BY queue", (since,)):
        dropped[queue] = dropped.get(queue, 0) + old  # they go with the next that is set aside, or shown
    names = dict.fromkeys([*queues, *sorted({*counts, *dropped})])
    return [DeadBox(name, counts.get(name, 0), dropped.get(name, 0)) for name in names]


def browse_dead(conn: sqlite3.Connection, queue: str, after: int, limit: int, now: float) -> list[DeadLetter]:
    """What was set aside from a queue, oldest first."""
    rows = conn.execute(
        "SELECT id, queue, raw, reason, error, attempt, node, at FROM celeriac_dead"
        " WHERE queue = ? AND id > ? AND at > ? ORDER BY id LIMIT ?",
        (queue, after, now - DEAD_KEPT_S, limit),
    )
    return [DeadLetter(str(row[0]), *row[1:]) for row in rows]


def take_dead(conn: sqlite3.Connection, queue: str, id: str) -> bytes | None:
    """Remove one dead letter; return its message."""
    row = conn.execute(
        "DELETE FROM celeriac_dead WHERE queue = ? AND id = ? RETURNING raw", (queue, dead_number(id))
    ).fetchone()
    return None if row is None else bytes(row[0])


def dead_number(id: str) -> int:
    """The number of a dead letter; 0, which none has, for what is no such number."""
    return int(id) if id.isdecimal() and len(id) <= _ID_DIGITS else 0


def _plain(text: str) -> str:
    """Text of a task's as SQLite takes it: not too long, and without lone surrogates, which UTF-8 does not have, and as
    which Python reads a file name's bytes that are no UTF-8."""
    return text[:ERROR_CHARS].encode("utf-8", "backslashreplace").decode("utf-8")


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted numbers as ranges without gaps: `1 2 3 7` is (1, 3) and (7, 7)."""
    first = last = None
    for id in ids:
        if last is not None and id == last + 1:
            last = id
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = id
    if first is not None and last is not None:
        yield first, last


# -- owners -----------------------------------------------------------------------------------------------


def add_owner(conn: sqlite3.Connection, page: str, node: str, now: float) -> int:
    cursor = conn.execute("INSERT INTO celeriac_owners (page, node, since) VALUES (?, ?, ?)", (page, node, now))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def is_owner(conn: sqlite3.Connection, owner: int) -> bool:
    """False once somebody took this owner for dead: then nothing it remembers is its own any more."""
    return conn.execute("SELECT 1 FROM celeriac_owners WHERE id = ?", (owner,)).fetchone() is not None


def owners(conn: sqlite3.Connection) -> list[tuple[int, str]]:
    """All owners and the names of their pages."""
    return conn.execute("SELECT id, page FROM celeriac_owners").fetchall()


def remove_owner(conn: sqlite3.Connection, owner: int, *, spared: bool = False) -> set[str]:
    """Take all messages from an owner, as lost: nobody can say which had been started. Returns their queues.

    Args:
        spared: Its process has not died.
    """
    queues = {row[0] for row in conn.execute("SELECT DISTINCT queue FROM celeriac_held WHERE owner = ?", (owner,))}
    conn.execute(
        "INSERT INTO celeriac_ready SELECT queue, rank, id, attempt + 1, max(redelivered, 1) + ? FROM celeriac_held"
        " WHERE owner = ?",
        (int(spared), owner),
    )
    conn.execute("DELETE FROM celeriac_held WHERE owner = ?", (owner,))
    conn.execute("DELETE FROM celeriac_owners WHERE id = ?", (owner,))
    return queues


# -- queues -----------------------------------------------------------------------------------------------


def depth(conn: sqlite3.Connection, queue: str, now: float) -> int:
    (ready,) = conn.execute("SELECT count(*) FROM celeriac_ready WHERE queue = ?", (queue,)).fetchone()
    (due,) = conn.execute("SELECT count(*) FROM celeriac_delayed WHERE due <= ? AND queue = ?", (now, queue)).fetchone()
    return int(ready) + int(due)


def purge_some(conn: sqlite3.Connection, queue: str) -> int:
    """Drop waiting messages of a queue, a bounded number; 0 when there are none left."""
    for table, first in (("celeriac_ready", "rank"), ("celeriac_delayed", "due")):
        keys = conn.execute(
            f"SELECT id, {first} FROM {table} WHERE queue = ? ORDER BY {first}, id LIMIT ?", (queue, PURGED_PER_STEP)
        ).fetchall()
        if keys:
            conn.executemany(
                f"DELETE FROM {table} WHERE queue = ? AND id = ? AND {first} = ?", [(queue, *key) for key in keys]
            )
            conn.executemany("DELETE FROM celeriac_messages WHERE id = ?", [key[:1] for key in keys])
            return len(keys)
    return 0


def unbind(conn: sqlite3.Connection, queue: str) -> None:
    conn.execute("DELETE FROM celeriac_bindings WHERE queue = ?", (queue,))
