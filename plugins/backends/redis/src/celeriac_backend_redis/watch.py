"""Waiting for results: subscribe and read in one trip, then sleep on the socket.

A server hangs up on a subscriber for whom more than so much lies ready at once (`client-output-buffer-limit pubsub`, by
default 32 MB), be it news or the answer to a read. So who was cut off reads on another connection from then on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from celeriac_support_redis.wire import PushNotification, ReplyError, Wire, WireLost, pack

#: So few subscriptions are left to the connection's next user, who ends them in the command that begins its own.
FEW: Final = 8


class RedisWatch:
    """See `celeriac.spec.Watch`.

    Args:
        prefix: Before a task's id in its key, and in the name of its channel.
        acquire: Lends a connection that speaks RESP3, on which one may subscribe and read.
        release: Takes it back; without one when it is of no more use.
        translate: Makes a `BackendLost` or `BackendUnreachable` of an error of the connection.
        leftovers: By a connection's client id: what its last user is still subscribed to.
        fetch: Reads what is stored of these tasks, on a connection without subscriptions.
    """

    def __init__(
        self,
        prefix: bytes,
        acquire: Callable[[], Wire],
        release: Callable[[Wire], None],
        translate: Callable[[Exception], Exception],
        leftovers: dict[int, list[bytes]],
        fetch: Callable[[Sequence[str]], Mapping[str, bytes]],
    ) -> None:
        self._prefix = prefix
        self._acquire = acquire
        self._release = release
        self._translate = translate
        self._leftovers = leftovers
        self._fetch = fetch
        #: A connection of ours was cut: read on another.
        self._is_apart = False
        self._keys: dict[bytes, str] = {}
        self._asked: deque[list[bytes]] = deque()
        self._wire: Wire | None = None

    def add(self, ids: Sequence[str]) -> None:
        """See `Watch.add`."""
        new = {self._key(task_id): task_id for task_id in ids}
        connected = self._wire is not None
        self._keys.update(new)
        if new:
            self._attempt(lambda: self._subscribe(list(new)) if connected and self._wire is not None else None)

    def discard(self, ids: Sequence[str]) -> None:
        """See `Watch.discard`."""
        gone = [key for task_id in ids if self._keys.pop(key := self._key(task_id), None) is not None]
        wire = self._wire
        if gone and wire is not None:
            try:
                wire.write(pack(("UNSUBSCRIBE", *gone)))
            except WireLost:
                self._drop()  # the next wait connects anew, and subscribes to what is left

    def _key(self, task_id: str) -> bytes:
        return self._prefix + task_id.encode("utf-8", "surrogatepass")

    def wait(self, timeout_s: float) -> list[tuple[str, bytes]]:
        """See `Watch.wait`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found: list[tuple[str, bytes]] = self._attempt(lambda: self._look(deadline))
            if found:
                return found
            if time.monotonic() >= deadline:
                return []

    def close(self) -> None:
        """See `Watch.close`."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        if self._asked:
            wire.close()
            return
        try:
            if 0 < len(self._keys) <= FEW:
                self._leftovers[wire.client_id] = list(self._keys)
            elif self._keys:
                wire.write(pack(("UNSUBSCRIBE", *self._keys)))
        except WireLost:
            wire.close()
            return
        self._keys.clear()
        self._release(wire)

    def _attempt(self, act: Callable[[], Any]) -> Any:
        """Do it; after a lost connection subscribe anew and do it once more."""
        try:
            if self._wire is None:
                self._connect()
            return act()
        except (WireLost, ReplyError):
            self._drop()
            self._is_apart = True
        try:
            self._connect()
            return act()
        except (WireLost, ReplyError) as exc:
            self._drop()
            raise self._translate(exc) from exc

    def _connect(self) -> None:
        self._wire = self._acquire()
        if self._keys:
            self._subscribe(list(self._keys))

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        self._asked.clear()
        if wire is not None:
            wire.close()

    def _subscribe(self, keys: list[bytes]) -> None:
        """First subscribe, then read: what is stored between is heard."""
        wire = self._wire
        assert wire is not None
        data = pack(("SUBSCRIBE", *keys)) + pack(("PING",) if self._is_apart else ("MGET", *keys))
        left = [key for key in self._leftovers.pop(wire.client_id, ()) if key not in self._keys]
        wire.write(pack(("UNSUBSCRIBE", *left)) + data if left else data)
        self._asked.append(keys)

    def _look(self, deadline: float) -> list[tuple[str, bytes]]:
        """What has arrived by the deadline, each state once."""
        wire = self._wire
        assert wire is not None
        if not wire.wait(max(0.0, deadline - time.monotonic())):
            return []
        found: list[tuple[str, bytes]] = []
        for reply in wire.replies():
            if isinstance(reply, PushNotification):
                if reply[0] == b"message" and (task_id := self._keys.get(reply[1])) is not None:
                    found.append((task_id, reply[2]))
            elif isinstance(reply, ReplyError):
                raise reply
            elif isinstance(reply, list):
                for key, data in zip(self._asked.popleft(), reply, strict=True):
                    if data is not None and (task_id := self._keys.get(key)) is not None:
                        found.append((task_id, data))
            else:
                found += self._read_apart(self._asked.popleft())
        return found

    def _read_apart(self, keys: Sequence[bytes]) -> list[tuple[str, bytes]]:
        """What is stored of those that are subscribed to by now."""
        try:
            return list(self._fetch([task_id for key in keys if (task_id := self._keys.get(key)) is not None]).items())
        except BaseException:
            self._drop()  # the next wait subscribes and reads anew
            raise
