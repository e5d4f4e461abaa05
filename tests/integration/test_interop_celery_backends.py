"""A real Celery reads what our result backends store, and they read what it stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.apps.results_of_celeriac import read, store
from tests.integration.celery_venv import celery_python

from celeriac import Celery
from celeriac.testing.services import MemcachedService

pytestmark = [pytest.mark.services, pytest.mark.slow]

PROGRAM = Path(__file__).parent / "apps" / "results_of_celery.py"
SETTINGS = {"result_extended": True}
EXTENDED = ["t.add", [1, 2], {"x": 1}, "w@h"]

#: What Celery's Python needs in place of the URL that ours takes.
DRIVERS = {"db+postgresql:": "db+postgresql+psycopg:", "db+mysql:": "db+mysql+pymysql:"}


def celery(url: str, *words: str, settings: dict[str, Any] = SETTINGS, **environment: str) -> Any:
    for ours, its in DRIVERS.items():
        url = url.replace(ours, its)
    run = [celery_python(), PROGRAM, url, *words]
    environment = {**os.environ, "RESULTS_SETTINGS": json.dumps(settings), **environment}
    finished = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


def states_of(prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}-success": ["SUCCESS", {"a": [1, None, "ü"]}],
        f"{prefix}-success:extended": EXTENDED,
        f"{prefix}-none": ["SUCCESS", None],
        f"{prefix}-failure": ["FAILURE", "ValueError('bad', 1)"],
        f"{prefix}-started": ["STARTED", {"pid": 1}],
        f"{prefix}-progress": ["PROGRESS", {"done": 3}],
    }


def exchange(url: str, **environment: str) -> None:
    """Both store, then both read what the other stored, and neither undoes a success of the other's."""
    ids = [name for name in states_of("o") if ":" not in name]
    with Celery("results", backend=url, set_as_current=False, **SETTINGS) as app:
        store(app)
        assert celery(url, "swap", *ids, **environment) == states_of("o")
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


def test_results_in_memcached(private_service: Any) -> None:
    exchange(f"cache+memcached://127.0.0.1:{private_service(MemcachedService()).port}/")


def test_results_in_files(tmp_path: Path) -> None:
    exchange(f"file://{tmp_path}")


@pytest.mark.parametrize("kind", ["db+sqlite", "file", "cache+memcached"])
def test_compressed_results_are_read_by_both(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "files").mkdir()
    urls = {"db+sqlite": f"db+sqlite:///{tmp_path}/results.db", "file": f"file://{tmp_path}/files"}
    url = urls.get(kind) or f"cache+{request.getfixturevalue('memcached_url')}"
    settings = {**SETTINGS, "result_compression": "gzip"}
    task_id, text = "squeezed", "abc" * 1000
    with Celery("results", backend=url, set_as_current=False, **settings) as app:
        app.backend.store_result(task_id, text, "SUCCESS")
        assert app.backend.plugin is not None
        assert len(app.backend.plugin.fetch([task_id])[task_id]) < 1000
        assert celery(url, "swap", task_id, settings=settings) == {task_id: ["SUCCESS", text]}
        assert read(app, "c") == states_of("c")


class Project:
    """A Django project with a database that Celery's and our Python both use."""

    def __init__(self, place: Path) -> None:
        self._database = str(place / "project.sqlite3")

    def environment(self, app: str) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "results_of_django_settings",
            "PYTHONPATH": str(PROGRAM.parent),
            "RESULTS_APP": app,
            "RESULTS_DB": self._database,
        }

    def run(self, python: Path, app: str, *words: str) -> str:
        environment = {**os.environ, **self.environment(app)}
        command = [python, PROGRAM.with_name("results_of_django.py"), *words]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return finished.stdout

    def ours(self, *words: str, app: str = "celeriac_backend_django") -> str:
        return self.run(Path(sys.executable), app, *words)

    def theirs(self, *words: str) -> str:
        return self.run(celery_python(), "django_celery_results", *words)

    def celery(self, *words: str) -> Any:
        return celery("django-db", *words, **self.environment("django_celery_results"))

    def exchange(self) -> None:
        """Both store, then both read what the other stored."""
        self.ours("store")
        ids = [name for name in states_of("o") if ":" not in name]
        nameless = {"o-success:extended": [None, *EXTENDED[1:]]}  # that app calls the name otherwise than Celery does
        assert self.celery("swap", *ids) == {**states_of("o"), **nameless}
        assert json.loads(self.ours("read", "c")) == states_of("c")


def test_a_database_of_django_celery_results_is_used_as_it_is(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.theirs("migrate")
    project.exchange()


def test_an_old_database_of_django_celery_results_is_brought_up_to_date(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.theirs("migrate", "django_celery_results", "0004")
    project.ours("migrate")
    project.exchange()


def test_django_celery_results_goes_on_with_a_database_of_ours(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.ours("migrate")
    project.theirs("migrate")
    project.exchange()
