"""The worker's link to its broker, when that goes away in the midst of an ending."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import TransportLost
from celeriac.spec import Payload, Route, Settlement
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench
from celeriac.worker.flights import Flight
from celeriac.worker.link import Link
from celeriac.worker.plans import TaskPlan


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    app = Celery(broker=f"memory://{request.node.name}", set_as_current=False)
    yield app
    app.close()


def open_link(app: Celery, monkeypatch: pytest.MonkeyPatch) -> tuple[Link, Flight, Payload]:
    """A link with a delivery of its own, and a message for a queue that cannot be declared: the broker goes away."""

    @app.task(name="kit.task")
    def task() -> None: ...

    transport = app.make_transport()
    transport.send([make_payload("celery")])
    link = Link(transport, app.router, None, owner="me", queues=app.router.select(["celery"]), poller=Bench())
    link.open(1)
    (delivery,) = link.receive(1)

    def declare(queues: Any) -> None:
        raise TransportLost("gone")

    monkeypatch.setattr(transport, "declare", declare)
    plan = TaskPlan(app.tasks["kit.task"], None, None, announce=False)
    flight = Flight(delivery, delivery.head, plan, link.epoch, True)  # type: ignore[arg-type]
    return link, flight, make_payload("other", route=Route("other", queue="other"))


def test_a_broker_that_goes_while_a_follow_up_s_queue_is_declared_costs_the_link_only(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, flight, following = open_link(app, monkeypatch)
    link.settle_flight(flight, Settlement(flight.delivery.tag), (), [following])
    assert link.consumer is None
    assert app.transport.depth("celery") == 1, "it comes again"


def test_what_follows_from_a_call_that_was_acknowledged_before_it_ran_waits_for_the_next_link(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, flight, following = open_link(app, monkeypatch)
    flight.acked = True
    link.settle_flight(flight, None, (), [following])
    assert link.consumer is None
    assert [list(ending[2]) for ending in link._homeless] == [[following]]
    link.close(0.1)
