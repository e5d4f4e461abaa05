"""From a report to an ending: which states are stored, what is sent next, and how the delivery is settled.

Every flight ends here, exactly once, on every path.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from celeriac import signals, states
from celeriac.exceptions import Reject, SecurityError, TaskRevokedError, TimeLimitExceeded, WorkerLostError, mask_url
from celeriac.execution.execute import ExceptionInfo
from celeriac.execution.followup import Following, after_no_run, written
from celeriac.execution.request import Context
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import FINAL_OUTCOMES, Delivery, Head, JobReport, Payload, Settlement
from celeriac.utils.ids import uuid
from celeriac.utils.times import after
from celeriac.worker.flights import GIVEN_UP, Flight, Flights
from celeriac.worker.link import Link
from celeriac.worker.marks import Story
from celeriac.worker.plans import OVERHEAD_S
from celeriac.worker.window import Window

if TYPE_CHECKING:
    from celeriac.log import TaskLog
    from celeriac.spec.transport import Transport
    from celeriac.worker.feed import Feed

ERROR_CHARS: Final = 8192  # B21
CRASHES_REMEMBERED: Final = 10_000

Verb = Literal["ack", "requeue", "dead"]

_log = logging.getLogger("celeriac.worker")


class Endings:
    """Ends the flights of one worker.

    Attributes:
        finished, given_back: How many deliveries ended so, for the last line.
        feed: Tells monitors what happens to tasks; None while task events are off.
    """

    def __init__(
        self,
        app: Any,
        link: Link,
        flights: Flights,
        window: Window,
        log: TaskLog,
        transport: Transport,
        node: str,
        max_crashes: int,
        max_returns: int,
    ) -> None:
        self._app = app
        self._max_crashes = max_crashes or float("inf")
        self._max_returns = max_returns or float("inf")
        self._link = link
        self._flights = flights
        self._window = window
        self._log = log
        self._transport = transport
        self._node = node
        # Deaths of slots by task id: what counts for brokers that do not count attempts.
        self._crashes: OrderedDict[str, int] = OrderedDict()
        # How often a message was lost since its run was cancelled, by task id: that says nothing against the task.
        self._spared: OrderedDict[str, int] = OrderedDict()
        self.finished = self.given_back = 0
        self.feed: Feed | None = None

    # -- reports --------------------------------------------------------------------------------------------

    def digest(self, reports: Sequence[JobReport]) -> None:
        """End what has ended, and note what has begun. Nobody says it twice: what is raised on the way (by a receiver
        of a signal that ends the worker) is raised when all are ended."""
        if self.feed is not None:
            self.feed.reported(reports, self._flights)
        left, surprise = iter(reports), None
        while True:
            try:
                self._digest(left)
                break
            except BaseException as exc:
                surprise = surprise or exc
        if surprise is not None:
            raise surprise

    def _digest(self, reports: Iterator[JobReport]) -> None:
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
                settle(flight, settlement, report.stored, report.publish, report.chords)
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
            following: Following | None = None
            if flight.acked:
                error = WorkerLostError("The worker was told to stop before the task had ended.")
                following = self.failure(flight.delivery, error)
            self._finish(flight, "requeue", following, started=True, spared=True)
        return len(tokens)

    def _accept(self, flight: Flight, report: JobReport) -> None:
        flight.pid, flight.started = report.pid, time.time()
        self.acknowledge_early(flight)

    def acknowledge_early(self, flight: Flight) -> None:
        """It runs from now on: acknowledge it, if its task is one that is acknowledged before it runs.

        What is not ours any more (its link or lease was lost on its way to the slot) cannot be: its message comes
        again, so the run is one like others whose message was lost.
        """
        if flight.plan.early and not flight.acked and self._link.holds(flight):
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
            self._finish(flight, "ack", report)
        elif outcome == "ignored":
            self._log.line(logging.INFO, "task.ignored", **named)
            self._finish(flight, "ack", report)
        elif outcome == "failed":
            self._failed(flight, report)
        elif outcome == "rejected":
            self._rejected(flight, report)
        elif outcome == "timed_out":
            self._log.line(logging.ERROR, "task.timed_out", **named, limit_s=report.detail)
            error = TimeLimitExceeded(_number(report.detail))
            following = self.failure(flight.delivery, error)
            verb: Verb = "ack" if plan.ack_on_timeout else "dead"
            self._finish(flight, verb, following, reason="time limit", error=report.detail)
            if signals.task_failure.receivers:
                self._announce_failure(flight, error)
        elif outcome == "cancelled":
            self._cancelled(flight, report)
        else:
            self._lost(flight, report.detail)

    def _cancelled(self, flight: Flight, report: JobReport) -> None:
        """Revoked: before it started, or ended while it ran. One cancelled with its link ends nothing: `spare`."""
        if flight.epoch == GIVEN_UP:
            self._log.line(logging.WARNING, "task.cancelled", task_name=flight.plan.name, task_id=flight.head.id)
            return
        self._log.line(logging.INFO, "task.revoked", task_name=flight.plan.name, task_id=flight.head.id)
        request, ran = self.request(flight.delivery), report.pid != 0
        error = TaskRevokedError("terminated" if ran else "revoked")
        self._finish(flight, "ack", self.failure(flight.delivery, error, states.REVOKED))
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
        self._finish(flight, verb, report, reason="failed", error=error)

    def _rejected(self, flight: Flight, report: JobReport) -> None:
        named = {"task_name": flight.plan.name, "task_id": flight.head.id}
        self._log.line(logging.WARNING, "task.rejected", **named, error=report.detail)
        if report.requeue:
            self._return(flight)
            return
        # If it has run, the slot has said all that follows, and has called errbacks.
        following = report if report.runtime_s else self.failure(flight.delivery, ValueError(report.dead))
        self._finish(flight, "dead", following, reason=report.dead, error=report.detail)

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
            self._finish(flight, "ack", Following([again]))

    def _lost(self, flight: Flight, cause: str) -> None:
        """The slot died while it ran this: once more, elsewhere, unless it has killed too many (B14)."""
        task_id = flight.head.id
        crashes = self._count_crashes(flight)
        if self.retries_death(flight):
            self._retry_lost(flight, cause, crashes)
            return
        again = flight.plan.requeue_lost and crashes < self._max_crashes and self._retries(flight) is None
        then = f"It is run again (attempt {crashes + 1} of {self._max_crashes})." if again else "It is not run again."
        _log.error("The process that ran %s[%s] died: %s. %s", flight.plan.name, task_id, cause, then)
        if again:
            self._remember_crashes(task_id, crashes)
            self._finish(flight, "requeue", started=True)
            return
        self._crashes.pop(task_id, None)
        if self.feed is not None:
            self.feed.note("task-failed", task_id, exception=f"WorkerLostError({cause!r})", traceback="")
        error = WorkerLostError(f"Worker exited prematurely: {cause}.")
        following = self.failure(flight.delivery, error)
        verb: Verb = "dead" if flight.plan.requeue_lost else "ack"
        self._finish(flight, verb, following, reason=f"crash: its slot died {crashes} times", error=cause)
        if signals.task_failure.receivers:
            self._announce_failure(flight, error)

    def retries_death(self, flight: Flight) -> bool:
        """Whether the death of its process counts as one of its task's retries, and one is left.

        A task without a bound on its retries has the one on crashes, as far as this worker has seen them.
        """
        retries, limit = self._retries(flight), flight.plan.task.max_retries
        if retries is None:
            return False
        return self._count_crashes(flight) < self._max_crashes if limit is None else retries < limit

    def _count_crashes(self, flight: Flight) -> int:
        """How often its process has died, with this time."""
        known = self._crashes.get(flight.head.id, 0) + 1
        return max(flight.delivery.attempt - self.spared(flight.delivery), known)

    def _retries(self, flight: Flight) -> int | None:
        """How often it was retried, if a death is to be counted so and can be (not in a message of protocol 1)."""
        if not flight.plan.retry_lost:
            return None
        try:
            self.sealed(flight.delivery)
        except (ValueError, SecurityError):
            return None
        story = Story(self._transport, flight.delivery)
        return story.retries if story.counts_tries else None

    def _retry_lost(self, flight: Flight, cause: str, crashes: int) -> None:
        """Send the call anew, as a retry of its task's, because its process died."""
        task, head = flight.plan.task, flight.head
        story = Story(self._transport, flight.delivery)
        again = story.retried(after(task.default_retry_delay))
        assert again is not None
        if self._app.codec.seal is not None:
            self._app.codec.seal.put_on(again)
        error = WorkerLostError(f"Worker exited prematurely: {cause}.")
        _log.error(
            "The process that ran %s[%s] died: %s. It is tried again in %g s (retry %d%s).",
            flight.plan.name, head.id, cause, task.default_retry_delay, story.retries + 1,
            "" if task.max_retries is None else f" of {task.max_retries}",
        )  # fmt: skip
        self._remember_crashes(head.id, crashes)
        if self.feed is not None:
            self.feed.note("task-retried", head.id, exception=f"WorkerLostError({cause!r})", traceback="")
        request, store = self.request(flight.delivery), self._app.store_of(task.name)
        following = Following([again])
        ignored = task.ignore_result if request.ignore_result is None else request.ignore_result
        if store.plugin is not None and not ignored:
            following.stored += written(store, head.id, states.RETRY, error, "", request)
        self._finish(flight, "ack", following)
        if signals.task_retry.receivers:
            signals.task_retry.send(sender=task, request=request, reason=error, einfo=ExceptionInfo(error, ""))

    def _remember_crashes(self, task_id: str, crashes: int) -> None:
        self._crashes[task_id] = crashes
        while len(self._crashes) > CRASHES_REMEMBERED:
            self._crashes.popitem(last=False)

    def spare(self, delivery: Delivery) -> None:
        """The link was lost, and its run cancelled or gone on with: that its message comes again is no crash."""
        task_id: str = delivery.head.id  # type: ignore[union-attr] # it ran
        count = self.spared(delivery) + 1
        self._spared.pop(task_id, None)
        self._spared[task_id] = count
        while len(self._spared) > CRASHES_REMEMBERED:
            self._spared.popitem(last=False)

    def spared(self, delivery: Delivery) -> int:
        """How many of the losses that a message has counted were such, or its worker was told to stop."""
        # The broker may have counted those that we know of, or not: another worker may have returned the message.
        return max(delivery.spared, self._spared.get(delivery.head.id, 0)) if self._spared else delivery.spared  # type: ignore[union-attr]

    def _announce_failure(self, flight: Flight, exc: Exception) -> None:
        """`task_failure` for a run that cannot say so itself, because its process is gone."""
        request = self.request(flight.delivery)
        with contextlib.suppress(Exception):  # a slot has read it before, but it may read what this process must not
            payload = self._transport.unpack(flight.delivery.raw)
            request.args, request.kwargs = read_call(payload, flight.plan.task.app.codec)[:2]
        signals.task_failure.send(
            sender=flight.plan.task,
            task_id=request.id,
            exception=exc,
            args=request.args,
            kwargs=request.kwargs,
            traceback=None,
            einfo=ExceptionInfo(exc, ""),
        )

    def _finish(
        self,
        flight: Flight,
        verb: Verb,
        following: JobReport | Following | None = None,
        *,
        reason: str = "",
        error: str = "",
        started: bool = False,
        spared: bool = False,
    ) -> None:
        self.finished += verb != "requeue"
        if verb == "dead":
            reason, error = mask_url(reason)[:ERROR_CHARS], mask_url(error or reason)[:ERROR_CHARS]
        tag = flight.delivery.tag
        settlement = None if flight.acked else Settlement(tag, verb, None, reason, error, started, spared)
        if following is None:
            self._link.settle_flight(flight, settlement)
        else:
            self._link.settle_flight(flight, settlement, following.stored, following.publish, following.chords)

    # -- deliveries that never flew -------------------------------------------------------------------------

    def give_back(self, delivery: Delivery, due: float | None = None) -> None:
        """To the queue, as if never received; at unix time `due`, if given."""
        self.given_back += 1
        self._link.settle(Settlement(delivery.tag, "requeue", due))

    def replace(self, delivery: Delivery, again: Payload) -> None:
        """To the queue as `again`, which is the same message with marks."""
        self.given_back += 1
        self._link.settle(Settlement(delivery.tag), Following([again]))

    def drop(self, delivery: Delivery) -> None:
        """Acknowledged without a run, and nothing stored: another message is the same call, and is run."""
        self.finished += 1
        self._link.settle(Settlement(delivery.tag))

    def repeat(self, delivery: Delivery, following: Following) -> None:
        """Acknowledged without a run, since an earlier one of it has succeeded: what follows from that is done."""
        self.finished += 1
        self._link.settle(Settlement(delivery.tag), following)

    def lose(self, delivery: Delivery, reason: str) -> None:
        """Set aside what was lost too often to be run once more, with FAILURE stored."""
        self.set_aside(delivery, reason, self.failure(delivery, WorkerLostError(f"Not run again: {reason}.")))

    def set_aside(self, delivery: Delivery, reason: str, following: Following | None = None) -> None:
        """To the dead letters."""
        reason = mask_url(reason)[:ERROR_CHARS]
        task_id = getattr(delivery.head, "id", "")
        call = f", {getattr(delivery.head, 'task', '')}[{task_id}]," if task_id else ""
        _log.error("Message of queue %s%s set aside: %s", delivery.queue, call, reason)
        self.finished += 1
        self._link.settle(Settlement(delivery.tag, "dead", None, reason, reason), following)
        if signals.task_rejected.receivers:
            signals.task_rejected.send(sender=self, message=delivery, exc=reason)
        if self.feed is not None and task_id:
            self.feed.note("task-failed", task_id, exception=reason, traceback="")

    def revoke(self, delivery: Delivery, task: Any, reason: str) -> None:
        """Acknowledged without a run, with REVOKED stored."""
        request = self.request(delivery)
        if self.feed is not None:
            if isinstance(delivery.head, Head):
                self.feed.received(delivery, delivery.head)
            self.feed.note("task-revoked", request.id, terminated=False, signum=None, expired=reason == "expired")
        self.finished += 1
        following = self.failure(delivery, TaskRevokedError(reason), states.REVOKED)
        self._link.settle(Settlement(delivery.tag), following)
        if signals.task_revoked.receivers:
            signals.task_revoked.send(
                sender=task, request=request, terminated=False, signum=None, expired=reason == "expired"
            )

    def request(self, delivery: Delivery) -> Context:
        """The request of a message that no slot has run; what cannot be read stays unsaid. Never raises."""
        head = delivery.head
        request = Context(id=getattr(head, "id", None) or uuid(), task=getattr(head, "task", ""), hostname=self._node)
        with contextlib.suppress(Exception):  # the head was readable, the rest need not be
            request.tell(self._transport.unpack(delivery.raw))
        return request

    def unpack(self, delivery: Delivery) -> Payload:
        """Its payload.

        Raises:
            ValueError: It cannot be read.
        """
        return self._transport.unpack(delivery.raw)

    def failure(self, delivery: Delivery, exc: BaseException, state: str = states.FAILURE) -> Following:
        """What follows when a message's task has ended without a slot's word: its state, and all that a failure sets
        off, as far as the message can be read."""
        # A message that nobody sealed has nothing that could follow.
        return after_no_run(
            self._app, self.request(delivery), lambda: read_call(self.sealed(delivery), self._app.codec)[2], exc, state
        )

    def sealed(self, delivery: Delivery) -> Payload:
        """Its payload, from which calls may be made.

        Raises:
            ValueError: It cannot be read.
            BadSeal: The app's messages are sealed, and this one is not.
        """
        payload = self._transport.unpack(delivery.raw)
        if self._app.codec.seal is not None:
            self._app.codec.seal.check(payload)
        return payload


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
