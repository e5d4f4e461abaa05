"""Hears events, for monitors: `app.events.Receiver(handlers={"task-failed": tell, "*": state.event}).capture()`."""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from celeriac.messaging.broadcasts import event_exchange, event_queue, read_events, require_fanout
from celeriac.utils.ids import uuid

if TYPE_CHECKING:
    from celeriac.app.base import Celery
    from celeriac.spec.transport import Listener

BATCH: Final = 1000
#: A client's own clock says little; its events are placed so far after what was heard last.
CLIENT_CLOCK_SKEW: Final = -1
LOOK_S: Final = 1.0
#: Later than this nothing was said: the end of the year 9999, as unix time, which the handlers of monitors can read.
LATEST: Final = 253_402_300_000.0

_log = logging.getLogger("celeriac.events")


class Ears:
    """A poller for one listener."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: set[int] = set()

    def watch(self, fd: int) -> None:
        """See `Poller.watch`."""
        self._watched.add(fd)
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """See `Poller.unwatch`."""
        if fd in self._watched:
            self._watched.remove(fd)
            self._poll.unregister(fd)

    def sleep(self, listener: Listener, timeout_s: float) -> None:
        """Until there is news, the listener wants to be asked, or the time is over."""
        pause_s = listener.poll_interval_s
        self._poll.poll(max(0.0, timeout_s if pause_s is None else min(timeout_s, pause_s)) * 1000 + 1)


class EventReceiver:
    """Hears events.

    Args:
        channel: Accepted as Celery has it (a connection); the app's own way to the broker is used.
        handlers: Event type → function of the event (a dict); `*` gets what no other does.
        routing_key: `#` for all, `worker.#` for those of workers …
        node_id, queue_prefix, queue_ttl, queue_expires, queue_exclusive, queue_durable: Of its queue, where brokers
            keep one; defaults are the settings `event_queue_…`.
    Attributes:
        should_stop: Set it, in a handler for instance, to end `capture`.
        malformed: How many messages were dropped because they were no events.
    """

    def __init__(
        self,
        channel: Any = None,
        handlers: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
        routing_key: str = "#",
        node_id: str | None = None,
        app: Celery | None = None,
        queue_prefix: str | None = None,
        accept: Any = None,
        queue_ttl: float | None = None,
        queue_expires: float | None = None,
        queue_exclusive: bool | None = None,
        queue_durable: bool | None = None,
    ) -> None:
        assert app is not None, "an EventReceiver belongs to an app: app.events.Receiver()"
        self.app = app
        self.handlers = dict(handlers or {})
        self.routing_key = routing_key
        self.node_id = node_id or uuid()
        self.should_stop = False
        self.malformed = 0
        self._listener: Listener | None = None
        self._ears = Ears()
        #: Messages that were heard and not handled yet, each the events in it.
        self._heard: deque[deque[dict[str, Any]]] = deque()
        prefix = app.conf["event_queue_prefix"] if queue_prefix is None else queue_prefix
        self._queue = event_queue(
            app.conf,
            f"{prefix}.{self.node_id}",
            routing_key,
            ttl=queue_ttl,
            expires=queue_expires,
            exclusive=queue_exclusive,
            durable=queue_durable,
        )

    # -- hearing --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to hear; done by the first `capture`.

        Raises:
            TransportUnreachable, TransportLost, Unsupported: As they say.
        """
        if self._listener is None:
            transport = self.app.transport
            require_fanout(transport, "hearing events")
            self._listener = transport.listen(  # type: ignore[attr-defined]
                event_exchange(self.app.conf), self._queue, poller=self._ears
            )

    def capture(self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True) -> None:
        """Hand events to the handlers.

        Args:
            limit: Return after so many messages.
            timeout: Raise `TimeoutError` when none came for so many seconds; None: wait for ever.
            wakeup: Ask all workers for a heartbeat first.
        Raises:
            TransportLost: The connection dropped; call it again to go on.
            TimeoutError: See `timeout`.
        """
        for _ in self.itercapture(limit, timeout, wakeup):
            pass

    def itercapture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> Iterator[dict[str, Any]]:
        """As `capture`, yielding each event after it was handled."""
        self.open()
        if wakeup:
            self.wakeup_workers()
        count = 0
        quiet_since = time.monotonic()
        while not self._is_over(count, limit):
            if not self._hear(min(LOOK_S, LOOK_S if timeout is None else timeout)):
                if timeout is not None and time.monotonic() - quiet_since >= timeout:
                    raise TimeoutError(f"no event came within {timeout:g} s")
                continue
            yield from self._handled()
            count += 1
            quiet_since = time.monotonic()

    def _handled(self) -> Iterator[dict[str, Any]]:
        """The events of the first message, each after it was handled. What a handler that raises, or a limit, leaves is
        there for the next call."""
        events = self._heard[0]
        while events:
            event = events.popleft()
            self.process(event["type"], event)
            yield event
        self._heard.popleft()

    def _is_over(self, count: int, limit: int | None) -> bool:
        return self.should_stop or count == limit

    def drain(self, timeout_s: float) -> int:
        """Handle what comes within this time, and return early with the first; how many events there were."""
        self.open()
        count = 0
        self._hear(timeout_s)
        while self._heard:
            count += sum(1 for _ in self._handled())
        return count

    def _hear(self, timeout_s: float) -> bool:
        """Whether there are messages to handle; waits for the first at most so long."""
        if self._heard:
            return True
        listener = self._listener
        assert listener is not None
        try:
            raws = listener.receive(BATCH)
            if not raws:
                self._ears.sleep(listener, timeout_s)
                raws = listener.receive(BATCH)
        except BaseException:
            self.close()
            raise
        self._heard.extend(deque(events) for raw in raws if (events := self._read(raw)))
        return bool(self._heard)

    def _read(self, raw: bytes) -> list[dict[str, Any]]:
        try:
            events = read_events(self.app.transport.unpack(raw), self.app.codec)
        except ValueError as exc:
            self.malformed += 1
            _log.debug("dropped what is no event: %s", exc)
            return []
        return [self._adjust(event) for event in events]

    def _adjust(self, event: dict[str, Any]) -> dict[str, Any]:
        """Take part in the clock, and note when it was heard."""
        clock = event.get("clock")
        if event["type"] == "task-sent" or type(clock) is not int:
            event["clock"] = self.app.clock.forward() + CLIENT_CLOCK_SKEW
        else:
            self.app.clock.adjust(clock)
        event["local_received"] = time.time()
        timestamp = event.get("timestamp")
        if not isinstance(timestamp, (int, float)) or not 0 <= timestamp < LATEST:
            event["timestamp"] = event["local_received"]
        return event

    def process(self, type: str, event: dict[str, Any]) -> None:
        """Call the handler of an event."""
        handler = self.handlers.get(type, self.handlers.get("*"))
        if handler is not None:
            handler(event)

    def wakeup_workers(self, channel: Any = None) -> None:
        """Ask all workers for a heartbeat."""
        self.app.control.broadcast("heartbeat")

    def close(self) -> None:
        """Hear no more."""
        listener, self._listener = self._listener, None
        self._heard.clear()
        if listener is not None:
            listener.close()

    def __enter__(self) -> EventReceiver:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
