"""What projects that were written for Celery do with apps, tasks and queues."""

from __future__ import annotations

import functools
import os
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Exchange, Queue, binding

from celeriac import Celery, Task, _state, current_app, group, shared_task
from celeriac.app.control import Control
from celeriac.cli.find_app import import_tasks
from celeriac.events import Events
from celeriac.exceptions import ImproperlyConfigured
from celeriac.loaders.base import BaseLoader
from celeriac.result import AsyncResult


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    return make_app(request.node.name)


@pytest.fixture
def as_before() -> Iterator[None]:
    remembered = _state.remember_apps()
    yield
    _state.restore_apps(remembered)


def make_app(name: str, **options: Any) -> Celery:
    return Celery(name, broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False, **options)


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(30)
    return found[0]


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


# -- finalizing -------------------------------------------------------------------------------------------


def test_threads_that_use_an_app_while_it_is_finalized_wait_for_it(app: Celery) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(Task[..., Any]):
        @classmethod
        def on_bound(cls, app: Any) -> None:
            began.set()
            go_on.wait(30)

    app.task(base=Slow, name="first", shared=False)(lambda: None)
    last = app.task(name="last", shared=False)(lambda: None)
    finalizer = threading.Thread(target=app.finalize)
    finalizer.start()
    assert began.wait(30)
    seen: list[Any] = []
    user = threading.Thread(target=lambda: seen.append(app.tasks["last"].serializer))
    user.start()
    user.join(0.2)
    assert seen == []
    go_on.set()
    finalizer.join(30)
    user.join(30)
    assert seen == ["json"] == [last.serializer]


def test_finalizing_that_failed_is_tried_again(app: Celery) -> None:
    class Moody(Task[..., Any]):
        good = False

        @classmethod
        def on_bound(cls, app: Any) -> None:
            if not Moody.good:
                raise ValueError("not yet")

    task = app.task(base=Moody, name="moody", shared=False)(lambda: None)
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            app.finalize()
    Moody.good = True
    app.finalize()
    assert task.serializer == "json"


def test_a_child_finalizes_what_a_thread_of_its_parent_was_at(app: Celery) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(Task[..., Any]):
        @classmethod
        def on_bound(cls, app: Any) -> None:
            began.set()
            if not go_on.is_set():
                go_on.wait(30)

    app.task(base=Slow, name="first", shared=False)(lambda: None)
    app.task(name="last", shared=False)(lambda: None)
    finalizer = threading.Thread(target=app.finalize)
    finalizer.start()
    assert began.wait(30)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            go_on.set()
            code = 0 if app.tasks["last"].serializer == "json" else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    go_on.set()
    finalizer.join(30)


# -- the current app --------------------------------------------------------------------------------------


def test_a_default_app_that_was_chosen_stays_it(as_before: None) -> None:
    first = Celery("first", broker="memory://first")
    first.set_default()
    second = Celery("second", broker="memory://second")
    assert current_app.main == "second"
    assert in_a_thread(lambda: current_app.main) == "first"
    second.set_default()
    assert in_a_thread(lambda: current_app.main) == "second"


def test_a_shared_task_says_its_own_documentation_and_module(app: Celery, as_before: None) -> None:
    @shared_task(name="says.of.itself")
    def task() -> None:
        """What it does."""

    app.set_current()
    assert (task.__doc__, task.__module__) == ("What it does.", __name__)
    assert "found anew" in (_state.Proxy.__doc__ or "")
    assert _state.Proxy.__module__ == "celeriac._state"


# -- classes of tasks -------------------------------------------------------------------------------------


def test_a_base_class_given_later_is_that_of_earlier_tasks(app: Celery) -> None:
    @app.task(name="early", shared=False)
    def early() -> str:
        return "early"

    @app.task(name="own", shared=False, base=Task)
    def own() -> str:
        return "own"

    class InContext(app.Task):  # type: ignore[name-defined, misc]
        abstract = True

        def __init__(self) -> None:
            self.made_for = self.app

        def __call__(self, *args: Any, **kwargs: Any) -> str:
            return f"in context: {self.run(*args, **kwargs)}"

    app.Task = InContext  # type: ignore[misc]
    assert (early(), own()) == ("in context: early", "own")
    assert early.apply().get() == "in context: early"
    assert early.made_for is app  # type: ignore[attr-defined]


def test_the_app_is_known_when_a_task_is_made(app: Celery) -> None:
    class Asking(Task[..., Any]):
        def __init__(self) -> None:
            self.made_for = self.app

    assert app.task(base=Asking, name="asking", shared=False)(lambda: None).made_for is app


def test_an_app_s_own_class_of_tasks_is_made_by_itself() -> None:
    class Marked(Task[..., Any]):
        abstract = True

    class Own(Celery):
        def create_task_cls(self) -> type[Any]:
            self.task_cls = Marked
            return super().create_task_cls()

    app = Own("own", broker="memory://own", set_as_current=False)
    assert issubclass(app.Task, Marked)
    assert app.Task is app.Task
    assert isinstance(app.task(name="t", shared=False)(lambda: None), app.Task)
    app.Task = Task  # type: ignore[misc]
    assert app.Task is Task


def test_tasks_have_the_names_of_functions(app: Celery) -> None:
    @app.task(name="of.a.function", shared=False)
    def function() -> None: ...

    class OfAClass(Task[..., Any]):
        def run(self) -> None: ...

    assert function.__name__ == "function"
    assert function.__qualname__.endswith("have_the_names_of_functions.<locals>.function")
    assert app.register_task(OfAClass()).__name__ == "OfAClass"


@pytest.mark.parametrize("inherited", [False, True])
def test_a_class_of_a_task_is_retried_wherever_its_body_comes_from(app: Celery, inherited: bool) -> None:
    tries: list[int] = []

    class Base(Task[..., Any]):
        @passing_on
        def run(self) -> None:
            tries.append(self.request.retries)
            raise OSError

    class Fetch(Base):
        autoretry_for = (OSError,)
        retry_kwargs = {"countdown": 0}  # noqa: RUF012
        max_retries = 2
        if not inherited:
            run = Base.run

    app.register_task(Base()).apply()
    task = app.register_task(app.register_task(Fetch()))
    task.apply()
    assert tries == [0, 0, 1, 2]
    assert {f"{__name__}.Base", f"{__name__}.Fetch"} <= app.tasks.keys()


def test_an_app_s_own_error_ends_the_retries(app: Celery) -> None:
    class Enough(Exception):
        def __init__(self, text: str, **_: Any) -> None:
            super().__init__(text)

    class Base(Task[..., Any]):
        MaxRetriesExceededError = Enough

    @app.task(base=Base, bind=True, max_retries=0, name="r", shared=False)
    def task(self: Any) -> None:
        self.retry()

    with pytest.raises(Enough):
        task.apply().get()


# -- arguments of calls -----------------------------------------------------------------------------------


def test_a_decorator_may_give_a_function_more_than_a_call_has(app: Celery) -> None:
    def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(function)(lambda *args, **kwargs: function("session", *args, **kwargs))

    @app.task(name="decorated", shared=False)
    @with_session
    def task(session: str, user: int) -> Any:
        return [session, user]

    class Decorated(Task[..., Any]):
        @passing_on
        def run(self, user: int) -> None: ...

    task.delay(1)
    assert task.apply((1,)).get() == ["session", 1]
    app.register_task(Decorated()).delay(1)


def test_a_body_without_self_is_checked_as_it_is(app: Celery) -> None:
    class Static(Task[..., Any]):
        autoretry_for = (OSError,)

        @staticmethod
        def run(user: int) -> int:  # type: ignore[override]
            return user

    task = app.register_task(Static())
    task.delay(1)
    assert task.apply((3,)).get() == 3
    with pytest.raises(TypeError):
        task.delay()


def test_a_base_class_or_the_app_may_leave_arguments_unchecked(app: Celery) -> None:
    class Loose(Task[..., Any]):
        abstract = True
        typing = False

    class OfAClass(Task[..., Any]):
        def run(self, x: int) -> None: ...

    app.task(base=Loose, name="loose", shared=False)(lambda x: x).delay(1, 2, 3)
    loose = make_app("loose", strict_typing=False)
    task = loose.register_task(OfAClass())
    loose.finalize()
    task.delay(1, 2, 3)


def test_an_iterator_is_no_list_of_arguments(app: Celery) -> None:
    task = app.task(name="t", shared=False)(lambda *args: args)
    with pytest.raises(TypeError, match="must be a list or tuple, not generator"):
        task.apply_async(n for n in range(3))  # type: ignore[arg-type]


def test_stamps_are_in_the_request_of_a_call_here_and_now(app: Celery) -> None:
    @app.task(name="stamped", bind=True, shared=False)
    def task(self: Any) -> Any:
        return [self.request.stamped_headers, self.request.stamps]

    assert task.s().stamp(customer="a").apply().get() == [["customer"], {"customer": "a"}]


# -- what the app is made of ------------------------------------------------------------------------------


class OwnControl(Control):
    pass


class OwnEvents(Events):
    pass


def nothing(app: Celery) -> None:
    return None


def test_parts_that_the_constructor_names_are_taken_and_go_with_a_pickled_app() -> None:
    app = make_app("parts", control=OwnControl, events=f"{__name__}:OwnEvents", fixups=[nothing])
    sys.modules.setdefault(__name__, sys.modules[OwnControl.__module__])
    for one in (app, pickle.loads(pickle.dumps(app))):
        assert isinstance(one.control, OwnControl)
        assert type(one.events).__name__ == "OwnEvents"
        assert one.fixups == [nothing]
    assert make_app("none", fixups=[]).fixups == []


def test_an_app_s_own_send_task_sends_whatever_is_called() -> None:
    seen: list[str] = []

    class Telling(Celery):
        def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return super().send_task(name, *args, **kwargs)

    app = Telling("telling", broker="memory://telling", backend="memory://telling", set_as_current=False)
    task = app.task(name="t", shared=False)(lambda *args: None)
    result = task.apply_async((1,), countdown=1, task_id="x")
    assert (seen, result.id) == (["t"], "x")
    group(task.s(1), app.signature("elsewhere"), app=app).apply_async()
    assert seen == ["t", "t", "elsewhere"]


def test_results_may_be_of_another_class(app: Celery) -> None:
    class Mine(AsyncResult[Any]):
        pass

    result = app.send_task("elsewhere", result_cls=Mine, task_id="x")
    assert (type(result), result.id) == (Mine, "x")


def test_periodic_tasks_take_arguments_as_calls_do(app: Celery) -> None:
    task = app.task(name="t", shared=False)(lambda *args, **kwargs: None)
    app.add_periodic_task(10, task.s(1, y=1), args=(0,), kwargs={"y": 2}, name="added")
    app.add_periodic_task(10, task.si(1), args=(5,), name="immutable")
    schedule = app.conf.beat_schedule
    assert (schedule["added"]["args"], schedule["added"]["kwargs"]) == ((0, 1), {"y": 2})
    assert schedule["immutable"]["args"] == (1,)


@pytest.mark.parametrize("name", ["utc", "local", "LOCAL"])
def test_time_zones_that_a_setting_takes_are_there(app: Celery, name: str) -> None:
    app.conf.timezone = name
    assert app.now().tzinfo is not None
    assert app.uses_utc_timezone() or name != "utc"


# -- packages with tasks ----------------------------------------------------------------------------------


def test_packages_may_be_named_as_django_names_its_apps(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    class Config:
        name = "polls_of_ways"

    apps = types.ModuleType("polls_of_ways.apps")
    apps.Config = Config  # type: ignore[attr-defined]
    package = types.ModuleType("polls_of_ways")
    package.__path__ = []
    for module in (package, apps, types.ModuleType("polls_of_ways.tasks")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    app.autodiscover_tasks(lambda: ["polls_of_ways.apps.Config"], force=True)
    app.autodiscover_tasks("polls_of_ways", force=True)
    for missing in ("polls_of_ways.apps.Other", "no_polls_of_ways"):
        with pytest.raises(ModuleNotFoundError, match=missing):
            app.autodiscover_tasks([missing], force=True)


# -- queues -----------------------------------------------------------------------------------------------


def test_queues_may_come_from_a_generator(app: Celery) -> None:
    app.conf.task_queues = (Queue(name) for name in ("a", "b"))
    for serializer in ("json", "yaml"):  # each change of a setting makes the router anew
        app.conf.task_serializer = serializer
        assert sorted(app.amqp.queues) == ["a", "b"]


def test_queues_in_a_dict_may_be_short_lived(app: Celery) -> None:
    app.conf.task_queues = {
        "short": {"exchange": "x", "routing_key": "k", "durable": False, "auto_delete": True},
        "own": {"routing_key": "o", "queue_durable": False, "exchange_durable": True},
        "plain": {"routing_key": "p"},
    }
    queues = app.amqp.queues
    assert [(queues[name].durable, queues[name].auto_delete) for name in ("short", "own", "plain")] == [
        (False, True),
        (False, False),
        (True, False),
    ]


def test_queues_are_bound_as_celery_binds_them(app: Celery) -> None:
    app.conf.update(task_default_exchange="ex", task_default_exchange_type="topic", task_default_routing_key="key")

    def bound() -> list[tuple[str, str, str]]:
        return [(queue.exchange.name, queue.exchange.type, queue.routing_key) for queue in app.amqp.queues.values()]

    app.conf.task_queues = [Queue("a"), Queue("b", Exchange("x"), routing_key="b")]
    assert bound() == [("ex", "topic", "key"), ("x", "direct", "b")]
    topic = {"exchange": "x", "exchange_type": "topic"}
    app.conf.task_queues = {"a": {}, "b": topic, "c": {**topic, "binding_key": "c.#"}, "d": {"exchange": "x"}}
    assert bound() == [("ex", "topic", "a"), ("x", "topic", "b"), ("x", "topic", "c.#"), ("x", "direct", "d")]


def test_a_worker_consumes_and_purges_what_was_declared_and_not_what_was_sent_to(app: Celery) -> None:
    app.conf.task_queues = [Queue("a"), Queue("b")]
    app.send_task("t", queue="elsewhere")
    app.send_task("t", queue=Queue("given", Exchange("x"), routing_key="g"))
    assert app.amqp.queues["looked-at"].name == "looked-at"
    assert sorted(app.amqp.queues.consume_from) == ["a", "b"]
    app.control.purge()
    assert [app.transport.depth(queue) for queue in ("elsewhere", "given")] == [1, 1]
    app.select_queues(["a", "c"])
    assert sorted(app.amqp.queues.consume_from) == ["a", "c"]


def test_a_queue_has_all_its_bindings(app: Celery) -> None:
    media = Exchange("media", "topic")
    keys = ["video.*", "image.*"]
    app.conf.task_queues = [Queue("media", [binding(media, routing_key=key) for key in keys]), Queue("other")]
    bound = app.amqp.queues["media"].bindings
    assert {(one.exchange.name, one.exchange.type, one.routing_key) for one in bound} == {
        ("media", "topic", key) for key in keys
    }
    app.send_task("t", queue="media")  # which declares it
    app.send_task("t", exchange="media", routing_key="video.short")
    app.send_task("t", exchange="media", routing_key="image.small")
    assert app.transport.depth("media") == 3


# -- without an app ---------------------------------------------------------------------------------------


def test_a_module_of_settings_that_the_environment_names_must_be_there(
    monkeypatch: pytest.MonkeyPatch, as_before: None
) -> None:
    monkeypatch.setenv("CELERIAC_CONFIG_MODULE", "no_such_settings")
    monkeypatch.setattr(_state, "_default_app", None)
    monkeypatch.setattr(_state, "_local", type(_state._local)())
    with pytest.raises(ImproperlyConfigured, match="no_such_settings"):
        _ = current_app.conf.broker_url


# -- loaders ----------------------------------------------------------------------------------------------


class Reading(BaseLoader):
    def read_configuration(self, fail_silently: bool = True) -> dict[str, Any]:  # type: ignore[override]
        return {"task_default_queue": "of-the-loader", "timezone": "Europe/Oslo"}

    def import_default_modules(self) -> None:
        self.task_modules.add("imported")
        super().import_default_modules()


def test_a_loader_of_the_program_s_own_reads_settings(app: Celery) -> None:
    given = make_app("given", loader=Reading)
    assert (given.conf.task_default_queue, given.conf.timezone) == ("of-the-loader", "Europe/Oslo")
    app.loader = Reading(app)
    assert app.conf.task_default_queue == "of-the-loader"
    named = make_app("named", loader=Reading, config_source={"task_default_queue": "of-the-source"})
    assert (named.conf.task_default_queue, named.conf.timezone) == ("of-the-source", None)
    import_tasks(app)
    assert app.loader.task_modules == {"imported"}


# -- settings ---------------------------------------------------------------------------------------------


def test_changes_of_settings_may_be_taken_back_all_at_once(app: Celery) -> None:
    app.conf.task_default_queue = "changed"
    assert app.conf.copy().task_default_queue == "changed"
    app.conf.clear()
    assert app.conf.task_default_queue == "celery"


# -- content types ----------------------------------------------------------------------------------------


def test_a_content_type_is_known_also_after_a_setting_has_changed(app: Celery) -> None:
    app.conf.accept_content = ["application/x-yaml"]
    for queue in ("one", "two"):
        app.conf.task_default_queue = queue
        assert app.codec.decode(b"[1, 2]", "application/x-yaml") == [1, 2]
