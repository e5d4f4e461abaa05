"""A pool grows while it is busy and shrinks when it is idle, within its bounds."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.exceptions import ImproperlyConfigured
from celeriac.worker.autoscale import GROW_PAUSE_S, Autoscaler
from celeriac.worker.worker import parse_autoscale


class FakeWorker:
    """What an autoscaler asks of a worker: slots, flights, and a way to change the former."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.flights: list[int] = []
        self.pool = self.loop = self

    def resize(self, slots: int) -> None:
        self.slots = slots


def make(slots: int = 1, most: int = 8, least: int = 1) -> tuple[Any, Autoscaler, list[float]]:
    worker, now = FakeWorker(slots), [100.0]
    return worker, Autoscaler(worker, most, least, clock=lambda: now[0], keepalive_s=30.0), now  # type: ignore[arg-type]


def test_it_grows_in_steps_while_all_slots_are_busy_up_to_the_bound() -> None:
    worker, scaler, now = make()
    seen = []
    for _ in range(6):
        worker.flights = list(range(worker.slots))
        scaler.look()
        scaler.look()  # the new ones have had no time to come up
        seen.append(worker.slots)
        now[0] += GROW_PAUSE_S
    assert seen == [2, 4, 8, 8, 8, 8]


def test_it_shrinks_after_a_while_to_what_was_needed() -> None:
    worker, scaler, now = make(slots=8)
    worker.flights = [1, 2, 3]
    scaler.look()
    now[0] += 29
    scaler.look()
    assert worker.slots == 8
    now[0] += 2
    scaler.look()
    assert worker.slots == 3
    worker.flights = []
    for _ in range(2):
        now[0] += 31
        scaler.look()
    assert worker.slots == 1


def test_new_bounds_hold_at_once_and_senseless_ones_are_refused() -> None:
    worker, scaler, _ = make(slots=8)
    assert scaler.update(4, 2) == (4, 2)
    assert worker.slots == 4
    assert scaler.update(max=10, min=6) == (10, 6)
    assert worker.slots == 6
    with pytest.raises(ValueError, match="make no sense"):
        scaler.update(max=2, min=3)
    assert scaler.info() == {"max": 10, "min": 6, "current": 6, "qty": 0}


@pytest.mark.parametrize(("text", "bounds"), [("10,2", (10, 2)), ("3", (3, 1)), ((4, 2), (4, 2)), (None, None)])
def test_bounds_are_read(text: Any, bounds: Any) -> None:
    assert parse_autoscale(text) == bounds


@pytest.mark.parametrize("text", ["2,10", "0", "many", "3,0"])
def test_bounds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="autoscale"):
        parse_autoscale(text)
