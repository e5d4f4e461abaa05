"""The sqlite transport: sends, looks after queues, opens consumers. Safe for threads and forks."""

from __future__ import annotations

import itertools
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from celeriac.exceptions import OperationalError, PublishRejected, TransportLost, TransportUnreachable
from celeriac.spec import DeadBox, DeadLetter, ExchangeSpec, Head, Malformed, Payload, Poller, QueueSpec, envelope
from celeriac.spec.diagnosis import Finding
from celeriac_broker_sqlite import store
from celeriac_broker_sqlite.consumer import SqliteConsumer, queue_topic
from celeriac_broker_sqlite.fanout import Fanout, SqliteListener
from celeriac_broker_sqlite.store import Packed
from celeriac_support_sqlite import health
from celeriac_support_sqlite.file import LOCK_TIMEOUT_S, Database, Location, StoreTrouble
from celeriac_support_sqlite.state import SqliteState
from celeriac_support_sqlite.wake import Bell

#: So many of our own consumers that were lost are known for such.
LEFT_KEPT: Final = 64


class SqliteTransport:
    """Messages in one SQLite file. Higher priorities first, then the order of sending."""

    abilities = frozenset(
        {
            "delay",
            "priority",
            "attempts",
            "spares",
            "browse_dead",
            "dead_letter",
            "fanout",
            "lease",
            "durable",
            "shared",
            "purge",
            "depth",
            "diagnose",
            "state",
            "once",
        }
    )

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        location = Location(url, options.get("durability"), options.get("lease"))
        self.lease_s = location.lease_s
        self.url = location.url
        self.joint: str | None = location.joint
        self._state = SqliteState(location, self.errors)
        self.database = Database(location, "broker", store.VERSION, store.SCHEMA, store.UPGRADES)
        self.bell = Bell(location.path)
        self._fanout = Fanout(location, self.bell)
        self._numbers = itertools.count(1)
        self._prefix = secrets.token_hex(8)
        #: Pages of consumers that closed and could not give back what they held: no process has died of that.
        self.left: deque[str] = deque(maxlen=LEFT_KEPT)

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        packed = self.pack(payloads)
        with self.errors(), self.database.transaction(timeout_s) as conn:
            changed = store.put(conn, packed, time.time())
        self.bell.ring(map(queue_topic, changed))

    def send_once(
        self, payloads: Sequence[Payload], *, key: str, keep_s: float, timeout_s: float = LOCK_TIMEOUT_S
    ) -> bool:
        packed, now = self.pack(payloads), time.time()
        with self.errors(), self.database.transaction(timeout_s) as conn:
            if not store.claim_once(conn, key, now, keep_s):
                return False
            changed = store.put(conn, packed, now)
        self.bell.ring(map(queue_topic, changed))
        return True

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Poller, window: int) -> SqliteConsumer:
        with self.errors():
            return SqliteConsumer(self, queues, owner, poller)

    def broadcast(
        self, exchange: ExchangeSpec, payloads: Sequence[Payload], *, timeout_s: float = LOCK_TIMEOUT_S
    ) -> None:
        packed = [(message.route.routing_key, message.raw) for message in self.pack(payloads)]
        with self.errors():
            self._fanout.broadcast(exchange, packed, timeout_s)

    def listen(self, exchange: ExchangeSpec, queue: QueueSpec, *, poller: Poller) -> SqliteListener:
        with self.errors():
            return SqliteListener(self._fanout, self.errors, exchange, queue.routing_key, poller)

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        with self.errors():
            if self.database.read(lambda conn: store.is_declared(conn, queues)):
                return
            with self.database.transaction() as conn:
                store.declare(conn, queues)

    def delete(self, queue: str) -> None:
        self.purge(queue)
        with self.errors(), self.database.transaction() as conn:
            store.unbind(conn, queue)

    def purge(self, queue: str) -> int:
        dropped = 0
        while True:
            with self.errors(), self.database.transaction() as conn:
                some = store.purge_some(conn, queue)
            if not some:
                return dropped
            dropped += some

    def depth(self, queue: str) -> int:
        with self.errors():
            return self.database.read(lambda conn: store.depth(conn, queue, time.time()))

    def dead_boxes(self, queues: Sequence[str]) -> list[DeadBox]:
        with self.errors():
            return self.database.read(lambda conn: store.dead_boxes(conn, queues, time.time()))

    def browse_dead(self, queue: str, *, after: str = "", limit: int = 100) -> list[DeadLetter]:
        behind = store.dead_number(after)
        with self.errors():
            return self.database.read(lambda conn: store.browse_dead(conn, queue, behind, limit, time.time()))

    def requeue_dead(self, queue: str, ids: Sequence[str]) -> int:
        with self.errors(), self.database.transaction() as conn:
            raws = [raw for id in ids if (raw := store.take_dead(conn, queue, id)) is not None]
            changed = store.put(conn, [store.repack(raw, queue) for raw in raws], time.time())
        self.bell.ring(map(queue_topic, changed))
        return len(raws)

    def drop_dead(self, queue: str, ids: Sequence[str]) -> int:
        with self.errors(), self.database.transaction() as conn:
            return sum(store.take_dead(conn, queue, id) is not None for id in ids)

    def state(self) -> SqliteState:
        return self._state

    def read_head(self, raw: bytes) -> Head | Malformed:
        return envelope.read_head(raw)

    def unpack(self, raw: bytes) -> Payload:
        return envelope.unpack(raw)

    def ping(self, timeout_s: float) -> str:
        try:
            with self.database.transaction(timeout_s):
                pass
        except StoreTrouble as exc:
            raise TransportUnreachable(f"sqlite broker: {exc.message}", url=self.url, hint=exc.hint) from exc
        return f"SQLite {sqlite3.sqlite_version}, {self.database.path}"

    def diagnose(self, *, longest_task_s: float | None, timeout_s: float) -> list[Finding]:
        with self.errors():
            return health.examine(self.database)

    def after_fork(self) -> None:
        self.database.forget()
        self._state.after_fork()
        self._fanout.forget()
        self._prefix = secrets.token_hex(8)

    def close(self) -> None:
        self.database.close()
        self._state.close()
        self._fanout.close()
        self.bell.close()

    def pack(self, payloads: Iterable[Payload]) -> list[Packed]:
        """The payloads with their envelopes, made before anybody takes the write lock."""
        prefix, numbers = self._prefix, self._numbers
        return [store.pack(payload, envelope.pack(payload, f"{prefix}-{next(numbers)}")) for payload in payloads]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what is wrong with the file into errors of celeriac's."""
        try:
            yield
        except StoreTrouble as exc:
            raise self.error(exc) from exc

    def error(self, exc: StoreTrouble) -> OperationalError:
        if exc.kind == "unreachable":
            return TransportUnreachable(f"sqlite broker: {exc.message}", url=self.url, hint=exc.hint)
        kind = PublishRejected if exc.kind == "full" else TransportLost
        return kind(f"sqlite broker: {exc}")
