"""Opens chords and brings their parts home: the worker's half of a join.

What ends with a chord's part (or begins with a chord to open) goes another way than other endings, with an exchange for
each step: results → chords opened → messages that follow → parts → the bodies of chords that these completed → ack.
Each step may be repeated, so whatever fails is tried again from the first (R12). Between the last part and its ack a
message is always held, so that a worker's death leaves nobody waiting: the part comes again, and with it the claim.

Chords whose parts do not come are looked for every few seconds, and fail with an error that names what is missing
(R10).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from celeriac.canvas.launch import read_body
from celeriac.canvas.signature import Signature
from celeriac.exceptions import BackendError, ChordError, OperationalError, PublishRejected
from celeriac.execution.followup import Following, after_join, after_no_sending
from celeriac.resultstore import Stores
from celeriac.spec.backend import CLAIM_S
from celeriac.spec.data import (
    PUBLISH_TRY_HEADER,
    Chord,
    ChordClaim,
    ChordPart,
    ChordWork,
    Payload,
    Settlement,
    StoredResult,
)
from celeriac.spec.transport import Consumer
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.spool import LARGEST, SMALLEST, Refusals

_log = logging.getLogger("celeriac.worker")

SWEEP_S: Final = 5.0
OVERDUE_AT_ONCE: Final = 20
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 4.0
#: How soon to look again at a chord whose claim another holds: it is usually closed in a moment.
HELD_PAUSE_S: Final = 1.0
MAX_WAITING: Final = 1000
FLUSH_S: Final = 10.0
#: How long a chord stays with one that can end none.
ABANDONED_CLAIM_S: Final = 1.0


class Join:
    """An ending that concerns chords."""

    __slots__ = ("chords", "owned", "publish", "refusals", "settlement", "stored")

    def __init__(
        self,
        settlement: Settlement | None,
        stored: Sequence[StoredResult],
        publish: Sequence[Payload],
        chords: ChordWork,
        owned: bool,
    ) -> None:
        self.settlement = settlement
        self.stored = stored
        self.publish = publish
        self.chords = chords
        self.owned = owned
        self.refusals: Refusals | None = None  # of the store, when this was tried alone


class Joiner:
    """The chords of one worker.

    Args:
        app: Makes messages; its result backend joins.
    """

    def __init__(self, app: Any, clock: Clock = SYSTEM) -> None:
        self._app = app
        self._store = app.backend
        self._backend: Any = app.backend.plugin
        self._results = Stores(app) if app.has_own_stores else self._backend
        self.counts = self._backend is not None and "count" in self._backend.abilities
        self._clock = clock
        self._waiting: list[Join] = []
        self._unsent: list[Join] = []  # what follows from messages that could not be sent
        self._unclosed: list[ChordClaim] = []
        self._retry_at = 0.0
        self._pause_s = 0.0
        self._sweep_at = clock.monotonic() + clock.uniform(0.0, SWEEP_S)
        self._tried: list[Join] = []  # what the store is asked to take now
        self._batch = LARGEST
        self._successes = 0
        self._taken_before = 0  # the successes before the first refusal of what waits

    # -- what waits -----------------------------------------------------------------------------------------

    def add(
        self,
        settlement: Settlement | None,
        stored: Sequence[StoredResult],
        publish: Sequence[Payload],
        chords: ChordWork,
        owned: bool,
    ) -> None:
        """Put this into the next `perform`."""
        self._waiting.append(Join(settlement, stored, publish, chords, owned))
        if self._pause_s and self._takes_others:
            self._retry_at = min(self._retry_at, self._clock.monotonic() + FIRST_PAUSE_S)

    def forget(self, tags: set[Any] | None = None) -> None:
        """The leases of these deliveries are lost, or all are: nothing that waits here for them is done."""
        self._tried = []
        for join in self._waiting if tags is None else ():
            for payload in join.publish if join.owned else ():  # it may be out
                payload.headers[PUBLISH_TRY_HEADER] = 2
        self._waiting = [
            join
            for join in self._waiting
            if join.owned or (tags is not None and (join.settlement is None or join.settlement.tag not in tags))
        ]

    def abandon(self) -> list[Join]:
        """What waits here of runs whose messages were acknowledged before; it waits no more."""
        joins = [join for join in (*self._waiting, *self._unsent) if join.owned]
        self._waiting, self._unsent = [], []
        return joins

    def keep(self, opened: Sequence[Chord], parts: Sequence[ChordPart]) -> None:
        """Open these chords and set these parts, though there is no broker to which a body could be sent: whoever
        looks for overdue chords will end those that are complete.

        Raises:
            BackendLost: The store is away.
        """
        if opened:
            self._backend.open_chords(opened)
        if parts and self.counts:
            self._backend.join(parts, ABANDONED_CLAIM_S)

    @property
    def blocked(self) -> bool:
        """So much waits that no more work should be taken."""
        return len(self._waiting) >= MAX_WAITING

    def left(self) -> int:
        """How many endings wait."""
        return len(self._waiting) + len(self._unsent)

    def unsettled(self) -> list[Settlement]:
        """The settlements among them."""
        return [join.settlement for join in self._waiting if join.settlement is not None]

    def next_in(self) -> float | None:
        """Seconds until it wants a turn."""
        now = self._clock.monotonic()
        if self._waiting or self._unclosed:
            return max(0.0, self._retry_at - now)
        return max(0.0, self._sweep_at - now) if self.counts else None

    # -- what is done ---------------------------------------------------------------------------------------

    def perform(self, consumer: Consumer, prepare: Any) -> None:
        """Do what can be done now.

        Args:
            prepare: Called with messages before they are published; returns those that are to be.
        Raises:
            TransportLost: The broker's connection dropped.
        """
        now = self._clock.monotonic()
        if (self._waiting or self._unclosed) and now >= self._retry_at:
            self._guarded(self._bring_home, consumer, prepare)
        elif self.counts and now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S * self._clock.uniform(0.8, 1.2)
            self._guarded(self._sweep, consumer, prepare)
        self._waiting += self._unsent
        self._unsent = []

    def _guarded(self, step: Any, consumer: Consumer, prepare: Any) -> None:
        try:
            step(consumer, prepare)
        except BackendError as exc:
            if not self._pause_s:
                _log.warning("The result store is away: %s. Parts of chords are held here.", exc)
            self._put_off(exc, consumer)
        except OperationalError:
            raise  # the broker's, whose link is made anew
        except Exception as exc:  # a fault of the plugin's own, perhaps with one chord of many
            _log.exception("The result store cannot do what a chord needs. Its parts are held here, and tried again.")
            self._put_off(exc, consumer)
        else:
            self._pause_s = 0.0

    def _put_off(self, exc: Exception, consumer: Consumer) -> None:
        """Try again later: one by one, so that what cannot be done with one chord holds up no other."""
        self._pause_s = min(max(FIRST_PAUSE_S, self._pause_s * 2), LONGEST_PAUSE_S)
        now = self._clock.monotonic()
        self._retry_at = now + self._pause_s * self._clock.uniform(0.5, 1.0)
        tried, self._tried = self._tried, []
        if not tried:
            return
        self._batch = SMALLEST
        if len(tried) > 1:  # which of them it was is not known
            return
        join = self._waiting.pop(0)
        if join.refusals is None and all(other.refusals is None for other in self._waiting):
            self._taken_before = self._successes
        if self._takes_others:
            self._pause_s, self._retry_at = FIRST_PAUSE_S, now + FIRST_PAUSE_S
        refusals = join.refusals = join.refusals or Refusals(self._successes, now)
        if refusals.once_more(self._successes, now):
            self._set_aside(join, exc, consumer)
        else:
            self._waiting.append(join)

    @property
    def _takes_others(self) -> bool:
        """The store is there, and what waits is more than what it has refused: that is not to wait for this."""
        return self._successes > self._taken_before and any(join.refusals is None for join in self._waiting)

    def _set_aside(self, join: Join, exc: Exception, consumer: Consumer) -> None:
        """The store will never take this, and takes others."""
        what = ", ".join(f"{part.task_id} of chord {part.group}" for part in join.chords.parts) or "a chord's begin"
        error = f"{type(exc).__name__}: {exc}"
        _log.error("The store of chords refuses %s, and takes others: %s. Its message is set aside.", what, error)
        if join.settlement is not None:
            reason = "its part of a chord cannot be kept"
            consumer.settle([Settlement(join.settlement.tag, "dead", None, reason, error, started=True)])

    def _bring_home(self, consumer: Consumer, prepare: Any) -> None:
        self._close()
        joins = self._tried = self._waiting[: self._batch]
        held = self._join(
            consumer,
            prepare,
            [state for join in joins for state in join.stored],
            [chord for join in joins for chord in join.chords.opened],
            [payload for join in joins for payload in join.publish],
            [part for join in joins for part in join.chords.parts],
            [join.settlement for join in joins if join.settlement is not None],
            joins,
        )
        self._tried = []
        self._successes += 1
        self._batch = min(self._batch * 4, LARGEST)
        rest = self._waiting[len(joins) :]
        self._waiting = rest + [join for join in joins if any(part.group in held for part in join.chords.parts)]
        if held and not rest:
            self._retry_at = self._clock.monotonic() + min(HELD_PAUSE_S, *held.values())
        self._close()

    def _join(
        self,
        consumer: Consumer,
        prepare: Any,
        stored: Sequence[StoredResult],
        opened: Sequence[Chord],
        publish: Sequence[Payload],
        parts: Sequence[ChordPart],
        settlements: Sequence[Settlement],
        joins: Sequence[Join],
    ) -> dict[str, float]:
        """All the steps; returns the chords that others are ending, and for how many seconds at most."""
        backend = self._backend
        if stored and self._results is not None:
            self._results.store(stored)
        if opened:
            backend.open_chords(opened)
        if publish:
            self._send(consumer, (), prepare(publish))
            if any(join.owned for join in joins):  # their messages come no more
                consumer.flush(FLUSH_S)
        for join in joins:  # all but the part itself is done, and is not done again with it
            join.stored, join.publish = (), ()
        claims = backend.join(parts) if parts and self.counts else []
        claimed_at = self._clock.monotonic()
        held = {claim.group: max(claim.retry_s, 0.05) for claim in claims if not claim.token}
        if held:
            ours = {id(join.settlement) for join in joins if not any(part.group in held for part in join.chords.parts)}
            settlements = [settlement for settlement in settlements if id(settlement) in ours]
        bodies = {part.group: part.body for part in parts}
        won = [claim for claim in claims if claim.token]
        if won:
            self._fire(consumer, prepare, [(claim, bodies[claim.group]) for claim in won], settlements, claimed_at)
        elif settlements:
            consumer.settle(settlements)
        return held

    def _fire(
        self,
        consumer: Consumer,
        prepare: Any,
        claims: Sequence[tuple[ChordClaim, bytes]],
        settlements: Sequence[Settlement],
        claimed_at: float,
    ) -> None:
        """Send the bodies of chords that are ours to end (or say why they cannot run), with these acknowledgements."""
        publish: list[Payload] = []
        pending = list(claims)
        ended: list[ChordClaim] = []
        while pending:  # the failure of a body may be the last part of a chord around it
            followings = [self._follow(claim, body) for claim, body in pending]
            ended += [claim for claim, _ in pending]
            stored = [state for following in followings for state in following.stored]
            opened = [chord for following in followings for chord in following.opened]
            parts = [part for following in followings for part in following.parts]
            publish += [payload for following in followings for payload in following.publish]
            if stored:
                self._results.store(stored)
            if opened:
                self._backend.open_chords(opened)
            bodies = {part.group: part.body for part in parts}
            pending = [(claim, bodies[claim.group]) for claim in (self._backend.join(parts) if parts else ())]
            pending = [(claim, body) for claim, body in pending if claim.token]
        if self._clock.monotonic() - claimed_at > CLAIM_S / 2:
            raise BackendError("the chord took so long to end that its claim may be another's by now")
        self._send(consumer, settlements, prepare(publish) if publish else ())
        if publish:
            consumer.flush(FLUSH_S)  # a chord is closed when its body is safe, not before
        self._unclosed += ended

    def _send(self, consumer: Consumer, settlements: Sequence[Settlement], publish: Sequence[Payload]) -> None:
        """Send these, then end those deliveries. A call that has nowhere to go has failed; the others go."""
        try:
            consumer.settle(settlements, publish=publish)
            return
        except PublishRejected:
            pass  # nothing was done, and it says not for which of them
        failed = Following()
        for payload in publish:
            try:
                consumer.settle((), publish=[payload])
            except PublishRejected as exc:
                name, task_id = payload.headers.get("task"), payload.headers.get("id")
                _log.error("%s[%s] follows from a chord and was not sent: %s", name, task_id, exc)
                error = ChordError(f"{name} could not be sent: {exc}")
                failed.take(after_no_sending(self._app, payload, error))
        if failed.stored:
            self._results.store(failed.stored)
        if failed.publish or failed.chords is not None:
            self._unsent.append(Join(None, (), failed.publish, failed.chords or ChordWork(), True))
        if settlements:
            consumer.settle(settlements)

    def _can_read(self, claim: ChordClaim) -> bool:
        """Whether the body of a chord can be made here: it may be of another app, with serializers of its own."""
        try:
            Signature.from_dict(read_body(self._app, claim.body), app=self._app)
        except Exception as exc:  # any bytes may stand in a store
            _log.error("The body of chord %s cannot be read here, and is left to others: %s", claim.group, exc)
            return False
        return True

    def _follow(self, claim: ChordClaim, body: bytes) -> Following:
        try:
            return after_join(self._app, self._store, claim, read_body(self._app, body))
        except BackendError:
            raise
        except Exception:  # any bytes may stand in a message: there is nobody to call, nor to be told
            _log.exception("The body of chord %s is none, and the chord ends without it.", claim.group)
            return Following()

    def _close(self) -> None:
        """Close the chords that have ended; by itself, so that a store which is away then has nobody end them again."""
        if not self._unclosed:
            return
        try:
            self._backend.close_chords(self._unclosed)
            self._unclosed = []
        except BackendError:
            raise
        except Exception:  # a fault of the plugin's own, perhaps with one of them
            self._close_singly()

    def _close_singly(self) -> None:
        while self._unclosed:
            claim = self._unclosed[0]
            try:
                self._backend.close_chords([claim])
            except BackendError:
                raise
            except Exception:  # somebody ends it again when it is overdue; its body is the same call then
                _log.exception("Chord %s has ended, and the store cannot note that.", claim.group)
            del self._unclosed[0]

    def _sweep(self, consumer: Consumer, prepare: Any) -> None:
        """End what is overdue."""
        claims = self._backend.overdue_chords(OVERDUE_AT_ONCE)
        if not claims:
            return
        claimed_at = self._clock.monotonic()
        for claim in claims:
            _log.error("Chord %s is overdue: %d of %d parts came.", claim.group, len(claim.parts), claim.size)
        known = [(claim, claim.body) for claim in claims if claim.body and self._can_read(claim)]
        self._fire(consumer, prepare, known, (), claimed_at)
        self._close()
