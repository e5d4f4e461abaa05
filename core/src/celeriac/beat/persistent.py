"""The default scheduler: what was sent is kept in the broker, the result store or a file, and any number may run.

One of them leads, by a lease that it renews; the others wait. Who leads sends what is due and notes it. What keeps a
slot from being sent twice, whoever dies or stalls when:

- the task id is made from entry and slot, so it is the same for whoever sends it;
- the broker takes a message with that id once, if it can (ability `once`);
- what was sent is noted only over what was read, and only while the lease is one's own.

A slot is due until it is noted, so a broker that is away costs a delay.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from celeriac.beat.due import Due, find_due, is_interval, occurrence_id
from celeriac.beat.entry import ScheduleEntry
from celeriac.beat.file import FileState
from celeriac.beat.ledger import LEASE, Edit, Edits, Ledger, Mark
from celeriac.beat.scheduler import Scheduler, SchedulingError
from celeriac.exceptions import BackendLost, BackendUnreachable, OperationalError
from celeriac.spec.state import ABSENT, SharedState
from celeriac.utils.ids import default_nodename, uuid
from celeriac.utils.times import UTC

LEASE_S: Final = 15.0
#: How often who leads looks for changes by people, and who waits looks whether the lease is free.
LOOK_S: Final = 1.0
FOLLOW_S: Final = 3.0
#: Nothing is sent in the lease's last seconds: the step might end after it.
MARGIN_S: Final = 3.0
#: A clock that is set by more than this is noticed; less is drift.
JUMP_S: Final = 2.0
#: A mark further ahead than this was made by a clock that was wrong.
FAR_AHEAD: Final = timedelta(days=1)
RETRY_S: Final = (1.0, 60.0)
#: For how long a broker knows an occurrence again: twice the time to the next, within these bounds.
KEEP_S: Final = (3600.0, 7 * 86400.0)
DEFAULT_FILE: Final = "celeriacbeat-schedule"

_AWAY: Final = (OperationalError, BackendLost, BackendUnreachable)


class StoreClock:
    """The store's time, as everyone who uses it sees it; between looks it runs by the monotonic clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._base: float | None = None

    def set(self, unix: float) -> float:
        """Take the time that the store said just now; returns by how many seconds it was set since (0: it was not)."""
        base = unix - self.monotonic()
        jump = 0.0 if self._base is None else base - self._base
        self._base = base
        return jump if abs(jump) > JUMP_S else 0.0

    def now(self) -> datetime:
        """The time now."""
        assert self._base is not None
        return datetime.fromtimestamp(self._base + self.monotonic(), UTC)


class PersistentScheduler(Scheduler):
    """See the module.

    Args:
        app, schedule, max_interval, lazy: As for `Scheduler`.
        schedule_filename: Keep the state in this file, whatever broker and backend could keep.
        state: Keep it here.
        monotonic: The clock that pauses are measured with.
    """

    lease_s: float = LEASE_S
    margin_s: float = MARGIN_S
    follow_s: float = FOLLOW_S
    look_s: float = LOOK_S

    def __init__(
        self,
        app: Any,
        *args: Any,
        schedule_filename: str | None = None,
        state: SharedState | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        self.schedule_filename = schedule_filename
        self.owner = f"{default_nodename('beat@%h')}/{uuid()}"
        self.clock = StoreClock(monotonic)
        self._state = state
        self._lease: int | None = None
        self._renewed = self._looked = float("-inf")
        self._edits = Edits({}, {})
        self._edits_version = -1
        self._configured: dict[str, Any] = {}
        self._marks: dict[str, tuple[Mark, int]] = {}
        self._agenda: list[tuple[float, str]] = []
        self._looks: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        #: Marks, edits and agenda are what the state has.
        self._is_fresh = False
        self._leader = ""
        self._away = False
        super().__init__(app, *args, **kwargs)

    # -- starting and ending --------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        """Read the app's schedule, and find the place of the state; nothing is connected yet."""
        super().setup_schedule()
        self._configured = dict(self.data)
        self.ledger = open_ledger(self.app, self.schedule_filename, self._state)
        self._once = "once" in self.app.transport.abilities

    def close(self) -> None:
        """Let the next one lead at once."""
        if self._lease is not None:
            try:
                self.ledger.drop_lease(self._lease)
            except _AWAY:
                pass  # it expires by itself
            self._lease = None

    @property
    def is_leader(self) -> bool:
        """Whether it is the one that sends."""
        return self._lease is not None

    @property
    def info(self) -> str:
        """Where the state is."""
        return f"state -> {describe_state(self.ledger.state)}"

    # -- a turn ---------------------------------------------------------------------------------------------

    def tick(self, **_: Any) -> float:
        """Lead or wait; send what is due; return in how many seconds to call again."""
        try:
            if self._lease is None or not self._is_fresh or self.clock.monotonic() - self._looked >= self.look_s:
                self._look()
            if self._lease is None:
                return self.follow_s
            wait_s = self._send_next()
            self._back()
            return max(0.0, min(wait_s, self.max_interval, self.look_s))
        except Exception as exc:
            # Nobody knows whether the step was made, and what was taken off the agenda for it is off: begin anew.
            self._is_fresh = False
            if not isinstance(exc, _AWAY):
                raise
            if not self._away:
                self.logger.warning("schedule_state.lost", error=str(exc))
            self._away = True
            return RETRY_S[0]

    def _back(self) -> None:
        if self._away:
            self._away = False
            self.logger.info("schedule_state.reached")

    def _look(self) -> None:
        """Who leads, what the time is, and whether somebody changed something."""
        began = self.clock.monotonic()
        snapshot = self.ledger.look()
        jump_s = self.clock.set(snapshot.now)
        self._looked = began
        found = snapshot.entries.get(LEASE)
        if found is not None and found.version != self._lease and found.value == self.owner.encode():
            self._lease, self._is_fresh = found.version, False  # it was taken or renewed, and the answer was lost
        elif self._lease is not None and (found is None or found.version != self._lease):
            self._lose("another one leads" if found is not None else "the lease had run out")
        if self._lease is None:
            # A lease with far too long to go was given before the store's clock was set back.
            if found is not None and (found.expires or 0.0) - snapshot.now < 2 * self.lease_s:
                self._wait_for(found.value.decode(errors="replace"))
                return
            given = ABSENT if found is None else found.version
            self._lease = self.ledger.take_lease(self.owner, given, self.lease_s)
            if self._lease is None:
                return
            self._renewed, self._is_fresh, self._leader = began, False, self.owner
            self.logger.info("beat.leads", owner=self.owner)
        elif began - self._renewed > self.lease_s / 3:
            self._renew()
        if self.is_leader and (jump_s or not self._is_fresh or self.ledger.edits_version() != self._edits_version):
            self._take_over(jump_s)
        if self.is_leader and self._edits.triggers:
            self._send_triggered()

    def _wait_for(self, leader: str) -> None:
        if leader != self._leader:
            self._leader = leader
            self.logger.info("beat.waits", leader=leader, app=self.ledger.group)

    def _renew(self) -> None:
        began = self.clock.monotonic()
        assert self._lease is not None
        self._lease = self.ledger.take_lease(self.owner, self._lease, self.lease_s)
        if self._lease is None:
            self._lose("another one leads")
        self._renewed = began

    def _may_send(self) -> bool:
        """Whether the lease holds for long enough; renews it in time."""
        if self._lease is not None and self.clock.monotonic() - self._renewed > self.lease_s / 3:
            self._renew()
        return self._lease is not None and self.clock.monotonic() - self._renewed < self.lease_s - self.margin_s

    def _lose(self, why: str) -> None:
        self._lease, self._is_fresh = None, False
        self.logger.warning("beat.leads_no_more", owner=self.owner, why=why)

    # -- what there is to send ------------------------------------------------------------------------------

    def _take_over(self, jump_s: float = 0.0) -> None:
        """Read what was noted and what people changed, and make the schedule of that and of the app's entries.

        Args:
            jump_s: By so much the clock was set. What counts time goes on counting; what looks at the clock looks at
                the new one.
        """
        if jump_s:
            self.logger.warning("clock.set", seconds=round(jump_s, 1))
        self._is_fresh = False
        self._edits_version, self._edits = self.ledger.read_edits()
        self._marks = self.ledger.read_marks()
        self.data.clear()
        self.data.update(merge_edits(self._configured, self._edits, self._make_live))
        if not self._forget_others():
            return
        now, fresh = self.clock.now(), {}
        for name, entry in self.data.items():
            mark, version = self._marks.get(name, (None, ABSENT))
            since = self._edits.entries[name].since if name in self._edits.entries else None
            moved = mark
            if mark is not None and mark.last and jump_s and is_interval(entry.schedule):
                moved = _changed(mark, last=mark.last + jump_s)
            anchored = anchor(entry, moved, now, since)
            if anchored is not mark:
                fresh[name] = anchored, version
        if fresh and not self._note(fresh):
            return
        self._plan()
        self._is_fresh = True

    def _forget_others(self) -> bool:
        """Whether it still leads. What was sent of entries that are no more is forgotten: one that comes back begins
        anew."""
        gone = self._marks.keys() - self.data.keys()
        assert self._lease is not None
        if gone and self.ledger.forget(gone, self._lease) is None:
            self._lose("the lease had run out")
            return False
        for name in gone:
            del self._marks[name]
        return True

    def _make_live(self, edit: Edit) -> Any:
        try:
            return self._maybe_entry(edit.name, edit.entry_words())
        except Exception as exc:
            self.logger.error("entry.unreadable", entry=edit.name, error=str(exc))
            return None

    def _plan(self) -> None:
        """Look at every entry soon."""
        self._looks.clear()
        self._agenda = []
        for name, entry in self.data.items():
            if name in self._marks:
                mark = self._marks[name][0]
                entry.last_run_at, entry.total_run_count = mark.last_run_at, mark.count
                self._look_at(name, 0.0)

    def _look_at(self, name: str, wait_s: float | None) -> None:
        when = self.clock.monotonic() + (self.max_interval if wait_s is None else min(wait_s, self.max_interval))
        self._looks[name] = when
        heapq.heappush(self._agenda, (when, name))

    # -- sending --------------------------------------------------------------------------------------------

    def _send_next(self) -> float:
        """Send the next entry that is due; returns how long to wait."""
        now = self.clock.monotonic()
        while self._agenda:
            when, name = self._agenda[0]
            if self._looks.get(name) != when:
                heapq.heappop(self._agenda)
            elif when > now:
                return when - now
            else:
                heapq.heappop(self._agenda)
                self._attend(name)
                if self._lease is None:
                    return 0.0
                if self.clock.monotonic() - self._looked >= self.look_s:
                    return 0.0
        return self.max_interval

    def _attend(self, name: str) -> None:
        entry, (mark, _) = self.data[name], self._marks[name]
        try:
            deadline_s = self.app.conf["beat_cron_starting_deadline"]
            due = find_due(entry.schedule, mark.last_run_at, self.clock.now(), entry.catch_up, deadline_s)
        except Exception as exc:
            self.logger.exception("schedule.failed", entry=name, error=str(exc))
            return self._look_at(name, RETRY_S[1])
        if entry.paused:
            return self._look_at(name, due.next_s)
        try:
            for slot in due.slots:
                if not self._send_slot(entry, slot.key, slot.at, due):
                    return self._look_at(name, 0.0)
        except SchedulingError as exc:
            failures = self._failures[name] = self._failures.get(name, 0) + 1
            pause_s = min(RETRY_S[1], RETRY_S[0] * 2 ** min(failures - 1, 6))
            self.logger.error("entry.not_sent", entry=name, error=str(exc.__cause__ or exc), again_in_s=pause_s)
            return self._look_at(name, pause_s)
        self._failures.pop(name, None)
        if due.reached is not None and not due.slots:
            left_out, version = self._marks[name]
            self._note({name: (_changed(left_out, last=due.reached.timestamp()), version)})
            self.logger.warning("entry.left_out", entry=name, slot=due.reached.isoformat())
        self._look_at(name, due.next_s)

    def _send_slot(self, entry: Any, key: str, at: datetime, due: Due) -> bool:
        """Whether it was sent and noted; if not, no later slot may be."""
        if not self._may_send():
            self._looked = float("-inf")
            return False
        name = entry.name
        mark, version = self._marks[name]
        occurrence = occurrence_id(self.ledger.group, name, mark.schedule, key)
        options: dict[str, Any] = {"task_id": entry.options.get("task_id") or occurrence}
        if self._once:
            keep_s = min(max(2 * (due.next_s or 0.0), KEEP_S[0]), KEEP_S[1])
            options["once"] = (occurrence, keep_s)
        elif not self._note({name: (_changed(mark, sending=key), version)}):
            return False
        self.logger.info("entry.due", entry=name, task=entry.task, task_id=options["task_id"], slot=at.isoformat())
        self.apply_async(entry, advance=False, **options)
        mark, version = self._marks[name]
        sent = _changed(mark, last=at.timestamp(), count=mark.count + 1, sending=None)
        return self._note({name: (sent, version)})

    def _note(self, marks: dict[str, tuple[Mark, int]]) -> bool:
        """Write marks down; False (and no leader any more) if somebody else did meanwhile."""
        assert self._lease is not None
        version = self.ledger.note(marks, self._lease)
        if version is None:
            self._lose("somebody else wrote what was sent")
            return False
        for name, (mark, _) in marks.items():
            self._marks[name] = mark, version
            entry = self.data.get(name)
            if entry is not None:
                entry.last_run_at, entry.total_run_count = mark.last_run_at, mark.count
        return True

    def _send_triggered(self) -> None:
        for key, trigger in list(self._edits.triggers.items()):
            if not self._may_send():
                return
            entry = self.data.get(trigger.name)
            if entry is None:
                self.logger.error("entry.unknown", entry=trigger.name)
            else:
                options = {"once": (trigger.id, KEEP_S[0])} if self._once else {}
                try:
                    self.apply_async(entry, advance=False, task_id=trigger.id, **options)
                except SchedulingError as exc:
                    self.logger.error("entry.not_sent", entry=entry.name, error=str(exc.__cause__ or exc))
                    if isinstance(exc.__cause__, _AWAY):
                        return
                    # Nothing about the call will change: it must not stand in the way of others.
            del self._edits.triggers[key]
            self.ledger.forget_trigger(key)

    def sync(self) -> None:
        """Nothing: every send is noted when it is made."""


def anchor(entry: Any, mark: Mark | None, now: datetime, since: float | None = None) -> Mark:
    """The mark from which an entry goes on: a new one begins now, and so does one whose schedule was changed."""
    schedule = entry.schedule.describe() if hasattr(entry.schedule, "describe") else repr(entry.schedule)
    if mark is None or mark.schedule != schedule or not mark.last:
        return Mark(entry.name, now.timestamp(), mark.count if mark is not None else 0, schedule)
    ahead = mark.last_run_at - now
    if ahead > (timedelta(0) if is_interval(entry.schedule) else FAR_AHEAD):
        return _changed(mark, last=now.timestamp())
    since = None if since is None else min(since, now.timestamp())  # the clock may have been set back
    if since is not None and mark.last < since:
        return _changed(mark, last=since)
    return mark


def merge_edits(configured: dict[str, Any], edits: Edits, make: Callable[[Edit], Any]) -> dict[str, Any]:
    """The app's entries with people's changes: entries added or replaced, known ones paused."""
    entries = dict(configured)
    for name, edit in edits.entries.items():
        if edit.task is not None:
            entry = make(edit)
            if entry is not None:
                entries[name] = entry
        elif name in entries:
            entries[name] = _paused(entries[name], edit.paused)
    return entries


def _paused(entry: Any, paused: bool) -> Any:
    """A copy of an entry of whatever class, paused or not: the app's own stays as it was configured."""
    made = object.__new__(type(entry))
    made.__dict__.update(vars(entry), paused=paused)
    return made


def open_ledger(app: Any, filename: str | None = None, state: SharedState | None = None) -> Ledger:
    """Where an app's schedulers keep their notes: in a file that was named, else in broker or backend, else in a file.

    Args:
        filename: As given on the command line.
        state: Instead of all these.
    """
    named = filename or app.conf["beat_schedule_filename"]
    if state is None and (filename or named != DEFAULT_FILE):
        state = FileState(named)
    if state is None:
        state = app.shared_state
    return Ledger(state if state is not None else FileState(DEFAULT_FILE), app.main or "default")


def describe_state(state: Any) -> str:
    """A few words for people about where the notes are."""
    if isinstance(state, FileState):
        return f"file {state.path}"
    return f"shared ({type(state).__name__})"


def _changed(mark: Mark, **fields: Any) -> Mark:
    words = {name: getattr(mark, name) for name in mark.__struct_fields__}
    return Mark(**{**words, **fields})


__all__ = ["FileState", "PersistentScheduler", "ScheduleEntry", "StoreClock", "anchor", "merge_edits", "open_ledger"]
