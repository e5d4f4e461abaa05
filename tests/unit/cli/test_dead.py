"""`celeriac dead`: what was set aside is listed, shown, given back and dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from celeriac import Celery
from celeriac.cli.group import run
from celeriac.spec import QueueSpec, Settlement
from celeriac.testing.kit import Bench


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Dead = Callable[..., Ran]


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    """An app three of whose calls were set aside: of `add`, of `mul`, and one that is no message."""
    url = f"memory://{request.node.name}"
    app = Celery("tasks", broker=url, backend=url, set_as_current=False)

    @app.task(name="tasks.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="tasks.mul")
    def mul(x: int, y: int) -> int:
        return x * y

    add.apply_async((2, 3), task_id="the-add")
    mul.apply_async((2, 3), task_id="the-mul")
    consumer = app.transport.consumer([QueueSpec("celery")], owner="w1@here", poller=Bench(), window=8)
    first, second = consumer.receive(2)
    consumer.settle([Settlement(first.tag, "dead", reason="crash: its slot died 3 times", error="signal 9")])
    consumer.settle([Settlement(second.tag, "dead", reason="unknown task 'tasks.mul'\x1b[31m", error="nobody")])
    consumer.close()
    return app


@pytest.fixture
def dead(app: Celery, capsys: pytest.CaptureFixture[str]) -> Dead:
    def run_one(*words: str, app: Any = app) -> Ran:
        return Ran(run(["dead", *words], app), *capsys.readouterr())

    return run_one


def test_the_list_has_all_and_its_json_too(dead: Dead) -> None:
    ran = dead("list")
    assert ran.code == 0
    assert "tasks.add[the-add]" in ran.out
    assert "crash: its slot died 3 times" in ran.out
    assert "Set aside: celery 2." in ran.err
    assert "\x1b[31m" not in ran.out, "a message may not write to the terminal as it likes"
    first, second = json.loads(dead("list", "--json").out)
    assert (first["task"], first["task_id"], first["attempt"], first["owner"]) == ("tasks.add", "the-add", 1, "w1@here")
    assert second["reason"].startswith("unknown task")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--task", "tasks.mul"], ["the-mul"]),
        (["--reason", "CRASH"], ["the-add"]),
        (["-Q", "celery"], ["the-add", "the-mul"]),
        (["-Q", "other"], []),
        (["--limit", "1"], ["the-add"]),
    ],
)
def test_the_list_can_be_narrowed(dead: Dead, words: list[str], found: list[str]) -> None:
    assert [entry["task_id"] for entry in json.loads(dead("list", "--json", *words).out)] == found


def test_one_is_shown_with_its_error_and_its_bytes(app: Celery, dead: Dead) -> None:
    ran = dead("show", "the-add")
    assert ran.code == 0
    assert "error:     signal 9" in ran.out
    assert "[[2, 3], {}," in ran.out
    shown = json.loads(dead("show", "the-add", "--json").out)
    assert shown["headers"]["task"] == "tasks.add"
    assert dead("show", shown["id"]).out == ran.out
    (letter, _) = app.transport.browse_dead("celery")
    assert dead("show", "the-add", "--raw").out.encode() == letter.raw
    ran = dead("show", "nobody")
    assert (ran.code, "nobody" in ran.err) == (1, True)


def test_one_given_back_is_in_its_queue_again(app: Celery, dead: Dead) -> None:
    ran = dead("requeue", "the-add", "--force")
    assert (ran.code, ran.out) == (0, "Gave back 1 message.\n")
    assert app.transport.depth("celery") == 1
    assert [entry["task_id"] for entry in json.loads(dead("list", "--json").out)] == ["the-mul"]


def test_all_of_a_task_are_dropped(app: Celery, dead: Dead) -> None:
    ran = dead("drop", "--task", "tasks.mul", "--force", "--json")
    assert json.loads(ran.out) == {"verb": "drop", "chosen": 1, "done": 1, "missing": []}
    assert app.transport.depth("celery") == 0
    assert [entry["task_id"] for entry in json.loads(dead("list", "--json").out)] == ["the-add"]


def test_it_asks_first_and_wants_to_know_which(app: Celery, dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dead("drop").code == 2
    monkeypatch.setattr("click.confirm", lambda *words, **more: False)
    ran = dead("drop", "--all")
    assert (ran.code, "Nothing was changed." in ran.err) == (1, True)
    assert len(app.transport.browse_dead("celery")) == 2
    ran = dead("drop", "--all", "--force")
    assert (ran.code, ran.out) == (0, "Dropped 2 messages.\n")
    assert "Set aside: nothing." in dead("list").err


def test_an_id_that_is_gone_is_named(dead: Dead) -> None:
    ran = dead("requeue", "the-add", "nobody", "-f")
    assert (ran.code, ran.out) == (1, "Gave back 1 message.\n")
    assert "the id nobody" in ran.err
