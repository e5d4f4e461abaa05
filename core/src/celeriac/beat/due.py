"""What is due, and what of it is made up for: pure functions of a schedule, what ran last, and the time now."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from celeriac.schedules import BaseSchedule, crontab, schedule

How = Literal["last", "all", "skip"]

#: `catch_up="all"` without a number makes up for at most so many.
MOST_MISSED: Final = 100
#: With `catch_up="skip"`, a slot that is older than this counts as missed.
GRACE_S: Final = 60.0
#: The first part of all occurrence ids.
OCCURRENCES: Final = uuid.UUID("6f1c1c56-0b5e-5d0a-9c53-5f2f0a0c7a11")
_INSTANT: Final = timedelta(microseconds=1)
_OURS: Final = (BaseSchedule.is_due, schedule.is_due, crontab.is_due)


@dataclass(frozen=True)
class CatchUp:
    """What happens to slots that were missed: the last of them is sent, all (the newest `most`), or none."""

    how: How = "last"
    most: int = 1


@dataclass(frozen=True)
class Slot:
    """One moment at which an entry is due.

    Attributes:
        at: The moment.
        key: Names it: equal in every process that sees the same entry and the same last run.
    """

    at: datetime
    key: str


@dataclass(frozen=True)
class Due:
    """What is to be done about an entry now.

    Attributes:
        slots: To be sent, the oldest first.
        reached: The last run to note when nothing of this is sent: slots were left out. None: nothing to note.
        next_s: Seconds until it must be looked at again; None: never.
    """

    slots: tuple[Slot, ...] = ()
    reached: datetime | None = None
    next_s: float | None = None


def read_catch_up(value: Any) -> CatchUp:
    """The rule from `last`, `skip`, `all`, `all:N`, or a number N for that.

    Raises:
        ValueError: None of these.
    """
    if isinstance(value, CatchUp):
        return value
    word, _, number = str(value).partition(":")
    if value is None or word == "last":
        return CatchUp()
    if word == "skip" and not number:
        return CatchUp("skip")
    if word == "all" or word.isdecimal():
        text = (number or str(MOST_MISSED)) if word == "all" else word
        if text.isdecimal() and int(text) > 0:
            return CatchUp("all", int(text))
    raise ValueError(f"catch_up must be 'last', 'skip', 'all' or 'all:N' (at most N missed runs), not {value!r}")


def names_its_slots(schedule: Any) -> bool:
    """Whether slots can be had from it; else, as subclasses with their own answers, it is asked Celery's questions."""
    kind = type(schedule)
    return (
        bool(getattr(schedule, "has_slots", False))
        and kind.is_due in _OURS
        and kind.remaining_estimate is BaseSchedule.remaining_estimate
    )


def is_interval(schedule: Any) -> bool:
    """Whether it counts time, rather than looking at a clock."""
    return isinstance(schedule, _interval) and not schedule.relative


_interval: Final = schedule


def find_due(
    schedule: Any, last: datetime, now: datetime, catch_up: CatchUp = CatchUp(), deadline_s: float | None = None
) -> Due:
    """What is due of a schedule that ran last for the slot `last`.

    Args:
        last, now: Aware.
        deadline_s: `beat_cron_starting_deadline`: older slots of a crontab are left out.
    """
    if not names_its_slots(schedule):
        due, next_s = schedule.is_due(last)
        # Named by the run before, for the moment itself depends on who asks.
        slots = (Slot(now, f"after {last.isoformat()}"),) if due else ()
        return Due(slots, None, next_s)
    latest = schedule.latest_slot(last, now)
    # Where the slots of an interval lie depends on the one before, those of a clock on nothing.
    following = schedule.next_slot((latest or last) if isinstance(schedule, _interval) else max(now, last))
    next_s = None if following is None else max((following - now).total_seconds(), 0.0)
    if latest is None:
        return Due((), None, next_s)
    oldest = _oldest(now, catch_up, deadline_s if isinstance(schedule, crontab) else None)
    missed: list[Slot] = []
    slot = latest
    while slot is not None and (oldest is None or slot >= oldest):
        missed.append(Slot(slot, slot.isoformat()))
        slot = schedule.latest_slot(last, slot - _INSTANT) if len(missed) < catch_up.most else None
    return Due(tuple(reversed(missed)), latest, next_s)


def occurrence_id(group: str, name: str, version: str, key: str) -> str:
    """The task id of one slot of one entry: the same whoever sends it, however often."""
    return str(uuid.uuid5(OCCURRENCES, "\n".join((group, name, version, key))))


def _oldest(now: datetime, catch_up: CatchUp, deadline_s: float | None) -> datetime | None:
    ages = [GRACE_S] if catch_up.how == "skip" else []
    if deadline_s is not None:
        ages.append(deadline_s)
    return now - timedelta(seconds=min(ages)) if ages else None
