"""Task name to queue, in every form that Celery's users know."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

from celeriac import Celery
from celeriac.exceptions import ImproperlyConfigured, QueueNotFound
from celeriac.messaging import producer, routes
from celeriac.messaging.routes import Router
from celeriac.spec.data import ExchangeSpec, Route


def router(**settings: Any) -> Router:
    return Celery("t", broker="memory://", set_as_current=False, **settings).router


def queue_of(router: Router, name: str, **options: Any) -> str:
    return router.route(name, (), {}, options)[0].queue


class ClassRouter:
    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        return {"queue": "classy"} if task == "proj.classy" else None


def function_router(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **kw: Any) -> Any:
    return "by_function" if name.startswith("fun") else None


def test_without_routes_all_goes_to_the_default_queue_by_its_name() -> None:
    assert router().route("any", (), {}, {})[0] == Route("celery", "", "direct", "celery")
    assert queue_of(router(task_default_queue="mine"), "any") == "mine"


def test_a_call_chooses_its_queue_and_a_missing_one_is_made() -> None:
    table = router()
    assert queue_of(table, "any", queue="new") == "new"
    assert table.spec("new").routing_key == "new"
    assert "new" not in table.queues  # nobody consumes it for that


def test_missing_queues_are_refused_when_the_app_says_so() -> None:
    with pytest.raises(QueueNotFound, match="typo"):
        queue_of(router(task_create_missing_queues=False), "any", queue="typo")


@pytest.mark.parametrize(
    "routes",
    [
        {"proj.feed.*": {"queue": "feeds"}, "proj.classy": "classy"},
        [("proj.feed.*", {"queue": "feeds"}), (re.compile(r"proj\.cla.*"), "classy")],
        [{"proj.feed.import": "feeds"}, ClassRouter()],
        ({"proj.feed.import": {"queue": "feeds"}}, "test_routes_paths.ClassRouter"),
    ],
)
def test_routes_in_all_forms(routes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("test_routes_paths")
    module.ClassRouter = ClassRouter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_routes_paths", module)
    table = router(task_routes=routes)
    assert queue_of(table, "proj.feed.import") == "feeds"
    assert queue_of(table, "proj.classy") == "classy"
    assert queue_of(table, "else") == "celery"


def test_a_function_routes_and_the_calls_own_queue_wins() -> None:
    table = router(task_routes=(function_router, {"*": "rest"}))
    assert queue_of(table, "fun.x") == "by_function"
    assert queue_of(table, "other") == "rest"
    assert queue_of(table, "fun.x", queue="own") == "own"


def test_other_options_of_a_route_are_defaults_of_the_call() -> None:
    _, extra = router(task_routes={"a": {"queue": "q", "priority": 7}}).route("a", (), {}, {})
    assert extra == {"priority": 7}


def test_kombu_queues_with_exchanges() -> None:
    media = Exchange("media", type="topic")
    queues = [Queue("videos", media, routing_key="media.video.#", max_priority=5), Queue("plain")]
    table = router(task_queues=queues, task_default_queue="plain")
    assert table.route("t", (), {}, {"queue": "videos"})[0] == Route("media.video.#", "media", "topic", "videos")
    own_key = table.route("t", (), {}, {"queue": "videos", "routing_key": "media.video.hd"})[0]
    assert own_key.routing_key == "media.video.hd"
    by_exchange = table.route("t", (), {}, {"exchange": "media", "routing_key": "media.x"})[0]
    assert by_exchange == Route("media.x", "media", "topic", "")
    assert table.queues["videos"].arguments == {"x-max-priority": 5}
    assert queue_of(table, "t") == "plain"


def test_queues_as_a_dict_and_the_quorum_type() -> None:
    table = router(task_queues={"a": {"exchange": "ex", "binding_key": "k"}}, task_default_queue="a")
    assert (table.queues["a"].exchange, table.queues["a"].routing_key) == ("ex", "k")
    assert router(task_default_queue_type="quorum").queues["celery"].arguments == {"x-queue-type": "quorum"}


def test_a_route_that_is_nothing_of_the_kind_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="task_routes"):
        router(task_routes=[object()])
    with pytest.raises(ImproperlyConfigured, match=r"no\.such\.thing"):
        router(task_routes=["no.such.thing"])


class RouterClass:
    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        return {"queue": "by-class", "priority": 4} if task == "t" else None


@pytest.mark.parametrize(
    ("routes", "name", "queue"),
    [
        ({"mail.*": "mails", "mail.urgent": "now"}, "mail.urgent", "now"),
        ({"mail.*": {"queue": "mails"}}, "mail.send", "mails"),
        ([("mail.*", "mails"), (re.compile(r"(video|image)\..*"), {"queue": "media"})], "image.scale", "media"),
        ((RouterClass(), {"*": "rest"}), "t", "by-class"),
        ((RouterClass(), {"*": "rest"}), "u", "rest"),
        ([lambda name, args, kwargs, options, task=None, **kw: {"queue": f"n{len(args)}"}], "t", "n1"),
        ([lambda name, args, kwargs, options, task=None, **kw: None, {"t": Queue("as-a-queue")}], "t", "as-a-queue"),
        ("tests.unit.messaging.test_routes:RouterClass", "t", "by-class"),
    ],
)
def test_each_form_of_route_finds_its_queue(routes: Any, name: str, queue: str) -> None:
    assert router(task_routes=routes).route(name, (1,), {}, {})[0].queue == queue


def test_a_broadcast_is_sent_to_its_exchange_by_name_alias_or_route() -> None:
    table = router(
        task_queues=[Broadcast("news"), "celery"], task_default_queue="celery", task_routes={"tell": {"queue": "news"}}
    )
    (name,) = table.broadcasts
    for route in (
        table.route("t", (), {}, {"queue": "news"})[0],
        table.route("tell", (), {}, {})[0],
        table.direct(name),
    ):
        assert route == Route("celery", "news", "fanout", "")
        assert table.is_broadcast(route)
        assert table.broadcast_exchange(route) == ExchangeSpec("news", "fanout", durable=True)
    assert not table.is_broadcast(table.direct("celery"))


def test_an_alias_is_as_good_as_the_name() -> None:
    table = router(task_queues=[Queue("q.v2", alias="q"), Queue("celery")])
    assert table.direct("q") == table.direct("q.v2") == Route("q.v2", "", "direct", "q.v2")
    table.select_only(["q"])
    assert table.consumed() == ["q.v2"]


def test_one_workers_choice_is_not_the_next_ones() -> None:
    table = router(task_queues=["a", "b", "c"], task_default_queue="a")
    with table.choice_for(["a", "b"], ["b"]):
        table.select_also("c")
        assert table.consumed() == ["a", "c"]
    assert table.consumed() == ["a", "b", "c"]
    with table.choice_for([], ["a"]):
        assert table.consumed() == ["b", "c"]


def test_types_and_arguments_of_queues() -> None:
    missing = router(task_create_missing_queue_type="quorum", task_create_missing_queue_exchange_type="topic")
    assert missing.spec("new").arguments == {"x-queue-type": "quorum"}
    assert missing.direct("new") == Route("new", "new", "topic", "new")
    limited = router(task_queue_max_priority=10, task_queues=[Queue("a", max_priority=3), Queue("b"), Queue("celery")])
    assert [limited.spec(name).arguments["x-max-priority"] for name in ("a", "b")] == [3, 10]
    own = router(task_default_queue="q", task_default_exchange="ex", task_default_exchange_type="topic",
                 task_default_routing_key="k")  # fmt: skip
    assert own.route("t", (), {}, {})[0] == Route("k", "ex", "topic", "q")


def test_a_binding_keeps_its_arguments() -> None:
    files, pdf, png = Exchange("files", type="headers"), {"kind": "pdf"}, {"kind": "png"}
    several = Queue("several", files, binding_arguments=pdf, bindings=[binding(files, arguments=png)])
    known = router(task_queues=[several])
    assert [spec.binding_arguments for spec in known.declarations("several")] == [png, pdf]
    options = {"exchange": "files", "exchange_type": "headers", "binding_arguments": pdf}
    assert router(task_queues={"one": options}).spec("one").binding_arguments == pdf


def test_who_makes_a_queue_is_said_as_for_celery() -> None:
    known = router(task_queues=[Queue("theirs", no_declare=True), Queue("ours")])
    assert [known.spec(name).no_declare for name in ("theirs", "ours")] == [True, False]
    assert router(task_queues={"theirs": {"no_declare": True}}).spec("theirs").no_declare


def test_of_endless_names_only_some_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue for each customer, say, in a process that lives for months."""
    monkeypatch.setattr(routes, "REMEMBERED", 3)
    known = router()
    for n in range(10):
        known.route(f"task{n}", (), {}, {})
        known.route("any", (), {}, {"queue": f"q{n}"})
        queue = Queue(f"k{n}", Exchange(f"x{n}", type="topic"), routing_key="a.#")
        assert known.route("any", (), {}, {"queue": queue})[0] == Route("a.#", f"x{n}", "topic", f"k{n}")
    assert max(map(len, (known._others, known._direct, known._by_task, known.bindings))) <= 3
    assert queue_of(known, "task0") == "celery"
    assert queue_of(known, "any", queue="q0") == "q0"
    assert list(known.queues) == ["celery"]


def test_a_producer_declares_a_queue_once_more_rather_than_remembering_endless_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producer, "REMEMBERED", 3)
    app = Celery("t", broker="memory://endless", set_as_current=False)
    for n in range(10):
        app.send_task("any", queue=f"q{n}")
    assert len(app.producer._declared) <= 3
    app.send_task("any", queue="q0")
    assert app.transport.depth("q0") == 2
    app.close()
