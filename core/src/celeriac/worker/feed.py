"""What happens to tasks in this worker, gathered for monitors. There is one only while task events are on.

The loop notes (a dictionary and an append for each event), the thread of `remote` takes and sends. What nobody takes in
time is dropped from the old end and counted: a monitor, or a broker, that is slow never holds up a task.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from celeriac.events.dispatcher import utc_offset_h
from celeriac.exceptions import mask_url
from celeriac.spec.data import Delivery, Head, Job, JobReport, Payload
from celeriac.utils.clock import LamportClock
from celeriac.worker.flights import GIVEN_UP, Flights

#: Events kept while the broker is away, or while more happens than can be sent.
KEPT: Final = 10_000
_CALL_HEADERS: Final = ("root_id", "parent_id", "retries", "eta", "expires")


class Feed:
    """The events of one worker's tasks.

    Args:
        unpack: The transport's reader of raw messages.
    Attributes:
        dropped: How many events nobody took in time.
    """

    def __init__(self, clock: LamportClock, node: str, unpack: Callable[[bytes], Payload]) -> None:
        self._clock = clock
        self._unpack = unpack
        self._common = {"hostname": node, "utcoffset": utc_offset_h(), "pid": os.getpid()}
        self._events: deque[tuple[dict[str, Any], bytes | None]] = deque(maxlen=KEPT)
        self.dropped = 0

    # -- the loop notes -------------------------------------------------------------------------------------

    def note(self, type: str, uuid: str, raw: bytes | None = None, **fields: Any) -> None:
        """One event; those fields that stand in the message are read from `raw` when it is sent."""
        if len(self._events) == KEPT:
            self.dropped += 1
        event = {
            "type": type,
            "uuid": uuid,
            **fields,
            **self._common,
            "timestamp": time.time(),
            "clock": self._clock.forward(),
        }
        self._events.append((event, raw))

    def received(self, delivery: Delivery, head: Head) -> None:
        """A message was received, to be run now or later."""
        self.note("task-received", head.id, delivery.raw, name=head.task)

    def submitted(self, jobs: Sequence[Job], flights: Flights) -> None:
        """These messages were received, and go to the pool."""
        for job in jobs:
            flight = flights.get(job.token)
            if flight is not None and not flight.told and flight.plan.task.send_events:
                flight.told = True
                self.received(flight.delivery, flight.head)

    def reported(self, reports: Sequence[JobReport], flights: Flights) -> None:
        """What the pool says of its jobs; called before they are ended."""
        for report in reports:
            flight = flights.get(report.token)
            if flight is None or not flight.plan.task.send_events:
                continue
            uuid, outcome = flight.head.id, report.outcome
            if outcome == "accepted":
                self.note("task-started", uuid)
            elif outcome == "succeeded":
                self.note("task-succeeded", uuid, result=report.detail, runtime=report.runtime_s)
            elif outcome == "failed":
                self.note(
                    "task-failed", uuid, exception=mask_url(report.detail), traceback=mask_url(report.traceback or "")
                )
            elif outcome == "retried":
                self.note(
                    "task-retried", uuid, exception=mask_url(report.detail), traceback=mask_url(report.traceback or "")
                )
            elif outcome == "timed_out":
                self.note("task-failed", uuid, exception=f"TimeLimitExceeded({report.detail})", traceback="")
            elif outcome == "rejected":
                self.note("task-rejected", uuid, requeue=report.requeue)
            elif outcome == "cancelled" and flight.epoch != GIVEN_UP:
                ended = report.pid != 0
                self.note("task-revoked", uuid, terminated=ended, signum=flight.signum or None, expired=False)

    # -- the sender takes -----------------------------------------------------------------------------------

    def take(self, limit: int) -> list[dict[str, Any]]:
        """At most so many events, oldest first, complete."""
        taken: list[dict[str, Any]] = []
        while self._events and len(taken) < limit:
            event, raw = self._events.popleft()
            if raw is not None:
                event.update(self._describe(raw))
            taken.append(event)
        return taken

    def put_back(self, events: Sequence[dict[str, Any]]) -> None:
        """They could not be sent: they go first next time, as far as there is room."""
        for event in reversed(events):
            if len(self._events) == KEPT:
                self.dropped += 1
            else:
                self._events.appendleft((event, None))

    def __len__(self) -> int:
        return len(self._events)

    def _describe(self, raw: bytes) -> dict[str, Any]:
        """What the message says of the call."""
        try:
            headers = self._unpack(raw).headers
        except ValueError:
            return {}  # the slot finds that too, and says so
        return {
            "args": mask_url(str(headers.get("argsrepr") or "")),
            "kwargs": mask_url(str(headers.get("kwargsrepr") or "")),
            **{name: headers.get(name) for name in _CALL_HEADERS},
        }
