"""What `celeriac doctor` says about workers, and what `celeriac top` draws, from what workers answered."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from celeriac import Celery
from celeriac.cli.checkup import look_at_settings
from celeriac.cli.fleet import Node, _note_conf, _note_report, judge, place_of
from celeriac.cli.rules import Facts
from celeriac.cli.top import Look, QueueRow, TaskRow, WorkerRow, page


def facts_of(name: str, **settings: Any) -> Facts:
    given = {"broker_url": f"memory://{name}", "result_backend": f"memory://{name}", **settings}
    app = Celery("tasks", changes=given, set_as_current=False)

    @app.task(name="tasks.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="tasks.mail")
    def mail() -> None: ...

    _, facts = look_at_settings(app, ())
    assert facts is not None
    return facts


def node(name: str = "w@here", **facts: Any) -> Node:
    given = {"queues": ["celery"], "tasks": frozenset({"tasks.add", "tasks.mail"}), "results": "memory://fleet"}
    return Node(name, **{"software": "celeriac 0.1.0", **given, **facts})


def found(*nodes: Node, **settings: Any) -> dict[str, str]:
    return {
        rule: finding.text
        for rule, finding in judge({one.name: one for one in nodes}, facts_of("fleet", **settings), 1)
    }


def test_a_worker_that_is_as_the_app_is_told_nothing() -> None:
    assert found(node()) == {}


def test_an_old_worker_that_stores_nothing_is_named_with_what_it_eats() -> None:
    told = found(node(), node("old@there", software="Celery 4.4.7", results=""))
    assert set(told) == {"worker-without-results", "other-version"}
    assert told["worker-without-results"].startswith("old@there (Celery 4.4.7) consumes celery and stores no result")


def test_a_worker_of_other_queues_may_store_where_it_likes() -> None:
    assert found(node(), node("other@there", queues=["reports"], results="", tasks=frozenset())) == {}


def test_a_worker_with_another_store_or_without_a_task_is_named() -> None:
    told = found(node(results="redis://elsewhere/3", tasks=frozenset({"tasks.add"})))
    assert "stores results at redis://elsewhere/3" in told["worker-with-other-results"]
    assert "does not know tasks.mail" in told["worker-without-tasks"]


def test_a_queue_that_nobody_consumes_is_named_with_its_tasks() -> None:
    told = found(node(), task_routes={"tasks.mail": {"queue": "mail"}})
    assert told == {"queue-without-worker": "No worker consumes the queue mail, to which calls of tasks.mail go."}


def test_without_workers_that_is_said() -> None:
    assert set(found()) == {"no-worker"}


def test_one_that_did_not_say_is_not_judged_by_that() -> None:
    assert found(node(results=None, tasks=None, software="")) == {}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://:***@localhost:6379/0", "redis://127.0.0.1", True),
        ("redis://h/1", "redis://h/2", False),
        ("redis://a", "redis://b", False),
        ("rpc://", "rpc", True),
        ("amqp://u:**@h:5672//", "amqp://h", True),
        ("sqlite:///a.db", "sqlite:///b.db", False),
    ],
)
def test_two_ways_to_write_one_place_are_one(one: str, other: str, same: bool) -> None:
    assert (place_of(one) == place_of(other)) is same


def test_what_celery_s_workers_answer_is_understood() -> None:
    old = Node("old")
    _note_report(old, {"ok": "\nsoftware -> celery:5.7.0 (x) kombu:5.7.0 py:3.11\nplatform -> system:Linux"})
    _note_conf(old, {"broker_url": "redis://h"})
    assert (old.software, old.results) == ("Celery 5.7.0", "")
    ours = Node("ours")
    _note_report(ours, {"ok": "software -> celeriac:0.1.0 celery:5.7.0\nplugins -> celeriac-broker-redis:0.1.0"})
    _note_conf(ours, {"result_backend": "redis://:geheim@h/0"})
    assert (ours.software, ours.results) == ("celeriac 0.1.0", "redis://:***@h/0")
    assert ours.plugins == ["celeriac-broker-redis:0.1.0"]


def test_the_page_has_workers_queues_and_tasks_and_no_control_characters() -> None:
    look = Look(
        0.0,
        [WorkerRow("w\x1b[2J@h", "prefork", 4, 4, 100, 12.5, 3725)],
        [QueueRow("celery", 7, 0), QueueRow("odd", None, 1)],
        [TaskRow("tasks.[bold]add", 4, 100, 12.5, 3, 0.25)],
        "the broker is away",
    )
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(page(look))
    text = out.getvalue()
    assert "\x1b" not in text
    for words in ("1 worker ", "4/4", "1:02:05", "7 waiting", "12.5/s", "tasks.[bold]add", "the broker is away"):
        assert words in text, text
