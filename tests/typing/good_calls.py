"""Calls that a type checker must accept. Checked by `test_typing.py`, never run."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from celeriac import Celery, Task
from celeriac.result import AsyncResult

app = Celery("typed", broker="memory://", backend="memory://")


@app.task
def add(x: int, y: int = 1) -> int:
    return x + y


@app.task(bind=True, max_retries=5)
def bound(self: Any, name: str) -> list[str]:
    return [name]


@app.task(name="named", rate_limit="10/m")
def named(flag: bool, *, key: str) -> None:
    return None


assert_type(add(1, 2), int)
assert_type(add.delay(1), AsyncResult[int])
assert_type(add.delay(1, y=2).get(timeout=1), int)
assert_type(add.apply_async((1, 2), countdown=3), AsyncResult[int])
assert_type(bound.delay("a").get(), list[str])
assert_type(add.apply((1,)).get(), int)
named.delay(True, key="k")
add.s(1, 2).apply_async(queue="q")


class Own(Task[[int], str]):
    def run(self, n: int) -> str:
        return str(n)
