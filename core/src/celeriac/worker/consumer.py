"""The loop: receive → admit → submit, collect → settle; and coming back when the broker was lost.

One thread does all of it; only lease renewal runs beside it (`Renewer`). Per message it does a handful of dictionary
operations: whatever is unusual leaves the straight line early.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from celeriac import signals, states
from celeriac.exceptions import (
    NotRegistered,
    OperationalError,
    TaskRevokedError,
    TimeLimitExceeded,
    TransportLost,
    WorkerLostError,
)
from celeriac.execution.request import Context
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import (
    FINAL_OUTCOMES,
    Delivery,
    Head,
    Job,
    JobReport,
    Malformed,
    Payload,
    QueueSpec,
    Settlement,
    StoredResult,
)
from celeriac.utils.ids import uuid
from celeriac.worker.admission import RUN, Admission, Verdict, Waiting
from celeriac.worker.plans import TaskPlan
from celeriac.worker.poller import Sleeper
from celeriac.worker.settle import Settler
from celeriac.worker.window import BRIEF_S, Window

if TYPE_CHECKING:
    from celeriac.log import TaskLog
    from celeriac.spec.pool import Pool
    from celeriac.spec.transport import Consumer, Transport

IDLE_S: Final = 1.0  # the longest sleep
RENEW_S: Final = 5.0
MAX_CRASHES: Final = 3  # B14
CRASHES_REMEMBERED: Final = 10_000

_log = logging.getLogger("celeriac.worker")


class Flight:
    """A delivery on its way through this worker.

    Attributes:
        epoch: Of the consumer it came by; a later one cannot settle it.
        acked: It was acknowledged before it ran.
    """

    __slots__ = ("acked", "brief", "delivery", "epoch", "pid", "plan", "started_at")

    def __init__(self, delivery: Delivery, plan: TaskPlan, epoch: int, brief: bool) -> None:
        self.delivery = delivery
        self.plan = plan
        self.epoch = epoch
        self.brief = brief
        self.acked = False
        self.pid = 0
        self.started_at = 0.0


class Renewer(threading.Thread):
    """Renews the consumer's leases every few seconds, whatever the loop is doing."""

    def __init__(self, consumer: Consumer, report_lost: Callable[[Sequence[Any]], None]) -> None:
        super().__init__(name="celeriac-renewer", daemon=True)
        self._consumer = consumer
        self._report_lost = report_lost
        self._end = threading.Event()

    def run(self) -> None:
        pause_s = RENEW_S
        while not self._end.wait(pause_s):
            try:
                lost = self._consumer.renew()
            except OperationalError as exc:  # the loop meets the same trouble and reopens; until then try sooner
                _log.warning("lease not renewed: %s", exc)
                pause_s = 1.0
                continue
            pause_s = RENEW_S
            if lost:
                self._report_lost(lost)

    def stop(self) -> None:
        """End; a renewal under way finishes by itself."""
        self._end.set()


class Loop:
    """Everything between the broker and the pool.

    Args:
        owner: This worker incarnation's name.
        queues: What to consume.
    """

    def __init__(
        self,
        app: Any,
        transport: Transport,
        pool: Pool,
        sleeper: Sleeper,
        *,
        node: str,
        owner: str,
        queues: Sequence[QueueSpec],
        window: Window,
        log: TaskLog,
        hard_s: float | None,
        soft_s: float | None,
    ) -> None:
        self._app = app
        self._transport = transport
        self._pool = pool
        self._sleeper = sleeper
        self._node = node
        self._owner = owner
        self._queues = list(queues)
        self.window = window
        self._log = log
        self._limits = hard_s, soft_s
        self._store = app.backend
        self._plans: dict[str, TaskPlan] = {}
        self._flights: dict[int, Flight] = {}
        self._waiting = Waiting()
        self._tokens = itertools.count(1)
        self._long = 0
        self._epoch = 0
        self._consumer: Consumer | None = None
        self._settler: Settler | None = None
        self._renewer: Renewer | None = None
        self._reopen_at = 0.0
        self._failures = 0
        self._asked_window = 0
        self._lost_tags: deque[Any] = deque()
        self._crashes: OrderedDict[str, int] = OrderedDict()
        self._told_unknown: set[str] = set()
        self._declared: set[str] = set()
        self._stopping = False
        conf = app.conf
        self._admission = Admission(
            can_delay="delay" in transport.abilities,
            patience_s=float(conf["task_unknown_patience"]),
            rates=not conf["worker_disable_rate_limits"],
        )
        self.finished = self.given_back = 0

    # -- opening and closing --------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to consume.

        Raises:
            OperationalError, ImproperlyConfigured: As `Transport.consumer`.
        """
        self._epoch += 1
        self._asked_window = self._wanted_window()
        consumer = self._transport.consumer(
            self._queues, owner=f"{self._owner}.{self._epoch}", poller=self._sleeper, window=self._asked_window
        )
        backend = self._store.plugin
        joint = backend is not None and backend.joint is not None and backend.joint == self._transport.joint
        self._consumer = consumer
        self._settler = Settler(consumer, backend, joint=joint)
        self._renewer = Renewer(consumer, self._lost_tags.extend)
        self._renewer.start()
        self._failures = 0

    def stop_receiving(self) -> None:
        """Take no more, and give back what no slot has started (D2)."""
        self._stopping = True
        if self._consumer is not None:
            self._guard(self._consumer.stop)
        for delivery in self._waiting.clear():
            self._give_back(delivery)
        self._pool.withdraw()

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return not self._flights

    @property
    def connected(self) -> bool:
        """It consumes."""
        return self._consumer is not None

    def running(self) -> list[Flight]:
        """What is in the pool."""
        return list(self._flights.values())

    def close(self, last_reports: Sequence[JobReport], timeout_s: float = 5.0) -> None:
        """Settle these last reports, give back what is left, and let go."""
        self._digest(last_reports)
        for flight in list(self._flights.values()):  # a pool that broke its promise of one report each
            self._end(flight, "requeue", started=True)
        self._flights.clear()
        consumer, settler = self._consumer, self._settler
        if self._renewer is not None:
            self._renewer.stop()
        if consumer is None or settler is None:
            return
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(TransportLost):  # then the broker gives everything to others by itself
            settler.perform()
            while settler.blocked and time.monotonic() < deadline:
                time.sleep(settler.retry_in(time.monotonic()) or 0.01)
                settler.perform()
            consumer.flush(max(0.1, deadline - time.monotonic()))
        consumer.close()
        self._consumer = None
        self._log.flush()

    # -- one turn -------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what there is to do, then sleep until there is more.

        First what ended, then what comes: the room that a report makes is asked for in the same turn, and a broker
        gets the acks and the question for more in one exchange.
        """
        reports = self._pool.collect()
        if reports or self._lost_tags:
            self._digest(reports)
        if self._consumer is None:
            self._try_reopen()
        self._perform()
        self._receive()
        self._perform()
        self._log.flush()
        self._sleeper.sleep(self._how_long())

    def _receive(self) -> None:
        consumer, settler = self._consumer, self._settler
        if consumer is None or settler is None:
            return
        room = 0 if self._stopping or settler.blocked else max(0, self.window.size - len(self._flights))
        try:
            deliveries = consumer.receive(room)
        except OperationalError as exc:
            self._lose(exc)
            return
        if len(self._waiting):
            deliveries = [*deliveries, *self._waiting.due(time.time())]
        if deliveries:
            self._take(deliveries)

    def _perform(self) -> None:
        if self._settler is not None:
            self._guard(self._settler.perform)

    def _how_long(self) -> float:
        now, consumer = time.monotonic(), self._consumer
        pause = IDLE_S
        deadline = self._pool.deadline()
        if deadline is not None:
            pause = min(pause, max(0.0, deadline - now))
        if consumer is None:
            pause = min(pause, max(0.0, self._reopen_at - now))
        elif not self._stopping:
            poll_s = consumer.poll_interval_s
            if poll_s is not None and len(self._flights) < self.window.size:
                pause = min(pause, poll_s)
        if len(self._waiting):
            pause = min(pause, self._waiting.next_in(time.time()) or 0.0)
        if self._settler is not None and self._settler.blocked:
            pause = min(pause, self._settler.retry_in(now) or 0.0)
        return pause

    # -- receiving ------------------------------------------------------------------------------------------

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        jobs: list[Job] = []
        flights, plans, info_on = self._flights, self._plans, self._log.info_on
        admission, epoch = self._admission, self._epoch
        for delivery in deliveries:
            head = delivery.head
            if type(head) is Malformed:
                self._set_aside(delivery, f"malformed: {head.reason}")
                continue
            if not head.task:
                head = self._head_of_protocol_1(delivery)
                if head is None:
                    continue
            plan = plans.get(head.task) or self._make_plan(head.task)
            if plan is None or head.eta is not None or head.expires is not None or admission.revoked or plan.task.rate_limit:
                verdict = admission.judge(head, plan, len(self._waiting))
                if verdict is not RUN:
                    self._decide(delivery, head, verdict)
                    continue
            assert plan is not None
            brief = plan.cost_s < BRIEF_S
            if not brief:
                if self._long >= self.window.slots and not self.window.fixed:
                    # More long or unknown tasks than slots: somebody else may be free for them.
                    self.window.shrink()
                    self._give_back(delivery)
                    continue
                self._long += 1
            limits = head.timelimit
            hard_s, soft_s = (limits[0] or plan.hard_s, limits[1] or plan.soft_s) if limits else (plan.hard_s, plan.soft_s)
            token = next(self._tokens)
            flights[token] = Flight(delivery, plan, epoch, brief)
            jobs.append(
                Job(token, delivery.raw, delivery.queue, delivery.attempt, delivery.redelivered, plan.announce, soft_s, hard_s, plan.cost_s)
            )
            if info_on:
                self._log.line(logging.INFO, "task.received", task_name=head.task, task_id=head.id)
            if signals.task_received.receivers:
                signals.task_received.send(sender=self, request=self._request(delivery))
        if jobs:
            self._pool.submit(jobs)
        wanted = self._wanted_window()
        if wanted != self._asked_window and self._consumer is not None:
            self._asked_window = wanted
            consumer = self._consumer
            self._guard(lambda: consumer.resize(wanted))

    def _wanted_window(self) -> int:
        """The window in few steps, so that a broker that pushes need not follow each change."""
        size = self.window.size + len(self._waiting)
        return size if self.window.fixed or size <= self.window.slots else 1 << (size - 1).bit_length()

    def _make_plan(self, name: str) -> TaskPlan | None:
        task = self._app.tasks.get(name)
        if task is None:
            return None
        plan = self._plans[name] = TaskPlan(task, *self._limits, announce=False)
        return plan

    def _head_of_protocol_1(self, delivery: Delivery) -> Head | None:
        try:
            headers = read_call(self._transport.unpack(delivery.raw), self._app.codec)[3]
            head = Head(str(headers["id"]), str(headers["task"]), headers.get("eta"), headers.get("expires"), headers.get("timelimit"))
        except Exception as exc:  # any bytes may stand in a queue (B26)
            self._set_aside(delivery, f"malformed: {exc}")
            return None
        delivery.head = head
        return head

    def _decide(self, delivery: Delivery, head: Head, verdict: Verdict) -> None:
        what = verdict.what
        if what == "wait":
            self._waiting.add(verdict.when, delivery)
        elif what in ("defer", "unknown"):
            if what == "unknown":
                self._tell_unknown(head)
            self._settle(delivery, "requeue", due=verdict.when)
        elif what == "expired":
            self._log.line(logging.INFO, "task.expired", task_name=head.task, task_id=head.id)
            self._revoke(delivery, "expired", expired=True)
        elif what == "revoked":
            self._log.line(logging.INFO, "task.revoked", task_name=head.task, task_id=head.id)
            self._revoke(delivery, "revoked", expired=False)
        else:
            error = NotRegistered(head.task) if verdict.reason.startswith("unknown") else ValueError(verdict.reason)
            self._set_aside(delivery, verdict.reason, self._failure(delivery, error))

    def _revoke(self, delivery: Delivery, reason: str, *, expired: bool) -> None:
        request = self._request(delivery)
        self._settle(delivery, "ack", stored=self._state(request, states.REVOKED, TaskRevokedError(reason)))
        if signals.task_revoked.receivers:
            signals.task_revoked.send(sender=self._app.tasks.get(request.task), request=request, terminated=False, signum=None, expired=expired)

    def _tell_unknown(self, head: Head) -> None:
        if head.task in self._told_unknown:
            return
        self._told_unknown.add(head.task)
        _log.error(
            "Received unregistered task of type %r: this worker does not know it. The message is offered to other workers for %g s, then set "
            "aside. Is the module that defines it imported (-A, include, imports)? Known here: %s",
            head.task,
            self._app.conf["task_unknown_patience"],
            ", ".join(sorted(self._app.tasks.regular())) or "none",
        )

    # -- reports --------------------------------------------------------------------------------------------

    def _digest(self, reports: Sequence[JobReport]) -> None:
        while self._lost_tags:
            self._forget_tag(self._lost_tags.popleft())
        flights, log = self._flights, self._log
        spent, count = 0.0, 0
        for report in reports:
            flight = flights.get(report.token)
            if flight is None:
                continue
            outcome = report.outcome
            if outcome == "succeeded":
                del flights[report.token]
                plan = flight.plan
                plan.learn(report.runtime_s)
                spent += report.runtime_s
                count += 1
                if not flight.brief:
                    self._long -= 1
                self._finish(flight, "ack", report.stored, report.publish)
                if log.info_on:
                    head = flight.delivery.head
                    log.line(logging.INFO, "task.succeeded", task_name=plan.name, task_id=head.id, runtime_s=round(report.runtime_s, 6), result=report.detail)  # type: ignore[union-attr]
            elif outcome in FINAL_OUTCOMES:
                del flights[report.token]
                if not flight.brief:
                    self._long -= 1
                self._end_otherwise(flight, report)
            elif outcome == "accepted":
                self._accept(flight, report)
            elif self._settler is not None:
                self._settler.add(None, report.stored)
        if count:
            self.window.learn(spent / count + 0.00003, count)

    def _accept(self, flight: Flight, report: JobReport) -> None:
        flight.pid = report.pid
        flight.started_at = time.time()
        if flight.plan.early and not flight.acked:
            flight.acked = True
            self._settle_flight(flight, Settlement(flight.delivery.tag))

    def _end_otherwise(self, flight: Flight, report: JobReport) -> None:
        delivery, plan, log = flight.delivery, flight.plan, self._log
        head: Any = delivery.head
        named = {"task_name": plan.name, "task_id": head.id}
        outcome = report.outcome
        if outcome == "returned":
            self.given_back += 1
            self._settle_flight(flight, Settlement(delivery.tag, "requeue"))
        elif outcome == "retried":
            plan.learn(report.runtime_s)
            log.line(logging.INFO, "task.retried", **named, error=report.detail)
            self._finish(flight, "ack", report.stored, report.publish)
        elif outcome == "ignored":
            log.line(logging.INFO, "task.ignored", **named)
            self._finish(flight, "ack", report.stored, report.publish)
        elif outcome == "failed":
            plan.learn(report.runtime_s)
            if report.traceback is None:
                log.line(logging.INFO, "task.failed_expectedly", **named, error=report.detail)
            else:
                log.line(logging.ERROR, "task.failed", **named, error=report.detail, traceback=report.traceback)
            acknowledge = plan.ack_on_timeout if report.timed_out else plan.ack_on_failure
            self._finish(flight, "ack" if acknowledge else "dead", report.stored, report.publish, reason="failed", error=report.detail)
        elif outcome == "rejected":
            log.line(logging.WARNING, "task.rejected", **named, error=report.detail)
            if report.requeue:
                self._finish(flight, "requeue", (), (), started=True)
            else:
                stored = report.stored or self._failure(delivery, ValueError(report.dead))
                self._finish(flight, "dead", stored, (), reason=report.dead, error=report.detail)
        elif outcome == "timed_out":
            log.line(logging.ERROR, "task.timed_out", **named, limit_s=report.detail)
            stored = self._failure(delivery, TimeLimitExceeded(_number(report.detail)))
            self._finish(flight, "ack" if plan.ack_on_timeout else "dead", stored, (), reason="time limit", error=report.detail)
        elif outcome == "cancelled":
            log.line(logging.INFO, "task.revoked", **named)
            stored = self._state(self._request(delivery), states.REVOKED, TaskRevokedError("terminated"))
            self._finish(flight, "ack", stored, ())
        else:
            self._lost(flight, report.detail)

    def _lost(self, flight: Flight, cause: str) -> None:
        """The slot died while it ran this: once more, elsewhere, unless it has killed too many (B14)."""
        delivery = flight.delivery
        head: Any = delivery.head
        crashes = max(delivery.attempt, self._crashes.get(head.id, 0) + 1)
        again = flight.plan.requeue_lost and crashes < MAX_CRASHES
        _log.error(
            "The process that ran %s[%s] died: %s. %s", flight.plan.name, head.id, cause,
            f"It is run again (attempt {crashes + 1} of {MAX_CRASHES})." if again else "It is not run again.",
        )  # fmt: skip
        if again:
            self._crashes[head.id] = crashes
            while len(self._crashes) > CRASHES_REMEMBERED:
                self._crashes.popitem(last=False)
            self._finish(flight, "requeue", (), (), started=True)
            return
        self._crashes.pop(head.id, None)
        stored = self._failure(delivery, WorkerLostError(f"Worker exited prematurely: {cause}."))
        verb = "dead" if flight.plan.requeue_lost else "ack"
        self._finish(flight, verb, stored, (), reason=f"crash: its slot died {crashes} times", error=cause)

    # -- endings --------------------------------------------------------------------------------------------

    def _finish(
        self,
        flight: Flight,
        verb: Any,
        stored: Sequence[StoredResult],
        publish: Sequence[Payload],
        *,
        reason: str = "",
        error: str = "",
        started: bool = False,
    ) -> None:
        self.finished += verb != "requeue"
        if publish:
            self._declare_targets(publish)
        settlement = None if flight.acked else Settlement(flight.delivery.tag, verb, None, reason, error, started)
        self._settle_flight(flight, settlement, stored, publish)

    def _end(self, flight: Flight, verb: Any, *, started: bool) -> None:
        self._finish(flight, verb, (), (), started=started)

    def _settle_flight(
        self, flight: Flight, settlement: Settlement | None, stored: Sequence[StoredResult] = (), publish: Sequence[Payload] = ()
    ) -> None:
        if self._settler is None or flight.epoch != self._epoch:
            # Its consumer is gone and the message comes again, so only the result is worth keeping.
            if self._settler is not None and stored:
                self._settler.add(None, stored)
            return
        self._settler.add(settlement, stored, publish)

    def _settle(self, delivery: Delivery, verb: Any, *, due: float | None = None, stored: Sequence[StoredResult] = ()) -> None:
        assert self._settler is not None
        self._settler.add(Settlement(delivery.tag, verb, due), stored)

    def _give_back(self, delivery: Delivery) -> None:
        self.given_back += 1
        if self._settler is not None:
            self._settle(delivery, "requeue")

    def _set_aside(self, delivery: Delivery, reason: str, stored: Sequence[StoredResult] = ()) -> None:
        _log.error("Message of queue %s set aside: %s", delivery.queue, reason)
        assert self._settler is not None
        self._settler.add(Settlement(delivery.tag, "dead", None, reason, reason), stored)
        if signals.task_rejected.receivers:
            signals.task_rejected.send(sender=self, message=delivery, exc=reason)

    def _request(self, delivery: Delivery) -> Context:
        """The request of a message that no slot has run; what cannot be read stays unsaid."""
        head = delivery.head
        request = Context(id=getattr(head, "id", None) or uuid(), task=getattr(head, "task", ""), hostname=self._node)
        with contextlib.suppress(ValueError):  # the head was readable, the rest need not be
            payload = self._transport.unpack(delivery.raw)
            request.update(payload.headers)
            request.update(properties=payload.properties, reply_to=payload.properties.get("reply_to"))
        return request

    def _failure(self, delivery: Delivery, exc: BaseException) -> list[StoredResult]:
        return self._state(self._request(delivery), states.FAILURE, exc)

    def _state(self, request: Context, state: str, exc: BaseException) -> list[StoredResult]:
        if self._store.plugin is None or request.ignore_result:
            return []
        return [self._store.make(request.id, state, self._store.failure(exc), None, request)]

    def _declare_targets(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            queue = payload.route.queue
            if queue and queue not in self._declared:
                spec = self._app.router.spec(queue)
                self._guard(lambda spec=spec: self._transport.declare([spec]))
                self._declared.add(queue)

    # -- losing and coming back -----------------------------------------------------------------------------

    def _guard(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except OperationalError as exc:
            self._lose(exc)

    def _lose(self, exc: Exception) -> None:
        if self._consumer is None:
            return
        _log.warning("Lost the broker: %s. Reopening; unfinished messages come again.", exc)
        consumer, self._consumer = self._consumer, None
        if self._renewer is not None:
            self._renewer.stop()
        for delivery in self._waiting.clear():
            del delivery  # held by the broker for us, and coming again
        self._settler = None
        self._declared.clear()
        self._pool.withdraw()
        with contextlib.suppress(OperationalError):  # it is gone already
            consumer.close()
        self._reopen_at = time.monotonic() + random.uniform(0, 0.2)

    def _try_reopen(self) -> None:
        now = time.monotonic()
        if now < self._reopen_at or self._stopping:
            return
        try:
            self.open()
        except OperationalError as exc:
            self._failures += 1
            pause = random.uniform(0.1, min(5.0, 0.2 * 2 ** min(self._failures, 10)))
            self._reopen_at = now + pause
            _log.log(logging.WARNING if self._failures in (1, 10, 100) else logging.DEBUG, "Broker still away: %s. Next try in %.1f s.", exc, pause)
            return
        _log.info("The broker is back; consuming again.")

    def _forget_tag(self, tag: Any) -> None:
        for flight in self._flights.values():
            if flight.delivery.tag == tag and flight.epoch == self._epoch:
                head: Any = flight.delivery.head
                _log.warning("Lost the lease of %s[%s]: another worker may run it too.", flight.plan.name, head.id)
                flight.epoch = -1


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
