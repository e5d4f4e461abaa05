"""The loop: collect → settle → receive → admit → submit, then sleep.

One thread does all of it; only lease renewal runs beside it. Per message it does a handful of dictionary operations:
whatever is unusual leaves the straight line early.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from celeriac import signals
from celeriac.exceptions import NotRegistered
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import Delivery, Head, Job, JobReport, Malformed
from celeriac.worker.admission import RUN, Admission, Courtesy, Verdict, Waiting
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.endings import Endings
from celeriac.worker.flights import Flight, Flights
from celeriac.worker.link import Link
from celeriac.worker.plans import TaskPlan
from celeriac.worker.revoked import Revoked, obey
from celeriac.worker.window import BRIEF_S, Window

if TYPE_CHECKING:
    from celeriac.app.revocations import Revocation
    from celeriac.log import TaskLog
    from celeriac.spec.pool import Pool
    from celeriac.spec.state import Snapshot
    from celeriac.spec.transport import Transport
    from celeriac.worker.poller import Sleeper

IDLE_S: Final = 1.0  # the longest sleep

_log = logging.getLogger("celeriac.worker")


class Loop:
    """Everything between the broker and the pool.

    Args:
        hard_s, soft_s: The worker's time limits, for tasks without their own.

    Attributes:
        revoked: What may not run.
        unstored: After `close`: how many finished tasks run again, for their results could not be stored.
    """

    def __init__(
        self,
        app: Any,
        link: Link,
        transport: Transport,
        pool: Pool,
        sleeper: Sleeper,
        *,
        node: str,
        window: Window,
        log: TaskLog,
        hard_s: float | None,
        soft_s: float | None,
        revoked: Revoked | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._app = app
        self._clock = clock
        self._link = link
        self._transport = transport
        self._pool = pool
        self._sleeper = sleeper
        self._window = window
        self._log = log
        self._limits = hard_s, soft_s
        self._plans: dict[str, TaskPlan] = {}
        self._waiting = Waiting()
        self._courtesy = Courtesy()
        self._tokens = itertools.count(1)
        self._told_unknown: set[str] = set()
        self._stopping = False
        self._epoch = 0
        self.flights = Flights()
        self.endings = Endings(link, self.flights, window, log, app.backend, transport, node)
        self._admission = Admission(
            can_delay="delay" in transport.abilities,
            patience_s=float(app.conf["task_unknown_patience"]),
            rates=not app.conf["worker_disable_rate_limits"],
            revoked=revoked,
            clock=clock,
        )
        self.revoked = self._admission.revoked
        self._snapshots: deque[Snapshot] = deque(maxlen=1)  # of revocations; only the last one counts
        self.unstored = 0

    # -- life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to consume; raises as `Link.open`."""
        self._link.open(self._wanted_window())
        self._epoch = self._link.epoch

    def stop_receiving(self) -> None:
        """Take no more, and give back what no slot has started (D2)."""
        self._stopping = True
        self._link.stop()
        for delivery in self._waiting.clear():
            self.endings.give_back(delivery)
        self._pool.withdraw()

    def close(self, last_reports: Sequence[JobReport], timeout_s: float = 5.0) -> None:
        """Settle these last reports, give back what is left, and let go."""
        self.endings.digest(last_reports)
        self.endings.abandon()
        self.unstored = self._link.close(timeout_s)
        self._log.flush()

    # -- revoking -------------------------------------------------------------------------------------------

    def learn_revoked(self, snapshot: Snapshot) -> None:
        """From any thread: the shared state holds these revocations now."""
        self._snapshots.append(snapshot)
        self._sleeper.wake()

    def revoke(self, revocations: Mapping[str, Revocation]) -> None:
        """A command was heard that revokes these keys (`app.revocations.id_key`, `stamp_key`)."""
        self.revoked.hear(revocations)
        obey(revocations, self.flights, self._pool)

    # -- one turn -------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what there is to do, then sleep until there is more.

        First what ended, then what comes: the room that a report makes is asked for in the same turn, and a broker
        gets the acks and the question for more in one exchange.
        """
        link = self._link
        link.prove()
        if self._snapshots:
            obey(self.revoked.take_over(self._snapshots.popleft()), self.flights, self._pool)
        if link.lost_tags:
            self._ground_lost()
        reports = self._pool.collect()
        if reports:
            self.endings.digest(reports)
        if link.consumer is None and not self._stopping:
            link.try_reopen(self._wanted_window())
        if link.epoch != self._epoch:
            self._begin_epoch()
        link.perform()
        if link.held():
            link.resize(self._wanted_window())  # what waits for its result's storing is unsettled, but takes no slot
        holding_back = self._stopping or self._courtesy.left_s(self._clock.unix()) > 0
        room = 0 if holding_back else max(0, self._window.size - len(self.flights))
        deliveries = link.receive(room)
        if len(self._waiting) and not self._stopping:
            deliveries = [*deliveries, *self._waiting.due(self._clock.unix())]
        if deliveries:
            self._take(deliveries)
            link.perform()
        self._log.flush()
        self._sleeper.sleep(self._how_long())

    def _how_long(self) -> float:
        if self._stopping and not len(self.flights):
            return 0.0  # the last task has ended: whoever waits for the worker's end need not wait longer
        now, pause_s = self._clock.monotonic(), IDLE_S
        deadline = self._pool.deadline()
        if deadline is not None:
            pause_s = min(pause_s, max(0.0, deadline - now))
        wanting = not self._stopping and len(self.flights) < self._window.size
        link_s = self._link.next_in(now, wanting)
        if link_s is not None:
            pause_s = min(pause_s, link_s)
        unix_now = self._clock.unix()
        waiting_s = self._waiting.next_in(unix_now)
        if waiting_s is not None:
            pause_s = min(pause_s, waiting_s)
        return min(pause_s, self._courtesy.left_s(unix_now) or pause_s)

    def _begin_epoch(self) -> None:
        """The link was opened anew: what the old one had delivered comes again, so none of it is begun any more."""
        self._epoch = self._link.epoch
        self._waiting.clear()
        self._admission.forget_promises()
        self._pool.withdraw()

    def _ground_lost(self) -> None:
        """Flights whose lease is lost may not settle: somebody else has their messages."""
        tags = set(self._link.lost_tags)
        self._link.lost_tags.clear()
        for flight in self.flights:
            if flight.epoch == self._epoch and flight.delivery.tag in tags:
                _log.warning("Lost the lease of %s[%s]: another may run it too.", flight.plan.name, flight.head.id)
                flight.epoch = -1
        self._link.forget(tags)

    # -- admitting ------------------------------------------------------------------------------------------

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        jobs: list[Job] = []
        flights, plans, window = self.flights, self._plans, self._window
        revoked, epoch, info_on = bool(self.revoked), self._epoch, self._log.info_on
        for delivery in deliveries:
            head = delivery.head
            if type(head) is Malformed:
                self.endings.set_aside(delivery, f"malformed: {head.reason}")
                continue
            assert type(head) is Head
            if not head.task and not self._read_protocol_1(delivery, head):
                continue
            plan = plans.get(head.task) or self._make_plan(head.task)
            if plan is None or head.eta is not None or head.expires is not None or revoked or plan.task.rate_limit:
                verdict = self._admission.judge(head, plan, len(self._waiting))
                if verdict is not RUN:
                    self._decide(delivery, head, plan, verdict)
                    continue
            assert plan is not None
            brief = plan.cost_s < BRIEF_S
            if not brief and flights.long >= window.slots and not window.fixed:
                # More long or unknown tasks than slots: somebody else may be free for them.
                window.shrink()
                self.endings.give_back(delivery)
                continue
            hard_s, soft_s = plan.hard_s, plan.soft_s
            if head.timelimit:
                hard_s, soft_s = head.timelimit[0] or hard_s, head.timelimit[1] or soft_s
            token = next(self._tokens)
            flights.add(token, Flight(delivery, head, plan, epoch, brief))
            jobs.append(
                Job(
                    token,
                    delivery.raw,
                    delivery.queue,
                    delivery.attempt,
                    delivery.redelivered,
                    plan.announce,
                    soft_s,
                    hard_s,
                    plan.cost_s,
                    plan.coroutine,
                )
            )
            if info_on:
                self._log.line(logging.INFO, "task.received", task_name=head.task, task_id=head.id)
            if signals.task_received.receivers:
                signals.task_received.send(sender=self, request=self.endings.request(delivery))
        if jobs:
            self._pool.submit(jobs)
        self._link.resize(self._wanted_window())

    def _wanted_window(self) -> int:
        """The window in few steps, so that a broker that pushes need not follow each change."""
        size = self._window.size + len(self._waiting) + self._link.held()
        return size if self._window.fixed or size <= self._window.slots else 1 << (size - 1).bit_length()

    def _make_plan(self, name: str) -> TaskPlan | None:
        task = self._app.tasks.get(name)
        if task is None:
            return None
        plan = self._plans[name] = TaskPlan(task, *self._limits, announce=False)
        return plan

    def _read_protocol_1(self, delivery: Delivery, head: Head) -> bool:
        """Fill the head of a message that has it in its body; False if there is none, and the message is set aside."""
        try:
            payload, codec = self._transport.unpack(delivery.raw), self._app.codec
            if codec.seal is not None:
                codec.seal.check(payload)
            headers = read_call(payload, codec)[3]
            head.id, head.task = str(headers["id"]), str(headers["task"])
            head.eta, head.expires, head.timelimit = headers["eta"], headers["expires"], headers["timelimit"]
        except Exception as exc:  # any bytes may stand in a queue (B26)
            self.endings.set_aside(delivery, f"malformed: {exc}")
            return False
        return True

    def _decide(self, delivery: Delivery, head: Head, plan: TaskPlan | None, verdict: Verdict) -> None:
        if verdict.what == "wait":
            self._waiting.add(verdict.when, delivery)
        elif verdict.what == "defer":
            self.endings.give_back(delivery, verdict.when)
        elif verdict.what == "unknown":
            self._tell_unknown(head)
            self.endings.give_back(delivery, verdict.when)
            self._courtesy.plan(verdict.when)
        elif verdict.what in ("expired", "revoked"):
            self._log.line(logging.INFO, f"task.{verdict.what}", task_name=head.task, task_id=head.id)
            self.endings.revoke(delivery, plan and plan.task, verdict.what)
        else:
            error = NotRegistered(head.task) if plan is None else ValueError(verdict.reason)
            self.endings.set_aside(delivery, verdict.reason, self.endings.failure(delivery, error))

    def _tell_unknown(self, head: Head) -> None:
        if head.task in self._told_unknown:
            return
        self._told_unknown.add(head.task)
        _log.error(
            "Received unregistered task of type %r: this worker does not know it. The message is offered to other "
            "workers for %g s, then set aside. Is the module that defines it imported (-A, include, imports)? "
            "Known here: %s",
            head.task,
            self._app.conf["task_unknown_patience"],
            ", ".join(sorted(self._app.tasks.regular())) or "none",
        )
