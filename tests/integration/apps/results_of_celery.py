"""Run by a real Celery: stores results of every kind in one of its result backends, and says what it reads of others'.

    python results_of_celery.py URL store
    python results_of_celery.py URL read|swap ids    # to swap is to read and then to store

With DJANGO_SETTINGS_MODULE set, Django is brought up first.
"""

from __future__ import annotations

import json
import os
import sys

from celery import Celery
from celery.app.task import Context

app = Celery("results", broker="memory://", backend=sys.argv[1])
app.conf.update(json.loads(os.environ.get("RESULTS_SETTINGS", "{}")))
if os.environ.get("DJANGO_SETTINGS_MODULE"):
    import django

    django.setup()


class Oops(Exception):
    """Known to whoever reads it by its names only."""


def request(task_id: str) -> Context:
    return Context(
        id=task_id, task="t.add", args=[1, 2], kwargs={"x": 1}, hostname="w@h", retries=2,
        delivery_info={"routing_key": "q"}, stamped_headers=["s"], stamps={"s": ["1"]},
    )  # fmt: skip


def store() -> None:
    app.backend.store_result("c-success", {"a": [1, None, "ü"]}, "SUCCESS", request=request("c-success"))
    app.backend.store_result("c-none", None, "SUCCESS")
    app.backend.store_result("c-failure", ValueError("bad", 1), "FAILURE", traceback="where it was")
    app.backend.store_result("c-started", {"pid": 1}, "STARTED")
    app.backend.store_result("c-progress", {"done": 3}, "PROGRESS")


def read() -> dict[str, object]:
    found: dict[str, object] = {}
    for task_id in sys.argv[3:]:
        result = app.AsyncResult(task_id)
        value = result.result
        found[task_id] = [result.state, repr(value) if isinstance(value, Exception) else value]
        extended = [result.name, result.args, result.kwargs, result.worker]
        if any(word is not None for word in extended):
            found[f"{task_id}:extended"] = extended
    return found


if __name__ == "__main__":
    verb = sys.argv[2]
    print(json.dumps(None if verb == "store" else read()))
    if verb != "read":
        store()
