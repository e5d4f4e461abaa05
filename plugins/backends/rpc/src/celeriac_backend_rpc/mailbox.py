"""The client's half: a reply queue, read by whoever waits, for all who wait.

One thread at a time reads (the broker's consumer belongs to one thread); the others sleep until it has put what
arrived on the shelf, or has had enough and one of them takes over. So nobody needs a reader thread, and an answer
wakes its waiter without a detour. A keeper thread only looks in every few seconds, to prove to the broker that
somebody is still here; it begins with the first wait.

Reading takes answers away from the broker, so they stay on the shelf for a second `get()`: unread ones as long as there
is room for `UNREAD_KEPT`, the last `READ_KEPT` of the others too.
"""

from __future__ import annotations

import logging
import select
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Final

from celeriac.exceptions import OperationalError
from celeriac.spec import Consumer, Delivery, Host, Settlement, reply_queue_spec
from celeriac.states import READY_STATES, SUCCESS

UNREAD_KEPT: Final = 100_000
READ_KEPT: Final = 10_000
WINDOW: Final = 256
KEEP_S: Final = 5.0
#: Who asks for an answer that is not here waits so long for what is on its way; brokers need a moment to hand out.
GRACE_S: Final = 0.02
#: … and no longer than this while few at a time come for others: more would be what had come before.
TRICKLE_S: Final = 0.1
#: While nobody reads, nobody hears that the queue is gone: with its expiry, or by hand. Who calls looks so often.
DECLARED_S: Final = 1.0
#: Who waits with a timeout waits so long at least for the queue to be opened, which takes long with a silent broker.
OPEN_S: Final = 0.4
#: While the broker is away, it is tried again so often.
RETRY_S: Final = 0.5

_log = logging.getLogger("celeriac.backend.rpc")


class Poller:
    """Sleeps until the consumer has news."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: set[int] = set()

    def watch(self, fd: int) -> None:
        self._watched.add(fd)
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.remove(fd)
            self._poll.unregister(fd)

    def sleep(self, timeout_s: float) -> None:
        self._poll.poll(max(timeout_s, 0.0) * 1000 + 1)


class Mailbox:
    """The reply queue of this process, and what has come out of it.

    Args:
        read: What a reply says: (task id, state, stored form), or None if it is no reply.
    """

    def __init__(self, host: Host, read: Callable[[Delivery], tuple[str, str, bytes] | None]) -> None:
        self._host = host
        self._read = read
        self._changed = threading.Condition()
        self._has_reader = False
        self._declared_at = float("-inf")  # monotonic
        self._is_away = False
        self._consumer: Consumer | None = None
        self._opening: futures.Future[Consumer] | None = None
        self._poller = Poller()
        self._keeper: threading.Thread | None = None
        self._ended = threading.Event()
        self._count = 0  # of all replies so far
        # The shelf: task id → (state, stored form), the oldest first.
        self._unread: dict[str, tuple[str, bytes]] = {}
        self._done: dict[str, tuple[str, bytes]] = {}
        self._waiting: dict[str, list[deque[tuple[str, bytes]]]] = {}

    # -- who waits --------------------------------------------------------------------------------------------

    def declare(self) -> None:
        """Make the reply queue exist, so that an answer to what is sent next has somewhere to go.

        Raises:
            OperationalError: The broker cannot be reached.
        """
        if self._consumer is not None:
            self._check()
        if self._consumer is None and self._keeper is not None:
            # The queue goes when the broker notices the end of its last reader, which may be later than this.
            self._look_in()
        now = time.monotonic()
        if self._consumer is None and now - self._declared_at >= DECLARED_S:
            self._host.transport().declare([reply_queue_spec(self._host.reply_queue())])
            self._declared_at = now

    def take(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """The stored forms of those that have arrived."""
        self._fetch_missing(task_ids)
        found = {}
        with self._changed:
            for task_id in task_ids:
                entry = self._find(task_id)
                if entry is not None:
                    found[task_id] = entry[1]
                    self._mark_read(task_id)
        return found

    def forget(self, task_ids: Sequence[str]) -> None:
        """Take these off the shelf."""
        self._fetch_missing(task_ids)
        with self._changed:
            for task_id in task_ids:
                self._unread.pop(task_id, None)
                self._done.pop(task_id, None)

    def add_waiter(self, task_ids: Sequence[str], news: deque[tuple[str, bytes]]) -> None:
        """Put states of these tasks into `news`: those on the shelf now, and all that arrive."""
        with self._changed:
            for task_id in task_ids:
                self._waiting.setdefault(task_id, []).append(news)
                entry = self._find(task_id)
                if entry is not None:
                    news.append((task_id, entry[1]))
                    self._mark_read(task_id)

    def remove_waiter(self, task_ids: Sequence[str], news: deque[tuple[str, bytes]]) -> None:
        """The opposite; unknown ones are no error."""
        with self._changed:
            for task_id in task_ids:
                waiters = self._waiting.get(task_id, [])
                waiters[:] = [waiter for waiter in waiters if waiter is not news]
                if not waiters:
                    self._waiting.pop(task_id, None)

    def wait(self, news: deque[tuple[str, bytes]], timeout_s: float) -> None:
        """Return once there is something in `news`, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        left_s = max(timeout_s, 0.0)
        while not news:
            if self._may_read():
                self._read_as_the_one(left_s, open_s=max(left_s, OPEN_S))
            else:
                with self._changed:
                    self._changed.wait_for(lambda: news or not self._has_reader, left_s)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return

    # -- who reads --------------------------------------------------------------------------------------------

    def _fetch_missing(self, task_ids: Sequence[str]) -> None:
        """Read until all of these are here or nothing more comes. What trickles in for others is not waited for."""
        ends = time.monotonic() + TRICKLE_S
        while True:
            with self._changed:
                count = self._count
                if all(self._find(task_id) for task_id in task_ids):
                    return
            self._look_in(GRACE_S)
            came = self._count - count
            if not came or (came < WINDOW and time.monotonic() > ends):
                return

    def _look_in(self, timeout_s: float = 0.0) -> None:
        """Shelve what has arrived; whoever reads at this moment does it anyway."""
        if self._may_read():
            self._read_as_the_one(timeout_s)

    def _check(self) -> None:
        """Notice that the connection has gone, for on RabbitMQ the reply queue has gone with it."""
        if self._may_read():
            self._read_as_the_one(0.0, only_check=True)

    def _may_read(self) -> bool:
        """True if nobody reads; then the caller must, at once."""
        with self._changed:
            is_free = not self._has_reader
            self._has_reader = True
        return is_free

    def _read_as_the_one(self, timeout_s: float, *, open_s: float | None = None, only_check: bool = False) -> None:
        """Read until something has come or the time is over. The caller has set `_has_reader`.

        Args:
            open_s: How long to wait for the queue to be opened, if it is not; None: as long as that takes.
        """
        try:
            if not only_check:
                self._read_replies(timeout_s, open_s)
            elif self._consumer is not None:
                self._consumer.receive(0)
            if self._consumer is not None:
                self._is_away = False
        except OperationalError as exc:
            self._let_go()
            if not self._is_away:
                self._is_away = True
                said = str(exc).rstrip(". ")
                _log.warning("Lost the reply queue: %s. Opening it again; results sent meanwhile are gone.", said)
            if timeout_s > 0:
                time.sleep(min(timeout_s, RETRY_S))
        finally:
            with self._changed:
                self._has_reader = False
                self._changed.notify_all()

    def _read_replies(self, timeout_s: float, open_s: float | None) -> None:
        deadline = time.monotonic() + timeout_s
        consumer = self._consumer or self._open(open_s)
        if consumer is None:
            return
        while True:
            arrived = consumer.receive(WINDOW)
            while arrived:  # the broker may have more than a window's worth
                self._shelve([reply for delivery in arrived if (reply := self._read(delivery)) is not None])
                consumer.settle([Settlement(delivery.tag) for delivery in arrived])
                arrived = consumer.receive(WINDOW)
                deadline = 0.0
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            interval_s = consumer.poll_interval_s
            self._poller.sleep(min(left_s, KEEP_S if interval_s is None else interval_s))

    def _open(self, timeout_s: float | None) -> Consumer | None:
        """Open the queue, in a thread beside; None if that takes longer. The next to read takes it up then.

        Raises:
            OperationalError, ImproperlyConfigured: As `Transport.consumer`.
        """
        opening = self._opening
        if opening is None:
            opening = self._opening = futures.Future()
            args = (opening, self._host.reply_queue())
            threading.Thread(target=self._open_beside, args=args, name="celeriac-opener", daemon=True).start()
        if not futures.wait([opening], timeout_s).done:
            return None
        self._opening = None
        self._consumer = opening.result()
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="celeriac-replies", daemon=True)
            self._keeper.start()
        return self._consumer

    def _open_beside(self, opening: futures.Future[Consumer], name: str) -> None:
        owner = f"replies@{name}-{uuid.uuid4().hex[:8]}"
        try:
            transport = self._host.transport()
            consumer = transport.consumer([reply_queue_spec(name)], owner=owner, poller=self._poller, window=WINDOW)
        except BaseException as exc:
            opening.set_exception(exc)
        else:
            opening.set_result(consumer)

    def _keep(self) -> None:
        """Prove now and then that this client lives, and empty the wire, also when nobody waits."""
        while not self._ended.wait(KEEP_S):
            consumer = self._consumer
            if consumer is None:
                if self._opening is not None:
                    self._look_in()
                continue
            try:
                consumer.renew()
            except OperationalError as exc:
                _log.debug("Reply queue not kept alive: %s", exc)  # the next to read meets it too, and opens anew
            self._look_in()

    # -- the shelf --------------------------------------------------------------------------------------------

    def _shelve(self, replies: list[tuple[str, str, bytes]]) -> None:
        with self._changed:
            self._count += len(replies)
            for task_id, state, data in replies:
                known = self._find(task_id)
                if known is not None and not replaces(state, known[0]):
                    continue
                self._done.pop(task_id, None)
                self._unread[task_id] = (state, data)
                for news in self._waiting.get(task_id, ()):
                    news.append((task_id, data))
                    self._mark_read(task_id)
            if len(self._unread) > UNREAD_KEPT:
                _log.warning("%d results that nobody asked for were dropped.", len(self._unread) - UNREAD_KEPT)
            _shrink(self._unread, UNREAD_KEPT)
            self._changed.notify_all()

    def _find(self, task_id: str) -> tuple[str, bytes] | None:
        return self._unread.get(task_id) or self._done.get(task_id)

    def _mark_read(self, task_id: str) -> None:
        entry = self._unread.pop(task_id, None)
        if entry is not None:
            self._done[task_id] = entry
            _shrink(self._done, READ_KEPT)

    # -- life -------------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._declared_at = float("-inf")  # it goes with its last consumer
        if consumer is not None:
            consumer.close()

    def close(self) -> None:
        """Stop reading; the queue, and what is in it, goes with its reader."""
        self._ended.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._has_reader, KEEP_S)
            self._has_reader = True
        opening, self._opening = self._opening, None
        try:
            self._let_go()
            if opening is not None:
                opening.add_done_callback(_close_late)
        except OperationalError as exc:
            _log.debug("Reply queue not closed in good order: %s", exc)  # it was gone already
        finally:
            with self._changed:
                self._has_reader = False
                self._changed.notify_all()


def _close_late(opening: futures.Future[Consumer]) -> None:
    """What was opened for a mailbox that is closed by now goes too."""
    if opening.exception() is None:
        opening.result().close()


def replaces(state: str, known: str) -> bool:
    """May this state follow that one? A success is final, and what is ready stays so (R3)."""
    if known == SUCCESS:
        return False
    return known not in READY_STATES or state == SUCCESS


def _shrink(shelf: dict[str, Any], limit: int) -> None:
    while len(shelf) > limit:
        shelf.pop(next(iter(shelf)))
