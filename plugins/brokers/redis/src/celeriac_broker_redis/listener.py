"""Listeners: one that subscribes to channels, and one that waits at a list, as kombu's fanout and reply queues do.

What a subscriber does not read piles up at the server, up to its `client-output-buffer-limit pubsub`; then the server
hangs up, and the listener is lost like any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from celeriac.exceptions import OperationalError, TransportLost
from celeriac.spec.transport import Poller
from celeriac_support_redis.wire import ReplyError, Wire, WireLost, pack


class RedisListener:
    """See `celeriac.spec.Listener`.

    Args:
        read: What a reply of the server's says to the listener; None if it is no message.
        cleanup: Removes what the broker knows of this listener.
    """

    dropped = 0
    poll_interval_s: float | None = None

    def __init__(
        self, wire: Wire, poller: Poller, read: Callable[[Any], bytes | None], cleanup: Callable[[], Any] | None = None
    ) -> None:
        self._wire = wire
        self._poller = poller
        self._read = read
        self._cleanup = cleanup
        self._heard: deque[bytes] = deque()
        self.closed = False
        poller.watch(wire.sock.fileno())

    def receive(self, limit: int) -> list[bytes]:
        if self.closed:
            raise TransportLost(f"this listener to {self._wire.address} is closed")
        try:
            if len(self._heard) < limit:
                for reply in self._wire.replies():
                    if isinstance(reply, ReplyError):
                        raise TransportLost(f"{self._wire.address} answered: {reply}") from reply
                    raw = self._read(reply)
                    if raw is not None:
                        self._heard.append(raw)
        except WireLost as exc:
            raise TransportLost(f"{exc}.") from exc
        return [self._heard.popleft() for _ in range(min(limit, len(self._heard)))]

    def abandon(self) -> None:
        """In a forked child: let go without a word."""
        self.closed = True
        self._wire.close()

    def close(self) -> None:
        if self.closed:
            return
        self._poller.unwatch(self._wire.sock.fileno())
        self.abandon()
        if self._cleanup is not None:
            try:
                self._cleanup()
            except OperationalError:
                pass  # the broker is away; an expired list and a binding to nowhere do no harm


def listen_to_channels(wire: Wire, poller: Poller, pattern: str) -> RedisListener:
    """Subscribe to channels by a pattern."""
    wire.call("PSUBSCRIBE", pattern)

    def read(reply: Any) -> bytes | None:
        return reply[3] if isinstance(reply, list) and len(reply) == 4 and reply[0] == b"pmessage" else None

    return RedisListener(wire, poller, read)


def listen_at_list(wire: Wire, poller: Poller, key: str, cleanup: Callable[[], Any]) -> RedisListener:
    """Wait at a list; each answer is followed by the next question."""
    question = pack(("BRPOP", key, 0))
    wire.write(question)

    def read(reply: Any) -> bytes | None:
        wire.write(question)
        return reply[1] if isinstance(reply, list) else None

    return RedisListener(wire, poller, read, cleanup)
