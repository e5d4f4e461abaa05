"""`app.Beat`: beat as a program, and what it answers to remote control."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac import Celery
from celeriac.beat import Beat, Scheduler
from celeriac.cli.fleet import ask_workers
from celeriac.cli.top import Watcher
from celeriac.events import State
from celeriac.exceptions import Unsupported
from celeriac.messaging.broadcasts import Request, control_exchange, make_request
from celeriac.testing.kit import eventually

NODE = "b1@here"
Start = Callable[..., Beat]


class Idle(Scheduler):
    """Has one turn, and sleeps on."""

    def tick(self, **_: Any) -> float:
        return self.max_interval


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    app = Celery("proj", broker=f"memory://{request.node.name}", set_as_current=False)
    app.conf.beat_schedule = {"often": {"task": "proj.note", "schedule": 0.05, "options": {"queue": "notes"}}}
    yield app
    app.close()


@pytest.fixture
def start(app: Celery) -> Iterator[Start]:
    """Runs a beat in a thread until the end of the test."""
    running: list[tuple[Beat, threading.Thread]] = []

    def start_one(**words: Any) -> Beat:
        ready = threading.Event()
        beat = app.Beat(**words, on_ready=lambda made: ready.set())
        thread = threading.Thread(target=beat.run, daemon=True)
        thread.start()
        running.append((beat, thread))
        assert ready.wait(30)
        return beat

    yield start_one
    for beat, thread in running:
        beat.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_a_program_starts_beat_by_itself(app: Celery, start: Start) -> None:
    beat = start(schedule=None, scheduler_cls=None, loglevel=None, pidfile=None)
    eventually(lambda: app.transport.depth("notes") > 1)
    assert type(beat.service.scheduler).__name__ == "PersistentScheduler"
    assert beat.service.remote_control is False


def test_beat_answers_pings_and_nothing_else(app: Celery, start: Start) -> None:
    start(scheduler=Idle, hostname=NODE, remote_control=True)
    eventually(lambda: app.control.ping([NODE], timeout=2.0) == [{NODE: {"ok": "pong"}}])
    assert app.control.ping(timeout=20.0, limit=1) == [{NODE: {"ok": "pong"}}]
    assert app.control.inspect([NODE], timeout=20.0).active() == {
        NODE: {"error": "a scheduler answers ping only, not 'active'"}
    }
    assert app.control.inspect(timeout=0.3).active() is None
    assert app.control.inspect(["other@here"], timeout=0.3).ping() is None


@pytest.mark.parametrize("name", [None, NODE])
def test_neither_doctor_nor_top_take_a_beat_for_a_worker(app: Celery, start: Start, name: str | None) -> None:
    beat = start(scheduler=Idle, hostname=name, remote_control=True)
    eventually(lambda: app.control.ping([beat.service.hostname], timeout=2.0, limit=1))
    assert ask_workers(app, 0.5) == {}
    look = Watcher(app, ["notes"], 0.5, State()).look()
    assert (look.workers, look.tasks) == ([], [])


def test_a_beat_that_is_stuck_does_not_say_that_it_is_well(app: Celery, start: Start) -> None:
    app.conf.beat_enable_remote_control = True
    beat = start(scheduler=Idle, max_interval=10_000.0, hostname=NODE)
    eventually(lambda: app.control.ping([NODE], timeout=2.0))
    beat.service.last_tick -= 19_000.0
    assert app.control.ping([NODE], timeout=20.0)
    beat.service.last_tick -= 2_000.0
    assert not app.control.ping([NODE], timeout=0.3)


def test_the_age_of_the_last_turn_is_a_setting(app: Celery) -> None:
    app.conf.beat_remote_control_max_tick_age = 500
    service = app.Beat().service
    assert service.hostname.startswith("celerybeat@")
    assert service.is_well()
    service.last_tick -= 600.0
    assert not service.is_well()


def test_a_broker_that_cannot_broadcast_is_no_place_for_remote_control(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(app.transport), "abilities", app.transport.abilities - {"fanout"})
    with pytest.raises(Unsupported, match="beat_enable_remote_control"):
        app.Beat(scheduler=Idle, remote_control=True).run()


def test_beat_goes_on_answering_after_it_was_asked_for_an_answer_to_nowhere(
    app: Celery, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast = type(app.transport).broadcast  # type: ignore[attr-defined]

    def refuse(transport: Any, exchange: Any, *args: Any, **kwargs: Any) -> None:
        exchange.name.encode()  # as any broker does that is not in memory
        broadcast(transport, exchange, *args, **kwargs)

    monkeypatch.setattr(type(app.transport), "broadcast", refuse)
    start(scheduler=Idle, hostname=NODE, remote_control=True)
    eventually(lambda: app.control.ping([NODE], timeout=2.0))
    odd = make_request(Request("ping", {}, ticket="1", reply_to=("\udc80", "key")), app.conf, app.codec, None)
    app.transport.broadcast(control_exchange(app.conf), [odd])  # type: ignore[attr-defined]
    eventually(lambda: app.control.ping([NODE], timeout=2.0))
