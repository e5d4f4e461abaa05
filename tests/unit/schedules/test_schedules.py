"""Intervals, the sun, and schedules of the user's own."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac import Celery
from celeriac.schedules import BaseSchedule, maybe_schedule, schedstate, schedule, solar

UTC = timezone.utc
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
lengths = st.one_of(st.integers(1, 200_000), st.floats(0.25, 100_000)).map(lambda s: timedelta(seconds=round(s, 6)))


def at(now: datetime, run_every: object, relative: bool = False, zone: str = "UTC") -> schedule:
    app = Celery("intervals", set_as_current=False, timezone=zone)
    return schedule(run_every, relative, nowfun=lambda: now, app=app)  # type: ignore[arg-type]


def test_an_interval_is_due_when_it_is_over() -> None:
    assert at(NOON, 10).is_due(NOON - timedelta(seconds=4)) == (False, 6.0)
    assert at(NOON, 10).is_due(NOON - timedelta(seconds=10)) == (True, 10.0)
    assert at(NOON, 10).is_due(NOON - timedelta(days=10)) == (True, 10.0)
    assert at(NOON, 10).is_due(NOON.replace(tzinfo=None)) == (False, 10.0)


def test_a_relative_one_is_due_at_whole_units() -> None:
    now = NOON + timedelta(minutes=30, seconds=20)
    hourly = at(now, timedelta(hours=1), relative=True)
    assert hourly.is_due(now - timedelta(minutes=40)) == (True, 1780.0)
    assert hourly.next_slot(now) == NOON + timedelta(hours=1)
    assert at(now, timedelta(days=1), True, "Asia/Kathmandu").next_slot(NOON) == datetime(
        2026, 6, 1, 18, 15, tzinfo=UTC
    )


@given(lengths, moments, st.floats(0, 60), st.booleans())
def test_the_latest_slot_is_the_last_of_all(length: timedelta, after: datetime, later: float, relative: bool) -> None:
    if relative:  # counted in whole units; else where it stands depends on where one begins
        length = max(timedelta(seconds=1), length // timedelta(minutes=1) * timedelta(minutes=1))
        length = length if length < timedelta(hours=1) else length // timedelta(hours=1) * timedelta(hours=1)
        length = length if length < timedelta(days=1) else timedelta(days=length.days)
    until = after + later * length
    one = at(until, length, relative)
    wanted, slot = None, one.next_slot(after)
    for _ in range(70):
        if slot is None or slot > until or slot <= after:
            break
        wanted, slot = slot, one.next_slot(slot)
    assert one.latest_slot(after, until) == wanted


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "America/Havana"])
@pytest.mark.parametrize("length", [timedelta(hours=1), timedelta(hours=2), timedelta(days=1), timedelta(days=2)])
def test_a_relative_one_goes_on_where_the_clock_is_set(length: timedelta, zone: str) -> None:
    begin = datetime(2017, 2, 1, 0, 30, tzinfo=UTC)
    one, slots = at(NOON, length, True, zone), [begin]
    while slots[-1] < begin + timedelta(days=300):
        following = one.next_slot(slots[-1])
        assert following is not None
        assert slots[-1] < following <= slots[-1] + 2 * length
        slots.append(following)
    for index in range(10, len(slots) - 1, 5):
        assert one.latest_slot(slots[index - 9], slots[index + 1] - timedelta(seconds=1)) == slots[index]
    if length.days:  # at the beginning of each day, or at one o'clock where that is its beginning
        days = [slot.astimezone(ZoneInfo(zone)) for slot in slots[1:]]
        assert {later.date() - earlier.date() for earlier, later in pairwise(days)} == {length}
        assert {day.hour for day in days} <= {0, 1}


def test_a_year_of_missed_seconds_costs_one_division() -> None:
    one = at(NOON, 1)
    assert one.latest_slot(NOON - timedelta(days=365), NOON + timedelta(milliseconds=300)) == NOON
    assert at(NOON, 1, relative=True).latest_slot(NOON - timedelta(days=365), NOON) == NOON


def test_an_interval_is_a_value() -> None:
    assert repr(schedule(10)) == "<freq: 10.00 seconds>"
    assert repr(schedule(1)) == "<freq: 1.00 second>"
    assert repr(schedule(timedelta(days=1, hours=2))) == "<freq: 1.08 days>"
    assert schedule(10) == schedule(10.0) == timedelta(seconds=10)
    assert schedule(10) != schedule(11)
    again = pickle.loads(pickle.dumps(schedule(10, relative=True)))
    assert again == schedule(10)
    assert again.relative


def test_numbers_and_timedeltas_become_schedules() -> None:
    app = Celery("maybe", set_as_current=False)
    assert maybe_schedule(30) == schedule(30)
    assert maybe_schedule(timedelta(minutes=1), relative=True).relative
    assert maybe_schedule(None) is None
    own = schedule(5)
    assert maybe_schedule(own, app=app) is own
    assert own.app is app
    with pytest.raises(TypeError, match="run_every"):
        schedule(None)
    with pytest.raises(TypeError, match=r"a schedule is a number of seconds.* not 'hourly'"):
        maybe_schedule("hourly")


class EveryFullMoon(BaseSchedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return last_run_at + timedelta(days=28) - self.now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        left = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(left <= 0, left if left > 0 else 28 * 86400.0)


def test_a_schedule_of_the_users_own_answers_celerys_questions_only() -> None:
    moon = EveryFullMoon(nowfun=lambda: NOON)
    assert moon.is_due(NOON - timedelta(days=29)).is_due
    assert moon.is_due(NOON) == (False, 28 * 86400.0)
    assert not moon.has_slots
    assert moon.describe().endswith("test_schedules.EveryFullMoon")
    assert pickle.loads(pickle.dumps(EveryFullMoon())) == EveryFullMoon()
    with pytest.raises(TypeError, match="next_slot"):
        BaseSchedule().is_due(NOON)


@pytest.mark.parametrize("event", ["dawn_civil", "sunrise", "solar_noon", "sunset", "dusk_astronomical"])
def test_the_sun_is_due_once_a_day(event: str) -> None:
    sun = solar(event, 48.1, 11.6)
    slots, slot = [], datetime(2026, 2, 1, 3, tzinfo=UTC)
    for _ in range(60):
        found = sun.next_slot(slot)
        assert found is not None
        assert timedelta(hours=20) < found - slot < timedelta(hours=25) or not slots
        slots.append(slot := found)
    for earlier, later in pairwise(slots):
        assert sun.latest_slot(earlier, later) == later
        assert sun.latest_slot(earlier, later - timedelta(seconds=1)) is None
        assert sun.next_slot(later - timedelta(hours=1)) == later


@pytest.mark.parametrize(("event", "lat", "lon"), [("sunset", 48.0, -66.0), ("solar_noon", 10.0, 179.5)])
def test_an_event_that_passes_midnight_of_greenwich_is_left_out_on_no_day(event: str, lat: float, lon: float) -> None:
    sun, slot = solar(event, lat, lon), datetime(2026, 1, 1, 12, tzinfo=UTC)
    ends, days = slot + timedelta(days=365), set()
    while slot < ends:
        following = sun.next_slot(slot)
        assert following is not None
        assert following - slot < timedelta(hours=25)
        assert sun.latest_slot(slot, following + timedelta(minutes=1)) == following
        days.add((following + timedelta(hours=6)).date())
        slot = following
    assert len(days) in (365, 366)


def test_noon_in_greenwich_is_about_twelve_and_sunrise_before_it() -> None:
    begin = datetime(2026, 6, 21, tzinfo=UTC)
    noon, rise = solar("solar_noon", 51.48, 0).next_slot(begin), solar("sunrise", 51.48, 0).next_slot(begin)
    assert noon is not None
    assert rise is not None
    assert abs(noon - datetime(2026, 6, 21, 12, 1, 50, tzinfo=UTC)) < timedelta(minutes=1)
    assert abs(rise - datetime(2026, 6, 21, 3, 43, tzinfo=UTC)) < timedelta(minutes=2)


def test_in_the_polar_night_there_is_no_sunrise_for_months() -> None:
    rise = solar("sunrise", 78.2, 15.6).next_slot(datetime(2026, 11, 15, tzinfo=UTC))
    assert rise is not None
    assert datetime(2027, 2, 10, tzinfo=UTC) < rise < datetime(2027, 2, 25, tzinfo=UTC)


def test_a_solar_schedule_is_a_value_and_says_what_is_wrong() -> None:
    sun = solar("sunset", 48.1, 11.6)
    assert pickle.loads(pickle.dumps(sun)) == sun
    assert sun != solar("sunset", 48.1, 11.7)
    for wrong in (("sunst", 0, 0), ("sunset", 91, 0), ("sunset", 0, 181)):
        with pytest.raises(ValueError, match="solar: "):
            solar(*wrong)  # type: ignore[arg-type]
