"""The worker's half of remote control: hears commands, answers, sends heartbeats and events.

All of it is done by one thread with connections of its own, so no task waits for it. Only the commands themselves are
performed by the loop's thread, between two turns (`Errands`), because they look at what the loop looks after; they
may take a tenth of its time, so a flood of them costs tasks no more than that.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celeriac.events.dispatcher import Event, routing_key, utc_offset_h
from celeriac.exceptions import CeleriacError, OperationalError
from celeriac.messaging.broadcasts import (
    Request,
    control_exchange,
    control_queue,
    event_exchange,
    make_event,
    make_reply,
    read_request,
)
from celeriac.spec.data import ExchangeSpec
from celeriac.worker.poller import Sleeper

if TYPE_CHECKING:
    from celeriac.spec.transport import Listener
    from celeriac.worker.feed import Feed

BATCH: Final = 64
#: Commands that wait for the loop; more are dropped and counted.
WAITING: Final = 1000
#: Events in one message, and messages in one exchange with the broker.
MULTI: Final = 100
FLUSHED: Final = 20
FLUSH_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
#: At most this share of the time is spent on commands, while more of them wait.
SHARE: Final = 0.1
TIMEOUT_S: Final = 2.0
#: For so long an answer is tried to be sent: nobody waits longer, and others wait behind it.
ANSWER_S: Final = 5.0
IDENTITY: Final = "py-celeriac"

_log = logging.getLogger("celeriac.worker.remote")
T = TypeVar("T")


class Errands:
    """What the loop's thread is asked to do between two turns, within a budget of its time.

    Args:
        perform: Does one, and never raises.
        wake: Ends the loop's sleep.
    """

    def __init__(self, perform: Callable[[Request], None], wake: Callable[[], None]) -> None:
        self._perform = perform
        self._wake = wake
        self._waiting: deque[Request] = deque()
        self._credit_s = 0.05
        self._counted_at = time.monotonic()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """From any thread."""
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            return
        self._waiting.append(request)
        self._wake()

    def run(self) -> float | None:
        """Do what the budget allows; seconds until there is budget for more, None if nothing is left."""
        now = time.monotonic()
        self._credit_s = min(0.05, self._credit_s + SHARE * (now - self._counted_at))
        while self._waiting and self._credit_s > 0:
            self._perform(self._waiting.popleft())
            done = time.monotonic()
            self._credit_s -= done - now
            now = done
        self._counted_at = now
        self._credit_s = max(self._credit_s, -0.05)  # one slow command does not make the worker deaf
        return max(0.001, -self._credit_s / SHARE) if self._waiting else None


class Remote(threading.Thread):
    """The thread of remote control.

    Args:
        counts: How many tasks run now, and how many have ended.
        heartbeat_s: Seconds between heartbeats; None sends none.
        listens: Whether to hear commands at all.
    Attributes:
        errands: For the loop.
        feed: Task events to send, while they are on.
        malformed: Messages that were no commands.
    """

    def __init__(
        self,
        app: Any,
        transport: Any,
        node: str,
        *,
        errands: Errands,
        counts: Callable[[], tuple[int, int]],
        heartbeat_s: float | None,
        listens: bool,
    ) -> None:
        super().__init__(name="celeriac-remote", daemon=True)
        self._app = app
        self._transport = transport
        self._node = node
        self._counts = counts
        self._heartbeat_s = heartbeat_s
        self._listens = listens
        self._sleeper = Sleeper()
        self._listener: Listener | None = None
        self._open_at = 0.0
        self._failures = 0
        self._send_at = 0.0
        self._replies: deque[tuple[Request, Any, float]] = deque(maxlen=WAITING)  # until when each is tried
        self._said: deque[dict[str, Any]] = deque(maxlen=100)  # worker events on their way
        self._ended = False
        self._tried = threading.Event()
        self._utcoffset = utc_offset_h()
        self._version = version("celeriac")
        self.errands = errands
        self.feed: Feed | None = None
        self.malformed = 0

    def begin(self) -> None:
        """Start; returns when commands are heard, so that whoever sees the worker ready may send some. If the broker
        is slow that comes later."""
        self.start()
        if self._listens:
            self._tried.wait(TIMEOUT_S)

    # -- from the loop's thread -----------------------------------------------------------------------------

    def answer(self, request: Request, value: Any) -> None:
        """Send this answer, if one is wanted."""
        if request.reply_to is not None:
            self._replies.append((request, value, time.monotonic() + ANSWER_S))
            self._sleeper.wake()

    def beat(self) -> None:
        """Send a heartbeat now."""
        self._say("worker-heartbeat")
        self._sleeper.wake()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Say goodbye, send what is left within the time, and end."""
        self._ended = True
        self._sleeper.wake()
        self.join(timeout_s)

    # -- the thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`."""
        beat_at = time.monotonic()
        if self._heartbeat_s is not None:
            self._say("worker-online")
        while not self._ended:
            try:
                now = time.monotonic()
                if self._heartbeat_s is not None and now >= beat_at:
                    self._say("worker-heartbeat")
                    beat_at = now + self._heartbeat_s
                heard = self._hear(now)
                self._tried.set()
                self._send(now)
                pause_s = 0.0 if heard else self._how_long(time.monotonic(), beat_at)
                self._sleeper.sleep(pause_s)
            except Exception:  # nothing that comes in may end this thread
                _log.exception("unexpected error in remote control")
                self._lose()
                time.sleep(1.0)
        if self._heartbeat_s is not None:
            self._say("worker-offline")
        self._send_at = 0.0
        self._send(time.monotonic())
        self._lose()
        self._sleeper.close()

    def _how_long(self, now: float, beat_at: float) -> float:
        waits = [LONGEST_PAUSE_S]
        if self._heartbeat_s is not None:
            waits.append(beat_at - now)
        if self._listener is None and self._listens:
            waits.append(self._open_at - now)
        elif self._listener is not None and self._listener.poll_interval_s is not None:
            waits.append(self._listener.poll_interval_s)
        if self.feed is not None:
            waits.append(FLUSH_S)
        if self._replies or self._said:
            waits.append(self._send_at - now)
        return max(0.0, min(waits))

    # -- hearing --------------------------------------------------------------------------------------------

    def _hear(self, now: float) -> bool:
        """Take in commands; True if there may be more."""
        if not self._listens or not self._open(now):
            return False
        assert self._listener is not None
        began = time.perf_counter()
        try:
            raws = self._listener.receive(BATCH)
        except OperationalError as exc:
            _log.warning("Remote control lost the broker: %s", exc)
            self._lose()
            return False
        for raw in raws:
            self._take(raw)
        if len(raws) == BATCH:  # a flood: leave the processor to the tasks
            time.sleep(min(0.5, (time.perf_counter() - began) * (1 / SHARE - 1)))
        return len(raws) == BATCH

    def _take(self, raw: bytes) -> None:
        try:
            request = read_request(self._transport.unpack(raw), self._app.codec)
        except ValueError as exc:
            self.malformed += 1
            _log.debug("dropped what is no command: %s", exc)
            return
        self._app.clock.adjust(request.clock)
        if request.is_for(self._node):
            self.errands.add(request)

    def _open(self, now: float) -> bool:
        if self._listener is not None:
            return True
        if now < self._open_at:
            return False
        conf = self._app.conf
        try:
            self._listener = self._transport.listen(
                control_exchange(conf), control_queue(conf, self._node), poller=self._sleeper
            )
        except CeleriacError as exc:
            self._failures += 1
            self._open_at = now + min(LONGEST_PAUSE_S, 0.25 * 2 ** min(self._failures, 6))
            if self._failures in (1, 10, 100, 1000):
                _log.warning("This worker does not hear commands now: %s", exc)
            return False
        self._failures = 0
        return True

    def _lose(self) -> None:
        listener, self._listener = self._listener, None
        self._open_at = time.monotonic() + 0.2
        if listener is not None:
            try:
                listener.close()
            except OperationalError as exc:
                _log.debug("a listener was not closed in good order: %s", exc)  # its connection is gone anyway

    # -- sending --------------------------------------------------------------------------------------------

    def _say(self, type: str) -> None:
        """An event about this worker."""
        active, processed = self._counts()
        fields = {
            "freq": self._heartbeat_s or 2.0,
            "active": active,
            "processed": processed,
            "loadavg": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else [0.0, 0.0, 0.0],
            "sw_ident": IDENTITY,
            "sw_ver": self._version,
            "sw_sys": platform.system(),
        }
        self._said.append(
            Event(
                type, fields, hostname=self._node, utcoffset=self._utcoffset, pid=os.getpid(),
                clock=self._app.clock.forward(),
            )
        )  # fmt: skip

    def _send(self, now: float) -> None:
        """Send answers and events; what cannot be sent now waits, within bounds."""
        if now < self._send_at:
            return
        try:
            _empty(self._said, lambda event: self._broadcast_events(event, routing_key(event["type"])))
            if self.feed is not None and len(self.feed):
                self._send_feed(self.feed)
            _empty(self._replies, lambda reply: self._send_reply(*reply))
        except OperationalError as exc:
            self._send_at = now + 1.0
            _log.debug("answers and events wait for the broker: %s", exc)

    def _send_reply(self, request: Request, value: Any, until: float) -> None:
        app = self._app
        assert request.reply_to is not None
        payload = make_reply(request, self._node, value, app.conf, app.codec, app.clock.forward())
        try:
            self._transport.broadcast(ExchangeSpec(request.reply_to[0], "direct"), [payload], timeout_s=TIMEOUT_S)
        except OperationalError as exc:
            if time.monotonic() < until:
                raise
            _log.warning("the answer to %s for %s cannot be sent: %s", request.method, request.reply_to[0], exc)

    def _send_feed(self, feed: Feed) -> None:
        app = self._app
        for _ in range(FLUSHED):
            events = feed.take(MULTI)
            if not events:
                return
            try:
                self._broadcast_events(events, "task.multi")
            except OperationalError:
                feed.put_back(events)
                raise
            except Exception as exc:  # whatever it is: others wait behind them
                _log.warning("%d events of %s cannot be sent as %s: %s", len(events), self._node,
                             app.conf["event_serializer"], exc)  # fmt: skip

    def _broadcast_events(self, events: Any, key: str) -> None:
        app = self._app
        payload = make_event(events, key, app.conf, app.codec, self._node)
        self._transport.broadcast(event_exchange(app.conf), [payload], timeout_s=TIMEOUT_S)


def _empty(waiting: deque[T], send: Callable[[T], None]) -> None:
    """Send what waits, in its order. What the broker did not take stays until it is back. What cannot be sent at all is
    dropped (anybody may ask for an answer to an odd place): it would be in the way of the rest for ever."""
    while waiting:
        try:
            send(waiting[0])
        except OperationalError:
            raise
        except Exception:
            _log.exception("dropped what cannot be sent")
        waiting.popleft()
