"""What schedulers note in the shared state: who leads, what was sent, and what people changed while they ran.

Keys of the scheduler's space: `lease` (who leads; expires by the store's clock), `mark/NAME` (what was sent last). Keys
of the space of edits: `edit/NAME` (an entry added, or a known one paused), `trigger/ID` (send this one now). Names too
long for a key are hashed; the value has them whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from celeriac.exceptions import ImproperlyConfigured
from celeriac.schedules import crontab, schedule, solar
from celeriac.spec.state import Change, SharedState, Snapshot
from celeriac.utils.ids import uuid
from celeriac.utils.times import UTC

LEASE: Final = "lease"
MARK: Final = "mark/"
EDIT: Final = "edit/"
TRIGGER: Final = "trigger/"
_LONGEST_NAME: Final = 200


class Mark(msgspec.Struct, omit_defaults=True):
    """What was sent of an entry.

    Attributes:
        last: The slot that was sent last, as unix time; or when the entry was first seen.
        count: How often it was sent.
        schedule: `describe()` of the schedule that this belongs to.
        sending: The slot that is being sent; set only on brokers that cannot tell a repeated message.
    """

    name: str
    last: float
    count: int = 0
    schedule: str = ""
    sending: str | None = None

    @property
    def last_run_at(self) -> datetime:
        """`last`, as a datetime in UTC."""
        return datetime.fromtimestamp(self.last, UTC)


class Edit(msgspec.Struct, omit_defaults=True):
    """What a person changed: a whole entry (with a task), or only whether a known one is paused."""

    name: str
    paused: bool = False
    task: str | None = None
    schedule: dict[str, Any] | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: dict[str, Any] = {}
    catch_up: str | None = None
    #: Unix time: nothing older is made up for (it was paused until then).
    since: float | None = None

    def entry_words(self) -> dict[str, Any]:
        """The arguments of a `ScheduleEntry`."""
        assert self.schedule is not None
        return {
            "task": self.task,
            "schedule": read_schedule(self.schedule),
            "args": tuple(self.args),
            "kwargs": self.kwargs,
            "options": self.options,
            "catch_up": self.catch_up,
            "paused": self.paused,
        }


class Trigger(msgspec.Struct):
    """Send this entry once, now."""

    name: str
    id: str


class Edits(msgspec.Struct):
    """What people changed: entries by name, and what is to be sent at once by its key."""

    entries: dict[str, Edit]
    triggers: dict[str, Trigger]


class Ledger:
    """The notes of one app; verbs for schedulers, and for `celeriac schedule`.

    Args:
        group: Names the schedule: schedulers with one name share it, others do not.
    """

    def __init__(self, state: SharedState, group: str) -> None:
        self.state = state
        self.group = group
        # Two spaces, so that a change by a person is seen by the version of one that nothing else writes to.
        self.space = f"beat/{group}"
        self.edits_space = f"beat-edits/{group}"

    def look(self) -> Snapshot:
        """The lease and the store's clock: one small question."""
        return self.state.read(self.space, [LEASE])

    def read_marks(self) -> dict[str, tuple[Mark, int]]:
        """Name → mark and its version. One that cannot be read is as if it were not there, but for its version."""
        marks = {}
        for key, entry in self.state.read(self.space).entries.items():
            if key.startswith(MARK):
                mark = _read_mark(key, entry.value)
                marks[mark.name] = mark, entry.version
        return marks

    def take_lease(self, owner: str, given: int, ttl_s: float) -> int | None:
        """Become the leader (given ABSENT), or stay it (given the lease's version); its new version, or None."""
        return self.state.write(self.space, [Change(LEASE, owner.encode(), ttl_s)], given={LEASE: given})

    def drop_lease(self, given: int) -> None:
        """Stop being the leader, if one still is."""
        self.state.write(self.space, [Change(LEASE, None)], given={LEASE: given})

    def note(self, marks: Mapping[str, tuple[Mark, int]], lease: int) -> int | None:
        """Write marks, each over the version it was read with, as long as the lease is ours; the version, or None."""
        changes = [Change(key_of(MARK, name), msgspec.json.encode(mark)) for name, (mark, _) in marks.items()]
        given = {key_of(MARK, name): version for name, (_, version) in marks.items()}
        return self.state.write(self.space, changes, given={LEASE: lease, **given})

    def forget(self, names: Iterable[str], lease: int) -> int | None:
        """Remove the marks of these entries as long as the lease is ours; the version, or None."""
        return self.state.write(self.space, [Change(key_of(MARK, name), None) for name in names], given={LEASE: lease})

    def read_edits(self) -> tuple[int, Edits]:
        """The version of people's changes, and these."""
        snapshot, edits = self.state.read(self.edits_space), Edits({}, {})
        for key, entry in snapshot.entries.items():
            if key.startswith(EDIT) and (edit := _decode(entry.value, Edit)) is not None:
                edits.entries[edit.name] = edit
            elif key.startswith(TRIGGER) and (trigger := _decode(entry.value, Trigger)) is not None:
                edits.triggers[key] = trigger
        return snapshot.version, edits

    def edits_version(self) -> int:
        """Changes when a person changed something."""
        return self.state.version(self.edits_space)

    def forget_trigger(self, key: str) -> None:
        """Remove what was triggered and sent."""
        self.state.write(self.edits_space, [Change(key, None)])

    # -- for people -----------------------------------------------------------------------------------------

    def now(self) -> float:
        """The store's clock."""
        return self.look().now

    def edit(self, edit: Edit) -> None:
        """Add an entry, or change one."""
        self.state.write(self.edits_space, [Change(key_of(EDIT, edit.name), msgspec.json.encode(edit))])

    def remove(self, name: str) -> None:
        """Forget what a person changed about an entry; one that was added is gone, one of the app's is as it was."""
        self.state.write(self.edits_space, [Change(key_of(EDIT, name), None)])

    def trigger(self, name: str) -> str:
        """Have an entry sent once, now; returns the id of its task."""
        trigger = Trigger(name, uuid())
        self.state.write(self.edits_space, [Change(TRIGGER + trigger.id, msgspec.json.encode(trigger))])
        return trigger.id


def key_of(kind: str, name: str) -> str:
    """The key of an entry's mark or edit."""
    if len(name) <= _LONGEST_NAME:
        return kind + name
    return f"{kind}{name[:100]}…{hashlib.sha256(name.encode()).hexdigest()}"


def write_schedule(value: Any) -> dict[str, Any]:
    """A schedule as JSON.

    Raises:
        ImproperlyConfigured: It is one of the user's own, which cannot be written.
    """
    if type(value) is schedule:
        return {"every": value.seconds, **({"relative": True} if value.relative else {})}
    if type(value) is crontab:
        return {"crontab": value.as_line()}
    if type(value) is solar:
        return {"solar": [value.event, value.lat, value.lon]}
    raise ImproperlyConfigured(f"a schedule of the type {type(value).__name__} cannot be written down: {value!r}")


def read_schedule(written: Mapping[str, Any]) -> Any:
    """A schedule from what `write_schedule` made.

    Raises:
        ValueError: It is no such thing, or makes no sense.
    """
    if "every" in written:
        return schedule(timedelta(seconds=float(written["every"])), bool(written.get("relative")))
    if "crontab" in written:
        return crontab.from_string(str(written["crontab"]))
    if "solar" in written:
        event, lat, lon = written["solar"]
        return solar(event, lat, lon)
    raise ValueError(f"{json.dumps(dict(written))} is no schedule; wanted: every, crontab or solar")


def _read_mark(key: str, value: bytes) -> Mark:
    mark: Mark = _decode(value, Mark) or Mark(key.removeprefix(MARK), 0.0)
    try:
        _ = mark.last_run_at
    except (OverflowError, ValueError, OSError):  # a number, and no time
        mark.last = 0.0
    return mark


def _decode(value: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError:
        return None
