"""The scheduler that others inherit, the service that runs it, and how entries come into an app."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import FakeSite

from celeriac import Celery, signals
from celeriac.beat import EmbeddedService, PersistentScheduler, ScheduleEntry, Scheduler, Service
from celeriac.beat.due import CatchUp, find_due, read_catch_up
from celeriac.beat.ledger import read_schedule, write_schedule
from celeriac.cli.group import run
from celeriac.exceptions import CeleriacWarning, ImproperlyConfigured
from celeriac.schedules import crontab, schedstate, schedule

UTC = timezone.utc
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make_app(**settings: Any) -> Celery:
    app = Celery("periodic", broker="memory://beat-unit", set_as_current=False, **settings)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return app


class Recorder(Scheduler):
    """Notes what it would send."""

    def setup_schedule(self) -> None:
        self.sent: list[tuple[str, Any, Any, dict[str, Any]]] = []
        super().setup_schedule()

    def send_task(self, *args: Any, **options: Any) -> Any:
        self.sent.append((*args, options))  # type: ignore[arg-type]


def overdue(name: str = "e", **words: Any) -> dict[str, Any]:
    return {"task": f"task-{name}", "last_run_at": datetime.now(UTC) - timedelta(hours=1), "schedule": 600, **words}


def test_it_sends_what_is_due_and_waits_for_what_is_not() -> None:
    app = make_app(
        beat_schedule={"a": overdue("a", args=(1,), options={"queue": "q"}), "b": {"task": "b", "schedule": 250}}
    )
    beat = Recorder(app)
    waits = [beat.tick(), beat.tick()]
    assert waits[0] == 0
    assert 100 < waits[1] <= 250
    assert [(name, args, options) for name, args, _, options in beat.sent] == [
        ("task-a", [1], {"queue": "q", "headers": {"celery_beat_task": True}})
    ]
    assert beat.schedule["a"].total_run_count == 1
    assert beat.schedule["a"].last_run_at > datetime.now(UTC) - timedelta(minutes=1)


def test_nothing_to_do_is_the_longest_sleep() -> None:
    assert Recorder(make_app()).tick() == 300
    assert Recorder(make_app(beat_max_loop_interval=7)).tick() == 7
    assert Recorder(make_app(beat_schedule={"a": {"task": "a", "schedule": 5000}}), max_interval=9).tick() == 9


def test_an_entry_that_is_never_due_hides_no_other() -> None:
    class Off(ScheduleEntry):
        def is_due(self) -> Any:
            return schedstate(False, None)  # type: ignore[arg-type] # as django-celery-beat's disabled entries answer

    class Some(Recorder):
        Entry = ScheduleEntry

        def setup_schedule(self) -> None:
            super().setup_schedule()
            self.schedule["off"] = Off(name="off", task="off", schedule=1, app=self.app)
            self.add(name="on", **overdue("on"))

    beat = Some(make_app())
    while beat.tick() == 0:
        pass
    assert [name for name, *_ in beat.sent] == ["task-on"]


def test_a_schedule_that_changes_is_looked_at_anew() -> None:
    beat = Recorder(make_app(beat_schedule={"a": {"task": "a", "schedule": 5000}}))
    assert beat.tick() == 300
    beat.add(name="new", **overdue("new"))
    assert beat.tick() == 0
    assert [name for name, *_ in beat.sent] == ["task-new"]
    beat.merge_inplace({"a": {"task": "other", "schedule": 5000}})
    assert {name: entry.task for name, entry in beat.schedule.items()} == {"a": "other"}


def test_sending_that_fails_is_logged_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        def send_task(self, *args: Any, **options: Any) -> Any:
            if args[0] == "task-a":
                raise OSError("no route")
            return super().send_task(*args, **options)

    beat = Failing(make_app(beat_schedule={"a": overdue("a"), "b": overdue("b")}))
    while beat.tick() == 0:
        pass
    assert [name for name, *_ in beat.sent] == ["task-b"]


def test_schedulers_are_found_by_class_path_and_entry_point(fake_site: FakeSite) -> None:
    module = fake_site.install(
        "extension", "unused", "from celeriac.beat import Scheduler\nclass Mine(Scheduler): pass\n"
    )
    info = next(Path(fake_site.folder).glob("*.dist-info")) / "entry_points.txt"
    info.write_text(f"[celery.beat_schedulers]\nmine = {module}:Mine\n")
    app = make_app()
    for name in ("mine", f"{module}:Mine", f"{module}.Mine"):
        assert type(Service(app, scheduler_cls=name).get_scheduler()).__name__ == "Mine"
    assert isinstance(Service(app).scheduler, PersistentScheduler)
    assert type(Service(app, scheduler_cls="celery.beat:PersistentScheduler").scheduler) is PersistentScheduler
    with pytest.raises(ImproperlyConfigured, match="'minne'"):
        Service(app, scheduler_cls="minne").get_scheduler()


def test_the_service_tells_when_it_begins_and_can_be_stopped() -> None:
    told = []
    heard = threading.Event()

    def listen(sender: Any, signal: Any, **_: Any) -> None:
        told.append((signal.name, type(sender).__name__))
        if signal is signals.beat_embedded_init:
            heard.set()

    signals.beat_init.connect(listen)
    signals.beat_embedded_init.connect(listen)
    try:
        service = EmbeddedService(make_app(), scheduler_cls=Recorder)
        service.start()
        assert heard.wait(30)
        service.stop()
        assert not service.is_alive()
    finally:
        signals.beat_init.disconnect(listen)
        signals.beat_embedded_init.disconnect(listen)
    assert told == [("beat_init", "Service"), ("beat_embedded_init", "Service")]


def test_a_turn_that_fails_is_followed_by_another() -> None:
    class Shaky(Recorder):
        turns = 0

        def tick(self, **_: Any) -> float:
            Shaky.turns += 1
            if Shaky.turns == 1:
                raise RuntimeError("what now")
            return 0.01

    service = EmbeddedService(make_app(), scheduler_cls=Shaky)
    service.start()
    deadline = time.monotonic() + 30
    while Shaky.turns < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service.stop()


def test_periodic_tasks_are_added_before_and_after_the_settings_are_read() -> None:
    app = make_app(beat_schedule={"own": {"task": "add", "schedule": 1.0}})
    add = app._registry["add"]

    @app.on_after_configure.connect
    def configured(sender: Celery, **_: Any) -> None:
        assert sender.add_periodic_task(30.0, add.s(5, 6), name="later", expires=10, catch_up="skip") == "later"

    @app.on_after_finalize.connect
    def finalized(sender: Celery, **_: Any) -> None:
        sender.add_periodic_task(crontab(hour=7), add.s(7, 8), args=(9,), kwargs={"z": 1}, queue="q")

    assert app.add_periodic_task(10, add.s(1, 2)) == "add(1, 2)"
    assert not app.conf.configured
    app.finalize()
    found = app.conf.beat_schedule
    assert set(found) == {"own", "add(1, 2)", "later", "add(9, 7, 8, z=1)"}
    assert found["later"]["options"] == {"expires": 10}
    assert found["later"]["catch_up"] == "skip"
    assert found["add(9, 7, 8, z=1)"] == {
        "schedule": crontab(hour=7), "task": "add", "args": (9, 7, 8), "kwargs": {"z": 1}, "options": {"queue": "q"},
    }  # fmt: skip


def test_two_entries_without_names_and_with_one_call_are_told_of() -> None:
    app = make_app()
    add = app._registry["add"]
    app.add_periodic_task(10, add.s(1, 2))
    with pytest.warns(CeleriacWarning, match=r"add\(1, 2\)"):
        app.add_periodic_task(20, add.s(1, 2))
    assert app.conf.beat_schedule["add(1, 2)"]["schedule"] == 20


def test_old_results_are_removed_where_the_store_does_not_do_it_itself(tmp_path: Path) -> None:
    app = make_app(result_backend=f"sqlite:///{tmp_path / 'r.db'}")
    assert "celery.backend_cleanup" in Scheduler(app).schedule or "expire" in app.backend.plugin.abilities  # type: ignore[union-attr]
    assert "celery.backend_cleanup" not in Scheduler(make_app()).schedule
    assert app.tasks["celery.backend_cleanup"]() == 0


def test_an_entry_is_a_value() -> None:
    words = {"name": "n", "task": "t", "schedule": crontab(), "args": (1,), "kwargs": {"a": 1}, "app": make_app()}
    entry = ScheduleEntry(**words)
    assert repr(entry).startswith("<ScheduleEntry: n t(1, a=1) <crontab: * * * * *")
    assert entry == ScheduleEntry(**words)
    assert entry != ScheduleEntry(**{**words, "args": (2,)})
    following = next(entry)  # type: ignore[call-overload]
    assert (following.total_run_count, entry.total_run_count) == (1, 0)
    assert dict(entry)["task"] == "t"


@pytest.mark.parametrize("value", [schedule(90.5), schedule(60, relative=True), crontab("*/5", {1, 2}, "mon-fri", 1)])
def test_schedules_can_be_written_down(value: Any) -> None:
    again = read_schedule(write_schedule(value))
    assert again == value
    assert again.describe() == value.describe()


def test_rules_for_what_was_missed_are_read() -> None:
    assert read_catch_up(None) == read_catch_up("last") == CatchUp("last", 1)
    assert read_catch_up("all:5") == read_catch_up(5) == CatchUp("all", 5)
    assert read_catch_up("skip").how == "skip"
    for wrong in ("all:0", "some", "all:x", "skip:3", -1):
        with pytest.raises(ValueError, match="catch_up"):
            read_catch_up(wrong)


def test_what_is_due_is_a_pure_question() -> None:
    app = make_app()
    minutely = crontab(app=app)
    due = find_due(minutely, NOON, NOON + timedelta(minutes=5, seconds=10), CatchUp("all", 3))
    assert [slot.at.minute for slot in due.slots] == [3, 4, 5]
    assert due.next_s == 50
    assert find_due(minutely, NOON, NOON + timedelta(seconds=59)).slots == ()
    late = find_due(minutely, NOON, NOON + timedelta(days=365), CatchUp("skip"))
    assert len(late.slots) == 1  # the newest one is not even a minute old
    tenth = find_due(schedule(10), NOON, NOON + timedelta(seconds=34))
    assert ([slot.at.second for slot in tenth.slots], tenth.next_s) == ([30], 6)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"task": "t", "schedule": "every minute"}, "not 'every minute'"),
        ({"tsk": "t", "schedule": 1}, "unexpected keyword argument 'tsk'"),
        ({"schedule": 1}, "it has no 'task'"),
        ({"task": "t"}, "it has no 'schedule'"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"The entry 'nightly' .*{reason}.* An entry has task and schedule"):
        Recorder(make_app(beat_schedule={"nightly": entry}))


@pytest.mark.parametrize("every", ["inf", "nan", "1e300", "1e12", "1e-9", "0", "-1"])
def test_an_entry_added_by_hand_is_due_after_a_time_that_passes(every: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = Celery("hand", broker="memory://hand", backend="memory://hand", set_as_current=False)
    assert run(["schedule", "add", "name", "proj.note", "--every", every], app) == 2
    assert "--every must be more than 0 and at most 3.15576e+09 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "\x00"])
def test_an_entry_added_by_hand_has_a_name_that_can_be_seen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = Celery("hand", broker="memory://hand", backend="memory://hand", set_as_current=False)
    assert run(["schedule", "add", name, "proj.note", "--every", "5"], app) == 2
    assert "is no name" in capsys.readouterr().err


def test_a_pickled_entry_keeps_what_is_made_up_for_and_that_it_is_paused() -> None:
    entry = ScheduleEntry("one", "t", schedule=schedule(5), app=make_app(), catch_up="all:3", paused=True)
    for again in (pickle.loads(pickle.dumps(entry)), copy.copy(entry)):
        assert (again.catch_up, again.paused) == (CatchUp("all", 3), True)
        assert (again.name, again.task, again.schedule) == ("one", "t", entry.schedule)
