"""Tasks with a result backend of their own: `@app.task(backend=…)`, `Task.backend`, `task_annotations`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery, Task, chain, chord, group
from celeriac.exceptions import TimeoutError, Unsupported
from celeriac.result import ResultSet
from celeriac.resultstore import NoResultBackend
from celeriac.testing.threaded import start_worker
from celeriac_backend_memory.backend import MemoryBackend

PATIENCE_S = 30


class Kept(Task[Any, Any]):
    """Its results lie elsewhere."""

    abstract = True
    backend = "memory://own-elsewhere"  # type: ignore[assignment]


@pytest.fixture(scope="module", params=["apart", "joint"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Celery]:
    """Its broker and its results are two stores, or one."""
    file = tmp_path_factory.mktemp("own") / "joint.db"
    urls = {"apart": ("memory://own", "memory://own"), "joint": (f"sqlite:///{file}", f"sqlite:///{file}")}
    broker, backend = urls[request.param]
    app = Celery("proj", broker=broker, backend=backend, set_as_current=False)
    app.conf.task_annotations = {"proj.annotated": {"backend": "memory://own-annotated"}}
    app.conf.result_chord_retry_interval = 0.05

    @app.task(name="proj.plain", track_started=True)
    def plain(*values: Any) -> Any:
        return [*values]

    @app.task(name="proj.kept", base=Kept, track_started=True)
    def kept(*values: Any) -> Any:
        return [*values]

    @app.task(name="proj.failing", base=Kept)
    def failing(*values: Any) -> Any:
        raise KeyError("no")

    @app.task(name="proj.annotated")
    def annotated(*values: Any) -> Any:
        return [*values]

    @app.task(name="proj.silent", backend="disabled://")
    def silent() -> None: ...

    @app.task(name="proj.telling", base=Kept, bind=True)
    def telling(self: Any) -> Any:
        self.update_state(state="HALF", meta={"done": 1})
        return self.backend.get_task_meta(self.request.id)["status"] in ("PENDING", "HALF")

    with start_worker(app, perform_ping_check=False, concurrency=2, pool="threads"):
        yield app
    app.close()


def lies_in(url: str, task_id: str) -> bool:
    """Whether there is a result of this task in this store, as another program sees it."""
    other = Celery("other", backend=url, set_as_current=False)
    try:
        return other.backend.find(task_id) is not None
    finally:
        other.close()


@pytest.mark.parametrize("name", ["kept", "annotated"])
def test_what_a_task_returns_goes_to_its_own_store_and_is_read_there(app: Celery, name: str) -> None:
    task = app.tasks[f"proj.{name}"]
    result = task.delay(1)
    assert result.get(timeout=PATIENCE_S) == [1]
    assert task.AsyncResult(result.id).get(timeout=PATIENCE_S) == [1]
    assert app.send_task(f"proj.{name}", (2,)).get(timeout=PATIENCE_S) == [2]
    assert lies_in({"kept": "memory://own-elsewhere", "annotated": "memory://own-annotated"}[name], result.id)
    assert app.backend.find(result.id) is None
    assert app.tasks["proj.plain"].delay(1).get(timeout=PATIENCE_S) == [1], "others' are where they were"


def test_its_failure_and_that_of_the_steps_behind_it_are_each_where_they_are_looked_for(app: Celery) -> None:
    failing, plain, kept = (app.tasks[f"proj.{name}"] for name in ("failing", "plain", "kept"))
    last = chain(plain.si(1), failing.si(), plain.s(), kept.s()).apply_async()
    before = last.parent
    for result in (last, before, before.parent):
        with pytest.raises(KeyError, match="no"):
            result.get(timeout=PATIENCE_S, follow_parents=False)
    assert [app.backend.find(one.id) is not None for one in (last, before, before.parent)] == [False, True, False]


def test_states_on_the_way_lie_there_too(app: Celery) -> None:
    assert app.tasks["proj.telling"].delay().get(timeout=PATIENCE_S) is True


def test_a_group_of_tasks_with_different_stores_is_waited_for_as_one(app: Celery) -> None:
    plain, kept, annotated = (app.tasks[f"proj.{name}"] for name in ("plain", "kept", "annotated"))
    result = group(plain.s(0), kept.s(1), annotated.s(2)).apply_async()
    assert result.get(timeout=PATIENCE_S) == [[0], [1], [2]]
    again = ResultSet([task.AsyncResult(one.id) for task, one in zip((plain, kept, annotated), result, strict=True)])
    assert sorted(value[0] for value in again.iterate(timeout=PATIENCE_S)) == [0, 1, 2]
    assert again.completed_count() == 3
    with pytest.raises(TimeoutError):
        ResultSet([plain.AsyncResult("nobody"), kept.AsyncResult("nobody")]).get(timeout=0.3)


def test_a_chord_joins_parts_whose_results_lie_in_different_stores(app: Celery) -> None:
    plain, kept, annotated = (app.tasks[f"proj.{name}"] for name in ("plain", "kept", "annotated"))
    result = chord([plain.s(0), kept.s(1), annotated.s(2)], kept.s()).apply_async()
    assert result.get(timeout=PATIENCE_S) == [[[0], [1], [2]]]
    assert lies_in("memory://own-elsewhere", result.id)


def test_a_task_may_have_no_results_in_an_app_that_has(app: Celery) -> None:
    result = app.tasks["proj.silent"].delay()
    with pytest.raises(NoResultBackend):
        result.get(timeout=1)
    assert app.tasks["proj.plain"].delay(3).get(timeout=PATIENCE_S) == [3]
    assert app.backend.find(result.id) is None


def test_a_chord_that_would_be_polled_for_refuses_parts_that_lie_elsewhere() -> None:
    class NoCounting(MemoryBackend):
        abilities = MemoryBackend.abilities - {"count"}

    app = Celery("proj", broker="memory://", backend=NoCounting, set_as_current=False)
    far = app.task(name="proj.far", backend="memory://far")(lambda: 1)
    near = app.task(name="proj.near")(lambda *_: 1)
    with pytest.raises(Unsupported, match=r"a part proj\.far, whose results are in a store of its own"):
        chord([near.s(), far.s()], near.s()).apply_async()
    app.close()


def test_another_app_s_results_or_an_object_will_do(tmp_path: Path) -> None:
    lender = Celery("lender", backend=f"sqlite:///{tmp_path}/a.db", set_as_current=False)
    app = Celery("proj", broker="memory://", set_as_current=False)
    by_store = app.task(name="proj.a", backend=lender.backend)(lambda: 1)
    by_object = app.task(name="proj.b", backend=lender.backend.plugin)(lambda: 1)
    none = app.task(name="proj.c", backend=None)(lambda: 1)
    for task in (by_store, by_object):
        assert task.backend.plugin is lender.backend.plugin
    assert none.backend is app.backend
    app.close()
