"""From a report to an ending: which states are stored, what is sent next, and how the delivery is settled.

Every flight ends here, exactly once, on every path.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from celeriac import signals, states
from celeriac.exceptions import Reject, TaskRevokedError, TimeLimitExceeded, WorkerLostError, mask_url
from celeriac.execution.request import Context
from celeriac.spec.data import FINAL_OUTCOMES, Delivery, JobReport, Payload, Settlement, StoredResult
from celeriac.utils.ids import uuid
from celeriac.worker.flights import Flight, Flights
from celeriac.worker.link import Link
from celeriac.worker.marks import Story
from celeriac.worker.plans import OVERHEAD_S
from celeriac.worker.window import Window

if TYPE_CHECKING:
    from celeriac.log import TaskLog
    from celeriac.resultstore import ResultStore
    from celeriac.spec.transport import Transport

ERROR_CHARS: Final = 8192  # B21
CRASHES_REMEMBERED: Final = 10_000

Verb = Literal["ack", "requeue", "dead"]

_log = logging.getLogger("celeriac.worker")


class Endings:
    """Ends the flights of one worker.

    Attributes:
        finished, given_back: How many deliveries ended so, for the last line.
    """

    def __init__(
        self,
        link: Link,
        flights: Flights,
        window: Window,
        log: TaskLog,
        store: ResultStore,
        transport: Transport,
        node: str,
        max_crashes: int,
        max_returns: int,
    ) -> None:
        self._max_crashes = max_crashes or float("inf")
        self._max_returns = max_returns or float("inf")
        self._link = link
        self._flights = flights
        self._window = window
        self._log = log
        self._store = store
        self._transport = transport
        self._node = node
        # Deaths of slots by task id: what counts for brokers that do not count attempts.
        self._crashes: OrderedDict[str, int] = OrderedDict()
        self.finished = self.given_back = 0

    # -- reports --------------------------------------------------------------------------------------------

    def digest(self, reports: Sequence[JobReport]) -> None:
        """End what has ended, and note what has begun."""
        flights, log, settle = self._flights, self._log, self._link.settle_flight
        spent_s, count = 0.0, 0
        for report in reports:
            flight = flights.get(report.token)
            if flight is None:
                continue  # it was ended when its link was closed
            if report.outcome == "succeeded":
                flights.remove(report.token)
                plan = flight.plan
                plan.learn(report.runtime_s)
                spent_s += report.runtime_s
                count += 1
                settlement = None if flight.acked else Settlement(flight.delivery.tag)
                settle(flight, settlement, report.stored, report.publish)
                if log.info_on:
                    log.line(
                        logging.INFO,
                        "task.succeeded",
                        task_name=plan.name,
                        task_id=flight.head.id,
                        runtime_s=round(report.runtime_s, 6),
                        result=report.detail,
                    )
            elif report.outcome in FINAL_OUTCOMES:
                flights.remove(report.token)
                self._end(flight, report)
            elif report.outcome == "accepted":
                self._accept(flight, report)
            else:
                settle(flight, None, report.stored)
        if count:
            self.finished += count
            self._window.learn(spent_s / count + OVERHEAD_S, count)

    def abandon(self) -> int:
        """The pool is gone: whatever it has not answered for goes back, flagged. What was acknowledged before it ran
        cannot go back; its failure is stored. Returns how many there were."""
        tokens = self._flights.tokens()
        for token in tokens:
            flight = self._flights.remove(token)
            stored: Sequence[StoredResult] = ()
            if flight.acked:
                error = WorkerLostError("The worker was told to stop before the task had ended.")
                stored = self.failure(flight.delivery, error)
            self._finish(flight, "requeue", stored, started=True)
        return len(tokens)

    def _accept(self, flight: Flight, report: JobReport) -> None:
        flight.pid = report.pid
        if flight.plan.early and not flight.acked:
            self._link.settle_flight(flight, Settlement(flight.delivery.tag))
            flight.acked = True

    def _end(self, flight: Flight, report: JobReport) -> None:
        """All endings but the plain good one."""
        plan, outcome = flight.plan, report.outcome
        named = {"task_name": plan.name, "task_id": flight.head.id}
        if outcome == "returned":
            self.given_back += 1
            self._link.settle_flight(flight, Settlement(flight.delivery.tag, "requeue"))
        elif outcome == "retried":
            plan.learn(report.runtime_s)
            self._log.line(logging.INFO, "task.retried", **named, error=report.detail)
            self._finish(flight, "ack", report.stored, report.publish)
        elif outcome == "ignored":
            self._log.line(logging.INFO, "task.ignored", **named)
            self._finish(flight, "ack", report.stored, report.publish)
        elif outcome == "failed":
            self._failed(flight, report)
        elif outcome == "rejected":
            self._rejected(flight, report)
        elif outcome == "timed_out":
            self._log.line(logging.ERROR, "task.timed_out", **named, limit_s=report.detail)
            stored = self.failure(flight.delivery, TimeLimitExceeded(_number(report.detail)))
            verb: Verb = "ack" if plan.ack_on_timeout else "dead"
            self._finish(flight, verb, stored, reason="time limit", error=report.detail)
        elif outcome == "cancelled":
            self._cancelled(flight, report)
        else:
            self._lost(flight, report.detail)

    def _cancelled(self, flight: Flight, report: JobReport) -> None:
        """Revoked: before it started, or ended while it ran."""
        self._log.line(logging.INFO, "task.revoked", task_name=flight.plan.name, task_id=flight.head.id)
        request, ran = self.request(flight.delivery), report.pid != 0
        error = TaskRevokedError("terminated" if ran else "revoked")
        self._finish(flight, "ack", self.state(request, states.REVOKED, error))
        if signals.task_revoked.receivers:
            signals.task_revoked.send(
                sender=flight.plan.task, request=request, terminated=ran, signum=flight.signum or None, expired=False
            )

    def _failed(self, flight: Flight, report: JobReport) -> None:
        plan = flight.plan
        plan.learn(report.runtime_s)
        named = {"task_name": plan.name, "task_id": flight.head.id, "error": report.detail}
        if report.traceback is None:
            self._log.line(logging.INFO, "task.failed_expectedly", **named)
        else:
            self._log.line(logging.ERROR, "task.failed", **named, traceback=report.traceback)
        acknowledge = plan.ack_on_timeout if report.timed_out else plan.ack_on_failure
        verb: Verb = "ack" if acknowledge else "dead"
        error = f"{report.detail}\n{report.traceback or ''}" if verb == "dead" else ""
        self._finish(flight, verb, report.stored, report.publish, reason="failed", error=error)

    def _rejected(self, flight: Flight, report: JobReport) -> None:
        named = {"task_name": flight.plan.name, "task_id": flight.head.id}
        self._log.line(logging.WARNING, "task.rejected", **named, error=report.detail)
        if report.requeue:
            self._return(flight)
            return
        stored = report.stored or self.failure(flight.delivery, ValueError(report.dead))
        self._finish(flight, "dead", stored, reason=report.dead, error=report.detail)

    def _return(self, flight: Flight) -> None:
        """Back to its queue, as its task wishes; that is counted in the message (B14)."""
        story = Story(self._transport, flight.delivery)
        if story.returns + 1 >= self._max_returns:
            reason = f"returned too often: its task gave it back {story.returns + 1} times"
            self._finish(flight, "dead", self.failure(flight.delivery, Reject(reason, False)), reason=reason)
            return
        again = story.returned_again()
        if again is None or flight.acked:
            self._finish(flight, "requeue", started=True)
        else:
            self._finish(flight, "ack", publish=[again])

    def _lost(self, flight: Flight, cause: str) -> None:
        """The slot died while it ran this: once more, elsewhere, unless it has killed too many (B14)."""
        task_id = flight.head.id
        crashes = max(flight.delivery.attempt, self._crashes.get(task_id, 0) + 1)
        again = flight.plan.requeue_lost and crashes < self._max_crashes
        then = f"It is run again (attempt {crashes + 1} of {self._max_crashes})." if again else "It is not run again."
        _log.error("The process that ran %s[%s] died: %s. %s", flight.plan.name, task_id, cause, then)
        if again:
            self._crashes[task_id] = crashes
            while len(self._crashes) > CRASHES_REMEMBERED:
                self._crashes.popitem(last=False)
            self._finish(flight, "requeue", started=True)
            return
        self._crashes.pop(task_id, None)
        stored = self.failure(flight.delivery, WorkerLostError(f"Worker exited prematurely: {cause}."))
        verb: Verb = "dead" if flight.plan.requeue_lost else "ack"
        self._finish(flight, verb, stored, reason=f"crash: its slot died {crashes} times", error=cause)

    def _finish(
        self,
        flight: Flight,
        verb: Verb,
        stored: Sequence[StoredResult] = (),
        publish: Sequence[Payload] = (),
        *,
        reason: str = "",
        error: str = "",
        started: bool = False,
    ) -> None:
        self.finished += verb != "requeue"
        if verb == "dead":
            reason, error = mask_url(reason)[:ERROR_CHARS], mask_url(error or reason)[:ERROR_CHARS]
        settlement = None if flight.acked else Settlement(flight.delivery.tag, verb, None, reason, error, started)
        self._link.settle_flight(flight, settlement, stored, publish)

    # -- deliveries that never flew -------------------------------------------------------------------------

    def give_back(self, delivery: Delivery, due: float | None = None) -> None:
        """To the queue, as if never received; at unix time `due`, if given."""
        self.given_back += 1
        self._link.settle(Settlement(delivery.tag, "requeue", due))

    def replace(self, delivery: Delivery, again: Payload) -> None:
        """To the queue as `again`, which is the same message with marks."""
        self.given_back += 1
        self._link.settle(Settlement(delivery.tag), (), [again])

    def lose(self, delivery: Delivery, reason: str) -> None:
        """Set aside what was lost too often to be run once more, with FAILURE stored."""
        self.set_aside(delivery, reason, self.failure(delivery, WorkerLostError(f"Not run again: {reason}.")))

    def set_aside(self, delivery: Delivery, reason: str, stored: Sequence[StoredResult] = ()) -> None:
        """To the dead letters."""
        reason = mask_url(reason)[:ERROR_CHARS]
        _log.error("Message of queue %s set aside: %s", delivery.queue, reason)
        self.finished += 1
        self._link.settle(Settlement(delivery.tag, "dead", None, reason, reason), stored)
        if signals.task_rejected.receivers:
            signals.task_rejected.send(sender=self, message=delivery, exc=reason)

    def revoke(self, delivery: Delivery, task: Any, reason: str) -> None:
        """Acknowledged without a run, with REVOKED stored."""
        request = self.request(delivery)
        self.finished += 1
        self._link.settle(Settlement(delivery.tag), self.state(request, states.REVOKED, TaskRevokedError(reason)))
        if signals.task_revoked.receivers:
            signals.task_revoked.send(
                sender=task, request=request, terminated=False, signum=None, expired=reason == "expired"
            )

    def request(self, delivery: Delivery) -> Context:
        """The request of a message that no slot has run; what cannot be read stays unsaid."""
        head = delivery.head
        request = Context(id=getattr(head, "id", None) or uuid(), task=getattr(head, "task", ""), hostname=self._node)
        with contextlib.suppress(ValueError):  # the head was readable, the rest need not be
            payload = self._transport.unpack(delivery.raw)
            request.update(payload.headers)
            request.update(properties=payload.properties, reply_to=payload.properties.get("reply_to"))
        return request

    def failure(self, delivery: Delivery, exc: BaseException) -> list[StoredResult]:
        """FAILURE of a message's task, to be stored."""
        return self.state(self.request(delivery), states.FAILURE, exc)

    def state(self, request: Context, state: str, exc: BaseException) -> list[StoredResult]:
        """A state, to be stored, unless nobody wants it."""
        if self._store.plugin is None or request.ignore_result or not request.id:
            return []
        return [self._store.make(request.id, state, self._store.failure(exc), None, request)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
