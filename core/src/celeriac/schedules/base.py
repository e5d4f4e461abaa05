"""What all schedules share, and the plain interval.

A schedule answers two kinds of question. Celery's: `is_due(last_run_at)` and `remaining_estimate(last_run_at)`, which
a schedule of the user's own must answer. And ours, about *slots*, the moments at which it is due: `next_slot(after)`
and `latest_slot(after, until)`, from which beat tells what was missed and gives each slot its own task id.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any, ClassVar, Final, NamedTuple

from celeriac._state import get_current_app
from celeriac.utils.times import UTC, as_delta, plain_zone

HOUR: Final = timedelta(hours=1)
_UNITS: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))


class schedstate(NamedTuple):
    """Whether it is due now, and in how many seconds to ask again."""

    is_due: bool
    next: float


class BaseSchedule:
    """A schedule; subclass it for one of your own and define `remaining_estimate` and `is_due`.

    Args:
        nowfun: Gives the time now, as a datetime (a naive one is in UTC); default: the app's clock.
        app: Whose clock and time zone; default: the current app.
    """

    #: Whether it can name its slots; a subclass that answers only Celery's questions leaves it.
    has_slots: ClassVar[bool] = False

    def __init__(self, nowfun: Callable[[], datetime] | None = None, app: Any = None) -> None:
        self.nowfun = nowfun
        self._app = app

    # -- Celery's questions ---------------------------------------------------------------------------------

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """How long until it is due, having run last at that time; negative when overdue."""
        slot = self.next_slot(self.maybe_make_aware(last_run_at))
        return timedelta.max if slot is None else slot - self.aware_now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether it is due, having run last at that time, and when to ask again."""
        left_s = self.remaining_estimate(last_run_at).total_seconds()
        if left_s > 0:
            return schedstate(False, left_s)
        after_this = self.remaining_estimate(self.aware_now())
        return schedstate(True, max(after_this.total_seconds(), 0.0))

    # -- about slots ----------------------------------------------------------------------------------------

    def next_slot(self, after: datetime) -> datetime | None:
        """The first moment later than `after` (aware) at which it is due, in UTC; None: never again."""
        raise TypeError(f"{type(self).__name__} must define remaining_estimate and is_due, or next_slot")

    def latest_slot(self, after: datetime, until: datetime) -> datetime | None:
        """The last slot that is later than `after` and not later than `until`; None if there is none."""
        found, slot = None, self.next_slot(after)
        while slot is not None and slot <= until:
            found, slot = slot, self.next_slot(slot)
        return found

    def describe(self) -> str:
        """What it is, in a text that is the same in every process; beat sees by it that a schedule was changed."""
        text = repr(self)
        kind = type(self)
        return f"{kind.__module__}.{kind.__qualname__}" if " at 0x" in text else text

    # -- the clock ------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time now, by `nowfun` or the app."""
        return self.nowfun() if self.nowfun is not None else self.app.now()

    def aware_now(self) -> datetime:
        """The time now, aware."""
        return self.maybe_make_aware(self.now())

    def maybe_make_aware(self, moment: datetime, naive_as_utc: bool = True) -> datetime:
        """An aware datetime; a naive one is in UTC, or in the schedule's time zone."""
        if moment.tzinfo is not None:
            return moment
        return moment.replace(tzinfo=UTC if naive_as_utc else self.tz)

    def to_local(self, moment: datetime) -> datetime:
        """The same moment in the schedule's time zone."""
        return self.maybe_make_aware(moment).astimezone(self.tz)

    @property
    def app(self) -> Any:
        """Whose clock and time zone it uses."""
        return self._app if self._app is not None else get_current_app()

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def tz(self) -> tzinfo:
        """Its time zone: the app's, unless one was set."""
        found: tzinfo = self.__dict__.get("tz") or self.app.timezone
        return found

    @tz.setter
    def tz(self, zone: tzinfo) -> None:
        self.__dict__["tz"] = plain_zone(zone)

    def _in_zone(self) -> str:
        """For `describe`: in another zone it is another schedule."""
        zone = self.tz
        name = type(zone).__qualname__ if " at 0x" in str(zone) else str(zone)
        return "" if name == "UTC" else f" in {name}"

    @property
    def utc_enabled(self) -> bool:
        """The setting `enable_utc`."""
        return bool(self.app.conf["enable_utc"])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_app"} | {"_app": None}

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BaseSchedule):
            return type(self) is type(other) and self.nowfun == other.nowfun
        return NotImplemented

    __hash__ = None  # type: ignore[assignment] # as in Celery: equal ones may be changed apart


class schedule(BaseSchedule):
    """Due every so often.

    Args:
        run_every: Seconds or a timedelta.
        relative: Due when the clock shows a whole unit of the interval: every 2 hours on the hour, and so on.
    """

    has_slots = True

    def __init__(
        self,
        run_every: float | timedelta | None = None,
        relative: bool = False,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
    ) -> None:
        super().__init__(nowfun, app)
        if run_every is None or isinstance(run_every, bool):
            raise TypeError(f"schedule: run_every must be seconds or a timedelta, not {run_every!r}")
        self.run_every = as_delta(run_every)
        self.relative = relative

    @property
    def seconds(self) -> float:
        """The interval in seconds."""
        return max(self.run_every.total_seconds(), 0.0)

    @property
    def human_seconds(self) -> str:
        """The interval in words."""
        seconds = self.seconds
        for length, unit in _UNITS:
            if seconds >= length:
                return f"{seconds / length:.2f} {unit}{'' if seconds == length else 's'}"
        return f"{seconds:.2f} seconds" if seconds else "now"

    def is_due(self, last_run_at: datetime) -> schedstate:
        """See `BaseSchedule.is_due`; after a run the interval begins anew."""
        left_s = self.remaining_estimate(last_run_at).total_seconds()
        if left_s > 0:
            return schedstate(False, left_s)
        if self.relative:
            return schedstate(True, max(self.remaining_estimate(self.aware_now()).total_seconds(), 0.0))
        return schedstate(True, self.seconds)

    def next_slot(self, after: datetime) -> datetime | None:
        """One interval later."""
        later = self._later(after, 1)
        if not self.relative:
            return later
        slot = self._whole(later)
        # Where the clock is set back by half an hour, the whole hour may be the one that it began at.
        return slot if slot > after else self._whole(later + HOUR)

    def latest_slot(self, after: datetime, until: datetime) -> datetime | None:
        """See `BaseSchedule.latest_slot`; one division, however long ago `after` is."""
        if self.seconds <= 0:
            return until if until > after else None
        count = (until - after) // self.run_every
        if not self.relative:
            return after + count * self.run_every if count > 0 else None
        # Whole units may lie anywhere in the interval: look from a little before.
        begin = self._later(after, count - 2) if count > 2 else after
        return super().latest_slot(begin, until) if count >= 0 else None

    def _later(self, moment: datetime, count: int) -> datetime:
        """So many intervals later. Whole days are counted on the wall: when clocks are set, one has 23 hours, or 25."""
        if not self.relative or self.seconds < 86400:
            return moment + count * self.run_every
        wall = moment.astimezone(self.tz).replace(tzinfo=None) + count * self.run_every
        return wall.replace(tzinfo=self.tz).astimezone(UTC)

    def _whole(self, moment: datetime) -> datetime:
        """The moment, down to the unit that the interval counts in, by the clock on the wall."""
        wall = moment.astimezone(self.tz)
        if self.seconds >= 86400:
            wall = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        elif self.seconds >= 3600:
            wall = wall.replace(minute=0, second=0, microsecond=0)
        elif self.seconds >= 60:
            wall = wall.replace(second=0, microsecond=0)
        return wall.astimezone(UTC)

    def describe(self) -> str:
        """See `BaseSchedule.describe`."""
        return f"every {self.seconds!r} s{f' relative{self._in_zone()}' if self.relative else ''}"

    def __repr__(self) -> str:
        return f"<freq: {self.human_seconds}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, schedule):
            return self.run_every == other.run_every
        return self.run_every == other

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run_every, self.relative, self.nowfun)


def maybe_schedule(value: Any, relative: bool = False, app: Any = None) -> Any:
    """A schedule from seconds or a timedelta; a schedule (or None) is returned as it is, for this app.

    Raises:
        TypeError: It is none of these.
    """
    if value is None:
        return None
    if isinstance(value, (int, float, timedelta)):
        return schedule(value, relative, app=app)
    if not hasattr(value, "is_due"):
        raise TypeError(f"a schedule is a number of seconds, a timedelta, a crontab or the like, not {value!r}")
    value.app = app
    return value
