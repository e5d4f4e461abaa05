"""Steps of a program's own: their order, and that every one that was started is stopped."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError

from celeriac import bootsteps
from celeriac.bootsteps import Blueprint, in_order

SAID: list[str] = []


class A(bootsteps.StartStopStep):
    def start(self, parent: Any) -> None:
        SAID.append("A starts")

    def stop(self, parent: Any) -> None:
        SAID.append("A stops")
        raise KeyError("and fails")


class Last(bootsteps.StartStopStep):
    last = True

    def create(self, parent: Any) -> Any:
        return SimpleNamespace(start=lambda: SAID.append("made by Last starts"), stop=lambda: SAID.append("it stops"))


class B(bootsteps.StartStopStep):
    requires = ("celeriac.worker.components:Hub", A)

    def __init__(self, parent: Any, word: str = "", **options: Any) -> None:
        SAID.append(f"B is made for {parent} with {word}")

    def start(self, parent: Any) -> None:
        SAID.append("B starts")

    def terminate(self, parent: Any) -> None:
        SAID.append("B is terminated")

    def info(self, parent: Any) -> dict[str, Any]:
        return {"b": 1}


class Unwanted(bootsteps.StartStopStep):
    def include_if(self, parent: Any) -> bool:
        return False

    def start(self, parent: Any) -> None:
        SAID.append("never")


class Broken(bootsteps.StartStopStep):
    requires = (B,)

    def start(self, parent: Any) -> None:
        raise OSError("no disk")


@pytest.fixture(autouse=True)
def quiet() -> None:
    SAID.clear()


def test_steps_start_in_order_and_stop_backwards_whatever_one_of_them_does() -> None:
    plan = Blueprint({Last, Unwanted, B, A}, "the worker", {"word": "w", "other": 1})
    plan.start()
    assert plan.info() == {"b": 1}
    plan.stop(by_force=True)
    plan.stop()
    assert SAID == [
        "B is made for the worker with w", "A starts", "B starts", "made by Last starts",
        "it stops", "B is terminated", "A stops",
    ]  # fmt: skip


def test_a_step_that_cannot_start_stops_those_before_it() -> None:
    plan = Blueprint({B, A, Broken}, "w", {})
    with pytest.raises(OSError, match="no disk"):
        plan.start()
    assert SAID[-2:] == ["B starts", "A stops"]


def test_a_circle_is_named() -> None:
    class One(bootsteps.Step):
        requires = ("two",)

    class Two(bootsteps.Step):
        name = "two"
        requires = (One,)

    with pytest.raises(ValueError, match="circle"):
        in_order({One, Two})


class Ears(bootsteps.ConsumerStep):
    """Fails at first, as a program's own may, and as a broker that stays away makes kombu do."""

    def __init__(self, parent: Any, **options: Any) -> None:
        self.troubles: list[Exception] = [OperationalError("away for long"), KeyError("the program's")]
        self.listens = threading.Event()

    def get_consumers(self, channel: Any) -> Any:
        if self.troubles:
            raise self.troubles.pop()
        self.listens.set()
        return []


def test_a_consumer_step_listens_again_whatever_it_met() -> None:
    step = Ears(None)
    step.start(SimpleNamespace(app=SimpleNamespace(connection_for_read=lambda: Connection("memory://"))))
    try:
        assert step.listens.wait(20)
    finally:
        step.stop(None)


def test_a_step_may_be_named_by_its_path() -> None:
    assert in_order({f"{__name__}:B", A}) == [A, B]
