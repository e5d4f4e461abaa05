"""Rate limits that hold for all workers together: slots of time, taken from the app's shared state in batches.

The loop hands over messages whose tasks are limited so, and has each back at its next turns: with the time at which it
may start, which is near; or with the time at which to ask again, for which it goes back to the broker. A thread of
its own speaks with the store, so nothing waits for it but the limited messages themselves.

For each limit the store keeps two times by its own clock. `slot` is when the next start may be; it moves on by one
period with each start that is granted, and none is granted more than `NEAR_S` ahead: no more is lost with a worker that
dies. `back` spaces out the messages that found no slot, so that they come back about as fast as slots come up.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from celeriac.app.rate_limits import KeyMaker, make_key_maker
from celeriac.exceptions import CeleriacError
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import Delivery
from celeriac.spec.state import ABSENT, Change
from celeriac.utils.rates import parse_rate
from celeriac.worker.clock import SYSTEM, Clock

if TYPE_CHECKING:
    from celeriac.messaging.codec import Codec
    from celeriac.spec.data import Payload
    from celeriac.spec.state import SharedState, Snapshot
    from celeriac.worker.plans import TaskPlan

SPACE: Final = "rates"
#: Slots are taken no farther ahead than this.
NEAR_S: Final = 2.0
#: So far ahead the returns of messages without a slot are spaced out by the rate; a little faster than it, so that a
#: message is at hand when a slot comes up.
AHEAD_S: Final = 60.0
HASTE: Final = 0.9
#: Those beyond come back to ask again after at least so long, so many in a second at least.
LAP_S: Final = 30.0
LAP_RATE: Final = 50.0
#: Nobody asks again sooner.
PAUSE_S: Final = 0.25
#: Messages that wait for an answer, and for their slot, in one worker.
ASKED: Final = 1000
HELD: Final = 1000
#: After a promised start for which no slot of the pool was free, a worker promises half as much; so long after that it
#: begins to promise more.
RECOVERY_S: Final = 1.0
KEYS_AT_ONCE: Final = 100
TRIES: Final = 25
LONGEST_KEY: Final = 200

_log = logging.getLogger("celeriac.worker")


class Mark(msgspec.Struct, array_like=True):
    """What the store keeps of one limit: unix times by its clock."""

    slot: float
    back: float


class Line:
    """One limit while slots of it are given out.

    Args:
        now: The store's clock.
    """

    def __init__(self, mark: Mark | None, now: float) -> None:
        self._now = now
        self.slot = now if mark is None else max(mark.slot, now)
        self.back = now if mark is None else mark.back

    def take(self, period_s: float) -> float | None:
        """The next start; None if that is not near."""
        if self.slot > self._now + NEAR_S:
            return None
        when = self.slot
        self.slot += period_s
        return when

    def defer(self, period_s: float) -> float | None:
        """When to ask again; None: not within the time that is planned ahead."""
        when = max(self.back, self.slot, self._now + PAUSE_S)
        if when > self._now + AHEAD_S:
            return None
        self.back = when + HASTE * period_s
        return when

    def mark(self) -> Mark:
        """For the store."""
        return Mark(self.slot, self.back)

    def ttl_s(self) -> float:
        """When it may be forgotten: nothing is left then that it would forbid."""
        return max(self.slot, self.back) - self._now + 10.0


class Question(NamedTuple):
    """A message that wants a slot."""

    number: int
    raw: bytes
    plan: TaskPlan
    period_s: float


class Answer(NamedTuple):
    """`start`: unix time of its slot; None: it has none, and may ask again at `again`."""

    number: int
    start: float | None
    again: float


class ClusterRates(threading.Thread):
    """See the module. But for `run`, all is for the loop's thread.

    Args:
        unpack: The transport's reader of raw messages.
        wake: Ends the loop's sleep.
        held: How many messages wait in the loop for the slots they have; asked from any thread.
    Attributes:
        taken, deferred: How many slots were had so far, and how many messages were told to ask again.
        trouble: Why there are no slots now; empty while there are.
    """

    def __init__(
        self,
        state: SharedState,
        unpack: Callable[[bytes], Payload],
        codec: Callable[[], Codec],
        wake: Callable[[], None],
        held: Callable[[], int],
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(name="celeriac-rates", daemon=True)
        self._state = state
        self._unpack = unpack
        self._codec = codec
        self._wake = wake
        self._held = held
        self._clock = clock
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answers: deque[Answer] = deque()
        self._asked: dict[int, Delivery] = {}
        self._count = 0
        self._allowance = HELD // 10
        self._missed_at = clock.monotonic()
        self._laps: dict[str, float] = {}
        self._makers: dict[str, tuple[Any, KeyMaker | None]] = {}
        self._told_key: set[str] = set()
        self.taken = self.deferred = 0
        self.trouble = ""

    # -- for the loop ---------------------------------------------------------------------------------------

    def ask(self, delivery: Delivery, plan: TaskPlan) -> bool:
        """Ask for a slot for this message; False: too many wait for an answer already."""
        if len(self._asked) >= ASKED:
            return False
        self._count += 1
        self._asked[self._count] = delivery
        period_s = 1.0 / parse_rate(plan.task.rate_limit)
        self._questions.put(Question(self._count, delivery.raw, plan, period_s))
        if self.ident is None:
            self.start()
        return True

    def answers(self) -> list[tuple[Delivery, Answer]]:
        """What is new, for messages that still wait for it."""
        found = []
        while self._answers:
            answer = self._answers.popleft()
            delivery = self._asked.pop(answer.number, None)
            if delivery is not None:
                found.append((delivery, answer))
        return found

    def missed(self) -> None:
        """A message's slot has come, and no slot of the pool was free for it: hold fewer."""
        self._allowance = max(1, self._allowance // 2)
        self._missed_at = self._clock.monotonic()

    def drop(self, tags: set[Any]) -> None:
        """Forget these deliveries."""
        self._asked = {number: delivery for number, delivery in self._asked.items() if delivery.tag not in tags}

    def clear(self) -> list[Delivery]:
        """All that wait for an answer, which wait no more."""
        found = list(self._asked.values())
        self._asked.clear()
        return found

    def stop(self) -> None:
        """End; a question that is with the store is not waited for."""
        self._questions.put(None)

    def info(self) -> dict[str, Any]:
        """For `inspect stats`."""
        return {
            "asked": len(self),
            "waiting": self._held(),
            "taken": self.taken,
            "deferred": self.deferred,
            "trouble": self.trouble,
        }

    def __len__(self) -> int:
        return len(self._asked)

    # -- the thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`."""
        while True:
            questions = [self._questions.get()]
            while len(questions) < ASKED and not self._questions.empty():
                questions.append(self._questions.get())
            if None in questions:
                return
            self._answers.extend(self._judge([question for question in questions if question is not None]))
            self._wake()

    def _judge(self, questions: Sequence[Question]) -> list[Answer]:
        if self._clock.monotonic() - self._missed_at > RECOVERY_S:
            self._allowance, self._missed_at = min(HELD, 2 * self._allowance), self._clock.monotonic()
        by_key: dict[str, list[Question]] = {}
        for question in questions:
            by_key.setdefault(self._key(question), []).append(question)
        answers: list[Answer] = []
        groups = list(by_key.items())
        for start in range(0, len(groups), KEYS_AT_ONCE):
            group = dict(groups[start : start + KEYS_AT_ONCE])
            try:
                answers += self._take(group)
                self.trouble = ""
            except Exception as exc:
                self._tell(exc)
                now = self._clock.unix()
                answers += [
                    Answer(question.number, None, now + self._clock.uniform(1.0, 3.0))
                    for asked in group.values()
                    for question in asked
                ]
        return answers

    def _tell(self, exc: Exception) -> None:
        """No store, no slots: the limit is kept rather than the pace."""
        if not self.trouble:
            _log.warning(
                "Rate limits of the whole cluster cannot be looked up: %s The tasks that have one wait.", exc,
                exc_info=not isinstance(exc, CeleriacError),
            )  # fmt: skip
        self.trouble = str(exc)

    def _take(self, by_key: dict[str, list[Question]]) -> list[Answer]:
        """Take slots for these, in one step of the store if nobody else does so just then.

        Raises:
            CeleriacError: The store cannot be reached, or too many others were in the way.
        """
        for attempt in range(TRIES):
            snapshot = self._state.read(SPACE, list(by_key))
            # Read after the answer has come: what it was late by makes starts later, never sooner.
            ahead_s = self._clock.unix() - snapshot.now
            lines = {key: Line(_mark_in(snapshot, key), snapshot.now) for key in by_key}
            answers = self._answer(by_key, lines, ahead_s)
            changes = [Change(key, msgspec.json.encode(line.mark()), line.ttl_s()) for key, line in lines.items()]
            given = {key: snapshot.entries[key].version if key in snapshot.entries else ABSENT for key in by_key}
            if self._state.write(SPACE, changes, given=given) is not None:
                taken = sum(answer.start is not None for answer in answers)
                self.taken += taken
                self.deferred += len(answers) - taken
                return answers
            if len(by_key) > 1:  # one at a time: each is somebody else's matter too
                return [answer for key, asked in by_key.items() for answer in self._take({key: asked})]
            self._clock.sleep(self._clock.uniform(0, 0.002 * (attempt + 1)))
        raise CeleriacError(f"{TRIES} times another worker was first at the limit {next(iter(by_key))!r}.")

    def _answer(self, by_key: dict[str, list[Question]], lines: dict[str, Line], ahead_s: float) -> list[Answer]:
        room = self._allowance - self._held() - len(self._answers)
        answers = []
        for key, asked in by_key.items():
            for question in asked:
                start = lines[key].take(question.period_s) if room > 0 else None
                if start is not None:
                    room -= 1
                    answers.append(Answer(question.number, start + ahead_s, 0.0))
                    continue
                again = lines[key].defer(question.period_s)
                local = self._lap(key, question.period_s) if again is None else again + ahead_s
                answers.append(Answer(question.number, None, local))
        return answers

    def _lap(self, key: str, period_s: float) -> float:
        """When one of very many asks again: these come back in turn, at a pace that costs the broker little."""
        now = self._clock.unix()
        when = max(self._laps.get(key, 0.0), now + LAP_S)
        self._laps[key] = when + 1.0 / max(LAP_RATE, 2.0 / period_s)
        if len(self._laps) > 10 * HELD:
            self._laps = {key: lap for key, lap in self._laps.items() if lap > now + LAP_S}
        return when

    def _key(self, question: Question) -> str:
        """The name under which the store keeps this message's limit."""
        task = question.plan.task
        name: str = task.rate_limit_group or task.name
        known = self._makers.get(task.name)
        if known is None or known[0] is not task:
            known = self._makers[task.name] = task, make_key_maker(task)
        if known[1] is not None:
            try:
                args, kwargs = read_call(self._unpack(question.raw), self._codec())[:2]
                key = known[1](args, kwargs)
            except Exception as exc:  # the arguments', or the user's function; the task itself meets the first too
                if task.name not in self._told_key:
                    self._told_key.add(task.name)
                    _log.error(
                        "rate_limit_key of %s has no key for a call: %r. Such calls are limited together.",
                        task.name, exc,
                    )  # fmt: skip
                key = ""
            if key:
                name = f"{name}/{key}"
        if len(name) > LONGEST_KEY or not name.isprintable():  # what a store may not take as a key
            name = f"#{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
        return name


def _mark_in(snapshot: Snapshot, key: str) -> Mark | None:
    """What the store has of a limit; as if nothing, if that cannot be read."""
    entry = snapshot.entries.get(key)
    if entry is None:
        return None
    try:
        return msgspec.json.decode(entry.value, type=Mark)
    except msgspec.MsgspecError:
        return None
