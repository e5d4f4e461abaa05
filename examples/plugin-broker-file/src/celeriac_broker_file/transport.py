"""The two objects of the broker contract (`celeriac.spec.transport`), on top of `Folder`."""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from celeriac.exceptions import ImproperlyConfigured, PublishRejected, TransportLost, TransportUnreachable
from celeriac.spec import Delivery, Head, Malformed, Payload, Poller, QueueSpec, Route, Settlement, envelope
from celeriac.spec.bindings import binds
from celeriac_broker_file.folder import Folder, Name

RESCUE_EVERY_S = 1.0
P = ParamSpec("P")
R = TypeVar("R")


def _speaking_our_errors(verb: Callable[P, R]) -> Callable[P, R]:
    """What the file system refuses is, for celeriac, a broker that was lost."""

    @functools.wraps(verb)
    def speaking(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except OSError as exc:
            raise TransportLost(f"file broker: {exc.filename}: {exc.strerror}.") from exc

    return speaking


class FileTransport:
    """Sends by writing files."""

    abilities = frozenset({"delay", "lease", "attempts", "dead_letter", "durable", "shared", "purge", "depth"})
    joint: str | None = None

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.netloc or not parts.path.strip("/"):
            raise ImproperlyConfigured(f"file broker: {url!r} names no folder. Write file:///path/to/folder.")
        self.folder = Folder(unquote(parts.path))

    @_speaking_our_errors
    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        self._prepare()
        targets = [self._queues_of(payload.route) for payload in payloads]  # refused before the first is written
        for queues, payload in zip(targets, payloads, strict=True):
            for queue in queues:
                self.folder.put(queue, envelope.pack(payload, uuid.uuid4().hex), payload.due)

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Poller, window: int) -> FileConsumer:
        self.declare(queues)
        return FileConsumer(self, [spec.name for spec in queues], owner)

    @_speaking_our_errors
    def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._prepare()
        for spec in queues:
            self.folder.queue(spec.name)
            if spec.exchange:
                self.folder.bind(spec.exchange, spec.exchange_type, spec.routing_key, spec.name)

    @_speaking_our_errors
    def delete(self, queue: str) -> None:
        self.purge(queue)
        self.folder.queue(queue).rmdir()

    @_speaking_our_errors
    def purge(self, queue: str) -> int:
        files = list(self.folder.queue(queue).iterdir())
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    @_speaking_our_errors
    def depth(self, queue: str) -> int:
        return len(self.folder.ready(queue))

    def read_head(self, raw: bytes) -> Head | Malformed:
        return envelope.read_head(raw)

    def unpack(self, raw: bytes) -> Payload:
        return envelope.unpack(raw)

    def ping(self, timeout_s: float) -> str:
        self._prepare()
        return f"files in {self.folder.root}"

    def after_fork(self) -> None:
        """Nothing is open between two verbs."""

    def close(self) -> None:
        """Nothing is open between two verbs."""

    def _queues_of(self, route: Route) -> list[str]:
        if not route.exchange:
            return [route.routing_key]
        bindings = self.folder.bindings(route.exchange)
        queues = sorted({queue for kind, key, queue in bindings if binds(kind, key, route.routing_key)})
        if not queues:
            raise PublishRejected(f"file broker: {route.exchange!r} feeds no queue for the key {route.routing_key!r}.")
        return queues

    def _prepare(self) -> None:
        try:
            self.folder.make()
        except OSError as exc:
            hint = "May this user write there?"
            raise TransportUnreachable(f"file broker: {exc.filename}: {exc.strerror}.", hint=hint) from exc


class FileConsumer:
    """Takes files by moving them into its own folder; the tag of a delivery is its name there."""

    def __init__(self, transport: FileTransport, queues: list[str], owner: str) -> None:
        self._transport = transport
        self._folder = transport.folder
        self._queues = queues
        self._mine, lock = self._folder.hold(owner)
        self._lock: int | None = lock
        self._waiting: list[Name] = []
        self._rescued_at = 0.0
        self._stopped = False

    @property
    def poll_interval_s(self) -> float | None:
        return 0.05

    @_speaking_our_errors
    def receive(self, limit: int) -> list[Delivery]:
        if self._stopped or limit <= 0:
            return []
        if time.monotonic() - self._rescued_at > RESCUE_EVERY_S:
            self._folder.rescue()
            self._rescued_at = time.monotonic()
        if not self._waiting:  # list the folders once for many messages; some may be another's by then
            turns = zip_longest(*map(self._folder.ready, self._queues))  # one of each queue, then the next of each
            self._waiting = [name for turn in turns for name in turn if name is not None][::-1]
        deliveries: list[Delivery] = []
        while self._waiting and len(deliveries) < limit:
            name = self._waiting.pop()
            raw = self._folder.take(name, self._mine)
            if raw is not None:
                head = envelope.read_head(raw)
                deliveries.append(Delivery(name.held, raw, head, name.queue, name.attempt, name.attempt > 1))
        return deliveries

    @_speaking_our_errors
    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        self._transport.send(publish)
        for settlement in batch:
            file = self._mine / settlement.tag
            if settlement.verb == "ack":
                file.unlink(missing_ok=True)  # gone: it was no longer ours, and nothing changes
            elif settlement.verb == "dead":
                self._folder.bury(file, settlement.reason, settlement.error)
            else:
                self._folder.put_back(file, lost=settlement.started, due=settlement.due)
                self._waiting.clear()  # it may stand before those

    def flush(self, timeout_s: float) -> None:
        """Nothing to wait for: `settle` returns when all is done."""

    def renew(self) -> list[Any]:
        """Nothing to do: the lock lives as long as the process."""
        return []

    def resize(self, window: int) -> None:
        """Nothing is taken in advance."""

    def subscribe(self, queue: QueueSpec) -> None:
        self._transport.declare([queue])
        self._queues = [*self._queues, queue.name]

    def unsubscribe(self, queue: str) -> None:
        self._queues = [name for name in self._queues if name != queue]
        self._waiting.clear()

    def stop(self) -> None:
        self._stopped = True

    @_speaking_our_errors
    def close(self) -> None:
        self.stop()
        lock, self._lock = self._lock, None
        if lock is not None:
            try:
                self._folder.release(self._mine)
            finally:
                os.close(lock)  # whatever could not be put back is rescued from now on
