"""The example project of Django: a real worker, tasks found in INSTALLED_APPS, calls that wait for the commit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.testing.services import PostgresService

pytestmark = [pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "examples" / "django"
START_S = 60.0


class Project:
    """A copy of the example, with its worker."""

    def __init__(self, place: Path) -> None:
        self.place = shutil.copytree(EXAMPLE, place / "project", ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
        variables = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        self.environment = {**variables, "PYTHONUNBUFFERED": "1"}
        self.log = self.place / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None

    def manage(self, *words: str, code: int = 0) -> str:
        run = [sys.executable, "manage.py", *words]
        finished = subprocess.run(run, cwd=self.place, env=self.environment, capture_output=True, text=True)
        assert finished.returncode == code, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr

    def start_worker(self, *words: str) -> None:
        celeriac = Path(sys.executable).with_name("celeriac")
        with self.log.open("wb") as log:
            self.worker = subprocess.Popen(
                [celeriac, "-A", "proj", "worker", "-l", "info", "-c", "2", *words], cwd=self.place,
                env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        assert self.worker is not None
        deadline = time.monotonic() + START_S
        while "ready" not in (text := self.log.read_text(errors="replace")):
            if self.worker.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the worker did not get ready:\n{text[-3000:]}")
            time.sleep(0.05)

    def failed_worker(self) -> str:
        """What a worker that does not start says."""
        self.start_worker()
        assert self.worker is not None
        assert self.worker.wait(START_S) in (1, 2)
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        if self.worker is not None:
            if self.worker.poll() is None:
                os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    made.close()


def check(project: Project, *pool: str) -> None:
    """Orders get their receipts, and what was rolled back leaves no call behind."""
    project.manage("migrate", "-v", "0")
    project.start_worker(*pool)
    project.wait_until_ready()
    assert project.manage("place_order", "tea") == "One tea, thank you.\n"
    assert "we do not sell '42'" in project.manage("place_order", "42", code=1)
    assert project.manage("place_order", "milk") == "One milk, thank you.\n"
    show = "from celeriac_backend_django.models import TaskResult as T; import time\n"
    show += "deadline = time.monotonic() + 30\n"
    show += "while T.objects.filter(status='SUCCESS').count() < 2 and time.monotonic() < deadline: time.sleep(.05)\n"
    show += "print(sorted(T.objects.values_list('task_name', 'status', 'result')))"
    rows = [("orders.tasks.send_receipt", "SUCCESS", f'"One {what}, thank you."') for what in ("milk", "tea")]
    assert repr(rows) in project.manage("shell", "-c", show)
    assert "Traceback" not in project.log.read_text()


def test_the_example_on_sqlite_and_threads(project: Project) -> None:
    check(project, "-P", "threads")


def test_the_example_on_postgres_and_processes(project: Project, postgres_service: PostgresService) -> None:
    project.environment |= {
        "PGDATABASE": postgres_service.fresh_url().rpartition("/")[2],
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres_service.port),
        "PGUSER": "celeriac",
    }
    check(project, "-P", "prefork")


def test_errors_of_the_system_checks_stop_a_worker(project: Project) -> None:
    models = project.place / "orders" / "models.py"
    models.write_text(models.read_text().replace("max_length=200, blank=True", "max_length=-1"))
    log = project.failed_worker()
    assert "fields.E121" in log
    assert "--skip-checks" in log
    assert "Traceback" not in log


def test_a_project_that_is_not_there_is_said(project: Project) -> None:
    project.environment["DJANGO_SETTINGS_MODULE"] = "nowhere.settings"
    log = project.failed_worker()
    assert "nowhere" in log
    assert "Traceback" not in log
