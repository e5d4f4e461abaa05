"""The memory transport and its consumer: a thin layer over the `Place` that they share with their URL's others."""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any, Final

from celeriac.exceptions import TransportLost, TransportUnreachable, Unsupported
from celeriac.spec import (
    DeadBox,
    DeadLetter,
    Delivery,
    ExchangeSpec,
    Head,
    Malformed,
    Payload,
    Poller,
    QueueSpec,
    Settlement,
    envelope,
)
from celeriac_broker_memory.place import Ear, Entry, Holder, Place, place_of
from celeriac_broker_memory.state import MemoryState

IDLE_POLL_S: Final = 1.0


class MemoryTransport:
    """Messages between the threads of one process. Higher priorities first, then the order of sending."""

    abilities = frozenset(
        {
            "delay",
            "priority",
            "fanout",
            "lease",
            "attempts",
            "spares",
            "dead_letter",
            "browse_dead",
            "purge",
            "depth",
            "state",
            "once",
        }
    )
    joint: str | None = None

    def __init__(self, url: str) -> None:
        self._place = place_of(url)
        self._pid = os.getpid()
        self._numbers = itertools.count(1)

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        self._require_own_process()
        self._place.put(self.pack(payloads))

    def send_once(self, payloads: Sequence[Payload], *, key: str, keep_s: float, timeout_s: float = 10.0) -> bool:
        self._require_own_process()
        return self._place.put_once(self.pack(payloads), key, keep_s)

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Poller, window: int) -> MemoryConsumer:
        self._require_own_process()
        return MemoryConsumer(self, self._place, queues, poller, owner)

    def broadcast(self, exchange: ExchangeSpec, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        self._require_own_process()
        self._place.broadcast(exchange, self.pack(payloads))

    def listen(self, exchange: ExchangeSpec, queue: QueueSpec, *, poller: Poller) -> MemoryListener:
        self._require_own_process()
        return MemoryListener(self._place, exchange, queue.routing_key, poller)

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._place.declare(queues)

    def delete(self, queue: str) -> None:
        self._place.delete(queue)

    def purge(self, queue: str) -> int:
        return self._place.purge(queue)

    def depth(self, queue: str) -> int:
        return self._place.depth(queue)

    def dead_boxes(self, queues: Sequence[str]) -> list[DeadBox]:
        return self._place.dead_boxes(queues)

    def browse_dead(self, queue: str, *, after: str = "", limit: int = 100) -> list[DeadLetter]:
        return self._place.browse_dead(queue, after, limit)

    def requeue_dead(self, queue: str, ids: Sequence[str]) -> int:
        self._require_own_process()
        return self._place.take_dead(queue, ids, requeue=True)

    def drop_dead(self, queue: str, ids: Sequence[str]) -> int:
        self._require_own_process()
        return self._place.take_dead(queue, ids, requeue=False)

    def state(self) -> MemoryState:
        self._require_own_process()
        return self._place.state

    def read_head(self, raw: bytes) -> Head | Malformed:
        return envelope.read_head(raw)

    def unpack(self, raw: bytes) -> Payload:
        return envelope.unpack(raw)

    def ping(self, timeout_s: float) -> str:
        self._require_own_process()
        return f"memory://{self._place.name} in process {self._pid}"

    def after_fork(self) -> None:
        """The child keeps a copy that nobody reads, so its verbs refuse: see `_require_own_process`."""

    def close(self) -> None:
        """Nothing to let go of: the messages stay for the other transports of this URL."""

    def pack(self, payloads: Sequence[Payload]) -> list[tuple[Payload, bytes]]:
        """The payloads with their envelopes, made before anybody takes the place's lock."""
        return [(payload, envelope.pack(payload, f"{self._pid}-{next(self._numbers)}")) for payload in payloads]

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            raise TransportUnreachable(
                f"memory broker: its messages live in process {self._pid} and cannot be reached from process "
                f"{os.getpid()}.",
                url=f"memory://{self._place.name}",
                hint="A sqlite:/// URL is a broker for several processes that needs no server.",
            )


class MemoryConsumer:
    """Receives from the queues of one place. Closed or forgotten, it gives back what it holds."""

    def __init__(
        self, transport: MemoryTransport, place: Place, queues: Sequence[QueueSpec], poller: Poller, owner: str = ""
    ) -> None:
        self._transport = transport
        self._place = place
        self._poller = poller
        self._stopped = self._closed = False
        place.declare(queues)
        self._holder = Holder((spec.name for spec in queues), owner)
        self._forgotten = weakref.finalize(self, place.abandoned.append, self._holder)
        self._forgotten.atexit = False
        assert self._holder.wake is not None
        self._fd = self._holder.wake.fd
        poller.watch(self._fd)
        place.join(self._holder)

    def receive(self, limit: int) -> list[Delivery]:
        self._require_open()
        if limit <= 0 or self._stopped:
            return []
        return [_deliver(tag, entry) for tag, entry in self._place.acquire(self._holder, limit)]

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        self._require_open()
        if joined is not None:
            raise Unsupported("memory broker: results cannot ride in its transactions; store them by the backend")
        self._place.settle(self._holder, batch, self._transport.pack(publish))

    def flush(self, timeout_s: float) -> None:
        """Nothing to wait for: `settle` returns when all is done."""

    def renew(self) -> list[Any]:
        return []

    def resize(self, window: int) -> None:
        """Nothing is fetched in advance, so the window needs no attention here."""

    def subscribe(self, queue: QueueSpec) -> None:
        self._place.declare([queue])
        if queue.name not in self._holder.queues:
            self._holder.queues = [*self._holder.queues, queue.name]

    def unsubscribe(self, queue: str) -> None:
        self._holder.queues = [name for name in self._holder.queues if name != queue]

    def stop(self) -> None:
        self._stopped = True
        self._place.leave(self._holder)

    def close(self) -> None:
        if self._closed:
            return
        self.stop()
        self._closed = True
        self._forgotten.detach()
        self._place.release(self._holder)
        self._poller.unwatch(self._fd)
        if self._holder.wake is not None:
            self._holder.wake.close()
            self._holder.wake = None

    @property
    def poll_interval_s(self) -> float | None:
        """Until the next delayed message is due, and not longer than a second."""
        due = self._place.next_due(self._holder)
        return IDLE_POLL_S if due is None else min(max(due - time.time(), 0.0), IDLE_POLL_S)

    def _require_open(self) -> None:
        if self._closed:
            raise TransportLost(f"memory broker: this consumer of memory://{self._place.name} is closed")


class MemoryListener:
    """Hears the broadcasts of one place. What it does not read is dropped from the old end."""

    poll_interval_s: float | None = None

    def __init__(self, place: Place, exchange: ExchangeSpec, key: str, poller: Poller) -> None:
        self._place = place
        self._poller = poller
        self._ear = Ear(exchange, key)
        self._forgotten = weakref.finalize(self, place.deaf.append, self._ear)
        self._forgotten.atexit = False
        assert self._ear.wake is not None
        self._fd = self._ear.wake.fd
        poller.watch(self._fd)
        place.open_ear(self._ear)

    @property
    def dropped(self) -> int:
        return self._ear.dropped

    def receive(self, limit: int) -> list[bytes]:
        if self._ear.wake is None:
            raise TransportLost(f"memory broker: this listener of memory://{self._place.name} is closed")
        return self._place.hear(self._ear, limit)

    def close(self) -> None:
        if self._forgotten.detach() is not None:
            self._poller.unwatch(self._fd)
            self._place.close_ear(self._ear)


def _deliver(tag: int, entry: Entry) -> Delivery:
    head = envelope.read_head(entry.raw)
    return Delivery(tag, entry.raw, head, entry.queue, entry.attempt, entry.redelivered, entry.spared)
