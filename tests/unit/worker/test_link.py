"""The worker's link to its broker, when that goes away in the midst of an ending."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac import Celery, states
from celeriac.exceptions import BackendLost, TransportLost
from celeriac.execution.followup import after_no_sending
from celeriac.resultstore import Stores
from celeriac.spec import Payload, Route, Settlement, StoredResult
from celeriac.testing.broker_suite import make_payload
from celeriac.testing.kit import Bench, eventually
from celeriac.worker import link as link_module
from celeriac.worker.clock import Clock
from celeriac.worker.flights import Flight
from celeriac.worker.link import Link, Renewer
from celeriac.worker.plans import TaskPlan
from celeriac_backend_memory.backend import MemoryBackend


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


def test_a_follow_up_for_a_queue_whose_name_is_no_utf8_costs_its_own_delivery_only(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, flight, _ = open_link(app, monkeypatch)
    name = "half a character \ud800"
    monkeypatch.setattr(app.transport, "declare", lambda queues: queues[0].name.encode())
    link._transport = app.transport
    link.settle_flight(flight, Settlement(flight.delivery.tag), (), [make_payload(name, route=Route(name, queue=name))])
    link.perform()
    assert link.consumer is not None
    (letter,) = app.transport.browse_dead("celery")  # type: ignore[attr-defined]
    assert "cannot be written as JSON" in letter.error
    link.close(0.1)


def test_what_follows_from_a_call_that_was_acknowledged_before_it_ran_waits_for_the_next_link(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, flight, following = open_link(app, monkeypatch)
    flight.acked = True
    link.settle_flight(flight, None, (), [following])
    assert link.consumer is None
    assert [list(ending[2]) for ending in link._homeless] == [[following]]
    link.close(0.1)


@pytest.mark.parametrize(
    ("verb", "kept"),
    [("ack", states.FAILURE), ("dead", states.SUCCESS)],
    ids=["ended", "set-aside-until-a-person-gives-it-back"],
)
def test_a_worker_that_slept_through_its_lease_does_not_replace_what_the_next_receiver_has_stored(
    request: pytest.FixtureRequest, verb: Any, kept: str
) -> None:
    """R13: broker and results are two stores, so the one does not know who has the message in the other."""
    app = Celery(broker=f"memory://{request.node.name}", backend=f"memory://{request.node.name}", set_as_current=False)
    store, transport, times = app.backend, app.make_transport(), iter((1000.0, 1016.0))
    transport.send([make_payload("celery")])
    queues, clock = app.router.select(["celery"]), Clock(unix=lambda: next(times))
    link = Link(transport, app.router, store.plugin, owner="me", queues=queues, poller=Bench(), clock=clock)
    link.open(1)
    (delivery,) = link.receive(1)
    assert type(delivery.head).__name__ == "Head"
    task_id, plan = delivery.head.id, object()  # type: ignore[union-attr]
    sleeper = Flight(delivery, delivery.head, plan, link.epoch, True, link.received_at)  # type: ignore[arg-type]
    link.settle(Settlement(delivery.tag, "requeue", started=True))
    link.perform()
    (again,) = link.receive(1)
    assert again.redelivered
    heir = Flight(again, again.head, plan, link.epoch, True, link.received_at)  # type: ignore[arg-type]
    link.settle_flight(
        heir, Settlement(again.tag, verb), [store.make(task_id, states.FAILURE, store.failure(OSError()))]
    )
    link.perform()
    link.settle_flight(sleeper, None, [store.make(task_id, states.SUCCESS, "stale")])
    link.perform()
    assert store.get_state(task_id) == kept
    link.close(0.1)
    app.close()


def test_while_a_task_s_own_store_is_away_its_message_is_held_and_others_are_settled(
    request: pytest.FixtureRequest,
) -> None:
    class Away(MemoryBackend):
        gone = True

        def store(self, batch: Sequence[StoredResult]) -> None:
            if self.gone:
                raise BackendLost("it is away")
            super().store(batch)

    url = f"memory://{request.node.name}"
    app = Celery(broker=url, backend=url, set_as_current=False)
    task = app.task(name="kit.task", backend=Away)(lambda: None)
    app.finalize()
    transport, store, own = app.make_transport(), app.backend, task.backend
    transport.send([make_payload("celery"), make_payload("celery")])
    queues = app.router.select(["celery"])
    stores = Stores(app)
    link = Link(transport, app.router, store.plugin, owner="me", queues=queues, poller=Bench(), stores=stores)
    link.open(2)
    deliveries = link.receive(2)
    plan = TaskPlan(task, None, None, announce=False)
    flights = [Flight(one, one.head, plan, link.epoch, True) for one in deliveries]  # type: ignore[arg-type]
    for flight, one in zip(flights, (own, store), strict=True):
        made = one.make(flight.head.id, states.SUCCESS, 5)
        link.settle_flight(flight, Settlement(flight.delivery.tag), [made])
    link.perform()
    assert link.held() == 1, "and not acknowledged"
    assert [store.get_state(flight.head.id) for flight in flights] == [states.PENDING, states.SUCCESS]
    own.plugin.gone = False  # type: ignore[union-attr]

    def nothing_is_held() -> bool:
        link.perform()
        return link.held() == 0

    eventually(nothing_is_held)
    assert own.get_result(flights[0].head.id) == 5
    link.close(0.1)
    app.close()


def test_what_cannot_be_stored_before_the_end_runs_again_and_that_is_no_crash_of_it(
    request: pytest.FixtureRequest,
) -> None:
    class Away(MemoryBackend):
        def store(self, batch: Sequence[StoredResult]) -> None:
            raise BackendLost("it is away")

    app = Celery(broker=f"memory://{request.node.name}", set_as_current=False)
    transport, store = app.make_transport(), Celery(backend=Away, set_as_current=False).backend
    transport.send([make_payload("celery")])
    queues = app.router.select(["celery"])
    link = Link(transport, app.router, store.plugin, owner="me", queues=queues, poller=Bench())
    link.open(1)
    (delivery,) = link.receive(1)
    flight = Flight(delivery, delivery.head, object(), link.epoch, True)  # type: ignore[arg-type]
    made = store.make(flight.head.id, states.SUCCESS, 5)
    link.settle_flight(flight, Settlement(delivery.tag), [made])
    assert link.close(0.1) == 1
    consumer = transport.consumer(queues, owner="next", poller=Bench(), window=1)
    (again,) = consumer.receive(1)
    assert (again.attempt, again.redelivered, again.spared) == (2, True, 1)
    consumer.close()
    app.close()


def test_a_renewal_of_the_last_link_that_comes_late_takes_nothing_from_the_present_one(app: Celery) -> None:
    """Tags may be the same, and what is taken for lost is held without an end."""
    transport = app.make_transport()
    link = Link(transport, app.router, None, owner="me", queues=app.router.select(["celery"]), poller=Bench())
    link.open(1)
    assert link._renewer is not None
    report_late = link._renewer._report_lost
    link.lose(TransportLost("gone"))
    link.open(1)
    report_late(["tag"])
    assert not link.lost_tags
    link.close(0.1)


def test_B10_who_asks_for_the_leases_while_another_does_knows_what_that_one_has_found() -> None:
    """After a long stop the loop and the renewer's thread wake together, and a consumer says what is lost once."""
    losses: list[list[str]] = [["tag"]]
    known: list[str] = []
    asking, goes_on = threading.Event(), threading.Event()

    class Once:
        def renew(self) -> list[str]:
            return losses.pop() if losses else []

    def report(lost: Sequence[str]) -> None:
        asking.set()
        goes_on.wait(60)
        known.extend(lost)

    renewer = Renewer(Once(), report)  # type: ignore[arg-type]
    first = threading.Thread(target=renewer.prove, daemon=True)
    first.start()
    assert asking.wait(60)
    found: list[list[str]] = []
    second = threading.Thread(target=lambda: (renewer.prove(), found.append(list(known))), daemon=True)
    second.start()
    second.join(0.2)
    goes_on.set()
    second.join(60)
    assert found == [["tag"]]


def test_a_renewal_that_never_comes_back_costs_the_link_and_not_the_loop(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of a plugin, or a socket that nobody answers: the loop would wait for its turn to ask, for ever."""
    monkeypatch.setattr(link_module, "RENEW_S", 0.01)
    asked, goes_on = threading.Event(), threading.Event()
    link = Link(
        app.make_transport(), app.router, None, owner="me", queues=app.router.select(["celery"]), poller=Bench()
    )

    def renew() -> list[str]:
        asked.set()
        goes_on.wait(60)
        return []

    link.open(1)
    assert link._renewer is not None
    monkeypatch.setattr(link._renewer, "_consumer", SimpleNamespace(renew=renew))
    try:
        assert asked.wait(60)
        eventually(lambda: link._renewer is not None and link._renewer.is_doubtful(), within_s=60)
        link.prove()
        assert link.consumer is None
        assert "a renewal of the leases has not come back" in caplog.text
    finally:
        goes_on.set()
        link.close(0.1)


def test_of_endless_queues_that_follow_ups_name_only_some_are_remembered(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "REMEMBERED", 3)
    transport = app.make_transport()
    link = Link(transport, app.router, None, owner="me", queues=app.router.select(["celery"]), poller=Bench())
    link.open(1)
    link._declare_targets([make_payload(f"q{n}", route=Route(f"q{n}", queue=f"q{n}")) for n in range(10)])
    assert len(link._declared) <= 3
    assert transport.depth("q0") == 0, "it is there"
    link.close(0.1)


def test_what_a_consumer_says_late_to_have_nowhere_to_go_has_failed_also_if_the_link_is_lost_then(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{request.node.name}"
    app = Celery(broker=url, backend=url, set_as_current=False)
    transport, unsent = app.make_transport(), []
    open_consumer = transport.consumer

    def consumer(*words: Any, **options: Any) -> Any:
        made: Any = open_consumer(*words, **options)
        made.unsent = lambda: [unsent.pop()] if unsent else []
        return made

    monkeypatch.setattr(transport, "consumer", consumer)
    queues = app.router.select(["celery"])
    fail = partial(after_no_sending, app)
    link = Link(transport, app.router, app.backend.plugin, owner="me", queues=queues, poller=Bench(), unsent=fail)
    link.open(1)
    for task_id, meet in (
        ("performed", link.perform),
        ("lost", lambda: link.lose(TransportLost("gone"))),
        ("again", lambda: link.open(1)),
        ("closed", lambda: link.close(0.1)),
    ):
        unsent.append((app.make_payload("task", (), {}, task_id, {}), "no queue"))
        meet()
    link.close(0.1)
    found = [app.backend.get_state(task_id) for task_id in ("performed", "lost", "again", "closed")]
    assert found == [states.FAILURE] * 4
    app.close()
