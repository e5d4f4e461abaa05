"""The sqlite consumer: claims, settles, proves that it lives, and takes over from the dead.

Settlements are gathered and written together with the next claim: one transaction a pass of the worker, which
is what makes SQLite fast. `settle` makes the consumer's own descriptor readable, so that the pass that writes
them follows at once, whatever else the worker waits for.

The lease: a row in `celeriac_owners`, and the listener's page (see `celeriac_support_sqlite.wake`) that the row
names. The page is locked while the process lives and says when it last lived. Whoever finds a page unlocked, missing
or stale takes all that its owner held, and the row with it; every transaction of an owner begins with a look at its
own row.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from celeriac.exceptions import PublishRejected, TransportLost
from celeriac.spec import Delivery, Payload, Poller, QueueSpec, Settlement, envelope
from celeriac_broker_sqlite import store
from celeriac_broker_sqlite.store import Claimed, Packed
from celeriac_support_sqlite.file import (
    LOCK_TIMEOUT_S,
    StoreTrouble,
    begin,
    cannot_listen,
    patiently,
    rollback,
    trouble,
)
from celeriac_support_sqlite.wake import Ear, folder_of, is_alive, lost_its_page, remove, topic

if TYPE_CHECKING:
    from celeriac_broker_sqlite.transport import SqliteTransport

P = ParamSpec("P")
T = TypeVar("T")

#: The longest sleep of an idle consumer, and how often it looks for dead owners: their messages are back in a second.
IDLE_S: Final = 0.5
#: How long one `receive` waits for the write lock. The worker has other things to do; it asks again in its next pass.
PATIENCE_S: Final = 0.5
CLOSE_S: Final = 4.0


def queue_topic(queue: str) -> int:
    """What listeners of this queue care about."""
    return topic(f"queue {queue}")


class _Unit:
    """What one `settle` asked for, to be done in one piece."""

    __slots__ = ("acked", "joined", "others", "publish")

    def __init__(self, publish: list[Packed], joined: Any) -> None:
        self.publish = publish
        self.joined = joined
        self.acked: list[int] = []
        self.others: list[tuple[int, Settlement]] = []


class SqliteConsumer:
    """Receives from queues in one SQLite file."""

    def __init__(self, transport: SqliteTransport, queues: Sequence[QueueSpec], owner: str, poller: Poller) -> None:
        self._transport = transport
        self._path = transport.database.path
        self._folder = folder_of(self._path)
        self._lease_s = transport.lease_s
        self._node = owner
        self._poller = poller
        self._queues = [spec.name for spec in queues]
        self._tags = 0
        self._held: dict[int, int] = {}  # tag → message id
        self._pending: list[_Unit] = []
        self._due: float | None = None
        self._found_nothing = False
        self._locked_since: float | None = None
        self._stopped = self._closed = False
        self._was_lost = False  # it said so: the file was out of reach
        self._missed: dict[str, float] = {}  # page of an owner that seems to live, but for that → missed since when
        self._tend_at = 0.0
        self._conn = transport.database.connect()
        try:
            self._enter(queues)
        except sqlite3.Error as exc:
            transport.database.disconnect(self._conn)
            raise trouble(exc, self._path) from exc
        except StoreTrouble:
            transport.database.disconnect(self._conn)
            raise

    # -- the contract -------------------------------------------------------------------------------------

    def receive(self, limit: int) -> list[Delivery]:
        self._require_open()
        self._ear.drain()
        if time.monotonic() >= self._tend_at:
            self._guard(self._tend)
        if self._stopped:
            limit = 0
        if limit <= 0 and not self._pending:
            return []
        if limit > 0:
            self._ear.sleep()  # before looking, so that what comes in after the look wakes us
            if self._found_nothing and not self._pending and not self._guard(self._look):
                return []
        claimed = self._guard(self._try_to_write, limit)
        self._found_nothing = not claimed
        if len(claimed) >= limit:
            self._ear.rise()
        return [self._deliver(message) for message in claimed]

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        self._require_open()
        unit = _Unit(self._transport.pack(publish) if publish else [], joined)
        if publish:
            # Now, while the caller can still be told.
            self._guard(patiently, lambda: store.require_targets(self._conn, unit.publish), self._path)
        for settlement in batch:
            id = self._held.pop(settlement.tag, None)
            if id is None:
                continue  # not ours any more: it changes nothing
            if settlement.verb == "ack":
                unit.acked.append(id)
            else:
                unit.others.append((id, settlement))
        self._pending.append(unit)
        self._ear.poke()

    def flush(self, timeout_s: float) -> None:
        self._require_open()
        if self._pending:
            self._guard(self._write, 0, timeout_s)

    def renew(self) -> list[Any]:
        if not self._closed:
            self._ear.live()
            if self._ear.is_given_up() and not self._is_owner_still():
                return list(self._held)
        return []

    def _is_owner_still(self) -> bool:
        """From any thread. True where it cannot be told now."""
        try:
            return self._transport.database.read(lambda conn: store.is_owner(conn, self._owner))
        except StoreTrouble:
            return True

    @property
    def renew_interval_s(self) -> float:
        """A third of the lease."""
        return self._lease_s / 3

    def stand_in(self) -> tuple[str, dict[str, Any]]:
        """See `Consumer.renew`."""
        return "celeriac_support_sqlite.wake:Pulse", {"page": self._ear.page}

    def resize(self, window: int) -> None:
        """Nothing is fetched in advance, so the window needs no attention here."""

    def subscribe(self, queue: QueueSpec) -> None:
        self._transport.declare([queue])
        if queue.name not in self._queues:
            self._queues.append(queue.name)
            self._ear.listen([queue_topic(queue.name)])

    def unsubscribe(self, queue: str) -> None:
        if queue in self._queues:
            self._queues.remove(queue)
            self._ear.ignore([queue_topic(queue)])

    def stop(self) -> None:
        self._stopped = True
        if not self._closed:
            self._ear.rise()

    def close(self) -> None:
        if self._closed:
            return
        self.stop()
        deadline = time.monotonic() + CLOSE_S
        try:
            if self._pending:
                self._write(0, CLOSE_S)
            self._leave(deadline - time.monotonic())
        except (StoreTrouble, TransportLost, sqlite3.Error):
            # The file is gone or locked, or we were given up: letting go of the page gives all back just as well.
            self._transport.left.append(self._ear.name)
        self._closed = True
        self._poller.unwatch(self._ear.fd)
        self._ear.close()
        self._transport.database.disconnect(self._conn)

    @property
    def poll_interval_s(self) -> float | None:
        """Until the next delayed message is due, and not longer than half a second."""
        return IDLE_S if self._due is None else min(max(self._due - time.time(), 0.0), IDLE_S)

    # -- one pass -----------------------------------------------------------------------------------------

    def _look(self) -> bool:
        found, self._due = patiently(lambda: store.look(self._conn, self._queues, time.time()), self._path)
        return found

    def _try_to_write(self, limit: int) -> list[Claimed]:
        """`_write`, unless somebody keeps the file locked; the next pass then tries again."""
        try:
            claimed = self._write(limit, PATIENCE_S)
        except StoreTrouble as exc:
            now = time.monotonic()
            self._locked_since = self._locked_since or now
            if exc.kind != "locked" or now - self._locked_since > LOCK_TIMEOUT_S:
                raise
            self._ear.poke()
            return []
        self._locked_since = None
        return claimed

    def _write(self, limit: int, timeout_s: float) -> list[Claimed]:
        """Do what is pending and claim, in one transaction."""
        conn, pending = self._conn, self._pending
        changed: set[int] = set()
        claimed: list[Claimed] = []
        begin(conn, self._path, timeout_s)
        try:
            is_owner = store.is_owner(conn, self._owner)
            if is_owner:
                now = time.time()
                for unit in pending:
                    try:
                        self._perform(unit, now, changed)
                    except PublishRejected as exc:  # when it was settled there was such a queue
                        self._pending = [other for other in pending if other is not unit]
                        raise StoreTrouble("lost", str(exc)) from exc
                if limit > 0:
                    claimed = self._claim(limit, now)
            conn.execute("COMMIT")
        except BaseException:
            rollback(conn)
            raise
        self._pending = []
        if not is_owner:
            raise self._given_up()
        if changed:
            self._transport.bell.ring(changed)
        return claimed

    def _perform(self, unit: _Unit, now: float, changed: set[int]) -> None:
        conn, owner = self._conn, self._owner
        if unit.joined is not None:
            statements, topics = unit.joined
            for sql, rows in statements:
                conn.executemany(sql, rows)
            changed.update(topics)
        if unit.publish:
            changed.update(map(queue_topic, store.put(conn, unit.publish, now)))
        if unit.acked:
            store.ack(conn, owner, unit.acked)
        for id, settlement in unit.others:
            if settlement.verb == "dead":
                store.bury(conn, owner, id, settlement.reason, settlement.error, now)
            else:
                queue = store.give_back(conn, owner, id, settlement.due, settlement.started, settlement.spared)
                if queue is not None:
                    changed.add(queue_topic(queue))

    def _claim(self, limit: int, now: float) -> list[Claimed]:
        self._due = store.ripen(self._conn, now)
        claimed: list[Claimed] = []
        for queue in self._queues:
            claimed += store.claim(self._conn, self._owner, queue, limit - len(claimed))
            if len(claimed) >= limit:
                break
        # Queues take turns: the next claim begins with the next one.
        self._queues = [*self._queues[1:], *self._queues[:1]]
        return claimed

    def _deliver(self, message: Claimed) -> Delivery:
        self._tags += 1
        self._held[self._tags] = message.id
        head = envelope.read_head(message.raw)
        again = message.redelivered
        return Delivery(self._tags, message.raw, head, message.queue, message.attempt, again > 0, max(again - 1, 0))

    # -- the lease ----------------------------------------------------------------------------------------

    def _enter(self, queues: Sequence[QueueSpec]) -> None:
        """Become an owner, and take over from those who died."""
        try:
            self._ear = Ear(self._path)
        except OSError as exc:
            raise cannot_listen(self._folder, exc) from exc
        try:
            begin(self._conn, self._path, LOCK_TIMEOUT_S)
            store.declare(self._conn, queues)
            self._owner = store.add_owner(self._conn, self._ear.name, self._node, time.time())
            self._conn.execute("COMMIT")
            self._ear.listen(map(queue_topic, self._queues))
            self._tend()
        except BaseException:
            rollback(self._conn)
            self._ear.close()
            raise
        self._poller.watch(self._ear.fd)

    def _leave(self, timeout_s: float) -> None:
        """Give back what is unsettled: as lost, for nobody can say here what had been started; but as no crash if it
        was the file that was out of reach."""
        begin(self._conn, self._path, timeout_s)
        queues = store.remove_owner(self._conn, self._owner, spared=self._was_lost)
        self._conn.execute("COMMIT")
        self._transport.bell.ring(map(queue_topic, queues))

    def _given_up(self) -> TransportLost:
        """Others took us for dead, as after a long halt of this process; all we held is theirs."""
        return TransportLost(
            f"sqlite broker: this worker gave no sign of life for {self._lease_s:g} s, so the {len(self._held)} "
            f"unsettled messages it held were given to others"
        )

    def _tend(self) -> None:
        """Look after the store: is the file still ours, are we still its owner, and has another one died?"""
        self._tend_at = time.monotonic() + IDLE_S
        if self._transport.database.is_replaced():
            raise StoreTrouble("lost", f"{self._path} was removed or replaced while in use.")
        if self._ear.is_given_up():
            self._renew_page()
        others = patiently(lambda: store.owners(self._conn), self._path)
        dead = [
            other for other in others if other[0] != self._owner and not is_alive(self._folder, other[1], self._lease_s)
        ]
        missed, self._missed = self._missed, {}
        for owner, page in dead:
            if page not in self._transport.left and lost_its_page(self._folder, page):
                since = self._missed[page] = missed.get(page, time.monotonic())
                if time.monotonic() - since <= self._lease_s:
                    continue  # it has that long to make itself another
            self._take_over(owner, page)

    def _begins(self) -> bool:
        """Begin to write; False while others do so for long: half a second later we are here again."""
        try:
            begin(self._conn, self._path, PATIENCE_S)
        except StoreTrouble as exc:
            if exc.kind == "locked":
                return False
            raise
        return True

    def _renew_page(self) -> None:
        """Our page is gone: others took us for dead, or somebody has cleared the folder, which takes nothing from us.

        Raises:
            TransportLost: The former.
        """
        if not self._begins():
            return
        try:
            if not store.is_owner(self._conn, self._owner):
                raise self._given_up()
            ear = self._ear.again()
            self._conn.execute("COMMIT")
        except OSError as exc:
            rollback(self._conn)
            raise cannot_listen(self._folder, exc) from exc
        except BaseException:
            rollback(self._conn)
            raise
        ear.listen(map(queue_topic, self._queues))
        self._poller.watch(ear.fd)
        old, self._ear = self._ear, ear
        self._poller.unwatch(old.fd)
        old.let_go()
        ear.poke()

    def _take_over(self, owner: int, page: str) -> None:
        if not self._begins():
            return
        try:
            # Once more, now that nobody can write: it may have woken up meanwhile.
            queues: set[str] = set()
            if not is_alive(self._folder, page, self._lease_s):
                # Of one that lives, but whose page somebody has removed, no process has died.
                outlived = page in self._transport.left or lost_its_page(self._folder, page)
                queues = store.remove_owner(self._conn, owner, spared=outlived)
            self._conn.execute("COMMIT")
        except BaseException:
            rollback(self._conn)
            raise
        if queues or not is_alive(self._folder, page, self._lease_s):
            remove(self._folder, page)
        self._transport.bell.ring(map(queue_topic, queues))

    # -- small things -------------------------------------------------------------------------------------

    def _guard(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step; whatever is wrong with the file means that this consumer is lost."""
        cause: Exception
        try:
            return step(*args, **kwargs)
        except sqlite3.Error as exc:
            what, cause = str(trouble(exc, self._path)), exc
        except StoreTrouble as exc:
            what, cause = str(exc), exc
        except OSError as exc:
            what, cause = f"{self._path}: {exc}", exc
        self._was_lost = True
        raise TransportLost(f"sqlite broker: {what}") from cause

    def _require_open(self) -> None:
        if self._closed:
            raise TransportLost(f"sqlite broker: this consumer of {self._path} is closed")
