"""The default scheduler under a clock that the test turns: several at once, killed at every step."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pytest

from celeriac import Celery
from celeriac.beat import BeatLazyFunc, PersistentScheduler
from celeriac.beat.file import FileState
from celeriac.beat.ledger import MARK, Edit, key_of
from celeriac.exceptions import TransportLost
from celeriac.schedules import BaseSchedule, crontab, schedstate
from celeriac.spec.state import Change, Entry, SharedState, Snapshot, holds

UTC = timezone.utc
BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


class Killed(BaseException):
    """The process died here."""


class World:
    """One store, one broker and one time, for any number of schedulers; each step may be somebody's last."""

    def __init__(self, once: bool = True) -> None:
        self.unix = BEGIN
        self.monotonic = 1000.0
        self.spaces: dict[str, dict[str, Entry]] = {}
        self.versions: dict[str, int] = {}
        self.sent: list[tuple[float, str, str]] = []
        self.once = once
        self.keys: set[str] = set()
        self.broker_is_away = False
        self.steps_to_live: int | None = None
        self.fault: Callable[[], BaseException] = Killed

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.unix += seconds
        self.monotonic += seconds

    def step(self) -> None:
        """Something that a process does in the world; it may die just before."""
        if self.steps_to_live is not None:
            self.steps_to_live -= 1
            if self.steps_to_live < 0:
                self.steps_to_live = None
                raise self.fault()

    def times(self) -> list[int]:
        return [round(when - BEGIN) for when, _, _ in self.sent]

    def ids(self) -> list[str]:
        return [task_id for _, _, task_id in self.sent]


class WorldState:
    """`SharedState` in a `World`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _alive(self, space: str) -> dict[str, Entry]:
        entries = self.world.spaces.setdefault(space, {})
        return {key: e for key, e in entries.items() if e.expires is None or e.expires > self.world.unix}

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        self.world.step()
        entries = self._alive(space)
        if not holds(entries, given):
            return None
        version = self.world.versions[space] = self.world.versions.get(space, 0) + 1
        for change in changes:
            entries.pop(change.key, None)
            if change.value is not None:
                expires = None if change.ttl_s is None else self.world.unix + change.ttl_s
                entries[change.key] = Entry(change.value, version, expires)
        self.world.spaces[space] = entries
        self.world.step()
        return version

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        self.world.step()
        entries = self._alive(space)
        found = entries if keys is None else {key: entries[key] for key in keys if key in entries}
        return Snapshot(self.world.versions.get(space, 0), self.world.unix, dict(found))

    def version(self, space: str) -> int:
        return self.world.versions.get(space, 0)


class Beat(PersistentScheduler):
    """A scheduler in a `World`, whose messages the world counts."""

    world: World

    def send_task(self, name: str, args: Any, kwargs: Any, **options: Any) -> Any:
        world = self.world
        world.step()
        if world.broker_is_away:
            raise TransportLost("the broker is away")
        key = options["once"][0] if "once" in options else None
        if key is None or key not in world.keys:
            world.keys.add(key or "")
            world.sent.append((world.unix, name, options["task_id"]))
            self.last_call = args, kwargs, options
        world.step()


class Lines(list[tuple[str, dict[str, Any]]]):
    """A log that is kept; of lines about entries, nothing."""

    def info(self, event: str, **words: Any) -> None:
        if event.startswith("beat."):
            self.append((event, words))

    warning = error = info


Make = Callable[..., Beat]


@pytest.fixture
def world() -> World:
    return World()


def make_beat(world: World, entries: dict[str, Any], state: SharedState | None = None, **settings: Any) -> Beat:
    app = Celery("virtual", broker="memory://", set_as_current=False, beat_schedule=entries, **settings)
    beat = Beat(app, state=state or WorldState(world), monotonic=lambda: world.monotonic, lazy=True)
    beat.world = world
    beat.setup_schedule()
    beat._once = world.once
    return beat


def live(world: World, beats: Sequence[Beat], seconds: float, pace: float = 0.5) -> None:
    """Have all of them tick while time passes."""
    ends = world.unix + seconds
    while world.unix < ends:
        for beat in beats:
            for _ in range(50):
                if beat.tick() > 0:
                    break
        world.run(pace)


def test_an_interval_is_sent_once_for_each_slot(world: World) -> None:
    live(world, [make_beat(world, {"a": {"task": "t", "schedule": 10.0}})], 101)
    assert [round(when - BEGIN) for when, _, _ in world.sent] == list(range(10, 101, 10))
    assert len(set(world.ids())) == 10


def test_of_three_beats_one_sends(world: World) -> None:
    beats = [make_beat(world, {"a": {"task": "t", "schedule": 10.0}}) for _ in range(3)]
    live(world, beats, 101)
    assert len(world.sent) == 10
    assert sum(beat.is_leader for beat in beats) == 1


def test_who_waits_says_once_who_leads(world: World) -> None:
    leader, follower = (make_beat(world, {"a": {"task": "t", "schedule": 10.0}}) for _ in range(2))
    follower.logger = lines = Lines()  # type: ignore[misc]
    live(world, [leader, follower], 60)
    live(world, [follower], 30)
    assert lines == [
        ("beat.waits", {"leader": leader.owner, "app": "virtual"}),
        ("beat.leads", {"owner": follower.owner}),
    ]


def test_another_one_takes_over_within_lease_and_five_seconds(world: World) -> None:
    first, second = (make_beat(world, {"a": {"task": "t", "schedule": 1.0}}) for _ in range(2))
    live(world, [first, second], 10)
    leader, follower = (first, second) if first.is_leader else (second, first)
    died = world.unix
    while not follower.is_leader:
        live(world, [follower], 1)
        assert world.unix - died <= leader.lease_s + 5
    follower.close()
    third = make_beat(world, {"a": {"task": "t", "schedule": 1.0}})
    third.tick()
    assert third.is_leader  # who ends as it should leaves no gap


@pytest.mark.parametrize("once", [True, False], ids=["a broker that knows repeats", "one that does not"])
def test_each_slot_is_sent_whoever_is_killed_at_whichever_step(once: bool) -> None:
    """The short form of `benchmarks/beat_kills.py`: 50 leaders die, each at a random step."""
    world, rng = World(once), random.Random(7)
    entries = {"a": {"task": "a", "schedule": 5.0, "catch_up": "all:1000"},
               "b": {"task": "b", "schedule": crontab(), "catch_up": "all:1000"}}  # fmt: skip
    beats, killed = [make_beat(world, entries) for _ in range(3)], 0
    while killed < 50:
        for place, beat in enumerate(beats):
            if beat.is_leader and rng.random() < 0.2:
                world.steps_to_live = rng.randrange(8)
            try:
                for _ in range(50):
                    if beat.tick() > 0:
                        break
            except Killed:
                killed += 1
                beats[place] = make_beat(world, entries)
            world.steps_to_live = None
        world.run(0.5)
    live(world, beats, 40)
    slots = int((world.unix - BEGIN) // 5), int((world.unix - BEGIN) // 60)
    names = Counter({name: len({i for _, n, i in world.sent if n == name}) for name in "ab"})
    assert abs(names["a"] - slots[0]) <= 1
    assert abs(names["b"] - slots[1]) <= 1
    if once:
        assert len(world.ids()) == len(set(world.ids()))
    else:  # a repeat has the id of the first, and there is one only for who died between sending and noting it
        assert max(Counter(world.ids()).values()) <= 3


def test_a_leader_that_stood_still_sends_nothing_twice(world: World) -> None:
    stalled, other = (make_beat(world, {"a": {"task": "t", "schedule": 10.0}}) for _ in range(2))
    live(world, [stalled], 5)
    live(world, [other], 40)
    assert other.is_leader
    live(world, [stalled, other], 40)
    assert len(world.ids()) == len(set(world.ids()))
    assert not stalled.is_leader
    assert len(world.sent) >= 7


@pytest.mark.parametrize(
    ("rule", "wanted"), [("last", [3600]), ("skip", []), ("all", list(range(600, 3601, 600))), ("all:2", [3000, 3600])]
)
def test_what_was_missed_is_made_up_for_by_the_entrys_rule(world: World, rule: str, wanted: list[int]) -> None:
    entries = {"a": {"task": "t", "schedule": crontab(minute="*/10"), "catch_up": rule}}
    first = make_beat(world, entries)
    live(world, [first], 2)
    world.run(3700)
    again = make_beat(world, entries)
    slots: list[float] = []
    again.logger = logging.getLogger("quiet")  # type: ignore[misc]
    again._send_slot = lambda entry, key, at, due, send=again._send_slot: (  # type: ignore[method-assign]
        slots.append(at.timestamp() - BEGIN), send(entry, key, at, due))  # type: ignore[func-returns-value] # fmt: skip
    again.logger = type(first).logger
    live(world, [again], 100)
    assert slots == wanted
    slots.clear()
    live(world, [again], 600)
    assert slots == [4200]  # and the next on time


def test_an_occurrence_is_due_until_the_broker_has_taken_it(world: World) -> None:
    beat = make_beat(world, {"a": {"task": "t", "schedule": crontab(minute=1)}, "b": {"task": "u", "schedule": 60.0}})
    live(world, [beat], 30)
    world.broker_is_away = True
    live(world, [beat], 200)
    assert world.sent == []
    world.broker_is_away = False
    live(world, [beat], 70)
    assert [name for _, name, _ in world.sent].count("t") == 1
    assert [name for _, name, _ in world.sent].count("u") >= 1


@pytest.mark.parametrize("once", [True, False], ids=["a broker that knows repeats", "one that does not"])
def test_a_connection_that_drops_once_stops_nothing_whichever_step_it_hits(once: bool) -> None:
    for steps in range(40):
        world = World(once)
        world.steps_to_live, world.fault = steps, lambda: TransportLost("it dropped")
        live(world, [make_beat(world, {"a": {"task": "t", "schedule": 10.0, "catch_up": "all"}})], 64)
        assert world.steps_to_live is None
        assert len(set(world.ids())) in (5, 6), steps
        assert not once or len(world.ids()) == len(set(world.ids())), steps
        assert max(later - earlier for earlier, later in pairwise(world.times())) < 14, steps


def test_slots_are_sent_in_order_though_the_lease_could_not_be_renewed_in_time(world: World) -> None:
    beat = make_beat(world, {"a": {"task": "t", "schedule": 10.0, "catch_up": "all"}})
    live(world, [beat], 1)
    world.run(9.5)
    answers, may_send = [False], beat._may_send
    beat._may_send = lambda: answers.pop() if answers else may_send()  # type: ignore[method-assign]
    world.run(3)
    live(world, [beat], 20)
    assert len(world.sent) == 3
    assert world.times()[0] <= 16


def test_a_relative_interval_is_sent_when_it_is_due(world: World) -> None:
    world.run(200)
    entry = {"task": "t", "schedule": timedelta(minutes=20), "relative": True}
    live(world, [make_beat(world, {"a": entry})], 2500, pace=1)
    assert world.times() == [1380, 2580]


def test_a_clock_that_is_set_changes_no_interval_and_doubles_no_crontab(world: World) -> None:
    beat = make_beat(world, {"a": {"task": "every", "schedule": 60.0}, "b": {"task": "cron", "schedule": crontab()}})
    live(world, [beat], 600)
    before = Counter(name for _, name, _ in world.sent)
    world.unix -= 3600
    live(world, [beat], 600)
    after = Counter(name for _, name, _ in world.sent)
    assert after["every"] - before["every"] in (9, 10, 11)
    assert after["cron"] == before["cron"]  # these minutes were there before
    world.unix += 7200
    live(world, [beat], 600)
    assert Counter(name for _, name, _ in world.sent)["every"] - after["every"] in (9, 10, 11)
    assert len(world.ids()) == len(set(world.ids()))


def test_a_mark_from_a_far_future_silences_nothing(world: World) -> None:
    entries = {"a": {"task": "t", "schedule": crontab()}}
    world.unix += 86400 * 365
    live(world, [make_beat(world, entries)], 120)
    world.unix -= 86400 * 365
    world.sent.clear()
    live(world, [make_beat(world, entries)], 200)
    assert len(world.sent) >= 2


def test_people_change_the_schedule_of_running_beats(world: World) -> None:
    beat = make_beat(world, {"a": {"task": "t", "schedule": 10.0}})
    live(world, [beat], 12)
    assert len(world.sent) == 1
    beat.ledger.edit(Edit("a", paused=True))
    beat.ledger.edit(Edit("n", task="new", schedule={"every": 5}, args=[1], kwargs={"k": 2}, options={"queue": "q"}))
    live(world, [beat], 31)
    assert Counter(name for _, name, _ in world.sent) == {"t": 1, "new": 6}
    args, kwargs, options = beat.last_call
    assert (args, kwargs, options["queue"]) == ([1], {"k": 2}, "q")
    assert options["headers"] == {"celery_beat_task": True}
    beat.ledger.remove("n")
    beat.ledger.edit(Edit("a", since=beat.ledger.now()))
    live(world, [beat], 11)
    assert Counter(name for _, name, _ in world.sent) == {"t": 2, "new": 6}
    task_id = beat.ledger.trigger("a")
    live(world, [beat], 3)
    assert world.ids()[-1] == task_id
    assert beat.ledger.read_edits()[1].triggers == {}


def test_a_changed_schedule_begins_anew_and_one_that_cannot_be_read_stops_nobody(world: World) -> None:
    live(world, [first := make_beat(world, {"a": {"task": "t", "schedule": crontab(minute=0, hour=11)}})], 5)
    first.close()
    beat = make_beat(world, {"a": {"task": "t", "schedule": crontab(minute=0, hour=10)},
                             "b": {"task": "u", "schedule": 10.0}})  # fmt: skip
    beat.ledger.edit(Edit("bad", task="x", schedule={"crontab": "61 * * * *"}))
    live(world, [beat], 12)
    assert [name for _, name, _ in world.sent] == ["u"]


def test_an_entry_that_was_away_begins_anew(world: World) -> None:
    entries = {"a": {"task": "t", "schedule": crontab(minute=0)}}
    for there in (entries, {}):
        live(world, [beat := make_beat(world, there)], 2)
        beat.close()
    world.run(7200)
    live(world, [make_beat(world, entries)], 5)
    assert world.sent == []


def test_an_entry_of_another_time_zone_begins_anew(world: World) -> None:
    entries = {"a": {"task": "t", "schedule": crontab(minute=0, hour=13)}}
    live(world, [beat := make_beat(world, entries, timezone="Europe/Moscow")], 2)
    beat.close()
    world.run(7200)
    live(world, [make_beat(world, {"a": {"task": "t", "schedule": crontab(minute=0, hour=13)}}, timezone="UTC")], 5)
    assert world.sent == []


def test_an_entry_that_is_paused_is_sent_when_it_is_resumed(world: World) -> None:
    beat = make_beat(world, {"a": {"task": "t", "schedule": 10.0, "paused": True}})
    live(world, [beat], 35)
    assert world.sent == []
    beat.ledger.edit(Edit("a", since=beat.ledger.now()))
    live(world, [beat], 25)
    assert len(world.sent) == 2
    beat.ledger.remove("a")
    live(world, [beat], 25)
    assert len(world.sent) == 2


def test_what_cannot_be_sent_at_once_stands_in_nobodys_way(world: World) -> None:
    far = {"task": "t", "schedule": 86400.0}
    beat = make_beat(world, {"bad": {**far, "args": 5}, "good": far})
    world.broker_is_away = True
    wanted = [beat.ledger.trigger(name) for name in ("bad", "good", "bad", "good")]
    live(world, [beat], 5)
    assert len(beat.ledger.read_edits()[1].triggers) >= 2  # until the broker is back
    world.broker_is_away = False
    live(world, [beat], 5)
    assert set(world.ids()) == {wanted[1], wanted[3]}
    assert beat.ledger.read_edits()[1].triggers == {}


def test_a_mark_that_makes_no_sense_stops_nobody(world: World) -> None:
    beat = make_beat(world, {"a": {"task": "t", "schedule": 10.0}, "b" * 300: {"task": "u", "schedule": 10.0}})
    for name, text in (("a", b'{"name":"a","last":1e300}'), ("b" * 300, b"{")):
        beat.ledger.state.write(beat.ledger.space, [Change(key_of(MARK, name), text)])
    live(world, [beat], 12)
    assert Counter(name for _, name, _ in world.sent) == {"t": 1, "u": 1}


class Odd(BaseSchedule):
    """A schedule of a user's own, every 30 seconds."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return last_run_at + timedelta(seconds=30) - self.now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        left = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(left <= 0, left if left > 0 else 30.0)


def test_a_schedule_with_celerys_answers_only_is_sent_too(world: World) -> None:
    odd = Odd(nowfun=lambda: datetime.fromtimestamp(world.unix, UTC))
    live(world, [make_beat(world, {"a": {"task": "t", "schedule": odd}}) for _ in range(2)], 100)
    assert len(world.sent) == 3
    assert len(set(world.ids())) == 3


def test_arguments_may_be_made_when_the_call_is_sent(world: World) -> None:
    numbers = iter(range(9))
    entry = {"task": "t", "schedule": 10.0, "args": (BeatLazyFunc(next, numbers),)}
    beat = make_beat(world, {"a": {**entry, "kwargs": {"k": BeatLazyFunc(int, "7")}}})
    live(world, [beat], 21)
    assert beat.last_call[:2] == ([1], {"k": 7})


def test_a_crontab_missed_by_more_than_the_deadline_is_left_out(world: World) -> None:
    entries = {"a": {"task": "t", "schedule": crontab(minute=10)}}
    live(world, [make_beat(world, entries, beat_cron_starting_deadline=300)], 2)
    world.run(1000)
    live(world, [make_beat(world, entries, beat_cron_starting_deadline=300)], 60)
    assert world.sent == []


def test_a_broken_file_is_set_aside_and_begun_anew(tmp_path: Any) -> None:
    path = tmp_path / "celerybeat-schedule"
    path.write_bytes(b"this was Celery's shelve\0" * 100)
    state = FileState(str(path))
    assert state.write("s", [Change("k", b"v", 10.0)], given={"k": 0}) is not None
    assert state.write("s", [Change("k", b"w")], given={"k": 0}) is None
    assert [one.name.split(".bad-")[0] for one in tmp_path.glob("*.bad-*")] == ["celerybeat-schedule"]
    state.close()
    again = FileState(str(path))
    assert again.read("s").entries["k"].value == b"v"
    again.close()
    whole = bytearray(path.read_bytes())
    whole[100:-1] = random.Random(1).randbytes(len(whole) - 101)
    path.write_bytes(bytes(whole))
    assert FileState(str(path)).read("s").entries == {}
