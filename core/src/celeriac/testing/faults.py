"""A wire that fails on demand: a proxy between a client and a real server, for tests and for authors of plugins.

    with RedisService() as redis, FaultProxy(redis.url) as wire:
        app = Celery(broker=wire.url)
        wire.delay(0.3)           # everything takes 0.3 s longer, each way
        wire.throttle(10_000)     # at most 10,000 bytes a second, each way
        wire.hold()               # nothing gets through; what was said arrives after `heal`
        wire.swallow()            # the other end is gone and nobody says so: half-open
        wire.refuse()             # nobody listens any more; connections there are stay
        wire.reset_after(100)     # each connection is reset after 100 further bytes to the client
        wire.cut()                # all connections are reset, now
        wire.heal()               # all well again

Faults add up, and hold for connections there are and for new ones, until `heal`. Each way can be chosen: `UP` is from
client to server, `DOWN` from server to client. `accepted`, `resets` and `swallowed_bytes` say what a fault has really
done: a test of a fault that nobody met tests nothing.

It carries any protocol over TCP. One thread serves all connections. Only the standard library is needed.

Its port is not among those that the system gives to clients and to servers that take any: one of these could be
somebody else's by the time of `heal`.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

from celeriac.testing.services import HOST, free_ports

__all__ = ["BOTH", "DOWN", "UP", "FaultProxy"]

UP: Final = frozenset({"up"})
DOWN: Final = frozenset({"down"})
BOTH: Final = UP | DOWN

CHUNK_BYTES: Final = 64 * 1024
#: With so much on its way in one direction the sender is read no further, and so feels it.
MAX_BUFFERED_BYTES: Final = 4 * 1024 * 1024
#: A throttled way carries in steps of so long.
STEP_S: Final = 0.02
CONNECT_S: Final = 5.0
#: Somebody may be given our port while it is closed, and hold it for as long as this.
REOPEN_S: Final = 30.0


class FaultProxy:
    """A port that leads to the server of a URL, for as long as nobody says otherwise.

    Its methods may be called from any thread; each holds when it returns. What they do to the time and to bytes is
    meant for tests: some milliseconds off.

    Args:
        target: A URL with host and port.

    Attributes:
        url: The same URL, through this proxy.
        accepted: Connections that were accepted so far.
        resets: Connections that were reset by a fault so far.
        swallowed_bytes: What a fault has made disappear so far.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        if not parts.hostname or not parts.port:
            raise ValueError(f"{target!r}: a proxy needs a URL with host and port")
        self._target = (parts.hostname, parts.port)
        self._listener = _open()
        self.port: int = self._listener.getsockname()[1]
        login, at, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{login}{at}{HOST}:{self.port}").geturl()
        self.accepted = self.resets = self.swallowed_bytes = 0
        self._delay_s = dict.fromkeys(BOTH, 0.0)
        self._bytes_per_s: float | None = None
        self._held: frozenset[str] = frozenset()
        self._swallowed: frozenset[str] = frozenset()
        self._reset_after: int | None = None
        self._pairs: set[_Pair] = set()
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._closing = False
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._listen()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)
        self._thread.start()

    # faults

    def delay(self, seconds: float, ways: frozenset[str] = BOTH) -> None:
        """Let bytes arrive so much later, in their order. 0 ends it."""
        self._do(lambda: self._delay_s.update(dict.fromkeys(ways, seconds)))

    def throttle(self, bytes_per_s: float | None) -> None:
        """Carry at most so many bytes a second on each connection, each way. None ends it."""
        self._do(lambda: setattr(self, "_bytes_per_s", bytes_per_s))

    def hold(self, ways: frozenset[str] = BOTH) -> None:
        """Carry nothing: a network that is away for a while. What was sent meanwhile arrives after `heal`.

        New connections are accepted, and hear nothing.
        """
        self._do(lambda: setattr(self, "_held", ways))

    def swallow(self, ways: frozenset[str] = BOTH) -> None:
        """Let bytes vanish, with no word to anybody: the other end is gone for good, and the connection half-open.

        New connections are accepted, and hear nothing. `heal` resets the connections that have lost something, as the
        server's machine does when it is back and knows nothing of them.
        """
        self._do(lambda: setattr(self, "_swallowed", ways))

    def reset_after(self, count: int) -> None:
        """Reset each connection when it has carried so many further bytes to the client, which get through."""

        def act() -> None:
            self._reset_after = count
            for pair in self._pairs:
                pair.allowance = count

        self._do(act)

    def refuse(self) -> None:
        """Let nobody in: the port is closed. Connections there are stay."""
        self._do(self._close_door)

    def cut(self) -> int:
        """Reset all connections there are; returns how many that were. New ones are welcome."""
        count = 0

        def act() -> None:
            nonlocal count
            for pair in list(self._pairs):
                count += 1
                self._reset(pair)

        self._do(act)
        return count

    def heal(self) -> None:
        """End all faults."""

        def act() -> None:
            self._delay_s = dict.fromkeys(BOTH, 0.0)
            self._bytes_per_s = self._reset_after = None
            self._held = self._swallowed = frozenset()
            for pair in list(self._pairs):
                pair.allowance = None
                if pair.has_lost:
                    self._reset(pair)
            if self._listener.fileno() < 0:
                self._listener = _reopen(self.port)
                self._listen()

        self._do(act)

    # looking

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._pairs)

    # life

    def close(self) -> None:
        """End all connections and let go of the port. Idempotent."""
        if self._thread.is_alive():
            self._do(lambda: setattr(self, "_closing", True))
            self._thread.join()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # the thread

    def _do(self, act: Callable[[], None]) -> None:
        """Have the thread do it, and return when it has."""
        done = threading.Event()
        self._orders.append((act, done))
        with suppress(OSError):  # the thread may have done it already, and closed this behind it
            os.write(self._wake_write, b"\0")
        done.wait(2 * REOPEN_S)

    def _serve(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select(self._how_long()):
                    if key.fd == self._wake_read:
                        with suppress(BlockingIOError):
                            os.read(self._wake_read, 4096)
                    elif key.data is None:
                        self._accept()
                    elif key.data.pair in self._pairs:
                        self._read(key.data)
                while self._orders:
                    act, done = self._orders.popleft()
                    act()
                    done.set()
                for pair in list(self._pairs):
                    self._move(pair)
        finally:
            for pair in list(self._pairs):
                self._end(pair)
            self._close_door()
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _how_long(self) -> float | None:
        """Until the next bytes are due; None if nothing is."""
        moments = [
            lane.due_at
            for pair in self._pairs
            for lane in pair.lanes
            if lane.chunks and lane.way not in self._held | self._swallowed
        ]
        return None if not moments else max(0.0, min(moments) - time.monotonic())

    def _listen(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _close_door(self) -> None:
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        try:
            client = self._listener.accept()[0]
        except OSError:
            return  # it has gone again
        self.accepted += 1
        try:
            server = socket.create_connection(self._target, CONNECT_S)
        except OSError:
            _abort(client)  # as if the server itself had refused
            return
        pair = _Pair(client, server)
        pair.allowance = self._reset_after
        self._pairs.add(pair)
        for lane in pair.lanes:
            lane.source.setblocking(False)
            lane.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._watch(lane, True)

    def _watch(self, lane: _Lane, wanted: bool) -> None:
        if wanted != lane.is_watched:
            if wanted:
                self._selector.register(lane.source, selectors.EVENT_READ, lane)
            else:
                self._selector.unregister(lane.source)
            lane.is_watched = wanted

    def _read(self, lane: _Lane) -> None:
        try:
            data = lane.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return  # a spurious wake
        except OSError:
            self._reset(lane.pair, by_fault=False)
            return
        if not data:
            lane.is_ended = True
            self._watch(lane, False)
            return
        if lane.way in self._swallowed:
            self.swallowed_bytes += len(data)
            lane.pair.has_lost = True
            return
        lane.put(data, time.monotonic() + self._delay_s[lane.way])

    def _move(self, pair: _Pair) -> None:
        """Carry what is due, and end what has ended."""
        now = time.monotonic()
        for lane in pair.lanes:
            stopped = lane.way in self._held | self._swallowed
            while lane.chunks and lane.due_at <= now and not stopped:
                size = min(len(lane.chunks[0][1]), CHUNK_BYTES)
                if self._bytes_per_s is not None:
                    size = min(size, max(1, int(self._bytes_per_s * STEP_S)))
                if lane.way in DOWN and pair.allowance is not None:
                    size = min(size, pair.allowance)
                try:
                    sent = lane.sink.send(lane.chunks[0][1][:size]) if size else 0
                except BlockingIOError:
                    lane.not_before = now + STEP_S  # the reader is slow; ask again soon
                    break
                except OSError:
                    self._reset(pair, by_fault=False)
                    return
                lane.took(sent)
                if self._bytes_per_s is not None:
                    lane.not_before = now + sent / self._bytes_per_s
                if lane.way in DOWN and pair.allowance is not None:
                    pair.allowance -= sent
                    if pair.allowance <= 0:
                        self._reset(pair)
                        return
            if lane.is_ended and not lane.chunks and not stopped:
                self._end(pair)
                return
            self._watch(lane, not lane.is_ended and lane.size < MAX_BUFFERED_BYTES)

    def _reset(self, pair: _Pair, *, by_fault: bool = True) -> None:
        """End a connection with an RST on both sides."""
        self.resets += by_fault
        for lane in pair.lanes:
            self._watch(lane, False)
            _abort(lane.source)
        self._pairs.discard(pair)

    def _end(self, pair: _Pair) -> None:
        for lane in pair.lanes:
            self._watch(lane, False)
            lane.source.close()
        self._pairs.discard(pair)


class _Lane:
    """One way of one connection.

    Attributes:
        chunks: What is on its way: when it is due, and the bytes.
        not_before: Nothing more goes out before this moment.
        is_ended: The source has said that nothing more comes.
    """

    def __init__(self, pair: _Pair, way: str, source: socket.socket, sink: socket.socket) -> None:
        self.pair, self.way, self.source, self.sink = pair, way, source, sink
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.not_before = 0.0
        self.is_ended = self.is_watched = False

    @property
    def due_at(self) -> float:
        return max(self.chunks[0][0], self.not_before)

    def put(self, data: bytes, due_at: float) -> None:
        self.chunks.append((due_at, data))
        self.size += len(data)

    def took(self, count: int) -> None:
        due_at, data = self.chunks.popleft()
        self.size -= count
        if count < len(data):
            self.chunks.appendleft((due_at, data[count:]))


class _Pair:
    """One connection: its two ways.

    Attributes:
        allowance: Bytes that the client still gets before the reset; None: no end to them.
        has_lost: Bytes of it were swallowed.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.lanes = (_Lane(self, "up", client, server), _Lane(self, "down", server, client))
        self.allowance: int | None = None
        self.has_lost = False


def _abort(sock: socket.socket) -> None:
    """Close with an RST: what the peer has not read yet is lost to it."""
    with suppress(OSError):  # it may be gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _open() -> socket.socket:
    """Listen on a port of our own."""
    while True:
        (port,) = free_ports(1)
        try:
            return socket.create_server((HOST, port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:  # else somebody was faster
                raise


def _reopen(port: int) -> socket.socket:
    """Listen again on the port we had."""
    deadline = time.monotonic() + REOPEN_S
    while True:
        try:
            return socket.create_server((HOST, port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(STEP_S)
