"""Calls that a type checker must refuse, each on the line that says so. Checked by `test_typing.py`, never run."""

from __future__ import annotations

from typing import Any

from celeriac import Celery, Task, shared_task

app = Celery("typed", broker="memory://", backend="memory://")


@app.task
def add(x: int, y: int = 1) -> int:
    return x + y


@app.task(bind=True)
def bound(self: Any, name: str) -> list[str]:
    return [name]


@shared_task
def shared(x: int) -> str:
    return str(x)


@shared_task(bind=True)
def shared_and_bound(self: Any, x: int) -> str:
    return str(x)


class Own(Task[[int], str]):
    def run(self, n: int) -> str:
        return str(n)


add("1")  # refused
add.delay()  # refused
add.delay(1, 2, 3)  # refused
add.delay(1, z=2)  # refused
add.delay("a").get()  # refused
text: str = add.delay(1).get()  # refused
other: str = add.AsyncResult("id").get()  # refused
eager: str = add.apply((1,)).get()  # refused
bound.delay(1)  # refused
bound.delay()  # refused
bound("a", "b")  # refused
add.delay(1).state.nothing()  # refused
add.apply_async(5)  # refused
add.apply_async((1,), ["y"])  # refused
shared.delay("a")  # refused
shared.delya(1)  # refused
shared_and_bound.delay(1, 2)  # refused
Own().delay("three")  # refused
number: int = Own().delay(3).get()  # refused
app.send_task(add)  # refused
app.send_task("name", 5)  # refused
Celery("a", set_as_current="yes")  # refused
