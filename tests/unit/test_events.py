"""Hearing events, and what is made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from celeriac import Celery
from celeriac.events import Event, State


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("events", broker="memory://events-unit", set_as_current=False)
    yield app
    app.close()


def heard(kind: str, clock: int = 1, **fields: Any) -> dict[str, Any]:
    return Event(kind, **{"hostname": "w@h", "clock": clock, "pid": 1, "local_received": time.time(), **fields})


def test_what_a_limit_or_a_handler_leaves_is_there_for_the_next_call(app: Celery) -> None:
    numbers: list[int] = []

    def note(event: dict[str, Any]) -> None:
        if event["number"] == 2 and not numbers[2:]:
            numbers.append(-1)
            raise ValueError("no")
        numbers.append(event["number"])

    dispatcher = app.events.Dispatcher()
    with app.events.Receiver(handlers={"task-progress": note}) as receiver:
        receiver.open()
        for number in range(6):
            dispatcher.send("task-progress", number=number)
        receiver.capture(limit=1, wakeup=False)
        assert numbers == [0]
        receiver.capture(limit=1, timeout=10, wakeup=False)
        with pytest.raises(ValueError, match="no"):
            receiver.capture(limit=9, timeout=10, wakeup=False)
        assert receiver.drain(10) == 3
        assert numbers == [0, 1, -1, 3, 4, 5]
        with pytest.raises(TimeoutError, match="no event came"):
            receiver.capture(timeout=0.01, wakeup=False)


def test_a_worker_that_left_is_known_as_offline_unless_somebody_is_told() -> None:
    state, left = State(), []
    state.event(heard("worker-offline"))
    assert state.workers == {}
    for kind in ("worker-online", "worker-offline"):
        state.event(heard(kind))
    assert [worker.status_string for worker in state.workers.values()] == ["OFFLINE"]
    assert list(state.alive_workers()) == []
    state.event(heard("worker-online"))
    assert [worker.alive for worker in state.workers.values()] == [True]
    state = State(on_node_leave=left.append)
    for kind in ("worker-online", "worker-offline"):
        state.event(heard(kind))
    assert [worker.hostname for worker in left] == ["w@h"]
    assert state.workers == {}


def test_who_sent_a_task_and_where_to_is_known_though_that_is_heard_last() -> None:
    state = State()
    state.event(heard("task-received", uuid="t", name="proj.add"))
    state.event(heard("task-sent", uuid="t", hostname="client@h", queue="q", exchange="e", routing_key="k"))
    task = state.tasks["t"]
    assert (task.state, task.client) == ("RECEIVED", "client@h")
    assert (task.queue, task.exchange, task.routing_key) == ("q", "e", "k")


@pytest.mark.parametrize("first", ["parent", "child", "child, as started"])
def test_a_parent_knows_its_children_whoever_is_heard_of_first(first: str) -> None:
    state = State()
    parent = heard("task-received", uuid="parent", name="p")
    child = [heard(f"task-{kind}", uuid="child", **more) for kind, more in (
        ("started", {}), ("received", {"name": "c", "parent_id": "parent", "root_id": "parent"}))]  # fmt: skip
    events = {"parent": [parent, *child[::-1]], "child": [*child[::-1], parent], "child, as started": [*child, parent]}
    for event in events[first]:
        state.event(event)
    assert [task.uuid for task in state.tasks["parent"].children] == ["child"]
    assert state.tasks["child"].parent is state.tasks["parent"]


def test_an_event_that_makes_no_sense_stops_nobody(app: Celery) -> None:
    state, shown = State(), []
    senseless: list[dict[str, Any]] = [
        {"type": "worker-heartbeat", "freq": "often", "hostname": ["h"]},
        {"type": "task-received", "uuid": ["u"], "name": {"n": 1}, "parent_id": ["p"], "root_id": ["r"]},
        {"type": "task-received", "uuid": "u", "timestamp": "soon"},
        {"type": "task-received", "uuid": "u", "timestamp": 1e300},
    ]

    def note(event: dict[str, Any]) -> None:
        state.event(event)
        shown.append(datetime.fromtimestamp(event["timestamp"]))

    with app.events.Receiver(handlers={"*": note}) as receiver:
        receiver.open()
        app.events.Dispatcher().send_all([{"hostname": "w@h", "clock": 1, **event} for event in senseless])
        receiver.capture(limit=len(senseless), timeout=10, wakeup=False)
    assert len(shown) == len(senseless)
    assert [worker.hostname for worker in state.alive_workers()] == ["['h']"]
    assert state.tasks["['u']"].parent is None
    assert state.tasks["['u']"].root is None
