"""Messages that came again after a success: what a worker knows of it, and what it does then."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import BackendLost
from celeriac.execution.followup import AGAIN
from celeriac.messaging.protocol import read_call
from celeriac.spec import envelope
from celeriac.spec.data import ChordPart, ChordWork, Delivery, JobReport
from celeriac.testing.kit import make_transport
from celeriac.worker import duplicates as module
from celeriac.worker.duplicates import Duplicates
from celeriac.worker.endings import Endings
from celeriac.worker.flights import Flight, Flights
from celeriac.worker.plans import TaskPlan


class Again:
    """A worker's memory, and messages that come again to it."""

    def __init__(self, backend: str | None = "memory://") -> None:
        self.app = Celery("again", broker="memory://", backend=backend, set_as_current=False)
        self.task: Any = self.app.task(name="t")(lambda x: x)
        self.app.finalize()
        self.transport: Any = make_transport("celeriac_broker_memory", "memory://duplicates")
        self.flights = Flights()
        nobody: Any = None
        endings = Endings(self.app, nobody, self.flights, nobody, nobody, self.transport, "w@h", 3, 20)
        self.duplicates = Duplicates(self.app, endings)
        self.tag = 0

    def delivery(self, task_id: str, attempt: int = 2, **options: Any) -> Delivery:
        self.tag += 1
        payload = self.app.make_payload("t", (1,), {}, task_id, options)
        raw = envelope.pack(payload, str(self.tag))
        return Delivery(self.tag, raw, self.transport.read_head(raw), "celery", attempt, True)

    def succeed(self, task_id: str, *, acked: bool = False, **report: Any) -> None:
        delivery = self.delivery(task_id, 1)
        flight = Flight(delivery, delivery.head, TaskPlan(self.task, None, None, False), 1, True)  # type: ignore[arg-type]
        flight.acked = acked
        self.flights.add(self.tag, flight)
        self.duplicates.learn([JobReport(self.tag, "succeeded", **report)], self.flights)

    def look(self, *deliveries: Delivery) -> list[Any]:
        found = self.duplicates.look(deliveries)
        return [found.get(delivery.tag) for delivery in deliveries]


def test_a_success_in_the_store_is_known_and_what_follows_has_its_first_ids_and_is_marked() -> None:
    again = Again()
    again.app.backend.store_result("done", 41, "SUCCESS")
    again.app.backend.store_result("failed", ValueError(), "FAILURE")
    linked = {"link": [again.task.s().set(task_id="next")], "chain": [again.task.s(2).set(task_id="step")]}
    first = again.look(again.delivery("done", **dict(linked)))[0]
    assert [payload.headers["id"] for payload in first.publish] == ["next", "step"]
    assert [payload.headers[AGAIN] for payload in first.publish] == [2, 2]
    assert read_call(first.publish[0], again.app.codec)[0] == [41]
    again.app.backend.store_result("next", None, "STARTED")
    done, twice, failed, unknown = again.look(
        again.delivery("done", **dict(linked)), again.delivery("done"), again.delivery("failed"), again.delivery("new")
    )
    assert [payload.headers["id"] for payload in done.publish] == ["step"], "the other one is out"
    assert (twice.publish, failed, unknown) == ([], None, None)


@pytest.mark.parametrize("backend", [None, "memory://"])
def test_a_success_without_a_stored_result_is_remembered_with_what_follows(backend: str | None) -> None:
    again = Again(backend)
    follow = again.app.make_payload("t", (2,), {}, "unheard-of", {})
    chords = ChordWork([], [ChordPart("g", "kept", 0, b"1")])
    again.succeed("kept", publish=[follow], chords=chords)
    again.succeed("early", acked=True)
    kept, early = again.look(again.delivery("kept"), again.delivery("early"))
    assert kept.publish == [follow]
    assert kept.chords == chords
    assert early is None
    assert again.look(again.delivery("kept", 3)) == [None], "somebody else has begun it since"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    again = Again(None)
    monkeypatch.setattr(module, "KEPT", 2)
    payload = again.app.make_payload("t", (2,), {}, "next", {})
    for n in range(4):
        again.succeed(f"n{n}", publish=[payload])
    assert [one is not None for one in again.look(*(again.delivery(f"n{n}") for n in range(4)))] == [0, 0, 1, 1]
    monkeypatch.setattr(module, "KEPT_BYTES", len(payload.body) + 1)
    again.succeed("n3", publish=[payload])
    assert [one is not None for one in again.look(*(again.delivery(f"n{n}") for n in range(4)))] == [0, 0, 0, 1]


def test_a_store_that_is_away_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    again = Again()

    def away(ids: Any) -> Any:
        raise BackendLost("away")

    monkeypatch.setattr(again.app.backend.plugin, "fetch", away)
    with pytest.raises(BackendLost):
        again.look(again.delivery("any"))
