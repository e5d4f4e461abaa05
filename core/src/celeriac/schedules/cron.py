"""`crontab`: due at minutes of the wall clock."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Final

from celeriac.schedules.base import BaseSchedule, schedstate
from celeriac.schedules.fields import DAY_OF_MONTH, DAY_OF_WEEK, HOUR, MINUTE, MONTH_OF_YEAR, read_field
from celeriac.utils.times import UTC

DAY: Final = timedelta(days=1)
#: The greatest day of each month, in a leap year.
LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
#: A date such as Monday, 29 February comes back within this many years, though 1900, 2100 … are no leap years.
YEARS: Final = 41


class crontab(BaseSchedule):
    """Due when all five fields match the wall clock of the app's time zone.

    Where the clock is set forward, what fell into the gap runs that much later (02:30 at 03:30). Where it is set back,
    what falls into the repeated hour runs once, the first time; unless the hour field is `*`, when it is due every
    hour and runs in both.

    Args:
        minute, hour, day_of_month, month_of_year, day_of_week: A number, a collection of numbers, or a text such as
            `*/15`, `8-17`, `mon,wed-fri`, `22-3/2`; see `crontab_parser`. Sunday is 0.
        nowfun, app: As for `BaseSchedule`.
    Raises:
        ValueError: A field cannot be read or is out of bounds, or such a day never comes (31 April).
    """

    has_slots = True

    def __init__(
        self,
        minute: Any = "*",
        hour: Any = "*",
        day_of_week: Any = "*",
        day_of_month: Any = "*",
        month_of_year: Any = "*",
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(nowfun, app)
        self._orig_minute = minute
        self._orig_hour = hour
        self._orig_day_of_week = day_of_week
        self._orig_day_of_month = day_of_month
        self._orig_month_of_year = month_of_year
        self.minute = set(read_field(minute, MINUTE))
        self.hour = set(read_field(hour, HOUR))
        self.day_of_week = set(read_field(day_of_week, DAY_OF_WEEK))
        self.day_of_month = set(read_field(day_of_month, DAY_OF_MONTH))
        self.month_of_year = set(read_field(month_of_year, MONTH_OF_YEAR))
        if min(self.day_of_month) > max(LONGEST[month - 1] for month in self.month_of_year):
            raise ValueError(
                f"crontab: day_of_month={day_of_month!r} never comes in month_of_year={month_of_year!r}; "
                f"it would never be due"
            )
        self._minutes = sorted(hour * 60 + minute for hour in self.hour for minute in self.minute)
        self._every_hour = len(self.hour) == 24
        #: Slots of days about which the clock is changed; they are asked for again and again on such a day.
        self._changes: dict[tuple[date, tzinfo], list[datetime]] = {}

    @classmethod
    def from_string(cls, crontab: str) -> crontab:
        """From the five fields of a crontab line, in its order: minute, hour, day of month, month, day of week."""
        fields = crontab.split()
        if len(fields) != 5:
            raise ValueError(
                f"crontab: {crontab!r} has {len(fields)} fields; wanted: "
                f"minute hour day_of_month month_of_year day_of_week"
            )
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year)

    def is_due(self, last_run_at: datetime) -> schedstate:
        """See `BaseSchedule.is_due`. With `beat_cron_starting_deadline` a run missed by more is not due any more."""
        last_run_at, now = self.maybe_make_aware(last_run_at), self.aware_now()
        latest = self.latest_slot(last_run_at, now)
        deadline_s = self.app.conf["beat_cron_starting_deadline"]
        if latest is not None and deadline_s is not None and (now - latest).total_seconds() > deadline_s:
            latest = None
        following = self.next_slot(now)
        left_s = (following - now).total_seconds() if following is not None else timedelta.max.total_seconds()
        return schedstate(latest is not None, left_s)

    # -- slots ----------------------------------------------------------------------------------------------

    def next_slot(self, after: datetime) -> datetime | None:
        """See `BaseSchedule.next_slot`."""
        after = after.astimezone(UTC)
        # One day earlier: what fell into a gap at its end may still be to come.
        begin = after.astimezone(self.tz).date() - DAY
        found: datetime | None = None
        for day in self._days_from(begin):
            slots = self._slots_of(day)
            index = bisect_right(slots, after)
            if index < len(slots) and (found is None or slots[index] < found):
                found = slots[index]
            # A later day can only be sooner when the clock changes about this one.
            if found is not None and day > begin and self._is_quiet(day):
                return found
        return found

    def latest_slot(self, after: datetime, until: datetime) -> datetime | None:
        """See `BaseSchedule.latest_slot`; looks back from `until`, however long ago `after` is."""
        after, until = after.astimezone(UTC), until.astimezone(UTC)
        last = until.astimezone(self.tz).date() + DAY
        first = after.astimezone(self.tz).date() - DAY
        found: datetime | None = None
        for day in self._days_back_from(last, first):
            slots = self._slots_of(day)
            index = bisect_right(slots, until)
            if index and slots[index - 1] > after and (found is None or slots[index - 1] > found):
                found = slots[index - 1]
            if found is not None and day < last and self._is_quiet(day):
                return found
        return found

    def _slots_of(self, day: date) -> Slots | list[datetime]:
        midnight = datetime(day.year, day.month, day.day)
        if self._is_quiet(day):
            return Slots(midnight.replace(tzinfo=self.tz).astimezone(UTC), self._minutes)
        if (day, self.tz) not in self._changes:
            if len(self._changes) > 8:
                self._changes.clear()
            self._changes[day, self.tz] = self._slots_of_change(midnight)
        return self._changes[day, self.tz]

    def _slots_of_change(self, midnight: datetime) -> list[datetime]:
        moments = set()
        for minutes in self._minutes:
            # Python's rule for a time that the clock leaves out: as if it had not been set forward yet (PEP 495).
            wall = (midnight + timedelta(minutes=minutes)).replace(tzinfo=self.tz)
            moments.add(wall.astimezone(UTC))
            if self._every_hour and (second := wall.replace(fold=1)).astimezone(UTC).astimezone(self.tz) == second:
                moments.add(second.astimezone(UTC))
        return sorted(moments)

    def _is_quiet(self, day: date) -> bool:
        """Whether the clock is not changed on this day, nor on the ones around it."""
        tz = self.tz
        begin = datetime(day.year, day.month, day.day, tzinfo=tz) - DAY
        offset = begin.utcoffset()
        return all((begin + number * DAY / 2).utcoffset() == offset for number in range(1, 7))

    def _matches(self, day: date) -> bool:
        return (
            day.day in self.day_of_month
            and day.month in self.month_of_year
            and day.isoweekday() % 7 in self.day_of_week
        )

    def _days_from(self, day: date) -> Iterator[date]:
        last_year = min(day.year + YEARS, date.max.year - 1)
        while day.year <= last_year:
            if self._matches(day):
                yield day
            if day.month in self.month_of_year:
                day += DAY
            else:  # over the whole month at once
                day = date(day.year + day.month // 12, day.month % 12 + 1, 1)

    def _days_back_from(self, day: date, first: date) -> Iterator[date]:
        first = max(first, date(max(day.year - YEARS, 1), 1, 1))
        while day >= first:
            if self._matches(day):
                yield day
            if day.month in self.month_of_year:
                day -= DAY
            else:
                day = date(day.year, day.month, 1) - DAY

    def as_line(self) -> str:
        """The five fields as a crontab line has them; `from_string` reads it."""
        fields = (
            self._orig_minute, self._orig_hour, self._orig_day_of_month, self._orig_month_of_year,
            self._orig_day_of_week,
        )  # fmt: skip
        return " ".join(_field_text(field) for field in fields)

    # -- as a value -----------------------------------------------------------------------------------------

    def _fields(self) -> tuple[set[int], ...]:
        return self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year

    def describe(self) -> str:
        """See `BaseSchedule.describe`."""
        fields = " ".join(",".join(map(str, sorted(field))) for field in self._fields())
        return f"crontab {fields}{self._in_zone()}"

    def __repr__(self) -> str:
        return (
            f"<crontab: {self._orig_minute} {self._orig_hour} {self._orig_day_of_month} "
            f"{self._orig_month_of_year} {self._orig_day_of_week} (m/h/dM/MY/d)>"
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, crontab):
            return self._fields() == other._fields() and super().__eq__(other) is not False
        return NotImplemented

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        given = (
            self._orig_minute,
            self._orig_hour,
            self._orig_day_of_week,
            self._orig_day_of_month,
            self._orig_month_of_year,
        )
        return _rebuild, (type(self), given, {} if self.nowfun is None else {"nowfun": self.nowfun})


class Slots:
    """The slots of a day on which the clock is not changed: midnight and minutes, made moments when asked for."""

    def __init__(self, midnight: datetime, minutes: list[int]) -> None:
        self._midnight = midnight
        self._minutes = minutes

    def __len__(self) -> int:
        return len(self._minutes)

    def __getitem__(self, index: int) -> datetime:
        return self._midnight + timedelta(minutes=self._minutes[index])


def _field_text(field: Any) -> str:
    if isinstance(field, str):
        return field.replace(" ", "")
    return ",".join(map(str, sorted([field] if isinstance(field, int) else field)))


def _rebuild(kind: type[crontab], given: tuple[Any, ...], more: dict[str, Any]) -> crontab:
    return kind(*given, **more)
