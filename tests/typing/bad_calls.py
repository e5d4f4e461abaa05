"""Calls that a type checker must refuse, each on the line that says so. Checked by `test_typing.py`, never run."""

from __future__ import annotations

from typing import Any

from celeriac import Celery

app = Celery("typed", broker="memory://", backend="memory://")


@app.task
def add(x: int, y: int = 1) -> int:
    return x + y


@app.task(bind=True)
def bound(self: Any, name: str) -> list[str]:
    return [name]


add("1")  # refused
add.delay()  # refused
add.delay(1, 2, 3)  # refused
add.delay(1, z=2)  # refused
add.delay("a").get()  # refused
text: str = add.delay(1).get()  # refused
bound.delay(1)  # refused
bound.delay()  # refused
bound("a", "b")  # refused
add.delay(1).state.nothing()  # refused
