"""Performs what reports ask for, in the one safe order, and ends deliveries: their only ender.

Order (R12): results → messages that follow → ack. Where broker and result store are one, that is one atomic step.
While the result store is away, results are held in a bounded spool together with the messages and the acks that wait
for them; when that is full, the loop takes no more. Nothing is acknowledged unstored (R5).

What goes to the broker with settlements is done only if one of these still counts. So what follows from runs whose
messages were acknowledged before goes by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from celeriac.exceptions import BackendError, PublishRejected
from celeriac.resultstore import Stores
from celeriac.spec.backend import ResultBackend
from celeriac.spec.data import PUBLISH_TRY_HEADER, Payload, Settlement, StoredResult
from celeriac.spec.transport import Consumer
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.spool import Ending, Spool, is_of

_log = logging.getLogger("celeriac.worker")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 4.0
#: How soon to look whether a try that runs beside the loop has ended.
LOOK_S: Final = 0.02
#: How long the broker may take to say that it has what follows from a message that was acknowledged before it ran.
FLUSH_S: Final = 10.0

#: What is to be sent, with the settlement of the delivery that it follows from, if there is one.
Follower = tuple[Settlement | None, Sequence[Payload]]
#: A message that has nowhere to go, and why.
Unsent = tuple[Payload, PublishRejected]


class Settler:
    """Ends deliveries of one consumer.

    Args:
        backend: Where states go; None drops them.
        joint: The backend's commands ride in the consumer's own exchange.
        spool: Holds what waits for a backend that is not joint.
        fail: Given what has nowhere to go, and the settlement by which its delivery is to be set aside (None: there is
            none, or it is set aside already): adds these calls' failures, here or at another settler.
    """

    def __init__(
        self,
        consumer: Consumer,
        backend: ResultBackend | Stores | None,
        *,
        joint: bool,
        spool: Spool | None = None,
        fail: Callable[[Settlement | None, Sequence[Unsent]], None] | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._consumer = consumer
        self._backend = backend
        self._joint = joint
        self._clock = clock
        self._apart = backend is not None and not joint
        self._stored: list[StoredResult] = []
        self._followers: list[Follower] = []
        self._batch: list[Settlement] = []
        self._endings: list[Ending] = []
        self._owned: list[Ending] = []  # those of `owned` whose effects the broker may not have
        self._spool = Spool() if spool is None else spool  # an empty one is falsy
        self._fail = self._only_set_aside if fail is None else fail
        self._pause_s = 0.0
        self._retry_at = 0.0
        self._tried: list[Ending] = []  # what the try that is on its way would store
        self._answer: Callable[[], BackendError | None] | None = None
        self._successes = 0
        self._taken_before = 0  # the successes before the trouble
        self.trouble: BackendError | None = None

    def add(
        self,
        settlement: Settlement | None,
        stored: Sequence[StoredResult] = (),
        publish: Sequence[Payload] = (),
        owned: bool = False,
    ) -> None:
        """Put this into the next `perform`. Without a settlement: states of a run that goes on, or the end of one
        whose message was acknowledged before (`owned`)."""
        if self._apart:
            self._endings.append((settlement, stored, publish, owned))
            return
        if owned:
            if publish or (stored and self._joint):
                self._owned.append((settlement, stored, publish, owned))
        else:
            if stored and self._joint:
                self._stored.extend(stored)
            if publish:
                self._followers.append((settlement, publish))
        if settlement is not None:
            self._batch.append(settlement)

    @property
    def blocked(self) -> bool:
        """The result store is away and the spool full: take no more work."""
        return self.trouble is not None and self._spool.is_full

    def retry_in(self) -> float | None:
        """Seconds until the next turn, while the result store is away."""
        if self.trouble is None:
            return None
        return LOOK_S if self._answer is not None else max(0.0, self._retry_at - self._clock.monotonic())

    def perform(self) -> None:
        """Do all that was added, or as much of it as can be done now.

        Raises:
            TransportLost: The broker's connection dropped.
        """
        if self._apart:
            if self.trouble is not None:
                self._try_again()
            while self._endings:  # of what cannot be sent the failure comes now
                endings, self._endings = self._endings, []
                self._perform_apart(endings)
            return
        while self.has_news:
            if self._stored or self._followers or self._batch:
                stored, self._stored = self._stored, []
                batch, self._batch = self._batch, []
                followers, self._followers = self._followers, []
                self._hand_over(batch, followers, self._commands(stored))
            if self._owned:
                self._hand_over_owned()

    @property
    def has_news(self) -> bool:
        """Something was added, and nothing of it was done yet."""
        return bool(self._endings or self._stored or self._followers or self._batch or self._owned)

    def _commands(self, stored: Sequence[StoredResult]) -> Any:
        """What stores these in the consumer's own exchange; None if there is nothing to store so."""
        if not stored or self._backend is None or not self._joint:
            return None
        return self._backend.commands(stored)  # type: ignore[union-attr] # only what is joint gets here

    def _hand_over(self, batch: Sequence[Settlement], followers: Sequence[Follower], joined: Any = None) -> None:
        publish = [payload for _, payloads in followers for payload in payloads]
        try:
            self._consumer.settle(batch, publish=publish, joined=joined)
        except PublishRejected:
            self._hand_over_singly(batch, followers, joined)

    def _hand_over_singly(self, batch: Sequence[Settlement], followers: Sequence[Follower], joined: Any) -> None:
        """One of the messages has nowhere to go, so nothing was done. They go one by one. Such a one has failed, for
        others may wait for it, and a delivery from which it follows is set aside: who gives that back when there is a
        queue has both done again."""
        aside: dict[int, Settlement] = {}
        failed: list[tuple[Settlement | None, list[Unsent]]] = []
        for settlement, payloads in followers:
            unsent = self._send_singly(payloads)
            if not unsent:
                continue
            if settlement is not None:
                reason, error = "what follows from it has nowhere to go", str(unsent[0][1])
                dead = aside[id(settlement)] = Settlement(settlement.tag, "dead", None, reason, error, started=True)
            failed.append((dead if settlement is not None and self._apart else None, unsent))
        if self._apart:  # set aside when the failures are stored
            batch = [one for one in batch if id(one) not in aside]
        if batch or joined is not None:
            self._consumer.settle([aside.get(id(one), one) for one in batch], joined=joined)
        for ending in failed:
            self._fail(*ending)

    def _send_singly(self, payloads: Sequence[Payload]) -> list[Unsent]:
        """Send each that can be sent; those that cannot."""
        unsent = []
        for payload in payloads:
            try:
                self._consumer.settle((), publish=[payload])
            except PublishRejected as exc:
                headers = payload.headers
                _log.error(
                    "%s[%s] follows from a task and was not sent: %s", headers.get("task"), headers.get("id"), exc
                )
                unsent.append((payload, exc))
        return unsent

    def _only_set_aside(self, settlement: Settlement | None, unsent: Sequence[Unsent]) -> None:
        if settlement is not None:
            self.add(settlement)

    def forget(self, tags: set[Any]) -> None:
        """The leases of these deliveries are lost: nothing that waits here for them is stored, sent or settled."""
        self._spool.drop([ending for ending in self._tried if is_of(ending, tags)])
        self._tried = [ending for ending in self._tried if not is_of(ending, tags)]
        self._endings = [ending for ending in self._endings if not is_of(ending, tags)]
        self._spool.forget(tags)

    def owned(self) -> list[Ending]:
        """What waits here and must not be lost with the consumer: its messages will not come again."""
        for ending in self._owned:
            for payload in ending[2]:  # it may be out
                payload.headers[PUBLISH_TRY_HEADER] = 2
        return [*self._owned, *(ending for ending in (*self._tried, *self._spool, *self._endings) if ending[3])]

    def waiting(self) -> list[StoredResult]:
        """The states that wait for the result store."""
        return [stored for ending in (*self._tried, *self._spool) for stored in ending[1]]

    def left(self) -> int:
        """How many endings still wait for the result store."""
        return len(self._tried) + len(self._spool)

    def unsettled(self) -> list[Settlement]:
        """The settlements among them."""
        return [ending[0] for ending in (*self._tried, *self._spool) if ending[0] is not None]

    # -- a result store of its own --------------------------------------------------------------------------

    def _perform_apart(self, endings: Sequence[Ending]) -> None:
        stored = [state for ending in endings for state in ending[1]]
        if stored and self.trouble is None:
            try:
                self._backend.store(stored)  # type: ignore[union-attr]
            except Exception as exc:
                self._begin_trouble(_as_trouble(exc))
        if self.trouble is not None:  # what has nothing to store need not wait
            for ending in endings:
                if ending[1]:
                    self._spool.add(ending)
            if self._takes_others:
                self._retry_at = min(self._retry_at, self._clock.monotonic() + FIRST_PAUSE_S)
            endings = [ending for ending in endings if not ending[1]]
        self._settle(endings)

    def _settle(self, endings: Sequence[Ending]) -> None:
        batch = [ending[0] for ending in endings if ending[0] is not None]
        followers = [(ending[0], ending[2]) for ending in endings if ending[2] and not ending[3]]
        self._owned += [ending for ending in endings if ending[2] and ending[3]]
        if batch or followers:
            self._hand_over(batch, followers)
        if self._owned:
            self._hand_over_owned()

    def _hand_over_owned(self) -> None:
        """What was acknowledged before it ran comes no more, so nothing of it is forgotten before the broker has it."""
        owned = list(self._owned)  # more may come: the failures of what cannot be sent
        stored = [state for ending in owned for state in ending[1]] if self._joint else ()
        self._hand_over((), [(None, ending[2]) for ending in owned if ending[2]], self._commands(stored))
        self._consumer.flush(FLUSH_S)
        del self._owned[: len(owned)]

    def _begin_trouble(self, exc: BackendError) -> None:
        _log.warning(
            "The result store is away: %s. Results are held here; when %s have gathered, no new messages are taken.",
            exc,
            self._spool.bounds,
        )
        self.trouble = exc
        self._pause_s = 0.0
        self._taken_before = self._successes
        self._wait()

    @property
    def _takes_others(self) -> bool:
        """The store is there, and what waits is more than what it has refused: that is not to wait for this."""
        return self._successes > self._taken_before and self._spool.has_untried

    def _wait(self) -> None:
        if self._takes_others:
            self._pause_s = 0.0
        self._pause_s = min(max(FIRST_PAUSE_S, self._pause_s * 2), LONGEST_PAUSE_S)
        self._retry_at = self._clock.monotonic() + self._pause_s * self._clock.uniform(0.5, 1.0)

    def _try_again(self) -> None:
        """One try at a time, beside the loop: a store that does not answer must not hold up the broker's side."""
        if self._answer is not None:
            error = self._answer()
            if error is _PENDING:
                return
            self._answer = None
            tried, self._tried = self._tried, []
            if error is None:
                self._stored_late(tried)
            else:
                self.trouble = error
                dead = self._spool.put_back(tried, self._successes, self._clock.monotonic())
                self._wait()
                self._settle([_set_aside(ending, error) for ending in dead])
        if not len(self._spool):
            self.trouble = None
            _log.info("The result store is back.")
        elif self._clock.monotonic() >= self._retry_at:
            self._tried = self._spool.take()
            self._answer = self._store_aside([state for ending in self._tried for state in ending[1]])

    def _stored_late(self, endings: Sequence[Ending]) -> None:
        self._successes += 1
        self._pause_s, self._retry_at = 0.0, 0.0
        self._spool.took(endings)
        self._settle(endings)

    def _store_aside(self, stored: Sequence[StoredResult]) -> Callable[[], BackendError | None]:
        """Begin to store; returns what tells how it went, `_PENDING` until it is known."""
        answer: list[BackendError | None] = [_PENDING]
        backend = self._backend
        assert backend is not None

        def store() -> None:
            try:
                backend.store(stored)
            except Exception as exc:
                answer[0] = _as_trouble(exc)
            else:
                answer[0] = None

        self._clock.aside(store)
        return lambda: answer[0]


_PENDING: Final = BackendError("not known yet")


def _as_trouble(exc: Exception) -> BackendError:
    """What a store has raised; a fault of the plugin's own is trouble like others, for another try may do better."""
    return exc if isinstance(exc, BackendError) else BackendError(f"{_author(exc)} raised {type(exc).__name__}: {exc}")


def _author(exc: BaseException) -> str:
    """The package whose code core called when this was raised."""
    trace = exc.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package != "celeriac":
            return package
        trace = trace.tb_next
    return "celeriac"


def _set_aside(ending: Ending, error: BackendError) -> Ending:
    """The same message as a dead letter: its result is refused for good, and others are not."""
    settlement, stored, publish, owned = ending
    what = stored[-1].task_id if stored else "?"
    _log.error("The result of %s is refused by a store that takes others: %s. Its message is set aside.", what, error)
    if settlement is None:
        return settlement, (), publish, owned
    reason = "its result cannot be stored"
    return Settlement(settlement.tag, "dead", None, reason, str(error), started=True), (), (), owned
