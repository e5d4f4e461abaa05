"""What is stored and sent when a call ends without a slot's word, or by the task's own rejection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celery, states
from celeriac.exceptions import Reject, WorkerLostError
from celeriac.spec import Delivery, JobReport, StoredResult
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench, eventually
from celeriac.testing.threaded import start_worker
from celeriac.worker.endings import Endings
from celeriac.worker.flights import Flight, Flights
from celeriac.worker.plans import TaskPlan


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    name = request.node.name
    app = Celery(broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
    yield app
    app.close()


def stored_when_it_fails(app: Celery, **options: Any) -> list[StoredResult]:
    """Of a call of `kit.task` that has reached no slot, or whose slot has died."""
    transport: Any = app.make_transport()
    app.send_task("kit.task", **options)
    consumer = transport.consumer(app.router.select(["celery"]), owner="me", poller=Bench(), window=1)
    delivery: Delivery = consumer.receive(1)[0]
    unused: Any = None
    endings = Endings(app, unused, unused, unused, unused, transport, "node", 3, 20)
    found = endings.failure(delivery, WorkerLostError("it died")).stored
    consumer.close()
    return found


@pytest.mark.parametrize(
    ("task", "call", "count"),
    [
        ({}, {}, 1),
        ({"ignore_result": True}, {}, 0),
        ({"ignore_result": True}, {"ignore_result": False}, 1),
        ({}, {"ignore_result": True}, 0),
        ({"ignore_result": True, "store_errors_even_if_ignored": True}, {}, 1),
        ({"store_errors_even_if_ignored": True}, {"ignore_result": True}, 1),
    ],
    ids=str,
)
def test_the_failure_of_a_run_that_cannot_say_it_is_stored_as_its_task_wishes(
    app: Celery, task: dict[str, Any], call: dict[str, Any], count: int
) -> None:
    app.task(name="kit.task", **task)(lambda: None)
    assert [one.state for one in stored_when_it_fails(app, **call)] == [states.FAILURE] * count


def test_a_call_whose_process_died_is_tried_again_though_that_cannot_be_stored(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would cost the link, and all that has come by it."""

    def explode(*_: Any) -> bytes:
        raise KeyError("of the plugin's own")

    class Desk:
        def settle_flight(self, *ending: Any) -> None:
            ended.append(ending)

    task = app.task(name="kit.task", retry_on_worker_lost=True)(lambda: None)
    monkeypatch.setattr(app.backend.plugin, "encode", explode)
    app.send_task("kit.task")
    transport, flights = app.make_transport(), Flights()
    consumer = transport.consumer(app.router.select(["celery"]), owner="me", poller=Bench(), window=1)
    delivery: Delivery = consumer.receive(1)[0]
    unused: Any = None
    desk: Any = Desk()
    ended: list[tuple[Any, ...]] = []
    endings = Endings(app, desk, flights, unused, unused, transport, "node", 3, 20)
    plan = TaskPlan(task, None, None, announce=False)
    flights.add(1, Flight(delivery, delivery.head, plan, 1, True))  # type: ignore[arg-type]
    endings.digest([JobReport(1, "lost", detail="a signal")])
    ((_, settlement, stored, (again,), _),) = ended
    assert (settlement.verb, stored, again.headers["retries"]) == ("ack", [], 1)
    consumer.close()


def test_a_call_that_nobody_sealed_sets_off_nothing_when_it_is_refused(app: Celery) -> None:
    """Its errbacks would be sent with a seal of ours: whoever can write to the broker could call any task."""
    app.conf.message_seal_key = "0123456789abcdef0123456789abcdef"
    called: list[str] = []
    app.task(name="kit.task")(lambda: None)
    app.task(name="pay")(called.append)
    pay = {"task": "pay", "args": ["them"], "kwargs": {}, "options": {}, "immutable": True, "subtask_type": None}
    body = json.dumps([[], {}, {"errbacks": [pay]}]).encode()
    with start_worker(app, pool="threads", perform_ping_check=False):
        transport: Any = app.make_transport()
        transport.send([make_payload("celery", body)])
        eventually(lambda: len(transport.browse_dead("celery")) > 0, within_s=60)
        app.send_task("pay", ["us"]).get(timeout=60)
    assert called == ["us"]


def test_an_errback_is_called_once_for_a_call_that_rejects_itself_and_has_no_result(app: Celery) -> None:
    called: list[Any] = []

    @app.task(name="kit.task", ignore_result=True)
    def task() -> None:
        raise Reject("not mine", requeue=False)

    @app.task(name="errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        called.append(request.id)

    with start_worker(app, pool="threads", perform_ping_check=False):
        result = task.apply_async(link_error=errback.s())
        eventually(lambda: called, within_s=60)
        app.task(name="after")(lambda: None)
        app.send_task("after").get(timeout=60)
    assert called == [result.id]
