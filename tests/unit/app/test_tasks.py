"""Making tasks and calling them here."""

from __future__ import annotations

import functools
import inspect
import pickle
import subprocess
import sys
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import celeriac
from celeriac import Celery, Task, shared_task
from celeriac.exceptions import (
    DuplicateTaskNameWarning,
    Ignore,
    MaxRetriesExceededError,
    NotRegistered,
    Retry,
)
from celeriac.execution.request import Context
from celeriac.signals import before_task_publish
from celeriac.utils.time import get_exponential_backoff_interval


@pytest.fixture
def app() -> Celery:
    return Celery("proj", broker="memory://tasks", backend="memory://tasks")


def add_plainly(x: int, y: int = 1, *, z: int = 0) -> int:
    """Add."""
    return x + y + z


def test_a_task_is_named_after_its_module_and_still_a_function(app: Celery) -> None:
    task = app.task(add_plainly)
    assert task.name == f"{__name__}.add_plainly"
    assert task(1, 2) == 3
    assert task.__doc__ == "Add."
    assert task.__name__ == shared_task(add_plainly).__name__ == "add_plainly"
    assert task.__wrapped__ is add_plainly
    assert app.tasks[task.name] is task
    assert task.app is app


def test_main_names_the_tasks_of_a_script(app: Celery) -> None:
    assert app.gen_task_name("add", "__main__") == "proj.add"


def test_options_are_attributes_and_others_come_from_the_settings(app: Celery) -> None:
    app.conf.task_track_started = True
    task = app.task(name="t", max_retries=7, rate_limit="10/m", acks_late=False)(add_plainly)
    app.finalize()
    assert (task.max_retries, task.rate_limit, task.acks_late) == (7, "10/m", False)
    assert task.track_started is True
    assert task.serializer == "json"


def test_a_bound_task_gets_itself(app: Celery) -> None:
    @app.task(bind=True)
    def who(self: Any, n: int) -> Any:
        return self.name, self.request.called_directly, n

    assert who(5) == (who.name, True, 5)
    assert who.apply((5,)).get() == [who.name, False, 5] or who.apply((5,)).get() == (who.name, False, 5)


def test_a_base_class_of_the_users(app: Celery) -> None:
    class Counting(Task[..., Any]):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += 1
            return super().__call__(*args, **kwargs)

    task = app.task(base=Counting, name="counted")(add_plainly)
    assert task(1) == 2
    assert task.apply((1,)).get() == 2
    assert type(task).calls == 2


def test_a_class_is_a_task(app: Celery) -> None:
    class Double(Task[[int], int]):
        def run(self, n: int) -> int:
            return n * 2

    task = app.register_task(Double())
    assert task.name == f"{__name__}.Double"
    assert task.apply((4,)).get() == 8
    with pytest.raises(TypeError, match="Double"):
        task.delay()


def test_wrong_arguments_are_refused_at_the_call(app: Celery) -> None:
    task = app.task(add_plainly)
    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"q": 1})):
        with pytest.raises(TypeError, match="add_plainly"):
            task.apply_async(args, kwargs)
    loose = app.task(name="loose", typing=False, ignore_result=True)(add_plainly)
    loose.delay(1, 2, 3, 4)


def test_args_that_are_no_list_are_refused_with_a_hint(app: Celery) -> None:
    task = app.task(typing=False, name="x")(add_plainly)
    with pytest.raises(TypeError, match="forget a comma"):
        task.apply_async("ab")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="forget a comma"):
        app.task(add_plainly).apply_async(2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kwargs of x"):
        task.apply_async((), [1])  # type: ignore[arg-type]


def test_impossible_options_are_refused_by_name(app: Celery) -> None:
    task = app.task(add_plainly)
    with pytest.raises(ValueError, match="countdown"):
        task.apply_async((1,), countdown="soon")
    with pytest.raises(ValueError, match="expires"):
        task.apply_async((1,), expires=object())
    with pytest.raises(ValueError, match="soft_time_limit"):
        task.apply_async((1,), time_limit=1, soft_time_limit=2)


def test_an_unknown_task_says_its_name(app: Celery) -> None:
    with pytest.raises(NotRegistered, match=r"proj\.nothing"):
        app.tasks["proj.nothing"]


def test_a_second_function_of_one_name_is_warned_about_and_the_first_keeps_it(app: Celery) -> None:
    first = app.task(name="same")(add_plainly)

    def other() -> None: ...

    with pytest.warns(DuplicateTaskNameWarning, match="same"):
        second = app.task(name="same")(other)
    assert second is first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert app.task(name="same")(add_plainly) is first


def test_a_task_pickles_as_its_name(app: Celery) -> None:
    task = app.task(add_plainly)
    assert pickle.loads(pickle.dumps(task)) is task


def test_a_shared_task_belongs_to_every_app() -> None:
    @shared_task(name="shared.one")
    def one() -> int:
        return 1

    first = Celery("a", broker="memory://")
    assert one.app is first
    assert first.tasks["shared.one"].apply().get() == 1
    second = Celery("b", broker="memory://")
    assert one.app is second
    with pytest.raises(TypeError, match="decorate the function once"):
        shared_task(one)


# -- eager runs ---------------------------------------------------------------------------------------------


def test_eager_arguments_take_the_way_through_the_serializer(app: Celery) -> None:
    @app.task
    def kind(value: Any) -> str:
        return type(value).__name__

    assert kind.apply(((1, 2),)).get() == "tuple"  # as in Celery, only what would be sent is written and read
    assert kind.apply((object(),)).get() == "object"
    app.conf.task_always_eager = True
    assert kind.delay((1, 2)).get() == "list"
    with pytest.raises(TypeError, match="not JSON serializable"):
        kind.delay(object())


def test_an_eager_call_in_a_task_is_its_child(app: Celery) -> None:
    @app.task(bind=True)
    def family(self: Any) -> Any:
        return [self.request.root_id, self.request.parent_id]

    @app.task
    def parent() -> Any:
        return family.apply().get()

    assert parent.apply(task_id="p").get() == ["p", "p"]
    assert family.apply(task_id="f").get() == ["f", None]


def test_a_countdown_of_nothing_is_no_delay(app: Celery) -> None:
    task = app.task(add_plainly)
    sent: list[Any] = []
    remember = before_task_publish.connect(lambda headers, **_: sent.append(headers["eta"]), weak=False)
    try:
        for options in ({"countdown": 0}, {"countdown": 0.0, "eta": datetime(2030, 1, 1, tzinfo=timezone.utc)}):
            task.apply_async((1,), **options)
    finally:
        before_task_publish.disconnect(remember)
    assert sent == [None, "2030-01-01T00:00:00+00:00"]


def test_outside_a_run_a_task_has_one_request_of_its_own(app: Celery) -> None:
    @app.task(bind=True)
    def tries(self: Any) -> int:
        return self.request.retries  # type: ignore[no-any-return]

    @app.task
    def other() -> None: ...

    assert tries.request.called_directly
    tries.request.retries = 2
    assert tries.request.retries == tries.run() == 2
    assert tries() == 0, "a call has a request of its own"
    assert other.request.retries == 0


def test_what_follows_an_eager_call_is_its_child_and_what_replaces_it_has_its_id(app: Celery) -> None:
    told: dict[str, tuple[Any, ...]] = {}

    def tell(request: Any, name: str) -> None:
        told[name] = (request.id, request.root_id, request.parent_id)

    @app.task(bind=True)
    def tells(self: Any, *_: Any, name: str) -> str:
        tell(self.request, name)
        return name

    @app.task(bind=True)
    def fails(self: Any) -> None:
        raise KeyError

    @app.task(bind=True)
    def gives_way(self: Any) -> Any:
        return self.replace(tells.s(name="stands in") | tells.s(name="ends it"))

    @app.task(bind=True)
    def begins(self: Any) -> None:
        tell(self.request, "begins")
        linked = tells.s(name="caller").set(link=tells.s(name="callback").set(link=tells.s(name="its own")))
        linked.apply(task_id="a")
        fails.s().on_error(tells.s(name="errback")).apply(task_id="b")

    begins.apply(task_id="root")
    assert told["caller"] == ("a", "root", "root")
    assert told["callback"][1:] == ("root", "a")
    assert told["its own"][1:] == ("root", told["callback"][0])
    assert told["errback"][1:] == ("root", "b")
    assert gives_way.apply(task_id="c").get() == "ends it"
    assert told["stands in"][1:] == ("c", "c")
    assert told["ends it"] == ("c", "c", "c")
    assert app.current_task is None


def test_always_eager_runs_at_once_and_errors_stay_in_the_result(app: Celery) -> None:
    app.conf.task_always_eager = True

    @app.task
    def divide(a: int, b: int) -> float:
        return a / b

    assert divide.delay(4, 2).get() == 2
    result = divide.delay(1, 0)
    assert (result.state, result.failed(), result.ready()) == ("FAILURE", True, True)
    assert "ZeroDivisionError" in (result.traceback or "")
    with pytest.raises(ZeroDivisionError):
        result.get()
    assert isinstance(result.get(propagate=False), ZeroDivisionError)
    app.conf.task_eager_propagates = True
    with pytest.raises(ZeroDivisionError):
        divide.delay(1, 0)


def test_eager_retries_run_until_they_are_used_up(app: Celery) -> None:
    seen: list[int] = []

    @app.task(bind=True, max_retries=2, default_retry_delay=0)
    def flaky(self: Any) -> None:
        seen.append(self.request.retries)
        self.retry(exc=KeyError("no"))

    with pytest.raises(KeyError):
        flaky.apply().get()
    assert seen == [0, 1, 2]


def test_retries_used_up_without_a_cause_say_so(app: Celery) -> None:
    @app.task(bind=True, max_retries=0)
    def never(self: Any) -> None:
        self.retry()

    with pytest.raises(MaxRetriesExceededError, match=r"Can't retry .*never"):
        never.apply().get()


def test_autoretry_with_its_exceptions(app: Celery) -> None:
    seen: list[int] = []

    @app.task(
        bind=True,
        autoretry_for=(OSError,),
        dont_autoretry_for=(FileNotFoundError,),
        max_retries=3,
        retry_backoff=True,
    )
    def fetch(self: Any, missing: bool) -> str:
        seen.append(self.request.retries)
        if missing:
            raise FileNotFoundError
        if self.request.retries < 2:
            raise ConnectionError
        return "done"

    assert fetch.apply((False,)).get() == "done"
    assert seen == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        fetch.apply((True,)).get()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_coroutine_is_retried_by_itself_too(app: Celery, wrapped: bool) -> None:
    tries: list[int] = []

    async def fetch(self: Any) -> str:
        tries.append(self.request.retries)
        if self.request.retries < 2:
            raise ConnectionError
        return "done"

    function: Any = functools.wraps(fetch)(lambda self: fetch(self)) if wrapped else fetch
    task = app.task(bind=True, autoretry_for=(OSError,), retry_kwargs={"countdown": 0})(function)
    assert inspect.iscoroutinefunction(task.run) is not wrapped  # by which a pool with a loop knows it
    assert task.apply().get() == "done"
    assert tries == [0, 1, 2]


def test_a_retry_outside_a_run_raises_its_cause(app: Celery) -> None:
    @app.task(bind=True)
    def t(self: Any) -> None:
        self.retry(exc=ValueError("x"))

    with pytest.raises(ValueError, match="x"):
        t()

    @app.task(bind=True)
    def u(self: Any) -> None:
        self.retry()

    with pytest.raises(Retry):
        u()


@pytest.mark.parametrize(("retries", "most"), [(0, 1), (3, 8), (20, 600)])
def test_backoff_doubles_up_to_its_bound_and_jitter_stays_below(retries: int, most: int) -> None:
    assert get_exponential_backoff_interval(1, retries, 600) == most
    drawn = [get_exponential_backoff_interval(1, retries, 600, full_jitter=True) for _ in range(50)]
    assert all(0 <= pause <= most + 1 for pause in drawn)


def test_hooks_run_in_order(app: Celery) -> None:
    seen: list[Any] = []

    class Hooked(Task[..., Any]):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            seen.append("before_start")

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            seen.append(("on_success", retval))

        def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            seen.append(("on_failure", type(exc), "boom" in einfo.traceback))

        def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            seen.append(("after_return", status))

    @app.task(base=Hooked, name="hooked")
    def hooked(fail: bool) -> int:
        if fail:
            raise ValueError("boom")
        return 3

    hooked.apply((False,))
    hooked.apply((True,))
    assert seen == [
        "before_start",
        ("on_success", 3),
        ("after_return", "SUCCESS"),
        "before_start",
        ("on_failure", ValueError, True),
        ("after_return", "FAILURE"),
    ]


def test_ignore_leaves_its_state(app: Celery) -> None:
    @app.task
    def skip() -> None:
        raise Ignore

    assert skip.apply().state == "IGNORED"


# -- signatures and the front door ---------------------------------------------------------------------------


def test_a_signature_carries_a_call(app: Celery) -> None:
    task = app.task(add_plainly)
    partial = task.s(2)
    assert partial(1) == 1 + 2
    assert task.si(2, 3).clone((9,)).args == (2, 3)
    assert repr(task.s(1, y=2)) == f"{task.name}(1, y=2)"
    frozen = task.s(1, 2)
    result = frozen.freeze()
    assert frozen.options["task_id"] == result.id
    assert dict(celeriac.signature(dict(partial))) == dict(partial)


def test_the_current_app_is_the_last_one_made(app: Celery) -> None:
    assert celeriac.current_app.main == "proj"
    assert celeriac.current_task == None  # noqa: E711 - a proxy is never the object itself


def test_finalizing_is_required_when_the_app_says_so() -> None:
    app = Celery("f", broker="memory://", autofinalize=False, set_as_current=False)
    with pytest.raises(RuntimeError, match="autofinalize"):
        _ = app.tasks


def test_annotations_change_tasks(app: Celery) -> None:
    app.conf.task_annotations = {"*": {"max_retries": 9}, "ann": {"rate_limit": "3/s"}}
    task = app.task(name="ann")(add_plainly)
    app.finalize()
    assert (task.max_retries, task.rate_limit) == (9, "3/s")


def test_a_setting_that_is_changed_later_takes_effect(app: Celery) -> None:
    task = app.task(name="later", typing=False)(add_plainly)
    task.delay(1)
    assert app.router.default_queue == "celery"
    first = app.transport
    app.conf.task_default_queue = "other"
    assert app.router.default_queue == "other"
    assert app.transport is first, "a connection that is still right is kept"
    app.conf.broker_url = "memory://elsewhere"
    task.delay(1)
    assert app.transport is not first
    assert app.transport.depth("other") == 1


@pytest.mark.parametrize("as_text", [False, True])
def test_a_time_without_a_zone_is_utc_whatever_the_apps_zone(app: Celery, as_text: bool) -> None:
    app.conf.timezone = "Asia/Tokyo"
    task = app.task(name="t")(add_plainly)
    sent: list[dict[str, Any]] = []
    remember = before_task_publish.connect(lambda headers, **_: sent.append(dict(headers)), weak=False)
    try:
        for moment in (datetime(2030, 1, 1, 12), datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))):
            given = moment.isoformat() if as_text else moment
            task.apply_async((1,), eta=given, expires=given)
    finally:
        before_task_publish.disconnect(remember)
    wanted = [datetime(2030, 1, 1, hour, tzinfo=timezone.utc) for hour in (12, 10)]
    for key in ("eta", "expires"):
        assert [datetime.fromisoformat(headers[key]) for headers in sent] == wanted


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"eta": "soon"}, "eta must be a datetime or ISO 8601 text, not 'soon'"),
        ({"expires": "zz"}, "expires must be seconds, a datetime or ISO 8601 text, not 'zz'"),
        ({"priority": "high"}, "priority must be a whole number from 0 to 9, not 'high'"),
        ({"time_limit": "long"}, "time_limit must be a number of seconds, not 'long'"),
    ],
)
def test_a_wrong_option_of_a_call_is_named(app: Celery, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        app.task(name="t")(add_plainly).apply_async((1,), **options)


def test_a_task_that_waits_for_another_may_where_apply_says_so_and_not_where_a_worker_would_run_it(app: Celery) -> None:
    inner = app.task(name="inner")(add_plainly)

    @app.task(name="outer")
    def outer() -> Any:
        return inner.apply((1,)).get()

    assert outer.apply().get() == 2
    app.conf.task_always_eager = True
    assert outer.apply().get() == 2
    with pytest.raises(RuntimeError, match=r"Never call result\.get"):
        outer.delay().get()


def test_a_chain_is_sent_from_within_a_task_that_runs_here(app: Celery) -> None:
    inner = app.task(name="inner")(add_plainly)
    results: list[Any] = []

    @app.task(name="outer")
    def outer() -> None:
        results.append((inner.s(1) | inner.s(5) | inner.s(7)).delay())

    app.conf.task_always_eager = True
    outer.delay().get()
    assert results[0].get() == 14


def test_a_call_of_a_tasks_own_that_leads_to_tasks_call_keeps_the_request(app: Celery) -> None:
    class InContext(Task[Any, Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    @app.task(base=InContext, bind=True, name="t", autoretry_for=(ValueError,), default_retry_delay=0, max_retries=3)
    def task(self: Any) -> Any:
        if self.request.retries < 2:
            raise ValueError
        return self.request.id, self.request.called_directly

    assert task.apply(task_id="the-id").get() == ("the-id", False)

    @app.task(base=InContext, bind=True, name="twice")
    def twice(self: Any, again: bool = True) -> Any:
        return [self.request.called_directly, *(self(False) if again else [])]

    assert twice.apply().get() == [False, True]
    assert twice() == [True, True]


def test_the_next_try_does_not_carry_what_one_message_has_gone_through(app: Celery) -> None:
    """Found unknown by an old worker once, it would be set aside by the next such one at once, hours later."""
    task = app.task(name="t")(add_plainly)
    app.finalize()
    headers = {"x-celeriac-unknown-since": 5.0, "x-celeriac-returns": 3, "x-death": [], "mine": 1}
    request = Context(id="1", task="t", args=[1], kwargs={}, headers=headers)
    assert task.signature_from_request(request).options["headers"] == {"mine": 1}


def test_ids_and_limits_of_other_types_are_sent_as_what_they_say(app: Celery) -> None:
    task = app.task(name="t")(add_plainly)
    sent: list[dict[str, Any]] = []
    remember = before_task_publish.connect(lambda headers, **_: sent.append(dict(headers)), weak=False)
    seven = UUID(int=7)
    limits = {"time_limit": "5", "soft_time_limit": timedelta(seconds=3)}
    try:
        results = [
            task.apply_async((1,), task_id=seven, group_id=9, **limits),
            app.send_task("t", (1,), task_id=seven),
            task.s(1).set(task_id=seven).apply_async(),
            task.s(1).set(task_id=seven).freeze(),
        ]
    finally:
        before_task_publish.disconnect(remember)
    assert {result.id for result in results} | {app.AsyncResult(seven).id} == {str(seven)}
    assert [headers["id"] for headers in sent] == [str(seven)] * 3
    assert (sent[0]["group"], list(sent[0]["timelimit"])) == ("9", [5.0, 3.0])


def test_a_program_that_imports_nothing_but_current_app_has_one(tmp_path: Path) -> None:
    program = "from celeriac import current_app; print(current_app.conf.task_default_queue)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "celery\n"
