"""What `results_of_celery.py` does, by celeriac: stores results of every kind, and says what it reads of others'."""

from __future__ import annotations

from typing import Any

from celeriac import Celery
from celeriac.execution.request import Context


def store(app: Celery) -> None:
    request = Context()
    request.update(
        id="o-success", task="t.add", args=[1, 2], kwargs={"x": 1}, hostname="w@h", retries=2,
        delivery_info={"routing_key": "q"},
    )  # fmt: skip
    app.backend.store_result("o-success", {"a": [1, None, "ü"]}, "SUCCESS", request=request)
    app.backend.store_result("o-none", None, "SUCCESS")
    app.backend.store_result("o-failure", ValueError("bad", 1), "FAILURE", traceback="where it was")
    app.backend.store_result("o-started", {"pid": 1}, "STARTED")
    app.backend.store_result("o-progress", {"done": 3}, "PROGRESS")


def read(app: Celery, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("success", "none", "failure", "started", "progress"):
        task_id = f"{prefix}-{name}"
        result = app.AsyncResult(task_id)
        value = result.result
        found[task_id] = [result.state, repr(value) if isinstance(value, Exception) else value]
        extended = [result.name, result.args, result.kwargs, result.worker]
        if any(word is not None for word in extended):
            found[f"{task_id}:extended"] = extended
    return found
