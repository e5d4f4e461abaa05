"""A real Celery reads what our result backends store, and they read what it stores."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python

from celeriac import Celery
from celeriac.execution.request import Context

pytestmark = [pytest.mark.services, pytest.mark.slow]

PROGRAM = Path(__file__).parent / "apps" / "results_of_celery.py"
SETTINGS = {"result_extended": True}
EXTENDED = ["t.add", [1, 2], {"x": 1}, "w@h"]

#: What Celery's Python needs in place of the URL that ours takes.
DRIVERS = {"db+postgresql:": "db+postgresql+psycopg:", "db+mysql:": "db+mysql+pymysql:"}


def celery(url: str, *words: str, **environment: str) -> Any:
    for ours, its in DRIVERS.items():
        url = url.replace(ours, its)
    run = [celery_python(), PROGRAM, url, *words]
    environment = {**os.environ, "RESULTS_SETTINGS": json.dumps(SETTINGS), **environment}
    finished = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


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


def states_of(prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}-success": ["SUCCESS", {"a": [1, None, "ü"]}],
        f"{prefix}-success:extended": EXTENDED,
        f"{prefix}-none": ["SUCCESS", None],
        f"{prefix}-failure": ["FAILURE", "ValueError('bad', 1)"],
        f"{prefix}-started": ["STARTED", {"pid": 1}],
        f"{prefix}-progress": ["PROGRESS", {"done": 3}],
    }


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


def exchange(url: str, **environment: str) -> None:
    """Both store, then both read what the other stored, and neither undoes a success of the other's."""
    ids = [name for name in states_of("o") if ":" not in name]
    with Celery("results", backend=url, set_as_current=False, **SETTINGS) as app:
        store(app)
        assert celery(url, "read", *ids, **environment) == states_of("o")
        celery(url, "store", **environment)
        assert read(app, "c") == states_of("c")
        app.backend.store_result("c-success", "another", "SUCCESS")
        app.backend.store_result("c-failure", {}, "STARTED")
        assert read(app, "c") == states_of("c")


def test_results_in_sqlite(tmp_path: Path) -> None:
    exchange(f"db+sqlite:///{tmp_path}/results.db")


def test_results_in_postgres(postgres_url: str) -> None:
    exchange(f"db+{postgres_url}")


def test_results_in_mariadb(mariadb_url: str) -> None:
    exchange(f"db+{mariadb_url}")


def test_results_in_tables_that_celery_made(postgres_url: str) -> None:
    celery(f"db+{postgres_url}", "store")
    exchange(f"db+{postgres_url}")
