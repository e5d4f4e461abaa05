"""Canvases of every shape on real workers: what they give, how they fail, and that a join neither sticks nor fires
twice."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.conftest import APPS, House, WorkerProcess, wait_until

from celeriac import chord
from celeriac.canvas.launch import claim_of
from celeriac.exceptions import ChordError
from celeriac.spec import CLAIM_HEADER
from celeriac.utils.ids import uuid

GET_S = 60.0

STORES = [
    pytest.param("sqlite"),
    pytest.param("redis"),
    pytest.param("amqp", marks=pytest.mark.xdist_group("rabbitmq")),
]


class Place:
    """A broker, a result store and one worker for all tests of this module."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.app = house.app

    def start(self, *options: str, **env: str) -> WorkerProcess:
        return self.house.worker("-c", "2", *options, app="canvas_app", **env)

    def get(self, canvas: Any, **options: Any) -> Any:
        return canvas.apply_async(**options).get(timeout=GET_S)


@pytest.fixture(scope="module", params=STORES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("canvas")
    if request.param == "sqlite":
        house = House(folder, f"sqlite:///{folder}/suite.db", f"sqlite:///{folder}/suite.db")
    elif request.param == "redis":
        url = request.getfixturevalue("redis_service").fresh_url()
        house = House(folder, url, url)
    else:
        broker = request.getfixturevalue("rabbitmq_service").fresh_url()
        house = House(folder, broker, f"sqlite:///{folder}/results.db")
    made = Place(house)
    made.start(SUITE_PATIENCE="600")
    yield made
    house.close()


@pytest.fixture(scope="module")
def tasks() -> Any:
    """The module of the tasks and shapes, bound to no broker; its signatures are called in the test's app."""
    sys.path.insert(0, str(APPS))
    try:
        return importlib.import_module("canvas_app")
    finally:
        sys.path.remove(str(APPS))


@pytest.fixture(autouse=True)
def current(place: Place, tasks: Any) -> None:
    tasks.app.conf.update(broker_url=place.house.broker, result_backend=place.house.backend)


def test_every_shape_gives_what_its_parts_say(place: Place, tasks: Any) -> None:
    sent = {name: make().apply_async() for name, (make, _) in tasks.SHAPES.items()}
    given = {name: result.get(timeout=GET_S) for name, result in sent.items()}
    assert given == {name: wanted for name, (_, wanted) in tasks.SHAPES.items()}


def test_of_messages_of_one_body_that_were_published_apart_those_of_the_first_run(place: Place, tasks: Any) -> None:
    task_id, noted = uuid(), f"body {uuid()}"
    claims = [claim_of(token, "some group") for token in ("first", "second", "first")]
    calls = [
        tasks.app.make_payload("c.note", (noted,), {}, task_id, {"headers": {CLAIM_HEADER: one}}) for one in claims
    ]
    tasks.app.producer.send(calls)
    assert tasks.app.AsyncResult(task_id).get(timeout=GET_S) == noted

    def dropped() -> bool:
        return any("task.dropped" in line and task_id in line for line in place.house.workers[0].log.splitlines())

    def count() -> int:
        return sum(noted in line for line in place.house.ran())

    wait_until(dropped, GET_S, "the second publication was dropped")
    wait_until(lambda: count() == 2, GET_S, "the first one ran, and once more when it came again")
    place.get(tasks.const.si(1))
    assert count() == 2


def test_a_chord_may_grow_while_it_runs(place: Place, tasks: Any) -> None:
    make, wanted = tasks.GROWING
    assert sorted(place.get(make())) == sorted(wanted)


def test_every_failure_is_told_to_all_who_wait(place: Place, tasks: Any) -> None:
    sent = {name: make().apply_async() for name, (make, _) in tasks.FAILURES.items()}
    for name, result in sent.items():
        with pytest.raises(Exception, match=r"boom") as caught:
            result.get(timeout=GET_S, **({} if hasattr(result, "results") else {"follow_parents": False}))
        assert type(caught.value).__name__ == tasks.FAILURES[name][1], name
        for each in _all_results(result):
            wait_until(each.ready, GET_S, f"{name}: {each!r} is ready")


def _all_results(result: Any) -> Iterator[Any]:
    while result is not None:
        if hasattr(result, "results"):
            for member in result.results:
                yield from _all_results(member)
        else:
            yield result
        result = result.parent


def test_a_part_that_kills_its_slots_fails_the_chord(place: Place, tasks: Any) -> None:
    result = chord([tasks.const.si(1), tasks.die.si()], tasks.total.s()).apply_async()
    with pytest.raises(ChordError, match="WorkerLostError"):
        result.get(timeout=GET_S, follow_parents=False)


def test_a_part_that_never_comes_fails_the_chord_by_name(place: Place, tasks: Any) -> None:
    told = ""
    for patience_s in (1.0, 4.0, 16.0):  # on a busy machine the other two may not have come either in a second
        tasks.app.conf.result_chord_patience = patience_s
        try:
            header = [tasks.const.si(1), tasks.const.si(2).set(queue="nobody-serves-this"), tasks.const.si(3)]
            result = chord(header, tasks.total.s()).apply_async()
        finally:
            tasks.app.conf.result_chord_patience = None
        with pytest.raises(ChordError, match=r"of 3 parts .* missing are the parts") as caught:
            result.get(timeout=GET_S, follow_parents=False)
        told = str(caught.value)
        if "1 of 3 parts" in told:
            break
    assert re.search(r"1 of 3 parts .* missing are the parts 1 ", told), told
