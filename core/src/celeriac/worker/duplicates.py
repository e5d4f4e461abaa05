"""Messages that came again although their task has succeeded (`worker_deduplicate_successful_tasks`).

A worker that dies between a task's end and its acknowledgement leaves a message that comes again. With this setting it
is not run again: it is acknowledged, once what follows from that success is done, which may not have been. Follow-ups
have the ids that they had the first time; those of which the result store knows anything are out already.

The result store knows of successes, and so does the worker itself: of those that have no result, or whose result was
lost with the link. `Loop` asks for messages only that the broker has handed out before.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from celeriac import states
from celeriac.exceptions import BackendGetMetaError, ContentDisallowed
from celeriac.execution.followup import AGAIN, Following, after_success
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import Delivery, Head, JobReport
from celeriac.worker.flights import Flights

if TYPE_CHECKING:
    from celeriac.worker.endings import Endings

#: Of so many successes, and of so many bytes of what follows from them, a worker keeps what is to be done.
KEPT: Final = 1000
KEPT_BYTES: Final = 16 * 1024 * 1024

_log = logging.getLogger("celeriac.worker")


class Duplicates:
    """What one worker knows of successes."""

    def __init__(self, app: Any, endings: Endings) -> None:
        self._app = app
        self._store = app.backend
        self._endings = endings
        plugin = app.backend.plugin
        self._asks = plugin is not None and "replies" not in plugin.abilities
        #: Report, attempt and size by task id.
        self._kept: OrderedDict[str, tuple[JobReport, int, int]] = OrderedDict()
        self._kept_bytes = 0

    def learn(self, reports: Sequence[JobReport], flights: Flights) -> None:
        """These reports are about to be performed. What was acknowledged before it ran will not come again."""
        for report in reports:
            flight = flights.get(report.token) if report.outcome == "succeeded" else None
            if flight is not None and not flight.acked:
                self._keep(flight.head.id, report, flight.delivery.attempt)

    def look(self, deliveries: Sequence[Delivery]) -> dict[Any, Following]:
        """What is still to be done for those of these whose task has succeeded, by their tags.

        Raises:
            BackendError: The store cannot say.
        """
        found: dict[Any, Following] = {}
        ids: set[str] = set()
        asked: list[tuple[Delivery, str]] = []
        for delivery in deliveries:
            assert isinstance(delivery.head, Head)
            kept = self._kept.get(delivery.head.id)
            # Lost more than once since: somebody else has begun it, so our run's effects outside are stale.
            if kept is None or delivery.attempt > kept[1] + 1:
                asked.append((delivery, delivery.head.id))
            else:
                found[delivery.tag] = _repeated(kept[0])
        if asked and self._asks:
            stored = self._store.plugin.fetch(list({task_id for _, task_id in asked}))
            for delivery, task_id in asked:
                following = self._follow(delivery, task_id, stored)
                if following is not None:
                    found[delivery.tag] = following
        for delivery in deliveries:
            if delivery.tag in found:
                assert isinstance(delivery.head, Head)
                if delivery.head.id in ids:  # of two that are one call, one does it
                    found[delivery.tag] = Following()
                ids.add(delivery.head.id)
                self._mark(found[delivery.tag], delivery)
        if self._asks:
            self._leave_out_known(found.values())
        return found

    def _keep(self, task_id: str, report: JobReport, attempt: int) -> None:
        if task_id in self._kept:
            self._kept_bytes -= self._kept.pop(task_id)[2]
        size = sum(len(one.data) for one in report.stored) + sum(len(one.body) for one in report.publish)
        if report.chords is not None:
            size += sum(len(one.data) + len(one.body) for one in report.chords.parts)
            size += sum(len(one.body) for one in report.chords.opened)
        self._kept[task_id] = report, attempt, size
        self._kept_bytes += size
        while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1][2]

    def _follow(self, delivery: Delivery, task_id: str, stored: Mapping[str, bytes]) -> Following | None:
        """What follows from a success in the store; None if there is none, or it cannot be read here: then the task
        runs again, as without this setting."""
        if task_id not in stored:
            return None
        try:
            document = self._store.decode(task_id, stored[task_id])
        except (BackendGetMetaError, ContentDisallowed) as exc:
            _log.warning("%s came again, and whether it has succeeded cannot be read: %s", task_id, exc)
            return None
        if document["status"] != states.SUCCESS:
            return None
        request = self._endings.request(delivery)
        try:
            payload = self._endings.sealed(delivery)
            request.update(read_call(payload, self._app.codec)[2])
            request.delivery_info = {"priority": payload.properties.get("priority")}
            return after_success(self._app, self._store, request, document["result"], False)
        except Exception as exc:  # any bytes may stand in a message, and in what is to follow from it
            _log.warning("%s came again and has succeeded; what follows cannot be read here: %s", task_id, exc)
            return None

    @staticmethod
    def _mark(following: Following, delivery: Delivery) -> None:
        """What is sent may have been sent before, under the same id."""
        for payload in following.publish:
            payload.headers[AGAIN] = max(2, delivery.attempt)

    def _leave_out_known(self, followings: Iterable[Following]) -> None:
        ids = {str(payload.headers.get("id")) for following in followings for payload in following.publish}
        known = self._store.plugin.fetch(list(ids)) if ids else {}
        for following in followings if known else ():
            following.publish = [one for one in following.publish if str(one.headers.get("id")) not in known]


def _repeated(report: JobReport) -> Following:
    following = Following(report.publish)
    following.stored = list(report.stored)
    if report.chords is not None:
        following.opened, following.parts = list(report.chords.opened), list(report.chords.parts)
    return following
