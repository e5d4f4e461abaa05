"""Results in the caller's hand: one, several, and as a graph; on a store in memory."""

from __future__ import annotations

import asyncio
import builtins
import copy
import os
import pickle
import threading
from typing import Any

import pytest

from celeriac import Celery, awaiting
from celeriac import result as result_module
from celeriac.exceptions import BackendLost, BackendMismatch, BackendUnreachable, IncompleteStream, TimeoutError
from celeriac.execution.request import Context
from celeriac.result import (
    AsyncResult,
    EagerResult,
    GroupResult,
    Progress,
    ResultSet,
    allow_join_result,
    result_from_tuple,
)
from celeriac.utils.graph import DependencyGraph


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    place = f"memory://{request.node.name}"
    return Celery("results", broker=place, backend=place)


def done(app: Celery, task_id: str, value: Any = 1, state: str = "SUCCESS") -> AsyncResult[Any]:
    app.backend.store_result(task_id, value, state)
    return app.AsyncResult(task_id)


def test_then_calls_when_it_is_known_and_at_once_if_it_was(app: Celery) -> None:
    told: list[Any] = []
    result = app.AsyncResult("a")
    result.then(told.append)
    assert not result.ready()
    assert told == []
    app.backend.store_result("a", 5, "SUCCESS")
    assert result.ready()
    result.then(told.append)
    assert told == [result, result]

    def trouble(_: Any) -> None:
        raise KeyError("mine")

    result.then(trouble, on_error=told.append)
    assert isinstance(told[-1], KeyError)


def test_a_set_is_told_when_the_last_has_ended(app: Celery) -> None:
    results = ResultSet([done(app, "a"), app.AsyncResult("b")], app=app)
    told: list[Any] = []
    results.then(told.append)
    assert results.waiting()
    app.backend.store_result("b", 2, "SUCCESS")
    assert results.get(timeout=30) == [1, 2]
    assert told == [results]


def test_a_set_looks_once_for_all(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ResultSet([done(app, str(n), n) for n in range(50)] + [app.AsyncResult("late")], app=app)
    looks = []
    fetch = app.backend.plugin.fetch  # type: ignore[union-attr]
    monkeypatch.setattr(app.backend.plugin, "fetch", lambda ids: looks.append(len(ids)) or fetch(ids))
    assert not results.ready()
    assert results.completed_count() == 50
    assert not results.failed()
    assert looks == [51, 1, 1]


def test_a_result_looks_once_for_all_before_it(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    before: Any = None
    for n in range(50):
        before = AsyncResult(f"p{n}", app=app, parent=before)
    members = [app.AsyncResult("m"), done(app, "n", ValueError("a member's"), "FAILURE")]
    result = AsyncResult("last", app=app, parent=GroupResult("g", members, parent=before, app=app))
    app.backend.store_result("last", 1, "SUCCESS")
    looks = []
    fetch = app.backend.plugin.fetch  # type: ignore[union-attr]
    monkeypatch.setattr(app.backend.plugin, "fetch", lambda ids: looks.append(len(ids)) or fetch(ids))
    with pytest.raises(ValueError, match="a member's"):
        result.get(timeout=30)
    assert looks == [52]
    app.backend.store_result("p7", KeyError("an earlier one's"), "FAILURE")
    with pytest.raises(KeyError, match="an earlier one's"):
        result.get(timeout=30)


def test_failures_of_a_set_are_raised_or_returned(app: Celery) -> None:
    results = ResultSet([done(app, "a"), done(app, "b", ValueError("no"), "FAILURE")], app=app)
    with pytest.raises(ValueError, match="no"):
        results.get(timeout=30)
    with pytest.raises(ValueError, match="no"):
        results.maybe_throw()
    value, error = results.get(timeout=30, propagate=False)
    assert value == 1
    assert isinstance(error, ValueError)
    assert results.failed()
    assert not results.successful()


def test_groups_in_a_group_are_waited_for(app: Celery) -> None:
    inner = GroupResult("in", [done(app, "a", 1), done(app, "b", 2)], app=app)
    outer = GroupResult("out", [inner, done(app, "c", 3)], app=app)
    assert outer.get(timeout=30) == [[1, 2], 3]
    assert outer.completed_count() == 3
    assert sorted(task_id for task_id, _ in outer.iter_native(timeout=30)) == ["a", "b", "c"]
    assert sorted(outer.iterate(timeout=30)) == [1, 2, 3]


def test_progress_counts_up_to_the_end(app: Celery) -> None:
    results = ResultSet([done(app, "a"), done(app, "b", ValueError(), "FAILURE"), app.AsyncResult("c")], app=app)
    steps = results.progress(timeout=30)
    assert next(steps) == Progress(2, 1, 3)
    app.backend.store_result("c", 1, "SUCCESS")
    assert list(steps) == [Progress(3, 1, 3)]


def test_a_bar_is_shown(app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    ResultSet([done(app, "a"), done(app, "b")], app=app).show_progress(timeout=30)
    assert "results" in capsys.readouterr().err


def test_a_group_is_saved_and_restored_with_its_parents(app: Celery) -> None:
    group = GroupResult("g", [done(app, "a", 1), done(app, "b", 2)], parent=app.AsyncResult("p"), app=app)
    group.save()
    again = GroupResult.restore("g", app=app)
    assert again == group
    assert again is not None
    assert again.get(timeout=30) == [1, 2]
    assert again.parent.id == "p"
    group.delete()
    assert GroupResult.restore("g", app=app) is None


@pytest.mark.parametrize("length", [3, 3000])
def test_a_result_with_any_number_of_others_before_it_is_listed_copied_and_forgotten(app: Celery, length: int) -> None:
    begin: Any = done(app, "begin")
    last: Any = begin
    for index in range(length):
        kind: Any = app.GroupResult if index % 100 == 50 else app.AsyncResult
        members = ([app.AsyncResult(f"member {index}")],) if kind is app.GroupResult else ()
        last = kind(f"step {index}", *members, parent=last)
    last = app.AsyncResult("end", task_name="t", parent=last)
    ids = ["end", *(f"step {index}" for index in reversed(range(length))), "begin"]
    assert last.as_list() == ids
    copies = pickle.loads(pickle.dumps([last, last.parent])), copy.deepcopy([last, last.parent])
    for again, one_before in copies:
        assert again.as_list() == ids
        assert (again.task_name, again.parent) == ("t", one_before)
    node = copies[0][0]
    for index in reversed(range(length)):
        node = node.parent
        assert isinstance(node, GroupResult) == (index % 100 == 50)
        assert not isinstance(node, GroupResult) or [member.id for member in node] == [f"member {index}"]
    assert begin.exists()
    last.forget()
    assert not app.AsyncResult("begin").exists()


def test_an_eager_result_ends_the_line_of_those_that_are_pickled() -> None:
    line: AsyncResult[Any] = EagerResult("ran", 5, "SUCCESS")
    for index in range(100):
        line = AsyncResult(str(index), parent=line)
    again = pickle.loads(pickle.dumps(line))
    assert again.as_list() == line.as_list()
    while again.parent is not None:
        again = again.parent
    assert again.get() == 5


def test_an_apps_classes_of_results_are_those_of_its_results(app: Celery) -> None:
    other = Celery("other", set_as_current=False)
    result = app.AsyncResult("a", task_name="t")
    assert (result.app, result.task_name) == (app, "t")
    assert isinstance(result, app.AsyncResult)
    assert isinstance(AsyncResult("b", app=app), app.AsyncResult)
    assert not isinstance(result, (other.AsyncResult, app.GroupResult, app.ResultSet))
    assert pickle.loads(pickle.dumps(result)) == result
    group = app.GroupResult("saved", [done(app, "c", 1)])
    group.save()
    assert app.GroupResult.restore("saved") == group

    class Own(app.AsyncResult):  # type: ignore[name-defined, misc] # a class that is made while the program runs
        pass

    assert Own("d").app is app
    assert isinstance(Own("d"), app.AsyncResult)
    assert not isinstance(result, Own)


def test_tuples_lists_and_pickles_bring_results_back(app: Celery) -> None:
    result = app.AsyncResult("c", parent=app.AsyncResult("b", parent=app.AsyncResult("a")))
    assert result.as_list() == ["c", "b", "a"]
    assert result.as_tuple() == (("c", (("b", (("a", None), None)), None)), None)
    assert result_from_tuple(result.as_tuple(), app).as_list() == ["c", "b", "a"]
    group = GroupResult("g", [result], app=app)
    assert pickle.loads(pickle.dumps(group)) == group
    assert result_from_tuple(group.as_tuple(), app) == group


def test_the_graph_of_a_result_is_walked_to_its_leaf(app: Celery) -> None:
    request = Context()
    request.children = [app.AsyncResult("child")]
    app.backend.store_result("root", 1, "SUCCESS", request=request)
    root = app.AsyncResult("root")
    with pytest.raises(IncompleteStream):
        root.build_graph()
    assert len(root.graph) == 2
    app.backend.store_result("child", 7, "SUCCESS")
    assert root.get_leaf() == 7
    assert [value for _, value in root.collect()] == [1, 7]
    assert [str(node) for node in root.build_graph().topsort()] == ["child", "root"]


def test_a_graph_sorts_and_is_drawn(tmp_path: Any) -> None:
    graph = DependencyGraph([("c", ["b"]), ("b", ["a"])])
    graph.connect(DependencyGraph([("d", ["a"])]))
    order = graph.topsort()
    assert order.index("a") < order.index("b") < order.index("c")
    assert graph.valency_of("c") == 2
    with (tmp_path / "g.dot").open("w") as file:
        graph.to_dot(file)
    assert '"c" -> "b"' in (tmp_path / "g.dot").read_text()
    graph.add_edge("a", "c")
    with pytest.raises(ValueError, match="come after each other"):
        graph.topsort()


def test_waiting_within_a_task_is_refused_unless_it_is_meant(app: Celery) -> None:
    result = done(app, "a", 5)

    @app.task(name="waits")
    def waits(meant: bool) -> Any:
        if meant:
            with allow_join_result():
                return result.get(timeout=30)
        return ResultSet([result], app=app).get(timeout=30)

    app.conf.task_always_eager = True
    assert waits.delay(True).get() == 5
    with pytest.raises(RuntimeError, match="within a task"):
        waits.delay(False).get()
    waits.push_request(id="run-by-a-worker", called_directly=False)
    try:
        with pytest.raises(RuntimeError, match="within a task"):
            result.get(timeout=30)
        with pytest.raises(RuntimeError, match="within a task"):
            waits.apply((False,)).get()
    finally:
        waits.pop_request()


def test_of_two_that_stand_for_one_call_both_are_known_to_have_ended(app: Celery) -> None:
    results = ResultSet([app.AsyncResult(task_id) for task_id in ("a", "b", "a")], app=app)
    steps = results.progress(timeout=30)
    assert next(steps) == Progress(0, 0, 3)
    done(app, "a", 1)
    done(app, "b", 2)
    assert list(steps)[-1] == Progress(3, 0, 3)
    again = ResultSet([app.AsyncResult(task_id) for task_id in ("a", "b", "a")], app=app)
    assert again.ready()
    assert ResultSet([app.AsyncResult(task_id) for task_id in ("a", "b", "a")], app=app).get(timeout=30) == [1, 2, 1]


def test_a_wait_that_looks_goes_on_through_an_outage_of_the_store(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is lost first, and cannot be reached then."""
    plugin: Any = app.backend.plugin
    monkeypatch.setattr(plugin, "abilities", plugin.abilities - {"push"})
    fetch, troubles = plugin.fetch, [BackendLost("cut"), BackendUnreachable("refused"), BackendUnreachable("refused")]

    def fetch_later(ids: Any) -> Any:
        if troubles:
            raise troubles.pop(0)
        return fetch(ids)

    result = done(app, "a", 5)
    monkeypatch.setattr(plugin, "fetch", fetch_later)
    assert result.get(timeout=30, interval=0.01) == 5
    assert troubles == []


@pytest.mark.parametrize("pushes", [True, False], ids=["pushing", "looking"])
@pytest.mark.parametrize("awaited", [False, True], ids=["get", "await"])
def test_a_store_that_was_there_is_waited_for_by_who_begins_in_its_outage_and_another_is_not(
    app: Celery, monkeypatch: pytest.MonkeyPatch, pushes: bool, awaited: bool
) -> None:
    plugin: Any = app.backend.plugin
    ask = "watch" if pushes else "fetch"
    asked, troubles = getattr(plugin, ask), [BackendUnreachable("refused") for _ in range(3)]

    def ask_later(ids: Any) -> Any:
        if troubles:
            raise troubles.pop()
        return asked(ids)

    def wait(task_id: str) -> Any:
        result = app.AsyncResult(task_id)
        return asyncio.run(result.aget(timeout=30)) if awaited else result.get(timeout=30)

    if not pushes:
        monkeypatch.setattr(plugin, "abilities", plugin.abilities - {"push"})
    plugin.store([app.backend.make("a", "SUCCESS", 5)])
    monkeypatch.setattr(plugin, ask, ask_later)
    with pytest.raises(BackendUnreachable):
        wait("a")
    assert len(troubles) == 2
    troubles.clear()
    assert app.AsyncResult("a").state == "SUCCESS"
    troubles += [BackendUnreachable("refused") for _ in range(3)]
    assert wait("a") == 5
    assert troubles == []


def test_a_wait_whose_time_is_over_says_so_although_the_store_is_away(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ids: Any) -> Any:
        raise BackendLost("away")

    monkeypatch.setattr(app.backend.plugin, "fetch", fail)
    with pytest.raises(TimeoutError, match=r"no result of a within 0 s\. Their store is away: away"):
        app.AsyncResult("a").get(timeout=0)


def test_who_has_no_time_is_given_what_is_there(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the store's first answer to a watch comes later than that."""
    plugin: Any = app.backend.plugin
    monkeypatch.setattr(plugin, "watch", lambda ids: Silent())
    assert done(app, "a", 5).get(timeout=0) == 5
    assert ResultSet([done(app, "b", 6), done(app, "c", 7)], app=app).get(timeout=0) == [6, 7]
    assert asyncio.run(done(app, "d", 8).aget(timeout=0)) == 8
    with pytest.raises(TimeoutError):
        app.AsyncResult("e").get(timeout=0)
    with pytest.raises(TimeoutError):
        asyncio.run(app.AsyncResult("e").aget(timeout=0))


class Silent:
    """A watch that nothing has come to yet."""

    def add(self, ids: Any) -> None: ...

    def discard(self, ids: Any) -> None: ...

    def wait(self, timeout_s: float) -> list[Any]:
        return []

    def close(self) -> None: ...


def test_a_failure_that_is_known_is_raised_before_others_are_waited_for(app: Celery) -> None:
    results = ResultSet([app.AsyncResult("later"), done(app, "b", ValueError("no"), "FAILURE")], app=app)
    assert results.failed()
    with pytest.raises(ValueError, match="no"):
        results.get(timeout=0.01)
    with pytest.raises(ValueError, match="no"):
        asyncio.run(results.aget(timeout=0.01))
    with pytest.raises(TimeoutError):
        results.get(timeout=0.01, propagate=False)


def test_a_loop_goes_on_while_a_store_is_asked_why_nothing_came(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_in: list[Any] = []
    fetch = app.backend.plugin.fetch  # type: ignore[union-attr]
    monkeypatch.setattr(
        app.backend.plugin, "fetch", lambda ids: asked_in.append(threading.current_thread()) or fetch(ids)
    )
    for waiting in (app.AsyncResult("a"), ResultSet([app.AsyncResult("b")], app=app)):
        with pytest.raises(TimeoutError):
            asyncio.run(waiting.aget(timeout=0.01))
    assert asked_in
    assert threading.current_thread() not in asked_in


def test_a_forked_child_awaits_results_that_its_parent_has_called_for(app: Celery) -> None:
    async def both(*results: Any) -> Any:
        return [await result for result in results]

    first, second = done(app, "a", 1), done(app, "b", 2)
    assert asyncio.run(both(first)) == [1]  # its thread lives on for a while
    store = second.backend
    store.plugin._require_own_process = lambda: None  # type: ignore[union-attr] # the child has a copy, which is enough
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if asyncio.run(asyncio.wait_for(both(second), 10)) == [2] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_wait_ends_in_time_although_the_store_hangs(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, hung = threading.Event(), []

    def hang(ids: Any) -> Any:
        hung.append(not let_go.wait(90))
        return {}

    monkeypatch.setattr(app.backend.plugin, "fetch", hang)
    for wait in (app.AsyncResult("a").get, lambda timeout: asyncio.run(app.AsyncResult("a").aget(timeout))):
        with pytest.raises(TimeoutError, match="Their store is away: it did not answer"):
            wait(timeout=0)
    assert hung == []
    let_go.set()


def test_who_asks_once_more_for_what_has_just_come_is_told_at_once(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by the look that is taken every few seconds, in case that news were lost."""
    monkeypatch.setattr(awaiting, "REREAD_S", 3600.0)
    ids = [f"id-{n}" for n in range(300)]

    async def twice(task_id: str) -> Any:
        return await app.AsyncResult(task_id), await app.AsyncResult(task_id)

    async def all_at_once() -> list[Any]:
        waiting = [asyncio.ensure_future(twice(task_id)) for task_id in ids]
        await asyncio.sleep(0.02)  # whether they have begun to wait makes no difference to what they are told
        plugin: Any = app.backend.plugin
        plugin.store([app.backend.make(task_id, "SUCCESS", 1) for task_id in ids])
        return await asyncio.wait_for(asyncio.gather(*waiting), 30)

    assert asyncio.run(all_at_once()) == [(1, 1)] * 300


def test_a_task_that_failed_with_a_timeout_of_its_own_is_not_taken_for_late(app: Celery) -> None:
    inner = GroupResult("inner", [done(app, "a", OSError("mine"), "FAILURE"), app.AsyncResult("b")], app=app)
    outer = GroupResult("outer", [inner], app=app)
    with pytest.raises(OSError, match="mine"):
        asyncio.run(outer.aget(timeout=60))
    app.backend.store_result("c", builtins.TimeoutError("the task's own"), "FAILURE")
    failed = GroupResult("outer", [GroupResult("inner", [app.AsyncResult("c")], app=app)], app=app)
    with pytest.raises(builtins.TimeoutError, match="the task's own"):
        asyncio.run(failed.aget(timeout=60))
    late = GroupResult("outer", [GroupResult("inner", [app.AsyncResult("d")], app=app)], app=app)
    with pytest.raises(TimeoutError, match="no result of d within"):
        asyncio.run(late.aget(timeout=0))


def test_a_set_that_has_a_result_twice_tells_once(app: Celery) -> None:
    result = app.AsyncResult("a")
    told: list[Any] = []
    results = ResultSet([result, result], app=app)
    results.then(told.append)
    done(app, "a")
    assert results.get(timeout=30) == [1, 1]
    assert told == [results]


@pytest.fixture
def of_two_stores(app: Celery, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The results of two calls of which one has a store of its own, and that store; it is looked at by turns."""
    app.task(name="own", backend=f"memory://own-{id(app)}")(lambda: 1)
    own = app.AsyncResult("own-1", task_name="own")
    for plugin in (own.backend.plugin, app.backend.plugin):
        monkeypatch.setattr(plugin, "abilities", plugin.abilities - {"push"})  # type: ignore[union-attr]
    return ResultSet([app.AsyncResult("a"), own], app=app), own.backend


def test_a_wait_for_results_of_two_stores_goes_on_through_an_outage_of_one(
    app: Celery, of_two_stores: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, store = of_two_stores
    fetch, looks = store.plugin.fetch, iter(["", *["refused"] * 10])

    def fetch_later(ids: Any) -> Any:
        trouble = next(looks, None)
        if trouble:
            raise BackendUnreachable(trouble)
        if trouble is None:
            store.store_result("own-1", 2, "SUCCESS")
        return fetch(ids)

    monkeypatch.setattr(result_module, "TURN_S", 0.001)
    monkeypatch.setattr(store.plugin, "fetch", fetch_later)
    done(app, "a", 1)
    assert results.get(timeout=60) == [1, 2]


def test_who_waits_for_results_of_two_stores_is_told_that_one_is_kept_elsewhere(
    app: Celery, of_two_stores: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, _ = of_two_stores
    monkeypatch.setattr(result_module, "FIRST_HINT_S", 0.0)
    monkeypatch.setattr(app.backend, "_missing_hint", lambda task_id: BackendMismatch(f"{task_id} is elsewhere"))
    with pytest.raises(BackendMismatch, match="a is elsewhere"):
        results.get(timeout=60)
