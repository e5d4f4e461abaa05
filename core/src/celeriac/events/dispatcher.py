"""Sends events. Called by tasks (`send_event`), by clients that tell what they send, and by users' programs.

The worker's own task events take another way, `celeriac.worker.remote`, which gathers them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from celeriac.exceptions import OperationalError
from celeriac.messaging.broadcasts import event_exchange, make_event, require_fanout
from celeriac.utils.ids import anon_nodename

if TYPE_CHECKING:
    from celeriac.app.base import Celery
    from celeriac.spec.data import Payload

#: So many events are kept while the broker is away; older ones are dropped.
BUFFERED: Final = 1000
TIMEOUT_S: Final = 4.0

_log = logging.getLogger("celeriac.events")


def Event(type: str, _fields: dict[str, Any] | None = None, __dict__: Any = dict, **fields: Any) -> dict[str, Any]:
    """An event: its type, the moment, and whatever else is said of it."""
    event: dict[str, Any] = {**(_fields or {}), **fields, "type": type}
    event.setdefault("timestamp", time.time())
    return event


def utc_offset_h() -> int:
    """Whole hours by which UTC is ahead of this machine's clock, as events carry it."""
    offset = datetime.now().astimezone().utcoffset()
    return 0 if offset is None else -int(offset.total_seconds() // 3600)


def routing_key(type: str) -> str:
    """`task-sent` goes by the key `task.sent`."""
    return type.replace("-", ".")


class EventDispatcher:
    """Sends events of one process.

    Args:
        connection, channel: Accepted as Celery has them; the app's own way to the broker is used.
        hostname: Who says it; default: this process's name.
        enabled: False: say nothing until `enable()`.
        groups: Only events whose type begins with one of these words (`task`, `worker`).
        buffer_while_offline: Keep events while the broker is away, and send them later.
    Attributes:
        dropped: How many events were lost so far, for the broker was away for too long.
    """

    def __init__(
        self,
        connection: Any = None,
        hostname: str | None = None,
        channel: Any = None,
        buffer_while_offline: bool = True,
        app: Celery | None = None,
        serializer: str | None = None,
        groups: Iterable[str] | None = None,
        enabled: bool = True,
        **_: Any,
    ) -> None:
        assert app is not None, "an EventDispatcher belongs to an app: app.events.Dispatcher()"
        self.app = app
        self.hostname = hostname or anon_nodename()
        self.enabled = enabled
        self.groups = frozenset(groups or ())
        self.dropped = 0
        self.on_enabled: set[Any] = set()
        self.on_disabled: set[Any] = set()
        self._keeps = buffer_while_offline
        self._kept: deque[dict[str, Any]] = deque(maxlen=BUFFERED)
        self._pid = os.getpid()

    def __enter__(self) -> EventDispatcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def enable(self) -> None:
        """Send from now on."""
        self.enabled = True
        for callback in self.on_enabled:
            callback()

    def disable(self) -> None:
        """Send no more."""
        if self.enabled:
            self.enabled = False
            self.close()
            for callback in self.on_disabled:
                callback()

    def send(self, type: str, blind: bool = False, **fields: Any) -> None:
        """Send one event.

        Args:
            blind: Leave the app's clock alone.
        Raises:
            OperationalError: The broker is away, and `buffer_while_offline` is off.
        """
        if self.enabled and (not self.groups or type.partition("-")[0] in self.groups):
            self.send_all([self.complete(type, fields, blind)])

    def complete(self, type: str, fields: dict[str, Any], blind: bool = False) -> dict[str, Any]:
        """An event with the fields that all of them have."""
        clock = self.app.clock
        return Event(
            type,
            fields,
            hostname=fields.get("hostname") or self.hostname,
            utcoffset=utc_offset_h(),
            pid=os.getpid(),
            clock=clock.value if blind else clock.forward(),
        )

    def publish(self, type: str, fields: dict[str, Any], producer: Any = None, blind: bool = False, **_: Any) -> None:
        """As `send`, with the fields in a dict."""
        self.send_all([self.complete(type, dict(fields), blind)])

    def send_all(self, events: Sequence[dict[str, Any]]) -> None:
        """Send events that are complete, in one exchange with the broker; raises as `send`."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._kept.clear()  # the parent has them, and sends them
        transport = self.app.transport
        require_fanout(transport, "sending events")
        new = self._pack(events)  # first: one that cannot be packed takes none of the kept along
        kept = self._take_kept()
        batch, payloads = [*kept, *events], [*self._pack(kept), *new]
        exchange = event_exchange(self.app.conf)
        try:
            transport.broadcast(exchange, payloads, timeout_s=TIMEOUT_S)  # type: ignore[attr-defined]
        except OperationalError as exc:
            if not self._keeps:
                raise
            self.dropped += max(0, len(batch) - BUFFERED)
            self._kept.extend(batch)
            _log.warning("%d events wait for the broker: %s", len(self._kept), exc)

    def _pack(self, events: Iterable[dict[str, Any]]) -> list[Payload]:
        conf, codec = self.app.conf, self.app.codec
        return [make_event(event, routing_key(event["type"]), conf, codec, self.hostname) for event in events]

    def _take_kept(self) -> list[dict[str, Any]]:
        """What is kept, each by one thread only."""
        taken: list[dict[str, Any]] = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._kept.popleft())
        return taken

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what is kept."""
        if self._kept:
            self.send_all([])

    def extend_buffer(self, other: EventDispatcher) -> None:
        """Take over what another kept."""
        self._kept.extend(other._kept)

    def close(self) -> None:
        """Nothing to let go of: the connection is the app's."""
