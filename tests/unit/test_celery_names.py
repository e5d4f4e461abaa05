"""Small things that programs import from Celery's modules, and what they do here."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from celeriac import Celery, _state, bootsteps
from celeriac.app.control import Control, flatten_reply
from celeriac.app.log import TaskFormatter
from celeriac.events import Events, group_from
from celeriac.events.state import State, heartbeat_expires
from celeriac.exceptions import DuplicateNodenameWarning
from celeriac.utils import chunks, noop
from celeriac.utils.imports import qualname, symbol_by_name
from celeriac.utils.log import ColorFormatter, mlevel
from celeriac.utils.saferepr import saferepr
from celeriac.utils.time import get_exponential_backoff_interval, maybe_make_aware, maybe_timedelta
from celeriac.worker import WorkController
from celeriac.worker.components import Pool, Timer
from celeriac.worker.consumer import Connection
from celeriac.worker.worker import Worker


def record(text: str, *args: Any, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("proj", level, __file__, 1, text, args, None)


def test_a_line_of_a_task_s_logger_names_the_task() -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    formatter = TaskFormatter("%(task_name)s[%(task_id)s]: %(message)s", use_color=False)

    @app.task(name="proj.say", bind=True)
    def say(self: Any) -> str:
        return formatter.format(record("hello"))

    done = say.apply()
    assert done.get() == f"proj.say[{done.id}]: hello"
    assert formatter.format(record("hello")) == "???[???]: hello"


def test_lines_are_coloured_by_level_and_never_raise() -> None:
    assert ColorFormatter("%(message)s").format(record("bad", level=logging.ERROR)) == "\033[31mbad\033[0m"
    assert ColorFormatter("%(message)s").format(record("plain")) == "plain"
    assert "'%d pieces' with ('x',) cannot be written" in ColorFormatter().format(record("%d pieces", "x"))
    assert (mlevel("debug"), mlevel(30), mlevel(None)) == (10, 30, None)


def test_the_task_that_runs_is_told_and_that_of_a_worker_apart() -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)

    @app.task(bind=True)
    def inner(self: Any) -> tuple[Any, Any]:
        return _state.get_current_task(), _state.get_current_worker_task()

    assert inner() == (inner, None)
    assert _state.get_current_task() is None
    assert _state.get_current_worker_task() is None


def test_replies_of_a_broadcast_become_one_mapping() -> None:
    assert flatten_reply([{"a@h": 1}, {"b@h": 2}]) == {"a@h": 1, "b@h": 2}
    with pytest.warns(DuplicateNodenameWarning, match="several workers are named a@h"):
        assert flatten_reply([{"a@h": 1}, {"a@h": 2}]) == {"a@h": 2}


def test_an_app_s_own_classes_steer_and_watch() -> None:
    class Steers(Control):
        pass

    class Watches(Events):
        pass

    class Own(Celery):
        control_cls = Steers
        events_cls = Watches

    app = Own("own", broker="memory://", set_as_current=False)
    assert (type(app.control), type(app.events)) == (Steers, Watches)
    assert not app.set_as_current
    assert not app.configured
    assert app.conf.task_default_queue == "celery"
    assert app.configured


def test_the_result_store_says_where_it_is() -> None:
    app = Celery("proj", broker="memory://", backend="redis://me:secret@localhost:1/0", set_as_current=False)
    assert app.backend.as_uri() == "redis://me:secret@localhost:1/0"
    assert app.backend.as_uri(include_password=False) == "redis://me:***@localhost:1/0"
    assert (
        Celery("none", broker="memory://", backend="disabled://", set_as_current=False).backend.as_uri()
        == "disabled://"
    )


def test_steps_may_require_celery_s_by_class() -> None:
    class First(bootsteps.StartStopStep):
        requires = (Pool, Timer)

    class Second(bootsteps.StartStopStep):
        requires = (Connection, First)

    assert bootsteps.in_order([Second, First]) == [First, Second]
    assert WorkController is Worker


def test_a_state_takes_events_by_their_subject() -> None:
    state = State()
    worker, is_new = state.worker_event("online", {"hostname": "w@h", "timestamp": 1.0, "local_received": 1.0})
    assert is_new
    assert worker.hostname == "w@h"
    task, _ = state.task_event("received", {"uuid": "1", "name": "proj.add", "hostname": "w@h", "timestamp": 1.0})
    assert task.state == "RECEIVED"
    assert group_from("task-received") == "task"
    assert heartbeat_expires(100.0, freq=2.0) == 104.0


def test_intervals_and_moments() -> None:
    assert [get_exponential_backoff_interval(2, retries, 20) for retries in range(5)] == [2, 4, 8, 16, 20]
    assert 0 <= get_exponential_backoff_interval(2, 3, 20, full_jitter=True) <= 17
    assert (maybe_timedelta(90), maybe_timedelta(None)) == (timedelta(seconds=90), None)
    zone = timezone(timedelta(hours=2))
    assert maybe_make_aware(datetime(2026, 1, 2, 10), zone) == datetime(2026, 1, 2, 12, tzinfo=zone)


def test_small_helpers() -> None:
    assert list(chunks(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert noop(1, two=2) is None
    assert symbol_by_name("celeriac.states:SUCCESS") == "SUCCESS"
    assert qualname(partial) == qualname(partial(noop)) == "functools.partial"
    assert len(saferepr("x" * 100, maxlen=20)) <= 22
