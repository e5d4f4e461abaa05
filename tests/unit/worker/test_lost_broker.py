"""What a worker does about its running tasks, and its window, when its link to the broker was lost; and how long it
waits for a new one. Processes and real servers: `tests/integration/test_outages.py`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from copy import copy
from functools import partial
from typing import Any

import pytest

from celeriac import Celery, states
from celeriac.canvas.launch import write_body
from celeriac.exceptions import BackendLost, ImproperlyConfigured, PublishRejected, TransportLost
from celeriac.execution.followup import after_no_sending
from celeriac.spec import Chord, ChordPart, ChordWork, JobReport, QueueSpec, Settlement, StoredResult
from celeriac.spec.data import PUBLISH_TRY_HEADER
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench, eventually
from celeriac.worker import consumer
from celeriac.worker.clock import Clock
from celeriac.worker.endings import Endings
from celeriac.worker.flights import Flight, Flights
from celeriac.worker.joins import Joiner
from celeriac.worker.link import Link
from celeriac.worker.patience import ENDLESS, Patience, patience_of
from celeriac.worker.plans import TaskPlan
from celeriac.worker.worker import Worker


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    name = request.node.name
    app = Celery(broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
    yield app
    app.close()


def gone(*args: Any, **kwargs: Any) -> Any:
    raise TransportLost("gone")


# -- its window ---------------------------------------------------------------------------------------------


@pytest.fixture
def busy(app: Celery, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker of two slots; one runs a task until `Worker.gate` opens, whose message went elsewhere meanwhile."""
    monkeypatch.setattr(consumer, "ADOPT_S", 0.2)
    app.conf.update(getattr(request, "param", {}))
    gate, ready = threading.Event(), threading.Event()
    app.task(name="wait")(lambda: gate.wait(90))
    worker: Any = Worker(app, pool="threads", concurrency=2, on_ready=lambda worker: ready.set())
    worker.gate = gate
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    app.send_task("wait")
    eventually(lambda: worker.loop.running(), within_s=60)
    with monkeypatch.context() as patch:
        patch.setattr(worker.transport, "consumer", gone)
        worker.loop.rebuild("a test says so")
        other = app.make_transport()
        thief = other.consumer(worker.link.queues, owner="other", poller=Bench(), window=1)
        eventually(lambda: thief.receive(1), within_s=60)
    eventually(lambda: worker.link.consumer, within_s=60)
    yield worker
    gate.set()
    worker.stop()
    thread.join(60)
    thief.close()
    other.close()


def test_after_a_loss_fewer_are_held_until_what_runs_has_ended(busy: Any) -> None:
    eventually(lambda: (busy.loop.room, busy.link._window) == (1, 1), within_s=60)
    busy.gate.set()
    eventually(lambda: (busy.loop.room, busy.link._window) == (2, 2), within_s=60)


@pytest.mark.parametrize("busy", [{"worker_enable_prefetch_count_reduction": False}], indirect=True)
def test_as_many_as_before_are_held_if_that_is_wished(busy: Any) -> None:
    eventually(lambda: busy.loop._orphans and not busy.loop._adopts_until, within_s=60)
    assert (busy.loop.room, busy.link._window) == (2, 2)


@pytest.mark.parametrize("busy", [{"worker_cancel_long_running_tasks_on_connection_loss": True}], indirect=True)
def test_a_pool_that_cannot_cancel_says_so(busy: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    busy.loop.rebuild("another test")
    eventually(lambda: "Cannot cancel wait[" in caplog.text, within_s=60)
    assert busy.loop.running(), "it goes on"


def test_a_loss_that_its_run_has_outlived_is_no_crash(app: Celery) -> None:
    gate, ready = threading.Event(), threading.Event()
    app.task(name="wait")(lambda: gate.wait(90))
    worker: Any = Worker(app, pool="threads", concurrency=1, on_ready=lambda worker: ready.set())
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    app.send_task("wait")
    eventually(lambda: worker.loop.running(), within_s=60)
    (flight,) = worker.loop.flights
    for losses in (1, 2):
        worker.loop.rebuild("a test says so")
        eventually(lambda losses=losses: flight.delivery.attempt == 1 + losses, within_s=60)
        assert worker.loop.endings.spared(flight.delivery) == losses
        known = copy(flight.delivery)
        known.spared = losses
        assert worker.loop.endings.spared(known) == losses, "a broker that knows of it has counted the same ones"
    gate.set()
    worker.stop()
    thread.join(60)
    assert app.transport.depth("celery") == 0, "it was acknowledged"


def test_a_message_that_is_spared_again_and_again_is_set_aside_in_the_end(app: Celery) -> None:
    app.conf.update(task_max_crashes=2, task_max_returns=3)
    app.task(name="noop")(lambda: None)
    often, seldom = app.send_task("noop"), app.send_task("noop")
    transport, bench, ready = app.make_transport(), Bench(), threading.Event()
    thief = transport.consumer([QueueSpec("celery")], owner="thief", poller=bench, window=2)
    for _ in range(3):
        for delivery in bench.take(thief, 2):
            is_lost = delivery.head.id == often.id or delivery.attempt < 3
            thief.settle([Settlement(delivery.tag, "requeue", started=is_lost, spared=is_lost)])
    thief.close()
    worker = Worker(app, pool="threads", concurrency=1, on_ready=lambda worker: ready.set())
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    assert seldom.get(timeout=60) is None
    eventually(lambda: often.state == "FAILURE", within_s=60)
    assert [letter.reason for letter in transport.browse_dead("celery")] == ["returned too often: it came back 3 times"]
    worker.stop()
    thread.join(60)
    transport.close()


def test_a_coroutine_is_cancelled_and_runs_again_but_none_that_is_acknowledged(app: Celery) -> None:
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = True
    begun: list[str] = []
    goes_on = threading.Event()

    async def wait(name: str) -> str:
        begun.append(name)
        while begun.count(name) == 1 and not (name == "early" and goes_on.is_set()):
            await asyncio.sleep(0.01)
        return name

    app.task(name="late")(wait)
    app.task(name="early", acks_late=False)(wait)
    ready = threading.Event()
    worker = Worker(app, pool="asyncio", concurrency=2, on_ready=lambda worker: ready.set())
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    late, early = app.send_task("late", ["late"]), app.send_task("early", ["early"])
    eventually(lambda: any(flight.acked for flight in worker.loop.flights) and len(begun) == 2, within_s=60)
    worker.loop.rebuild("a test says so")
    eventually(lambda: begun.count("late") == 2, within_s=60)
    goes_on.set()
    assert (late.get(timeout=60), early.get(timeout=60)) == ("late", "early")
    assert sorted(begun) == ["early", "late", "late"]
    worker.stop()
    thread.join(60)


# -- its patience -------------------------------------------------------------------------------------------


def test_patience_is_what_celerys_tries_take(app: Celery) -> None:
    assert patience_of(app.conf.as_mapping()) == ENDLESS
    app.conf.update(broker_connection_retry=False, broker_connection_max_retries=3)
    assert patience_of(app.conf.as_mapping()) == Patience(False, False, 12.0)
    app.conf.update(broker_connection_retry_on_startup=True, broker_connection_max_retries=100)
    assert patience_of(app.conf.as_mapping()) == Patience(True, False, 2790.0)
    app.conf.broker_connection_max_retries = 0
    assert patience_of(app.conf.as_mapping()).longest_s == 0.0


class Lost:
    """A link that has a delivery of a message that was acknowledged before it ran, on a clock that is moved by hand."""

    def __init__(self, app: Celery, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.given_up = 0
        app.task(name="kit.task")(lambda: None)
        transport = app.make_transport()
        transport.send([make_payload("celery")])
        self.link = Link(
            transport,
            app.router,
            app.backend.plugin,
            owner="me",
            queues=app.router.select(["celery"]),
            poller=Bench(),
            joiner=Joiner(app),
            patience=patience,
            give_up=self.give_up,
            unsent=partial(after_no_sending, app),
            clock=Clock(monotonic=lambda: self.now, uniform=lambda low, high: high),
        )
        self.link.open(1)
        (delivery,) = self.link.receive(1)
        plan = TaskPlan(app.tasks["kit.task"], None, None, announce=False)
        self.flight = Flight(delivery, delivery.head, plan, self.link.epoch, True)  # type: ignore[arg-type]
        self.flight.acked = True
        monkeypatch.setattr(transport, "consumer", gone)

    def give_up(self) -> None:
        self.given_up += 1

    def wait(self, seconds: float) -> int:
        """Let so much time go by, with a try to reopen each second; how often it has given up."""
        for _ in range(int(seconds)):
            self.now += 1
            self.link.try_reopen(1)
        return self.given_up


@pytest.mark.parametrize(
    ("patience", "alive_s", "over_s"),
    [(Patience(longest_s=12.0), 11, 3), (Patience(after_loss=False), 0, 0), (Patience(longest_s=0.0), 0, 1)],
)
def test_a_link_is_opened_again_for_as_long_as_the_app_says(
    app: Celery, monkeypatch: pytest.MonkeyPatch, patience: Patience, alive_s: float, over_s: float
) -> None:
    lost = Lost(app, patience, monkeypatch)
    assert lost.given_up == 0
    lost.link.lose(TransportLost("gone"))
    assert lost.wait(alive_s) == (0 if alive_s or over_s else 1)
    assert lost.wait(over_s) >= 1


def test_a_link_that_we_make_anew_ourselves_does_not_end_an_impatient_worker(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Lost(app, Patience(after_loss=False), monkeypatch)
    lost.link.lose(TransportLost("deaf"), by_choice=True)
    assert lost.given_up == 0


def test_what_was_acknowledged_before_it_ran_has_its_result_though_the_broker_never_came_back(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Lost(app, Patience(after_loss=False), monkeypatch)
    lost.link.lose(TransportLost("gone"))
    store = app.backend
    state: StoredResult = store.make("its-id", "SUCCESS", 7, None, None)
    lost.link.settle_flight(lost.flight, None, [state])
    lost.link.close(0.1)
    assert app.AsyncResult("its-id").get(timeout=30) == 7


def test_the_part_of_a_chord_that_was_acknowledged_before_it_ran_comes_though_the_broker_never_came_back(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Lost(app, Patience(after_loss=False), monkeypatch)
    plugin: Any = app.backend.plugin
    body = write_body(app, app.signature("body"))
    plugin.open_chords([Chord("g", 2, body, 100.0)])
    lost.link.lose(TransportLost("gone"))
    mine, other = (ChordPart("g", name, n, name.encode(), body) for n, name in enumerate(("mine", "other")))
    lost.link.settle_flight(lost.flight, None, (), (), ChordWork([], [mine]))
    lost.link.close(0.1)
    (claim,) = plugin.join([other])
    assert [data for _, data in claim.parts] == [b"mine", b"other"]


def test_what_follows_from_it_and_could_not_be_sent_has_failed_unless_it_may_be_out(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Lost(app, Patience(after_loss=False), monkeypatch)
    lost.link.lose(TransportLost("gone"))
    errback = {**app.signature("hear"), "options": {"task_id": "errback"}}
    never = app.make_payload("kit.task", (), {}, "never", {"link_error": errback})
    perhaps = app.make_payload("kit.task", (), {}, "perhaps", {"headers": {PUBLISH_TRY_HEADER: 2}})
    lost.link.settle_flight(lost.flight, None, (), [never, perhaps])
    lost.link.close(0.1)
    with pytest.raises(PublishRejected, match="the broker was away when its worker ended"):
        app.AsyncResult("never").get(timeout=60)
    assert app.AsyncResult("errback").state == states.FAILURE
    assert app.AsyncResult("perhaps").state == states.PENDING
    assert "3 messages that follow from finished tasks were not sent: kit.task[never], kit.task[per" in caplog.text


def test_what_waits_for_the_next_link_finds_its_queue_there(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Lost(app, ENDLESS, monkeypatch)
    lost.link.lose(TransportLost("gone"))
    lost.link.settle_flight(lost.flight, None, (), [app.make_payload("kit.task", (), {}, "next", {"queue": "other"})])
    monkeypatch.undo()
    declared: list[str] = []
    declare = lost.link._transport.declare
    monkeypatch.setattr(
        lost.link._transport,
        "declare",
        lambda queues: (declared.extend(queue.name for queue in queues), declare(queues)),
    )
    lost.wait(3)
    lost.link.perform()
    assert (declared, app.transport.depth("other")) == (["other"], 1), "RabbitMQ would have no place for it"
    lost.link.close(0.1)


def test_what_follows_from_it_is_sent_though_its_result_cannot_be_stored_before_the_end(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Lost(app, ENDLESS, monkeypatch)

    def store(batch: Any) -> None:
        raise BackendLost("it is away")

    monkeypatch.setattr(app.backend.plugin, "store", store)
    state = app.backend.make("its-id", "SUCCESS", 7, None, None)
    lost.link.settle_flight(lost.flight, None, [state], [app.make_payload("kit.task", (), {}, "next", {})])
    lost.link.close(0.0)
    assert app.transport.depth("celery") == 2
    assert "The results of 1 finished tasks are lost: it is away" in caplog.text


def test_B25_a_plugin_s_own_fault_while_the_broker_is_away_is_tried_over_and_ends_nobody(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Lost(app, ENDLESS, monkeypatch)
    calls: list[float] = []

    def stumble(*args: Any, **kwargs: Any) -> Any:
        calls.append(lost.now)
        raise ZeroDivisionError("nobody foresaw it")

    def stumble_closing() -> None:
        raise ZeroDivisionError("nor that")

    monkeypatch.setattr(lost.link._transport, "consumer", stumble)
    monkeypatch.setattr(lost.link.consumer, "close", stumble_closing)
    lost.link.lose(TransportLost("gone"))
    lost.wait(20)
    assert 5 <= len(calls) <= 15, "with pauses"
    assert "The link cannot be made anew: nobody foresaw it. Next try in" in caplog.text
    monkeypatch.undo()
    lost.wait(3)
    assert lost.link.consumer is not None
    lost.link.close(0.1)


def test_queues_that_are_refused_when_the_broker_is_back_are_tried_for_again_and_end_nobody(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has made a queue anew on other terms: RabbitMQ says so to each who declares it as it was."""
    lost = Lost(app, ENDLESS, monkeypatch)
    calls: list[float] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        calls.append(lost.now)
        raise ImproperlyConfigured("queue 'celery' is not what this app declares")

    monkeypatch.setattr(lost.link._transport, "consumer", refuse)
    lost.link.lose(TransportLost("gone"))
    lost.wait(20)
    assert 5 <= len(calls) <= 15, "with pauses"
    assert "refuses what this worker consumes: queue 'celery' is not what" in caplog.text
    monkeypatch.undo()
    lost.wait(3)
    assert lost.link.consumer is not None
    lost.link.close(0.1)


def test_a_queue_that_the_broker_refuses_is_not_asked_for_at_the_next_opening(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Lost(app, ENDLESS, monkeypatch)

    def refuse(queue: Any) -> None:
        raise ImproperlyConfigured("queue 'other' is not what this app declares")

    monkeypatch.setattr(lost.link.consumer, "subscribe", refuse)
    with pytest.raises(ImproperlyConfigured):
        lost.link.subscribe(app.router.spec("other"))
    assert [queue.name for queue in lost.link.queues] == ["celery"]
    lost.link.close(0.1)


@pytest.mark.parametrize("busy", [{"worker_cancel_long_running_tasks_on_connection_loss": True}], indirect=True)
def test_a_broker_is_lost_once_however_often_it_is_tried_in_vain(
    busy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with monkeypatch.context() as patch:
        patch.setattr(busy.transport, "consumer", gone)
        busy.loop.rebuild("another test")
        eventually(lambda: busy.link._failures >= 3, within_s=60)
    eventually(lambda: busy.link.consumer, within_s=60)
    assert caplog.text.count("Cannot cancel wait[") == 1


def test_a_call_whose_link_is_lost_on_its_way_to_a_slot_is_not_taken_for_acknowledged(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message comes again, and is run again unless it is known here."""
    lost = Lost(app, ENDLESS, monkeypatch)
    flight, flights, unused = lost.flight, Flights(), None
    flight.acked = False
    flight.plan = TaskPlan(app.task(name="early", acks_late=False)(lambda: None), None, None, announce=False)
    flights.add(1, flight)
    endings: Any = Endings(app, lost.link, flights, unused, unused, unused, "node", 3, 20)  # type: ignore[arg-type]
    lost.link.lose(TransportLost("gone"))
    endings.digest([JobReport(1, "accepted", pid=1)])
    assert not flight.acked
