"""`crontab` against an oracle that walks through the minutes, one by one."""

from __future__ import annotations

import pickle
import time
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
import pytz
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celeriac import Celery
from celeriac.schedules import ParseException, crontab, crontab_parser, schedule
from celeriac.utils.time import make_aware

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu",
         "Pacific/Apia", "Africa/Casablanca", "Asia/Beirut", "America/St_Johns")  # fmt: skip


def make(zone: str, now: datetime | None = None, **fields: object) -> crontab:
    app = Celery("crontabs", set_as_current=False, timezone=zone)
    return crontab(app=app, nowfun=(lambda: now) if now else None, **fields)  # type: ignore[arg-type]


def slow_slots(schedule: crontab, begin: datetime, end: datetime) -> list[datetime]:
    """Every slot from begin to end (UTC), by trying each minute of the real time and each of the wall's."""

    def fits(wall: datetime) -> bool:
        return (
            wall.minute in schedule.minute
            and wall.hour in schedule.hour
            and wall.isoweekday() % 7 in schedule.day_of_week
            and wall.day in schedule.day_of_month
            and wall.month in schedule.month_of_year
        )

    zone, found = schedule.tz, set()
    moment = begin.replace(second=0, microsecond=0)
    while moment <= end:
        wall = moment.astimezone(zone)
        if fits(wall) and wall.second == 0 and (not wall.fold or len(schedule.hour) == 24):
            found.add(moment)
        moment += MINUTE
    wall = begin.astimezone(zone).replace(tzinfo=None, second=0, microsecond=0) - timedelta(days=1)
    while wall <= end.astimezone(zone).replace(tzinfo=None) + timedelta(hours=2):
        moment = wall.replace(tzinfo=zone).astimezone(UTC)
        if moment.astimezone(zone).replace(tzinfo=None) != wall and fits(wall):  # left out by the clock
            found.add(moment)
        wall += MINUTE
    return sorted(slot for slot in found if begin < slot <= end)


def fields(least: int, most: int) -> st.SearchStrategy[object]:
    number = st.integers(least, most)
    part = st.one_of(
        st.just("*"),
        number.map(str),
        st.tuples(number, number).map(lambda ends: f"{ends[0]}-{ends[1]}"),
        st.tuples(number, number, st.integers(1, 20)).map(lambda ends: f"{ends[0]}-{ends[1]}/{ends[2]}"),
        st.integers(1, most).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), number, st.sets(number, min_size=1, max_size=4),
                     st.lists(part, min_size=1, max_size=3).map(",".join))  # fmt: skip


crontabs = st.fixed_dictionaries(
    {"minute": fields(0, 59), "hour": fields(0, 23)},
    optional={"day_of_week": fields(0, 6), "day_of_month": fields(1, 28), "month_of_year": fields(1, 12)},
)
#: Days around changes of the clock in the zones above, and plain ones.
days = st.one_of(
    st.sampled_from([
        datetime(2026, 3, 28), datetime(2026, 10, 24), datetime(2026, 3, 7), datetime(2026, 10, 31),
        datetime(2026, 4, 4), datetime(2026, 10, 3), datetime(2018, 11, 3), datetime(2011, 12, 29),
        datetime(2026, 2, 14), datetime(2026, 3, 21), datetime(2026, 12, 31), datetime(2024, 2, 28),
    ]),
    st.datetimes(datetime(2000, 1, 1), datetime(2035, 1, 1)),
)  # fmt: skip


@settings(max_examples=40)
@given(crontabs, st.sampled_from(ZONES), days, st.integers(0, 3 * 1440))
@example({"minute": 30, "hour": 2}, "Europe/Berlin", datetime(2026, 3, 28), 0)
@example({"minute": 30, "hour": "*"}, "Australia/Lord_Howe", datetime(2026, 10, 3), 0)
@example({"minute": "*/15", "hour": "*"}, "America/New_York", datetime(2026, 10, 31), 0)
@example({"minute": 0, "hour": 10}, "Pacific/Apia", datetime(2011, 12, 29), 0)
def test_slots_are_those_found_minute_by_minute(
    given_fields: dict[str, object], zone: str, day: datetime, minutes: int
) -> None:
    schedule = make(zone, **given_fields)
    begin = day.replace(tzinfo=UTC) + minutes * MINUTE
    end = begin + timedelta(days=2)
    wanted = slow_slots(schedule, begin, end)
    found, slot = [], schedule.next_slot(begin)
    while slot is not None and slot <= end:
        found.append(slot)
        slot = schedule.next_slot(slot)
    assert found == wanted
    assert schedule.latest_slot(begin, end) == (wanted[-1] if wanted else None)
    if wanted:
        middle = wanted[len(wanted) // 2]
        assert schedule.latest_slot(begin, middle) == middle
        assert schedule.latest_slot(middle, middle) is None


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_no_daily_run_is_lost_or_doubled_in_a_year(zone: str) -> None:
    for hour in range(24):
        schedule = make(zone, minute=30, hour=hour)
        slot, end, days = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone)), datetime(2027, 1, 1, tzinfo=ZoneInfo(zone)), []
        while (found := schedule.next_slot(slot)) is not None and found < end:
            slot = found
            days.append(found.astimezone(ZoneInfo(zone)).date())
        assert len(days) == len(set(days)) == 365


def test_in_the_repeated_hour_only_what_is_due_every_hour_runs_twice() -> None:
    begin, end = datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 22, tzinfo=UTC)

    def count(**given: object) -> int:
        schedule, slot, number = make("Europe/Berlin", **given), begin, 0
        while (found := schedule.next_slot(slot)) is not None and found <= end:
            slot, number = found, number + 1
        return number

    assert count(minute=0) == 24  # real hours from 00:00 summer time to 23:00 winter time
    assert count(minute=30, hour=2) == 1
    assert count(minute=30, hour="1-3") == 3


def test_far_dates_are_found_at_once() -> None:
    leap = make("Europe/Berlin", minute=0, hour=0, day_of_month=29, month_of_year=2, day_of_week="mon")
    began = time.process_time()
    for _ in range(20):
        assert leap.next_slot(datetime(2024, 3, 1, tzinfo=UTC)) == datetime(2044, 2, 28, 23, tzinfo=UTC)
        assert leap.latest_slot(datetime(1990, 1, 1, tzinfo=UTC), datetime(2043, 1, 1, tzinfo=UTC)) == datetime(
            2016, 2, 28, 23, tzinfo=UTC
        )
        assert make("UTC").latest_slot(datetime(1990, 1, 1, tzinfo=UTC), datetime(2043, 1, 1, tzinfo=UTC)) is not None
    assert time.process_time() - began < 10  # walking through the minutes of these years takes minutes


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("*/15", {0, 15, 30, 45}),
        ("50-10/5", {50, 55, 0, 5, 10}),
        ("1, 2 ,3-5", {1, 2, 3, 4, 5}),
        ("10-10", {10}),
        ("*,5", set(range(60))),
        ("*/61", {0}),
    ],
)
def test_texts_are_read(text: str, numbers: set[int]) -> None:
    assert crontab(minute=text).minute == numbers == crontab_parser(60).parse(text)


def test_names_count_by_their_first_three_letters_and_ranges_wrap() -> None:
    assert crontab(day_of_week="fri-mon").day_of_week == {5, 6, 0, 1}
    assert crontab(day_of_week="monday,TUE").day_of_week == {1, 2}
    assert crontab(month_of_year="nov-february").month_of_year == {11, 12, 1, 2}
    assert crontab(day_of_month="*/7").day_of_month == {1, 8, 15, 22, 29}


@pytest.mark.parametrize(
    "given",
    [
        {"day_of_week": 7}, {"day_of_week": "7"}, {"day_of_week": "0-7"}, {"minute": 60}, {"hour": "24"},
        {"minute": ""},
        {"minute": "*/0"}, {"minute": "5/2"}, {"minute": "-1"}, {"minute": [70]}, {"minute": []}, {"hour": "1-"},
        {"month_of_year": 0}, {"day_of_week": "foo"}, {"day_of_week": "mo"}, {"day_of_month": 30, "month_of_year": 2},
        {"day_of_month": 31, "month_of_year": "4,jun"}, {"minute": "*/*"}, {"minute": "1,,2"},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="crontab: "):
        crontab(**given)


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(TypeError, match="hour"):
        crontab(hour=1.5)
    with pytest.raises(ParseException, match="Sunday is 0"):
        crontab(day_of_week="7")
    with pytest.raises(ValueError, match="3 fields"):
        crontab.from_string("* * *")


def test_it_is_a_value() -> None:
    schedule = crontab.from_string("*/5 8-17 1 jan mon")
    assert repr(schedule) == "<crontab: */5 8-17 1 jan mon (m/h/dM/MY/d)>"
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert repr(again) == repr(schedule)
    assert crontab(minute="5") == crontab(minute=5)
    assert crontab(minute=5) != crontab(minute=6)
    assert crontab(minute=5) != 5
    assert crontab(minute={5}).describe() == crontab(minute="5").describe()


def test_it_answers_as_celerys() -> None:
    now = datetime(2026, 3, 1, 12, 30, 20, tzinfo=UTC)
    schedule = make("UTC", now)
    assert schedule.is_due(now) == (False, 40.0)
    assert schedule.is_due(now.replace(tzinfo=None)) == (False, 40.0)
    assert schedule.is_due(now - timedelta(minutes=5)) == (True, 40.0)
    assert make("UTC", now, hour=11, minute=0).remaining_estimate(now - timedelta(days=1)) == timedelta(
        hours=-1, minutes=-30, seconds=-20
    )


def test_a_run_missed_by_more_than_the_deadline_is_left_out() -> None:
    now = datetime(2026, 3, 1, 12, 30, 20, tzinfo=UTC)
    schedule = make("UTC", now, hour=12, minute=0)
    yesterday = now - timedelta(days=1)
    schedule.app.conf.beat_cron_starting_deadline = 3600
    assert schedule.is_due(yesterday).is_due
    schedule.app.conf.beat_cron_starting_deadline = 600
    assert schedule.is_due(yesterday) == (False, 84580.0)


def test_without_a_zone_and_without_utc_it_is_the_machines_time_summer_and_winter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Celery("local", set_as_current=False, enable_utc=False)
    try:
        monkeypatch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        berlin, at_four = ZoneInfo("Europe/Berlin"), crontab(minute=0, hour=4, app=app)
        for day, hour in ((datetime(2026, 1, 10, tzinfo=UTC), 3), (datetime(2026, 7, 10, tzinfo=UTC), 2)):
            assert at_four.next_slot(day) == day.replace(hour=hour)
        for hour in range(0, 24 * 365, 5):
            moment = datetime(2026, 1, 1, 0, 30, tzinfo=UTC) + timedelta(hours=hour)
            ours, theirs = moment.astimezone(app.timezone), moment.astimezone(berlin)
            assert (ours.replace(tzinfo=None), ours.fold) == (theirs.replace(tzinfo=None), theirs.fold)
        for wall in (datetime(2026, 3, 29, 2, 30), datetime(2026, 10, 25, 2, 30)):  # left out, and repeated
            for fold in (0, 1):
                wanted = wall.replace(tzinfo=berlin, fold=fold).astimezone(UTC)
                assert wall.replace(tzinfo=app.timezone, fold=fold).astimezone(UTC) == wanted
    finally:
        monkeypatch.undo()
        time.tzset()


def test_in_another_zone_it_is_another_schedule() -> None:
    apps = [Celery("zones", set_as_current=False, timezone=zone) for zone in ("UTC", "Europe/Berlin", "Asia/Tokyo")]
    assert len({crontab(hour=4, app=app).describe() for app in apps}) == 3
    assert len({schedule(86400, relative=True, app=app).describe() for app in apps}) == 3
    assert len({schedule(86400, app=app).describe() for app in apps}) == 1


@pytest.mark.parametrize("where", ["app", "schedule"])
def test_a_zone_of_pytz_counts_as_the_plain_one_of_its_name(where: str) -> None:
    zone = pytz.timezone("Europe/Berlin")
    app = Celery("crontabs", set_as_current=False, timezone=zone if where == "app" else "UTC")
    at_four = crontab(app=app, minute=0, hour=4)
    if where == "schedule":
        at_four.tz = zone
    for month, hour in ((1, 3), (7, 2)):
        assert at_four.next_slot(datetime(2026, month, 1, tzinfo=UTC)) == datetime(2026, month, 1, hour, tzinfo=UTC)
    assert make_aware(datetime(2026, 7, 1, 4), zone) == datetime(2026, 7, 1, 2, tzinfo=UTC)
