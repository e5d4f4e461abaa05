"""One connection to RabbitMQ: frames in, frames out, heartbeats. Opened by `connector`; used by everyone else.

py-amqp has shaken hands (TLS, log-in, tuning) before a link begins; from then on we read and write the socket
ourselves. py-amqp reads it three times a frame and decodes the headers of every message; here one read brings a
hundred messages, which are cut apart by their lengths. What arrives is only sorted: messages go to `deliveries`,
everything else to its `Channel`, and whoever pumps looks there afterwards. There are no callbacks.

A link belongs to one thread at a time, `beat` excepted.
"""

from __future__ import annotations

import logging
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NoReturn

from celeriac.exceptions import TransportLost
from celeriac_broker_amqp import methods
from celeriac_broker_amqp.methods import BODY, FRAME_END, FRAME_OVERHEAD_BYTES, HEADER, HEARTBEAT, METHOD, frame

RECV_BYTES: Final = 128 * 1024
CLOSE_TIMEOUT_S: Final = 1.0

_frame_start = Struct(">BHI").unpack_from
_delivery_tag = Struct(">Q").unpack_from
_method_number = Struct(">I").unpack_from
_short = Struct(">H").unpack_from
_ack_arguments = Struct(">QB").unpack_from
_DELIVER: Final = methods.BASIC_DELIVER.to_bytes(4, "big")
#: What a non-blocking socket says when it has nothing to give or cannot take more.
_NOT_NOW: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_log = logging.getLogger("celeriac.broker.amqp")


class ChannelClosed(Exception):
    """The broker refused something and closed the channel on which it was asked.

    Attributes:
        code: AMQP's reply code, 404 for instance.
        text: The broker's words.
    """

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(f"{code} {text}")


class Channel:
    """What has arrived for one channel and nobody has looked at yet.

    Attributes:
        replies: (method number, arguments) of answers.
        confirms: (sequence number, multiple, taken) of publisher confirms.
        returned: (reply code, reply text, record) of messages that no queue wanted.
        cancelled: Consumer tags that the broker cancelled, for their queues are gone.
        closed: Why the broker closed the channel.
        opened: How many consumers the broker has opened.
    """

    __slots__ = ("cancelled", "closed", "confirms", "number", "opened", "replies", "returned")

    def __init__(self, number: int) -> None:
        self.number = number
        self.replies: deque[tuple[int, bytes]] = deque()
        self.confirms: list[tuple[int, bool, bool]] = []
        self.returned: list[tuple[int, str, bytes]] = []
        self.cancelled: list[str] = []
        self.closed: ChannelClosed | None = None
        self.opened = 0


class Link:
    """An open connection.

    Attributes:
        deliveries: (consumer tag, delivery tag, redelivered, record) of messages that arrived.
        blocked: Why the broker takes no messages now (memory or disk alarm); empty if it does.
        lost: The error that ended the link, None while it lives.
        bytes_sent: What the operating system has taken.
        server: The broker's own words about itself: product, version.
        where: Host, port and virtual host, for people.
        timeout_s: How long the broker may take to answer.
    """

    def __init__(
        self, sock: Any, *, frame_max: int, heartbeat_s: float, server: dict[str, Any], where: str, timeout_s: float
    ) -> None:
        self.deliveries: list[tuple[bytes, int, int, bytes]] = []
        self.blocked = ""
        self.lost: TransportLost | None = None
        self.bytes_sent = 0
        self.server = server
        self.where = where
        self.frame_max = frame_max
        self.heartbeat_s = heartbeat_s
        self._sock = sock
        self._recv, self._send = sock.recv, sock.send
        self.timeout_s = timeout_s
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        if self._is_tls:
            # A TLS connection has one state for both directions, and `beat` writes from another thread.
            lock = threading.Lock()
            self._recv, self._send = _in_turn(lock, sock.recv), _in_turn(lock, sock.send)
        self._write_lock = threading.Lock()
        self._unsent = b""
        self._inbox: list[bytes] = []
        self._rest = b""
        self._content: _Content | None = None
        self._channels: dict[int, Channel] = {}
        self._last_received = self._last_sent = time.monotonic()
        sock.settimeout(0)

    # -- channels -------------------------------------------------------------------------------------------

    def open_channel(self, number: int) -> Channel:
        """Open a channel; `number` must be free."""
        channel = self._channels[number] = Channel(number)
        self.call(channel, methods.CHANNEL_OPEN, methods.CHANNEL_OPEN_OK)
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Close a channel, unless the broker has."""
        if channel.closed is None and self.lost is None:
            self.call(channel, methods.close_channel(), methods.CHANNEL_CLOSE_OK)
        self._channels.pop(channel.number, None)

    def call(self, channel: Channel, request: bytes, reply: int, timeout_s: float | None = None) -> bytes:
        """Ask the broker for something; returns the arguments of its answer.

        Raises:
            ChannelClosed: It refused; the channel is closed.
            TransportLost: No answer within the time, or the connection dropped.
        """
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        self.send(frame(METHOD, channel.number, request), deadline)
        while True:
            while channel.replies:
                method, arguments = channel.replies.popleft()
                if method == reply:
                    return arguments
            if channel.closed is not None:
                raise channel.closed
            left_s = deadline - time.monotonic()
            if left_s > 0:
                self.pump(left_s)
                continue
            while self.pump():  # what is here now has come in time, for all we know: it may be us who were held up
                pass
            if not channel.replies and channel.closed is None:
                self._fail(f"no answer from RabbitMQ at {self.where} to method {_method_number(request)[0]:#x}")

    # -- writing --------------------------------------------------------------------------------------------

    def send(self, data: bytes, deadline: float | None = None) -> None:
        """Write whole frames.

        Args:
            deadline: The `time.monotonic` at which to give up; by default after the connection's timeout.
        Raises:
            TransportLost: The connection dropped, or the broker does not read. `bytes_sent` tells whether it
                may have got any of this.
        """
        if self.lost is not None:
            raise self.lost
        with self._write_lock:
            if self._unsent:
                data, self._unsent = self._unsent + data, b""
            view = memoryview(data)
            view = view[self._write(view) :]
            if not view:
                return
            end = time.monotonic() + self.timeout_s if deadline is None else deadline
            while view:
                self._wait_writable(end)
                view = view[self._write(view) :]

    def beat(self) -> None:
        """Send a heartbeat if it is time for one. Never waits; may be called from another thread."""
        if not self.heartbeat_s or self.lost is not None:
            return
        if time.monotonic() - self._last_sent < self.heartbeat_s / 3 or not self._write_lock.acquire(blocking=False):
            return  # whoever holds the lock is sending, which proves as much
        try:
            if not self._unsent:
                self._unsent = methods.HEARTBEAT_FRAME
            self._unsent = self._unsent[self._write(memoryview(self._unsent)) :]
        except TransportLost:
            pass  # kept in `lost`; the owner's next call raises it in the owner's thread
        finally:
            self._write_lock.release()

    def _write(self, view: memoryview) -> int:
        try:
            count: int = self._send(view)
        except _NOT_NOW:
            return 0
        except (OSError, ValueError) as exc:  # ValueError: a TLS socket whose peer hung up
            self._fail(f"the connection to RabbitMQ at {self.where} dropped: {exc}", exc)
        self.bytes_sent += count
        self._last_sent = time.monotonic()
        return count

    def _wait_writable(self, deadline: float) -> None:
        """Wait until the socket takes more. Reads meanwhile, for the broker may wait for us to do so."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            why = f" ({self.blocked})" if self.blocked else ""
            self._fail(f"RabbitMQ at {self.where} takes no bytes{why}")
        poller = select.poll()
        poller.register(self._sock, select.POLLIN | select.POLLOUT)
        for _, event in poller.poll(min(left_s, 1.0) * 1000):
            if event & ~select.POLLOUT:
                self._inbox.append(self._receive())

    # -- reading --------------------------------------------------------------------------------------------

    def pump(self, timeout_s: float = 0.0) -> bool:
        """Read what has arrived and sort it; wait for it at most `timeout_s`. True if there may be more.

        Raises:
            TransportLost: The connection dropped, the broker closed it or fell silent.
        """
        if self.lost is not None:
            raise self.lost
        data = self._receive()
        if not data and not self._inbox:
            if timeout_s > 0 and self._wait_readable(timeout_s):
                data = self._receive()
            if not data:
                self._check_heartbeat()
                return False
        if self._inbox:
            data, self._inbox = b"".join((*self._inbox, data)), []
        self._cut(self._rest + data if self._rest else data)
        return len(data) >= RECV_BYTES

    def _receive(self) -> bytes:
        """What the socket has now; b"" if nothing."""
        try:
            data: bytes = self._recv(RECV_BYTES)
            if data and self._is_tls:
                data = self._receive_rest(data)
        except _NOT_NOW:
            return b""
        except (OSError, ValueError) as exc:
            self._fail(f"the connection to RabbitMQ at {self.where} dropped: {exc}", exc)
        if not data:
            self._fail(f"RabbitMQ at {self.where} hung up")
        self._last_received = time.monotonic()
        return data

    def _receive_rest(self, data: bytes) -> bytes:
        """TLS gives a record at a time and hides what it has decrypted from `poll`, so take it all."""
        chunks = [data]
        while chunks[-1]:
            try:
                chunks.append(self._recv(RECV_BYTES))
            except _NOT_NOW:
                break
        return b"".join(chunks)

    def _wait_readable(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def _check_heartbeat(self) -> None:
        silent_s = time.monotonic() - self._last_received
        if self.heartbeat_s and silent_s > 2 * self.heartbeat_s:
            self._fail(f"RabbitMQ at {self.where} sent nothing for {silent_s:.0f} s")

    def _cut(self, data: bytes) -> None:
        """Cut bytes into frames and sort them; what is left of a frame waits for its rest.

        A delivery whose three frames are all at hand, nearly every one, is taken whole; this loop is where a
        worker's time on RabbitMQ goes, so that case is written out.
        """
        pos, total = 0, len(data)
        deliver = self.deliveries.append
        while total - pos >= FRAME_OVERHEAD_BYTES:
            kind, number, size = _frame_start(data, pos)
            start = pos + 7
            end = start + size
            if end >= total:
                if size > self.frame_max:
                    self._fail(
                        f"RabbitMQ at {self.where} sent a frame of {size} bytes; {self.frame_max} were agreed on"
                    )
                break
            if data[end] != FRAME_END:
                self._fail(f"RabbitMQ at {self.where} sent a frame without an end")
            if kind == METHOD and self._content is None and data[start : start + 4] == _DELIVER:
                after = end + 1
                if total - after > 30:  # a header frame of the least size and the start of a body frame
                    header_kind, _, size = _frame_start(data, after)
                    header, header_end = after + 11, after + 7 + size
                    if header_kind == HEADER and header_end + FRAME_OVERHEAD_BYTES < total:
                        body_kind, _, size = _frame_start(data, header_end + 1)
                        body, body_end = header_end + 8, header_end + 8 + size
                        if (
                            body_kind == BODY
                            and body_end < total
                            and data[body_end] == data[header_end] == FRAME_END
                            and _delivery_tag(data, header)[0] == size
                        ):
                            tag_start = start + 5
                            tag_end = tag_start + data[start + 4]
                            deliver(
                                (
                                    data[tag_start:tag_end],
                                    _delivery_tag(data, tag_end)[0],
                                    data[tag_end + 8],
                                    data[tag_end + 9 : end] + data[header:header_end] + data[body:body_end],
                                )
                            )
                            pos = body_end + 1
                            continue
            pos = end + 1
            self._sort(kind, number, data[start:end])
        self._rest = data[pos:]

    def _sort(self, kind: int, number: int, payload: bytes) -> None:
        """Sort one frame."""
        if kind == METHOD:
            method: int = _method_number(payload)[0]
            if method == methods.BASIC_DELIVER or method == methods.BASIC_RETURN:
                self._content = _Content(number, payload)
            else:
                self._dispatch(number, method, payload[4:])
        elif kind in (HEADER, BODY):
            content = self._content
            if content is None or content.number != number:
                self._fail(f"RabbitMQ at {self.where} sent part of a message out of turn")
            if content.add(kind, payload):
                self._content = None
                self._file(content)
        elif kind != HEARTBEAT:
            self._fail(f"RabbitMQ at {self.where} sent a frame of unknown type {kind}")

    def _file(self, content: _Content) -> None:
        """Put a whole message where it belongs."""
        method = content.method
        if _method_number(method)[0] == methods.BASIC_DELIVER:
            tag_end = 5 + method[4]
            record = content.record(method[tag_end + 9 :])
            self.deliveries.append((method[5:tag_end], _delivery_tag(method, tag_end)[0], method[tag_end + 8], record))
            return
        (code,) = _short(method, 4)
        text, pos = methods.read_short_text(method, 6)
        channel = self._channels.get(content.number)
        if channel is not None:
            channel.returned.append((code, text, content.record(method[pos:])))

    def _dispatch(self, number: int, method: int, arguments: bytes) -> None:
        """File a method that is no message."""
        if number == 0:
            self._dispatch_connection(method, arguments)
            return
        channel = self._channels.get(number)
        if channel is None:
            return  # a channel that we have closed: its last words
        if method == methods.BASIC_ACK or method == methods.BASIC_NACK:
            sequence, bits = _ack_arguments(arguments)
            channel.confirms.append((sequence, bool(bits & 1), method == methods.BASIC_ACK))
        elif method == methods.BASIC_CANCEL:
            channel.cancelled.append(methods.read_short_text(arguments)[0])
        elif method == methods.CHANNEL_CLOSE:
            (code,) = _short(arguments)
            channel.closed = ChannelClosed(code, methods.read_short_text(arguments, 2)[0])
            self.send(frame(METHOD, number, methods.CHANNEL_CLOSE_OK.to_bytes(4, "big")))
        elif method == methods.CHANNEL_FLOW:
            self.send(frame(METHOD, number, methods.CHANNEL_FLOW_OK.to_bytes(4, "big") + arguments[:1]))
        else:
            channel.opened += method == methods.BASIC_CONSUME_OK
            channel.replies.append((method, arguments))

    def _dispatch_connection(self, method: int, arguments: bytes) -> None:
        if method == methods.CONNECTION_BLOCKED:
            self.blocked = methods.read_short_text(arguments)[0] or "blocked"
            _log.warning("RabbitMQ at %s takes no messages for now: %s", self.where, self.blocked)
        elif method == methods.CONNECTION_UNBLOCKED:
            self.blocked = ""
        elif method == methods.CONNECTION_CLOSE:
            (code,) = _short(arguments)
            text = methods.read_short_text(arguments, 2)[0]
            try:
                self.send(frame(METHOD, 0, methods.CONNECTION_CLOSE_OK.to_bytes(4, "big")), time.monotonic())
            except TransportLost:
                pass  # it hangs up anyway; the reason it gave is the one to tell
            self.lost = None
            self._fail(f"RabbitMQ at {self.where} closed the connection: {code} {text}")
        elif method == methods.CONNECTION_CLOSE_OK:
            self._fail(f"the connection to RabbitMQ at {self.where} is closed")

    # -- the end --------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return int(self._sock.fileno())

    def close(self) -> None:
        """Say goodbye, as long as the broker listens, and hang up. Idempotent; at most `CLOSE_TIMEOUT_S`."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        try:
            if self.lost is None:
                self.send(frame(METHOD, 0, methods.close_connection("bye")), deadline)
            while self.lost is None and time.monotonic() < deadline:
                self.pump(deadline - time.monotonic())
        except TransportLost:
            pass  # which was the intention
        self.drop()

    def drop(self) -> None:
        """Hang up without a word (also in a forked child, where the words would be the parent's). Idempotent."""
        if self.lost is None:
            self.lost = TransportLost(f"the connection to RabbitMQ at {self.where} was closed by us")
        self._sock.close()

    def _fail(self, message: str, cause: BaseException | None = None) -> NoReturn:
        self.lost = TransportLost(message)
        raise self.lost from cause


def _in_turn(lock: threading.Lock, do: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that no two threads do at the same time."""

    def call(what: Any) -> Any:
        with lock:
            return do(what)

    return call


class _Content:
    """A message that comes in several pieces."""

    __slots__ = ("header", "method", "missing", "number", "parts")

    def __init__(self, number: int, method: bytes) -> None:
        self.number = number
        self.method = method
        self.header = b""
        self.missing = 0
        self.parts: list[bytes] = []

    def add(self, kind: int, payload: bytes) -> bool:
        """Add a piece; True when it was the last."""
        if kind == HEADER:
            self.header = payload[4:]
            (self.missing,) = _delivery_tag(payload, 4)
        else:
            self.parts.append(payload)
            self.missing -= len(payload)
        return self.missing <= 0

    def record(self, route: bytes) -> bytes:
        """The message as `message` has it."""
        return b"".join((route, self.header, *self.parts))
