"""Where the messages of one `memory://` URL stay: queues, bindings, who holds what, and the dead.

Every transport of this process with the same URL shares one `Place`. Each public method is one atomic step
under the place's lock, so it is also the whole of the delivery contract's state machine for this broker.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

from msgspec import Struct

from celeriac.exceptions import PublishRejected
from celeriac.spec import DeadBox, DeadLetter, ExchangeSpec, Payload, QueueSpec, Route, Settlement, envelope
from celeriac.spec.bindings import binds
from celeriac_broker_memory.state import MemoryState

DEFAULT_PRIORITY: Final = 0
DEAD_KEPT: Final = 10_000
DEAD_KEPT_S: Final = 7 * 24 * 3600.0
ERROR_CHARS: Final = 8192
#: Broadcasts kept for a listener that does not read.
HEARD_KEPT: Final = 10_000


class Entry(Struct):
    """One message in one queue. A smaller `order` is older; a message given back keeps its own."""

    order: int
    queue: str
    raw: bytes
    priority: int
    attempt: int = 1
    redelivered: bool = False
    spared: int = 0


class Wake:
    """A descriptor that becomes readable when somebody calls `set`; both calls are cheap and idempotent."""

    def __init__(self) -> None:
        self.fd, self._signal = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._signal, False)
        self._is_set = False

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            os.write(self._signal, b"1")

    def clear(self) -> None:
        if self._is_set:
            self._is_set = False
            os.read(self.fd, 16)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._signal)


class Holder:
    """What the place knows about one consumer: the deliveries it has, and whether it waits for news.

    It does not know the consumer, so a consumer that nobody refers to any more can be collected.
    """

    def __init__(self, queues: Iterable[str], owner: str = "") -> None:
        self.queues = list(queues)
        self.owner = owner
        self.held: dict[int, Entry] = {}
        self.wake: Wake | None = Wake()
        self.idle = False


class Ear:
    """What the place knows about one listener: what it wants to hear, and what it has not read yet."""

    def __init__(self, exchange: ExchangeSpec, key: str) -> None:
        self.exchange = exchange
        self.key = key
        self.heard: deque[bytes] = deque(maxlen=HEARD_KEPT)
        self.dropped = 0
        self.wake: Wake | None = Wake()

    def hear(self, raw: bytes) -> None:
        self.dropped += len(self.heard) == HEARD_KEPT
        self.heard.append(raw)
        if self.wake is not None:
            self.wake.set()

    def take(self, limit: int) -> list[bytes]:
        taken = [self.heard.popleft() for _ in range(min(limit, len(self.heard)))]
        if not self.heard and self.wake is not None:
            self.wake.clear()
        return taken

    def close(self) -> None:
        if self.wake is not None:
            self.wake.close()
            self.wake = None


class _Queue:
    def __init__(self) -> None:
        self.ready: list[tuple[int, int, Entry]] = []  # heap of (-priority, order, entry)
        self.delayed: list[tuple[float, int, Entry]] = []  # heap of (due, order, entry)

    def push(self, entry: Entry, due: float | None, now: float) -> None:
        if due is not None and due > now:
            heappush(self.delayed, (due, entry.order, entry))
        else:
            heappush(self.ready, (-entry.priority, entry.order, entry))

    def ripen(self, now: float) -> None:
        """Move what has become due to the ready ones."""
        while self.delayed and self.delayed[0][0] <= now:
            entry = heappop(self.delayed)[2]
            heappush(self.ready, (-entry.priority, entry.order, entry))


class Place:
    """The messages of one URL. Safe for threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._bindings: dict[str, tuple[str, set[tuple[str, str]]]] = {}  # exchange → type, {(binding key, queue)}
        self._holders: list[Holder] = []
        self._ears: list[Ear] = []
        self.deaf: deque[Ear] = deque()  # of listeners that were collected, as below
        self._dead: dict[str, dict[str, tuple[DeadLetter, int]]] = {}  # queue → id → letter and priority, oldest first
        self._dropped: dict[str, int] = {}
        self._dead_ids = itertools.count(1)
        self._orders = itertools.count(1)
        self._tags = itertools.count(1)
        # Holders whose consumer was collected. A finalizer may run at any allocation, also while this thread
        # has the lock, so it only appends here; the next step under the lock looks after it.
        self.abandoned: deque[Holder] = deque()
        self.state = MemoryState()
        self._once: dict[str, float] = {}

    def put(self, packed: Sequence[tuple[Payload, bytes]]) -> None:
        """Take all of these messages, or none.

        Raises:
            PublishRejected: No queue is bound for one of them.
        """
        with self._lock:
            self._put(packed)

    def put_once(self, packed: Sequence[tuple[Payload, bytes]], key: str, keep_s: float) -> bool:
        """As `put`, unless this key is known; whether it was done."""
        with self._lock:
            now = time.monotonic()
            self._once = {known: ends for known, ends in self._once.items() if ends > now}
            if key in self._once:
                return False
            self._put(packed)
            self._once[key] = now + keep_s
            return True

    def acquire(self, holder: Holder, limit: int) -> list[tuple[int, Entry]]:
        """Hand at most `limit` ready messages over to this holder: `(tag, entry)`.

        Queues take turns: each call begins with the next one. A holder that got less than it asked for is
        idle, and is woken by the next message for it.
        """
        taken: list[tuple[int, Entry]] = []
        with self._lock:
            self._reclaim_abandoned()
            if holder.wake is not None:
                holder.wake.clear()
            now = time.time()
            for name in holder.queues:
                queue = self._queue(name)
                queue.ripen(now)
                while queue.ready and len(taken) < limit:
                    entry = heappop(queue.ready)[2]
                    tag = next(self._tags)
                    holder.held[tag] = entry
                    taken.append((tag, entry))
            holder.queues.extend(holder.queues[:1])
            del holder.queues[:1]
            holder.idle = len(taken) < limit
        return taken

    def settle(self, holder: Holder, batch: Sequence[Settlement], packed: Sequence[tuple[Payload, bytes]]) -> None:
        """Publish, then end these deliveries, as one step. Tags that the holder no longer has change nothing."""
        with self._lock:
            if packed:
                self._put(packed)
            now = time.time()
            for settlement in batch:
                entry = holder.held.pop(settlement.tag, None)
                if entry is None or settlement.verb == "ack":
                    continue
                if settlement.verb == "dead":
                    self._bury(entry, settlement, holder.owner, now)
                else:
                    self._give_back(entry, now, settlement.due, lost=settlement.started, spared=settlement.spared)

    def join(self, holder: Holder) -> None:
        """Let this holder be woken."""
        with self._lock:
            self._holders.append(holder)

    def leave(self, holder: Holder) -> None:
        """Wake this holder no more."""
        with self._lock:
            holder.idle = False
            if holder in self._holders:
                self._holders.remove(holder)

    def release(self, holder: Holder) -> None:
        """Give back all that the holder has: as lost, because nobody can say what had been started."""
        with self._lock:
            self._release(holder)

    def declare(self, specs: Iterable[QueueSpec]) -> None:
        with self._lock:
            for spec in specs:
                self._queue(spec.name)
                if spec.exchange:
                    known = self._bindings.setdefault(spec.exchange, (spec.exchange_type, set()))
                    known[1].add((spec.routing_key, spec.name))

    def delete(self, name: str) -> None:
        with self._lock:
            self._queues.pop(name, None)
            for _, bound in self._bindings.values():
                bound.difference_update([pair for pair in bound if pair[1] == name])

    def purge(self, name: str) -> int:
        with self._lock:
            queue = self._queues.pop(name, None)
            return 0 if queue is None else len(queue.ready) + len(queue.delayed)

    def depth(self, name: str) -> int:
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                return 0
            queue.ripen(time.time())
            return len(queue.ready)

    def next_due(self, holder: Holder) -> float | None:
        """When the next delayed message of this holder's queues is due; None: there is none."""
        with self._lock:
            queues = [self._queues[name] for name in holder.queues if name in self._queues]
            return min((queue.delayed[0][0] for queue in queues if queue.delayed), default=None)

    # -- broadcasts ---------------------------------------------------------------------------------------

    def broadcast(self, exchange: ExchangeSpec, packed: Sequence[tuple[Payload, bytes]]) -> None:
        """Let those hear it who want to."""
        with self._lock:
            self._forget_deaf()
            for ear in self._ears:
                for payload, raw in packed:
                    if ear.exchange.name == exchange.name and binds(exchange.type, ear.key, payload.route.routing_key):
                        ear.hear(raw)

    def open_ear(self, ear: Ear) -> None:
        with self._lock:
            self._ears.append(ear)

    def hear(self, ear: Ear, limit: int) -> list[bytes]:
        with self._lock:
            return ear.take(limit)

    def close_ear(self, ear: Ear) -> None:
        with self._lock:
            self.deaf.append(ear)
            self._forget_deaf()

    def dead_boxes(self, names: Sequence[str]) -> list[DeadBox]:
        with self._lock:
            wanted = dict.fromkeys([*names, *sorted(self._dead)])
            for name in wanted:
                self._forget_old(name, time.time())
            return [DeadBox(name, len(self._dead.get(name, ())), self._dropped.get(name, 0)) for name in wanted]

    def browse_dead(self, name: str, after: str, limit: int) -> list[DeadLetter]:
        with self._lock:
            self._forget_old(name, time.time())
            letters = (letter for letter, _ in self._dead.get(name, {}).values())
            return list(itertools.islice((one for one in letters if int(one.id) > int(after or 0)), limit))

    def take_dead(self, name: str, ids: Iterable[str], *, requeue: bool) -> int:
        """Remove these dead letters, and make their messages ready if so wished; how many there were."""
        taken = 0
        with self._lock:
            now = time.time()
            for id in ids:
                letter, priority = self._dead.get(name, {}).pop(id, (None, 0))
                if letter is None:
                    continue
                taken += 1
                if requeue:
                    self._push(Entry(next(self._orders), name, envelope.renew(letter.raw), priority), None, now)
        return taken

    # -- the steps below run under the lock ---------------------------------------------------------------

    def _put(self, packed: Sequence[tuple[Payload, bytes]]) -> None:
        routed = [(payload, raw, self._targets(payload.route)) for payload, raw in packed]
        now = time.time()
        for payload, raw, queues in routed:
            for name in queues:
                entry = Entry(next(self._orders), name, raw, _priority(payload))
                self._push(entry, payload.due, now)

    def _targets(self, route: Route) -> list[str]:
        if not route.exchange:
            return [route.routing_key]
        kind, bound = self._bindings.get(route.exchange, (route.exchange_type, ()))
        targets = sorted({queue for key, queue in bound if binds(kind, key, route.routing_key)})
        if not targets and kind != "fanout":  # nobody listening is an ordinary state for a fanout
            raise PublishRejected(
                f"memory broker: no queue is bound to exchange {route.exchange!r} ({kind}) for routing key "
                f"{route.routing_key!r}; declare the queue first"
            )
        return targets

    def _push(self, entry: Entry, due: float | None, now: float) -> None:
        self._queue(entry.queue).push(entry, due, now)
        for holder in self._holders:
            if holder.idle and entry.queue in holder.queues and holder.wake is not None:
                holder.idle = False
                holder.wake.set()

    def _give_back(self, entry: Entry, now: float, due: float | None, *, lost: bool, spared: bool = False) -> None:
        if lost:
            entry.attempt += 1
            entry.redelivered = True
            entry.spared += spared
        self._push(entry, due, now)

    def _bury(self, entry: Entry, settlement: Settlement, owner: str, now: float) -> None:
        id, error = str(next(self._dead_ids)), settlement.error[:ERROR_CHARS]
        letter = DeadLetter(id, entry.queue, entry.raw, settlement.reason, error, entry.attempt, owner, now)
        self._dead.setdefault(entry.queue, {})[id] = letter, entry.priority
        self._forget_old(entry.queue, now)

    def _forget_old(self, name: str, now: float) -> None:
        """Drop dead letters that are too many or too old."""
        box = self._dead.get(name, {})
        while box:
            oldest = next(iter(box.values()))[0]
            if len(box) <= DEAD_KEPT and oldest.at > now - DEAD_KEPT_S:
                return
            del box[oldest.id]
            self._dropped[name] = self._dropped.get(name, 0) + 1

    def _release(self, holder: Holder) -> None:
        now = time.time()
        while holder.held:
            self._give_back(holder.held.popitem()[1], now, None, lost=True)

    def _forget_deaf(self) -> None:
        while self.deaf:
            ear = self.deaf.popleft()
            if ear in self._ears:
                self._ears.remove(ear)
            ear.close()

    def _reclaim_abandoned(self) -> None:
        while self.abandoned:
            holder = self.abandoned.popleft()
            if holder in self._holders:
                self._holders.remove(holder)
            self._release(holder)
            if holder.wake is not None:
                holder.wake.close()
                holder.wake = None

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue()
        return queue


def _priority(payload: Payload) -> int:
    priority = payload.properties.get("priority")
    return priority if type(priority) is int else DEFAULT_PRIORITY


_places: dict[str, Place] = {}
_places_lock = threading.Lock()


def place_of(url: str) -> Place:
    """The place that all transports of this process share for this URL; made by the first."""
    name = url.partition("://")[2].split("?")[0].strip("/")
    with _places_lock:
        return _places.setdefault(name, Place(name))
