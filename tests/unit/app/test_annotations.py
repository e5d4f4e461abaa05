"""`task_annotations` in every form that Celery knows, and what they may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celeriac import Celery, Task


def make_app(annotations: Any) -> Celery:
    place = f"memory://annotations-{id(annotations)}"
    return Celery("a", broker=place, backend=place, set_as_current=False, task_annotations=annotations)


def test_by_name_beats_for_all() -> None:
    app = make_app({"*": {"rate_limit": "1/s", "max_retries": 9}, "one": {"rate_limit": "5/m", "own_word": 1}})

    @app.task(name="one")
    def one() -> None: ...

    @app.task(name="two")
    def two() -> None: ...

    app.finalize()
    assert (one.rate_limit, one.max_retries, one.own_word) == ("5/m", 9, 1)  # type: ignore[attr-defined]
    assert (two.rate_limit, two.max_retries) == ("1/s", 9)


def test_a_task_that_comes_later_is_annotated_too() -> None:
    app = make_app({"late": {"priority": 7}})
    app.finalize()

    @app.task(name="late")
    def late() -> None: ...

    assert late.priority == 7


class Slowly:
    def annotate(self, task: Task[Any, Any]) -> dict[str, Any] | None:
        return {"rate_limit": "2/h"} if task.name.startswith("slow") else None


class Everything:
    def annotate_any(self) -> dict[str, Any]:
        return {"time_limit": 5}

    def annotate(self, task: Task[Any, Any]) -> None:
        return None


def test_objects_and_lists_of_them() -> None:
    app = make_app([Slowly(), Everything(), {"slow.one": {"priority": 3}}])

    @app.task(name="slow.one")
    def one() -> None: ...

    app.finalize()
    assert (one.rate_limit, one.time_limit, one.priority) == ("2/h", 5, 3)


def test_a_function_becomes_a_method() -> None:
    seen: list[Any] = []

    def on_failure(self: Any, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        seen.append((self.name, exc))

    app = make_app({"*": {"on_failure": on_failure}})

    @app.task(name="bad")
    def bad() -> None:
        raise KeyError("x")

    bad.apply()
    assert [(name, type(exc)) for name, exc in seen] == [("bad", KeyError)]


@pytest.mark.parametrize("bound", [False, True])
def test_a_method_can_be_wrapped(bound: bool) -> None:
    calls: list[str] = []

    def around(old: Callable[..., Any]) -> Callable[..., Any]:
        def new(*args: Any, **kwargs: Any) -> Any:
            calls.append(f"before {old.__name__}")
            return old(*args, **kwargs)

        return new

    app = make_app({"wrapped": {"@run": around, "@on_success": around}})

    @app.task(name="wrapped", bind=bound)
    def body(*args: Any) -> Any:
        return args[-1]

    app.finalize()
    assert body.apply((5,)).get() == 5
    assert calls == ["before body", "before on_success"]
    body.annotate()  # again: the wrapper is replaced, not wrapped
    calls.clear()
    assert body.apply((6,)).get() == 6
    assert calls == ["before body", "before on_success"]
