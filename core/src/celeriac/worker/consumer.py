"""The loop: collect → settle → receive → admit → submit, then sleep.

One thread does all of it; only lease renewal runs beside it. Per message it does a handful of dictionary operations:
whatever is unusual leaves the straight line early.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from celeriac import signals
from celeriac.bootsteps import Step
from celeriac.exceptions import NotRegistered, PoolBroken, TransportLost
from celeriac.execution.followup import Following
from celeriac.kernel.loader import describe
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import Delivery, Head, Job, JobReport, Malformed
from celeriac.worker.admission import MEMORY_LIMIT, RUN, Admission, Courtesy, Verdict, Waiting
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.duplicates import Duplicates
from celeriac.worker.endings import Endings
from celeriac.worker.flights import GIVEN_UP, Flight, Flights
from celeriac.worker.host import Agent as Agent
from celeriac.worker.host import Consumer as Consumer
from celeriac.worker.link import Link
from celeriac.worker.listening import tell_listeners
from celeriac.worker.marks import Story, is_same_call
from celeriac.worker.plans import TaskPlan
from celeriac.worker.publications import Publications
from celeriac.worker.request import PLAIN, CustomRequests
from celeriac.worker.revoked import Revoked, obey
from celeriac.worker.window import BRIEF_S, Window

if TYPE_CHECKING:
    from celeriac.app.revocations import Revocation
    from celeriac.log import TaskLog
    from celeriac.spec.listener import RunListener
    from celeriac.spec.pool import Pool
    from celeriac.spec.state import Snapshot
    from celeriac.spec.transport import Transport
    from celeriac.worker.autoscale import Autoscaler
    from celeriac.worker.cluster_rates import ClusterRates
    from celeriac.worker.feed import Feed
    from celeriac.worker.poller import Sleeper
    from celeriac.worker.remote import Errands

IDLE_S: Final = 1.0  # the longest sleep
#: Before a message on its last attempt runs, the others like it are back in the queue.
TRIAL_PAUSE_S: Final = 0.25
#: Of messages that came again, where nobody can say why, one is judged in so long.
GAP_S: Final = 2.0
#: How soon the result store is asked once more that was away.
ASK_AGAIN_S: Final = 1.0
#: After a new opening, so long there is room for the messages of what runs since before it.
ADOPT_S: Final = 5.0
#: Of so many unknown tasks it is said but once that they are; then some of them are told of again.
UNKNOWN_TOLD: Final = 1000

_log = logging.getLogger("celeriac.worker")


class Loop:
    """Everything between the broker and the pool.

    Args:
        hard_s, soft_s: The worker's time limits, for tasks without their own.

    Attributes:
        revoked: What may not run.
        listeners: Who hears of the runs that have ended.
        rates: Takes slots for tasks whose rate is limited over all workers; None without shared state.
        lingers: It goes on for a while although it is stopping and nothing runs.
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
        self.lingers = False
        self._epoch = 0
        self._is_linked = True
        self.flights = Flights()
        self.errands: Errands | None = None
        self.scaler: Autoscaler | None = None
        self.rates: ClusterRates | None = None
        self._max_crashes = int(app.conf["task_max_crashes"])
        self._max_returns = int(app.conf["task_max_returns"])
        self._counts_losses = not transport.abilities.isdisjoint({"attempts", "crashes"})
        self._can_delay = "delay" in transport.abilities
        # The tag of a message that is on its last attempt and waits to be run, and until when it has the right to.
        self._trial: Any = None
        self._trial_ends = 0.0
        self._judged_at = 0.0  # when a message that came again was last judged
        # Task id → token of what runs and lost its link or lease: its message comes again, perhaps to us.
        self._orphans: dict[str, int] = {}
        self._adopts_until = 0.0  # 0: no room is kept for their messages
        self._holds_fewer = bool(app.conf["worker_enable_prefetch_count_reduction"])
        self._cancels_lost = bool(app.conf["worker_cancel_long_running_tasks_on_connection_loss"])
        eta_limit = app.conf["worker_eta_task_limit"]
        self._eta_limit = MEMORY_LIMIT if eta_limit is None else int(eta_limit)
        self.endings = Endings(
            app, link, self.flights, window, log, transport, node, self._max_crashes, self._max_returns
        )
        self._admission = Admission(
            can_delay=self._can_delay,
            patience_s=float(app.conf["task_unknown_patience"]),
            rates=not app.conf["worker_disable_rate_limits"],
            eta_limit=self._eta_limit,
            revoked=revoked,
            clock=clock,
        )
        self.revoked = self._admission.revoked
        self._publications = Publications(app)
        self._duplicates = Duplicates(app, self.endings) if app.conf["worker_deduplicate_successful_tasks"] else None
        self.listeners: list[RunListener] = []
        self._requests: CustomRequests | None = None
        self._snapshots: deque[Snapshot] = deque(maxlen=1)  # of revocations; only the last one counts
        self._complaint = ""
        #: How often the loop has turned: for the watchdog.
        self.turns = 0

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
        if self.rates is not None:
            self.rates.stop()
            for delivery in self.rates.clear():
                self.endings.give_back(delivery)
        self._pool.withdraw()

    @property
    def is_stopping(self) -> bool:
        """It takes no more."""
        return self._stopping

    @property
    def room(self) -> int:
        """How many more deliveries it would take now."""
        if self._stopping or self._courtesy.left_s(self._clock.unix()) > 0:
            return 0
        kept = len(self._orphans) if self._adopts_until or not self._holds_fewer else 0
        return max(0, self._window.size - len(self.flights) + kept)

    def rebuild(self, why: str) -> None:
        """From any thread: make the link anew at the next turn, which is now."""
        self._complaint = why
        self._sleeper.wake()

    def close(self, last_reports: Sequence[JobReport], timeout_s: float = 5.0) -> int:
        """Settle these last reports, give back what is left, and let go.

        Returns:
            How many tasks were given up: they ran when the pool was stopped, or their results could not be stored.
        """
        # A slot that was killed by the stop is no crash of its task: that was given up, and goes back.
        with contextlib.suppress(SystemExit):  # a receiver's wish, which comes true
            self.endings.digest([report for report in last_reports if report.outcome != "lost"])
        given_up = self.endings.abandon()
        given_up += self._link.close(timeout_s)
        self._log.flush()
        return given_up

    # -- revoking -------------------------------------------------------------------------------------------

    def learn_revoked(self, snapshot: Snapshot) -> None:
        """From any thread: the shared state holds these revocations now."""
        self._snapshots.append(snapshot)
        self._sleeper.wake()

    def revoke(self, revocations: Mapping[str, Revocation]) -> None:
        """A command was heard that revokes these keys (`app.revocations.id_key`, `stamp_key`)."""
        self.revoked.hear(revocations)
        obey(revocations, self.flights, self._pool)
        self._waiting.hasten(
            lambda delivery: isinstance(delivery.head, Head) and bool(self.revoked.match(delivery.head))
        )

    # -- one turn -------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what there is to do, then sleep until there is more.

        First what ended, then what comes: the room that a report makes is asked for in the same turn, and a broker
        gets the acks and the question for more in one exchange.
        """
        link = self._link
        self.turns += 1
        if self._complaint:
            complaint, self._complaint = self._complaint, ""
            link.lose(TransportLost(complaint), by_choice=True)
        link.prove()
        if self._snapshots:
            obey(self.revoked.take_over(self._snapshots.popleft()), self.flights, self._pool)
        if link.lost_tags:
            self._ground_lost()
        if link.consumer is None and self._is_linked:
            self._is_linked = False
            self._drop_unstarted()
            if self._cancels_lost:
                self._cancel_running()
        reports = self._pool.collect()
        if reports:
            try:
                self._digest(reports)
            except Exception:
                self._app.kernel.check_returned(self._pool, "collect", JobReport, reports)
                raise
        if link.consumer is None and not self._stopping:
            link.try_reopen(self._wanted_window())
        if link.epoch != self._epoch:
            self._begin_epoch()
        if self._adopts_until and self._clock.monotonic() >= self._adopts_until:
            self._end_adoptions()
        link.perform()
        if link.held():
            link.resize(self._wanted_window())  # what waits for its result's storing is unsettled, but takes no slot
        room = self.room
        deliveries = link.receive(room)
        may_be_more = len(deliveries) >= room > 0
        if len(self._waiting) and not self._stopping:
            deliveries = [*deliveries, *self._waiting.due(self._clock.unix())]
        if self.rates is not None and len(self.rates):
            deliveries = [*deliveries, *self._hear_rates(self.rates)]
        if deliveries:
            try:
                self._take(deliveries)
            except Exception:
                self._app.kernel.check_returned(self._transport, "receive", Delivery, deliveries)
                raise
            link.perform()
        self._log.flush()
        if self.scaler is not None:
            self.scaler.look()
        # Of what came some may have ended at once; a consumer that gave all it was asked for does not wake us for more.
        pause_s = 0.0 if may_be_more and self.room else self._how_long()
        if self.errands:
            left_s = self.errands.run()
            pause_s = 0.0 if left_s is None else min(pause_s, left_s)
        self._sleeper.sleep(pause_s)

    def _digest(self, reports: Sequence[JobReport]) -> None:
        if self.listeners:
            tell_listeners(self.listeners, self.flights, reports)
        if self._duplicates is not None:
            self._duplicates.learn(reports, self.flights)
        self.endings.digest(reports)
        if self._orphans:
            self._count_orphans()

    def _how_long(self) -> float:
        if self._stopping and not len(self.flights) and not self.lingers:
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
        self._is_linked = True
        self._drop_unstarted()
        self._find_orphans()

    def _drop_unstarted(self) -> None:
        """What the lost link had delivered comes again, here or elsewhere: of that, nothing begins any more (B10)."""
        self._waiting.clear()
        if self.rates is not None:
            self.rates.clear()
        self._trial = None
        self._admission.forget_promises()
        self._pool.withdraw()

    def _ground_lost(self) -> None:
        """Flights whose lease is lost may neither settle nor begin: somebody else has their messages (B8, B10)."""
        lost = self._link.lost_tags
        tags = {lost.popleft() for _ in range(len(lost))}  # the renewer may find more meanwhile
        dropped = self._waiting.drop(tags)
        self._admission.forget_promises([one.head.id for one in dropped if isinstance(one.head, Head)])
        if self.rates is not None:
            self.rates.drop(tags)
        for token, flight in self.flights.items():
            if flight.epoch == self._epoch and flight.delivery.tag in tags:
                _log.warning("Lost the lease of %s[%s]: another may run it too.", flight.plan.name, flight.head.id)
                flight.epoch = -1
                if self._pool.cancel(token, signal=0):
                    self.flights.remove(token)
        self._link.forget(tags)
        self._find_orphans()

    # -- runs whose link or lease was lost ------------------------------------------------------------------

    def _find_orphans(self) -> None:
        """What runs here and cannot end its delivery. Its message comes again: if to us, that run ends it."""
        self._orphans = {
            flight.head.id: token
            for token, flight in self.flights.items()
            if flight.epoch != self._epoch and flight.epoch != GIVEN_UP and not flight.acked
        }
        self._adopts_until = self._clock.monotonic() + ADOPT_S if self._orphans else 0.0

    def _end_adoptions(self) -> None:
        """Their messages are elsewhere. What came in their room and no slot has begun goes back, and until they end
        fewer are held."""
        self._adopts_until = 0.0
        self._count_orphans()
        if not self._holds_fewer:
            return
        if len(self.flights) > self._window.size:
            self._pool.withdraw()
        if self._orphans:
            self._link.resize(self._wanted_window(), exactly=True)

    def _count_orphans(self) -> None:
        """Forget those that have ended; there is room for more then."""
        self._orphans = {task_id: token for task_id, token in self._orphans.items() if self.flights.get(token)}
        self._link.resize(self._wanted_window())

    def _cancel_running(self) -> None:
        """The broker was lost: end what runs here and is run again elsewhere, or here, when its message comes again."""
        left: list[str] = []
        for token, flight in self.flights.items():
            if flight.acked or flight.plan.early:
                continue
            if self._pool.cancel(token):
                flight.epoch = GIVEN_UP
                self.endings.spare(flight.delivery)
            elif flight.pid:
                left.append(f"{flight.plan.name}[{flight.head.id}]")
        if left:
            _log.warning(
                "Cannot cancel %s: this pool ends no running task. Each may run twice; if its message comes back to "
                "this worker, the run goes on as the message's own.",
                ", ".join(left),
            )

    def _is_adopted(self, delivery: Delivery) -> bool:
        """Whether this is the message of an orphan, which then goes on as its run; nothing is begun.

        If it was lost once more than that run knows, somebody else has had it: that run's effects outside are stale.
        """
        token = self._orphans.get(delivery.head.id) if type(delivery.head) is Head else None
        flight = None if token is None else self.flights.get(token)
        if flight is None or flight.epoch == self._epoch or delivery.attempt > flight.delivery.attempt + 1:
            return False
        if not is_same_call(self._transport, delivery, flight.delivery):
            return False
        del self._orphans[flight.head.id]
        if delivery.attempt > flight.delivery.attempt:
            self.endings.spare(flight.delivery)
        flight.delivery, flight.epoch, flight.received = delivery, self._epoch, self._link.received_at
        if flight.started:
            self.endings.acknowledge_early(flight)
        _log.info("The message of %s[%s] came again; its run goes on.", flight.plan.name, flight.head.id)
        return True

    def _refused(self, jobs: Sequence[Job], exc: Exception) -> PoolBroken:
        """For a pool that has jobs of which nobody can say whether it will answer for them (P1)."""
        culprit = self._app.kernel.culprit(exc)
        who = f"plugin {culprit}" if culprit else "the pool"
        return PoolBroken(
            f"{who} raised {describe(exc)} when it was to take {len(jobs)} job(s), and nobody can say if it has. "
            "The worker ends; messages whose tasks have not ended come again."
        )

    # -- admitting ------------------------------------------------------------------------------------------

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        jobs: list[Job] = []
        claimed: list[Delivery] = []
        try:
            self._admit(deliveries, jobs, claimed)
        finally:  # whatever went wrong with one of them, others are flights, which only the pool's word ends
            if jobs:
                if self.endings.feed is not None:
                    self.endings.feed.submitted(jobs, self.flights)
                try:
                    self._pool.submit(jobs)
                except Exception as exc:
                    raise self._refused(jobs, exc) from exc
        if claimed:
            self._take_claimed(claimed)
        self._link.resize(self._wanted_window())

    def _admit(self, deliveries: Sequence[Delivery], jobs: list[Job], claimed: list[Delivery]) -> None:
        """Decide on these; adds to `jobs` what is to run, and to `claimed` what must be asked for."""
        flights, plans, window = self.flights, self._plans, self._window
        revoked, epoch, info_on = bool(self.revoked), self._epoch, self._log.info_on
        orphans, received = self._orphans, self._link.received_at
        if self._duplicates is not None:
            deliveries = self._without_duplicates(self._duplicates, deliveries)
        for delivery in deliveries:
            if orphans and delivery.redelivered and self._is_adopted(delivery):
                continue
            head = delivery.head
            if type(head) is Malformed:
                self.endings.set_aside(delivery, f"malformed: {head.reason}")
                continue
            assert type(head) is Head
            if not head.task and not self._read_protocol_1(delivery, head):
                continue
            if head.claim is not None:
                claimed.append(delivery)
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
                if self.rates is not None and plan.task.rate_limit:
                    self.rates.missed()
                continue
            if delivery.redelivered and self._is_held_up(delivery, plan):
                continue
            hard_s, soft_s = plan.hard_s, plan.soft_s
            if head.timelimit:
                try:
                    hard, soft = read_limits(head.timelimit)
                except ValueError as exc:
                    self.endings.set_aside(delivery, f"malformed: {exc}", self.endings.failure(delivery, exc))
                    continue
                hard_s, soft_s = hard or hard_s, soft or soft_s
            token = next(self._tokens)
            flights.add(token, Flight(delivery, head, plan, epoch, brief, received))
            jobs.append(
                Job(
                    token,
                    delivery.raw,
                    delivery.queue,
                    delivery.attempt,
                    delivery.redelivered,
                    plan.announce or not brief,
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

    def _take_claimed(self, deliveries: Sequence[Delivery]) -> None:
        """Bodies of chords: each may have been published more than once, under the same id."""
        heads: list[Any] = [delivery.head for delivery in deliveries]
        try:
            admitted = self._publications.admitted(heads)
        except Exception as exc:  # also a fault of the store's plugin
            _log.warning("Whether the bodies of %d chords run already is not known yet: %s", len(heads), exc)
            self._ask_again(deliveries)
            return
        first = []
        for delivery, head, may_run in zip(deliveries, heads, admitted, strict=True):
            if may_run:
                head.claim = None  # it is judged
                first.append(delivery)
            else:
                self._log.line(
                    logging.INFO, "task.dropped", task_name=head.task, task_id=head.id, reason="published twice"
                )
                self.endings.drop(delivery)
        if first:
            self._take(first)

    def _without_duplicates(self, duplicates: Duplicates, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Those of these whose task has not succeeded before; the others are ended."""
        again = [
            delivery
            for delivery in deliveries
            if delivery.redelivered
            and isinstance(delivery.head, Head)
            and delivery.head.id
            and delivery.head.id not in self._orphans
        ]
        if not again:
            return deliveries
        try:
            ended: dict[Any, Following | None] = {**duplicates.look(again)}
        except Exception as exc:  # also a fault of the store's plugin
            _log.warning("Whether %d messages that came again have succeeded is not known yet: %s", len(again), exc)
            self._ask_again(again)
            ended = {delivery.tag: None for delivery in again}
        for delivery in again:
            following = ended.get(delivery.tag)
            if following is not None:
                assert isinstance(delivery.head, Head)
                named = {"task_name": delivery.head.task, "task_id": delivery.head.id}
                self._log.line(logging.INFO, "task.dropped", **named, reason="it has succeeded before")
                self._admission.forget_promises([delivery.head.id])
                self.endings.repeat(delivery, following)
        return [delivery for delivery in deliveries if delivery.tag not in ended]

    def _ask_again(self, deliveries: Sequence[Delivery]) -> None:
        """The result store is away: these wait until it may be asked once more."""
        later = self._clock.unix() + ASK_AGAIN_S
        for delivery in deliveries:
            self._waiting.add(later, delivery)

    def _is_held_up(self, delivery: Delivery, plan: TaskPlan) -> bool:
        """Whether a message that was lost before may not run now, or never more (B14); what is to be done is done.

        A worker that dies takes all that it had with it: the one message that kills workers, and others that merely lay
        beside it. So who is on the last attempt runs without another such one in the same worker: then nobody else
        pays for it, and whoever is lost once more has earned it.
        """
        spared = self.endings.spared(delivery)
        if not self._counts_losses:
            return not spared and self._is_returned_too_often(delivery)
        lost = delivery.attempt - 1 - spared
        if spared and self._max_returns and delivery.attempt > self._max_returns:
            self.endings.lose(delivery, f"returned too often: it came back {delivery.attempt - 1} times")
            return True
        if not self._max_crashes or lost + 1 < self._max_crashes or not plan.requeue_lost:
            return False
        if lost >= self._max_crashes:
            self.endings.lose(delivery, f"crash: it was lost {lost} times with the worker or process that had it")
            return True
        if delivery.tag == self._trial:
            self._trial = None
            return False
        if not self._can_delay:
            return False
        now = self._clock.unix()
        if (self._trial is not None and now < self._trial_ends) or any(
            flight.delivery.attempt >= delivery.attempt for flight in self.flights
        ):
            self.endings.give_back(delivery, now + self._clock.uniform(0.5, 1.5))
        else:
            self._trial, self._trial_ends = delivery.tag, now + 4 * TRIAL_PAUSE_S
            self._waiting.add(now + TRIAL_PAUSE_S, delivery)
        return True

    def _is_returned_too_often(self, delivery: Delivery) -> bool:
        """The same for a broker that only says «again», of whatever a worker had or gave back.

        The first of them that comes is sent anew with a count; those behind it run at once. Whoever kills workers is
        the oldest that its worker had, so it comes first in the end, and it is counted while others get done.
        """
        now = self._clock.unix()
        if not self._max_returns or now - self._judged_at < GAP_S:
            return False
        self._judged_at = now
        story = Story(self._transport, delivery)
        if story.returns + 1 >= self._max_returns:
            self.endings.lose(delivery, f"returned too often: it came back {story.returns + 1} times")
            return True
        again = story.returned_again()
        if again is not None:
            self.endings.replace(delivery, again)
        return again is not None

    def _wanted_window(self) -> int:
        """The window in few steps, so that a broker that pushes need not follow each change."""
        size = self._window.size + len(self._waiting) + self._link.held()
        if self._orphans and self._holds_fewer and not self._adopts_until:
            size = max(1, size - len(self._orphans))
        if self.rates is not None:
            size += len(self.rates)
        return size if self._window.fixed or size <= self._window.slots else 1 << (size - 1).bit_length()

    def _make_plan(self, name: str) -> TaskPlan | None:
        task = self._app.tasks.get(name)
        if task is None:
            return None
        has_own = task.Request != PLAIN
        plan = self._plans[name] = TaskPlan(task, *self._limits, announce=has_own or self.endings.feed is not None)
        if has_own:
            self._tell_requests(task)
        return plan

    def _tell_requests(self, task: Any) -> None:
        """This task has requests of the program's own, which hear what becomes of its calls."""
        if self._requests is None:
            self._requests = CustomRequests(self.endings)
            self.listeners.append(self._requests)
        self._requests.add(task)

    def _read_protocol_1(self, delivery: Delivery, head: Head) -> bool:
        """Fill the head of a message that has it in its body; False if there is none, and the message is set aside."""
        try:
            payload, codec = self._transport.unpack(delivery.raw), self._app.codec
            if codec.seal is not None:
                codec.seal.check(payload)
            headers = read_call(payload, codec)[3]
            head.id, head.task = str(headers["id"]), str(headers["task"])
            head.eta, head.expires = _time_text(headers["eta"]), _time_text(headers["expires"])
            head.timelimit = headers["timelimit"]
        except Exception as exc:  # any bytes may stand in a queue (B26)
            self.endings.set_aside(delivery, f"malformed: {exc}")
            return False
        return True

    def _decide(self, delivery: Delivery, head: Head, plan: TaskPlan | None, verdict: Verdict) -> None:
        if verdict.what == "wait":
            self._waiting.add(verdict.when, delivery)
        elif verdict.what == "defer":
            self.endings.give_back(delivery, verdict.when)
        elif verdict.what == "ask":
            assert plan is not None
            if self.rates is None or not self.rates.ask(delivery, plan):
                self._put_off(delivery, self._clock.unix() + self._clock.uniform(1.0, 3.0))
        elif verdict.what == "unknown":
            self._decide_unknown(delivery, head)
        elif verdict.what in ("expired", "revoked"):
            self._log.line(logging.INFO, f"task.{verdict.what}", task_name=head.task, task_id=head.id)
            self.endings.revoke(delivery, plan and plan.task, verdict.what)
        else:
            error = ValueError(verdict.reason)
            self.endings.set_aside(delivery, verdict.reason, self.endings.failure(delivery, error))

    def _hear_rates(self, rates: ClusterRates) -> list[Delivery]:
        """Those whose slot has come; the others wait for it here, or for another one in the broker."""
        now, due = self._clock.unix(), []
        for delivery, answer in rates.answers():
            assert isinstance(delivery.head, Head)
            if answer.start is None:
                self._put_off(delivery, answer.again)
                continue
            self._admission.promise(delivery.head.id)
            if answer.start <= now:
                due.append(delivery)
            else:
                self._waiting.add(answer.start, delivery)
        return due

    def promised(self) -> int:
        """How many messages wait here for a start that their rate allows them; from any thread."""
        return self._admission.promised

    def _put_off(self, delivery: Delivery, when: float) -> None:
        """Until then it is the broker's, if that can hold it."""
        if self._can_delay or len(self._waiting) >= self._eta_limit:
            self.endings.give_back(delivery, when)
        else:
            self._waiting.add(when, delivery)

    def _decide_unknown(self, delivery: Delivery, head: Head) -> None:
        """Offer a message to other workers, for a while that is counted in the message: workers may come and go."""
        story = Story(self._transport, delivery)
        verdict = self._admission.judge_unknown(head, story.unknown_since)
        if verdict.what == "dead":
            error = NotRegistered(head.task)
            self.endings.set_aside(delivery, verdict.reason, self.endings.failure(delivery, error))
            return
        self._tell_unknown(delivery, head)
        again = None
        if self._can_delay and story.unknown_since is None:
            again = story.found_unknown(self._clock.unix(), verdict.when)
        if again is None:
            self.endings.give_back(delivery, verdict.when)
        else:
            self.endings.replace(delivery, again)
        self._courtesy.plan(verdict.when)

    def _tell_unknown(self, delivery: Delivery, head: Head) -> None:
        if signals.task_unknown.receivers:
            told = {"message": delivery, "exc": NotRegistered(head.task), "name": head.task, "id": head.id}
            signals.task_unknown.send(sender=self, **told)
        if head.task in self._told_unknown:
            return
        if len(self._told_unknown) >= UNKNOWN_TOLD:  # names come from outside
            self._told_unknown.clear()
        self._told_unknown.add(head.task)
        _log.error(
            "Received unregistered task of type %r: this worker does not know it. The message is offered to other "
            "workers for %g s, then set aside. Is the module that defines it imported (-A, include, imports)? "
            "Known here: %s",
            head.task,
            self._app.conf["task_unknown_patience"],
            ", ".join(sorted(self._app.tasks.regular())) or "none",
        )

    # -- for remote control ---------------------------------------------------------------------------------

    def running(self) -> list[Flight]:
        """What slots run now, as far as they have said so."""
        return [flight for flight in self.flights if flight.pid]

    def reserved(self) -> list[Flight]:
        """What the pool has and no slot has said to have begun."""
        return [flight for flight in self.flights if not flight.pid]

    def scheduled(self) -> list[tuple[float, Delivery]]:
        """What waits here for its time: (unix time, delivery), earliest first."""
        return list(self._waiting)

    def totals(self) -> dict[str, int]:
        """How many runs of each task have ended here."""
        return {name: plan.runs for name, plan in self._plans.items() if plan.runs}

    def window_size(self) -> int:
        """How many messages it may hold now."""
        return self._window.size

    def tell(self, feed: Feed | None) -> None:
        """Tell monitors about tasks from now on, or no more."""
        self.endings.feed = feed
        for plan in self._plans.values():
            plan.announce = feed is not None or plan.early or plan.task.Request != PLAIN

    def renew_limits(self, name: str) -> None:
        """A task has other time limits now."""
        if name in self._plans:
            self._plans[name].renew_limits(*self._limits)

    def renew_rate(self, name: str) -> None:
        """A task has another rate limit now, or none: those of its calls that wait for the old one are judged anew."""

        def is_meant(delivery: Delivery) -> bool:
            return isinstance(delivery.head, Head) and delivery.head.task == name

        self._admission.forget_promises(
            [
                delivery.head.id
                for _, delivery in self._waiting
                if is_meant(delivery) and isinstance(delivery.head, Head)
            ]
        )
        self._admission.forget_rate(name)
        self._waiting.hasten(is_meant)

    def resize(self, slots: int) -> None:
        """The pool gets so many slots."""
        self._pool.resize(slots)
        self._window.resize(slots)


def read_limits(limits: Any) -> tuple[float | None, float | None]:
    """The time limits in a message: (hard, soft) in seconds.

    Raises:
        ValueError: They are none.
    """
    is_pair = isinstance(limits, (list, tuple)) and len(limits) == 2
    if not is_pair or not all(one is None or (type(one) in (int, float) and math.isfinite(one)) for one in limits):
        raise ValueError(f"timelimit must be two numbers of seconds, hard and soft, not {limits!r:.80}")
    return limits[0], limits[1]


def _time_text(value: Any) -> str | None:
    """A time in the body of a message, as a `Head` has it."""
    return value if value is None or type(value) is str else str(value)


# -- names of Celery's own steps of a consumer, for `requires`; see `components` ----------------------------------


class Connection(Step):
    """The connection to the broker."""


class Events(Step):
    """What tells monitors."""


class Mingle(Step):
    """What asks other workers at the start."""


class Gossip(Step):
    """What listens to other workers."""


class Heart(Step):
    """What tells that the worker lives."""


class Control(Step):
    """Remote control."""


class Tasks(Step):
    """What receives tasks."""
