"""May a message run now? Known, not revoked, not expired, not too early, not over its rate.

Most messages pass by four comparisons; whatever is unusual is decided by `Admission.judge`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from celeriac.app.rate_limits import is_cluster_wide
from celeriac.spec.data import Delivery, Head
from celeriac.utils.rates import parse_rate
from celeriac.utils.times import to_unix
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.plans import TaskPlan
from celeriac.worker.revoked import Revoked

#: An ETA nearer than this waits in the worker; a farther one goes back to a broker that can hold it (B23).
NEAR_S: Final = 2.0
#: So many messages wait here for their time, if `worker_eta_task_limit` says nothing.
MEMORY_LIMIT: Final = 1000
#: Those beyond that wait for their rate go back, and come again after at most so long, or sooner if those here will
#: have had their turn by then; at least so many in a second.
LAP_S: Final = 30.0
LAP_RATE: Final = 50.0
UNKNOWN_REMEMBERED: Final = 10_000


class Verdict(NamedTuple):
    """What is to be done with a message that does not simply run.

    `what`: run, wait (until unix time `when`), defer (give back to the broker until `when`), ask (for a slot in the
    rate of all workers), expired, revoked, unknown (give back until `when`), dead (with `reason`).
    """

    what: str
    when: float = 0.0
    reason: str = ""


RUN: Final = Verdict("run")
#: `judge_unknown` says what is to be done.
UNKNOWN: Final = Verdict("unknown")
ASK: Final = Verdict("ask")


class Admission:
    """Judges the messages of one worker.

    Args:
        can_delay: The broker holds messages until they are due.
        patience_s: How long a message of an unknown task is offered to other workers.
        eta_limit: How many may wait in the worker for their time; the others wait in the broker.
    """

    def __init__(
        self,
        *,
        can_delay: bool,
        patience_s: float,
        rates: bool,
        eta_limit: int = MEMORY_LIMIT,
        revoked: Revoked | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self.revoked = Revoked() if revoked is None else revoked
        self._can_delay = can_delay
        self._eta_limit = eta_limit
        self._patience_s = patience_s
        self._rates = rates
        self._buckets: dict[str, Bucket] = {}
        self._promised: set[str] = set()
        self._unknown_since: OrderedDict[str, float] = OrderedDict()

    def judge(self, head: Head, plan: TaskPlan | None, waiting: int) -> Verdict:
        """Decide on a message.

        Args:
            waiting: How many messages wait in the worker for their time already.
        """
        now = self._clock.unix()
        if self.revoked.match(head) is not None:
            self._promised.discard(head.id)
            return Verdict("revoked")
        try:
            if head.expires is not None and to_unix(head.expires) <= now:
                self._promised.discard(head.id)
                return Verdict("expired")
            eta = None if head.eta is None else to_unix(head.eta)
        except (ValueError, TypeError, OverflowError) as exc:
            return Verdict("dead", reason=f"malformed: eta or expires is no time: {exc}")
        if plan is None:
            return UNKNOWN
        if eta is not None and eta > now:
            if waiting < self._eta_limit and (eta - now <= NEAR_S or not self._can_delay):
                return Verdict("wait", eta)
            return Verdict("defer", eta)
        if self._rates and plan.task.rate_limit:
            return self._judge_rate(head, plan, now, waiting)
        return RUN

    def judge_unknown(self, head: Head, since: float | None) -> Verdict:
        """Decide on a message whose task this worker does not know.

        Args:
            since: When a worker first found that, if the message says so.
        """
        now = self._clock.unix()
        if since is None or since > now:
            since = self._unknown_since.setdefault(head.id, now)
            while len(self._unknown_since) > UNKNOWN_REMEMBERED:
                self._unknown_since.popitem(last=False)
        waited = now - since
        if waited >= self._patience_s:
            self._unknown_since.pop(head.id, None)
            return Verdict(
                "dead", reason=f"unknown task {head.task!r}: no worker registered it within {self._patience_s:g} s"
            )
        pause_s = min(10.0, max(0.5, waited / 5)) * self._clock.uniform(0.5, 1.5)
        return Verdict("unknown", now + min(pause_s, self._patience_s - waited))

    @property
    def promised(self) -> int:
        """How many messages wait for a start that their rate allows them."""
        return len(self._promised)

    def promise(self, task_id: str) -> None:
        """This one has its start: it runs when it is judged next."""
        self._promised.add(task_id)

    def forget_promises(self, ids: Iterable[str] | None = None) -> None:
        """These (None: all) that waited for their rate wait no more. When none does, no start is promised any more."""
        if ids is None:
            self._promised.clear()
        else:
            self._promised.difference_update(ids)
        if not self._promised:
            for bucket in self._buckets.values():
                bucket.rewind()

    def forget_rate(self, name: str) -> None:
        """This task has another limit now, or none."""
        self._buckets.pop(name, None)

    def _judge_rate(self, head: Head, plan: TaskPlan, now: float, waiting: int) -> Verdict:
        if not parse_rate(plan.task.rate_limit):  # `0/m`, which is no limit
            return RUN
        bucket = self._buckets.get(plan.name)
        if head.id in self._promised:  # its time has come
            self._promised.discard(head.id)
            if bucket is not None:
                bucket.begun = now
            return RUN
        if is_cluster_wide(plan.task):
            return ASK
        if bucket is None or bucket.limit != plan.task.rate_limit:
            bucket = self._buckets[plan.name] = Bucket(plan.task.rate_limit)
        if waiting >= self._eta_limit and self._can_delay and not bucket.is_free(now):
            return Verdict("defer", bucket.lap(now))
        when = bucket.take(now)
        if when <= now:
            return RUN
        self._promised.add(head.id)
        return Verdict("wait", when)


class Bucket:
    """A token bucket with room for one: `'10/m'` lets one start every six seconds.

    Attributes:
        begun: When the last one has started.
    """

    def __init__(self, limit: Any) -> None:
        self.limit = limit
        self._period_s = 1.0 / parse_rate(limit) if limit else 0.0
        self._next = 0.0
        self._lap = 0.0
        self.begun = 0.0

    def is_free(self, now: float) -> bool:
        """One may start at once."""
        return self._next <= now

    def take(self, now: float) -> float:
        """When the next start may be: `now`, or a later time, which is then promised to the caller."""
        when = max(now, self._next)
        if when == now:
            self.begun = now
        self._next = when + self._period_s
        return when

    def lap(self, now: float) -> float:
        """When one is to come again that is promised none: in turn, and before those that are promised one have all
        had it."""
        when = max(self._lap, now + min(LAP_S, (self._next - now) / 2))
        self._lap = when + (min(1.0 / LAP_RATE, self._period_s / 2))
        return when

    def rewind(self) -> None:
        """Whoever was promised a start will not have it."""
        self._next = self.begun + self._period_s
        self._lap = 0.0


class Courtesy:
    """Moments at which this worker holds back, so that others are first at a message that it does not know.

    Who gives a message back knows best when it is due, and would be the first to meet it again, for ever.
    """

    HEAD_START_S: Final = 0.05
    REST_S: Final = 1.0  # at least so long between two of them: a worker may not starve itself

    def __init__(self) -> None:
        self._begins = 0.0
        self._ends = 0.0

    def plan(self, when: float) -> None:
        """A message that this worker does not know is due at unix time `when`."""
        if when >= self._ends + self.REST_S:
            self._begins, self._ends = when, when + self.HEAD_START_S

    def left_s(self, now: float) -> float:
        """Seconds to hold back from now; 0 for none."""
        return self._ends - now if self._begins <= now < self._ends else 0.0


class Waiting:
    """Messages held until their time, earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Delivery]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[tuple[float, Delivery]]:
        return ((when, delivery) for when, _, delivery in sorted(self._heap, key=lambda entry: entry[:2]))

    def add(self, when: float, delivery: Delivery) -> None:
        """Hold one until unix time `when`."""
        heapq.heappush(self._heap, (when, next(self._order), delivery))

    def hasten(self, is_meant: Callable[[Delivery], bool]) -> None:
        """Those of them are due now."""
        self._heap = [(0.0 if is_meant(delivery) else when, order, delivery) for when, order, delivery in self._heap]
        heapq.heapify(self._heap)

    def due(self, now: float) -> list[Delivery]:
        """Those whose time has come."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            found.append(heapq.heappop(self._heap)[2])
        return found

    def next_in(self, now: float) -> float | None:
        """Seconds until the first is due."""
        return max(0.0, self._heap[0][0] - now) if self._heap else None

    def drop(self, tags: set[Any]) -> list[Delivery]:
        """Forget these deliveries; those of them that were here."""
        dropped = [entry[2] for entry in self._heap if entry[2].tag in tags]
        self._heap = [entry for entry in self._heap if entry[2].tag not in tags]
        heapq.heapify(self._heap)
        return dropped

    def clear(self) -> list[Delivery]:
        """All of them, held no more."""
        found = [entry[2] for entry in self._heap]
        self._heap.clear()
        return found
