"""What a subclass of `Celery` may replace, and what a task may not have of its own."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from celeriac import Celery
from celeriac.app.base import AppPickler


def test_an_app_s_own_checker_judges_the_arguments_of_calls() -> None:
    class Strict(Celery):
        def type_checker(self, fun: Callable[..., Any], bound: bool = False) -> Callable[..., Any] | None:
            inner = super().type_checker(fun, bound)
            if bound:
                return None

            def check(*args: Any, **kwargs: Any) -> None:
                if inner is not None:
                    inner(*args, **kwargs)
                if not all(isinstance(value, int) for value in args):
                    raise TypeError("only numbers are taken here")

            return check

    app = Strict("strict", broker="memory://", set_as_current=False)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(bind=True)
    def free(self: Any, x: int) -> int:
        return x

    @app.task(typing=False)
    def loose(x: int) -> int:
        return x

    with pytest.raises(TypeError, match="only numbers"):
        add.delay(1, "2")
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        add.delay(1)
    for call in (lambda: add.delay(1, 2), lambda: free.delay(), lambda: loose.delay("any", "thing")):
        call()


def test_an_app_may_look_through_its_config_source_first() -> None:
    class Prepared(Celery):
        def prepare_config(self, c: dict[str, Any]) -> Mapping[str, Any]:
            return {**c, "task_default_queue": f"{c['task_default_queue']}-of-tests"}

    app = Prepared("prepared", broker="memory://", set_as_current=False)
    app.config_from_object({"task_default_queue": "mails", "timezone": "Europe/Oslo"})
    assert (app.conf.task_default_queue, app.conf.timezone) == ("mails-of-tests", "Europe/Oslo")


class Marking(AppPickler):
    def construct(self, cls: type[Celery], **made_by: Any) -> Celery:
        made_by["changes"] = {**made_by["changes"], "task_default_queue": "anew"}
        return super().construct(cls, **made_by)

    def prepare(self, app: Celery, **made_by: Any) -> None:
        app.main = f"{made_by['main']} again"


class Pickled(Celery):
    Pickler = Marking


def test_an_app_s_own_pickler_makes_it_anew() -> None:
    app = Pickled("proj", broker="memory://", set_as_current=False)
    again = pickle.loads(pickle.dumps(app))
    assert type(again) is Pickled
    assert (again.main, again.conf.task_default_queue) == ("proj again", "anew")
    assert again.conf.broker_url == "memory://"
