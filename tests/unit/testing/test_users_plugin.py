"""The pytest plugin for programs: its page is true, and test programs written for Celery run with imports changed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "reference" / "testing.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_pytest(place: Path, *words: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-ra", *words],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return finished.stdout + finished.stderr


def test_the_examples_of_the_page_pass(tmp_path: Path) -> None:
    name = ""
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        named = re.match(r"# (\w+\.py)\n", block)
        name = named[1] if named else name
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{block}")
    output = run_pytest(tmp_path, "--strict-markers", "-W", "error")
    assert re.search(r"=+ 8 passed in", output), output


CONFTEST = """
import pytest

pytest_plugins = ["celeriac.contrib.pytest"]

@pytest.fixture(scope="session")
def celery_config():
    return {"broker_url": "memory://", "result_backend": "cache+memory://", "task_default_queue": "ours"}

@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"queues": ("ours", "other"), "shutdown_timeout": 20}

@pytest.fixture(scope="session")
def celery_worker_pool():
    return "threads"

@pytest.fixture(scope="session")
def celery_includes():
    return ["included", "celeriac.contrib.testing.tasks"]

@pytest.fixture(scope="session")
def celery_class_tasks():
    from included import ClassTask
    return [ClassTask]

@pytest.fixture(scope="session")
def celery_parameters():
    return {"strict_typing": False}

@pytest.fixture(scope="session")
def use_celery_app_trap():
    return True
"""

INCLUDED = """
from celeriac import Task, shared_task

@shared_task
def subtract(x, y):
    return x - y

class ClassTask(Task):
    name = "included.ClassTask"
    def run(self, text):
        return text.upper()
"""

PROGRAM = """
import threading
import pytest
from celeriac import current_app
from celeriac.contrib.testing import worker as workers
from celeriac.contrib.testing.app import TestApp

def test_a_task_of_the_test(celery_app, celery_worker):
    @celery_app.task
    def mul(x, y):
        return x * y
    celery_worker.reload()
    assert mul.delay(4, 4).get(timeout=60) == 16
    assert mul.apply_async((4, 5), queue="other").get(timeout=60) == 20
    assert celery_worker.pool_name == "threads"

@pytest.mark.celery(task_default_queue="marked", result_backend="memory://marked")
def test_settings_by_marker(celery_app):
    assert celery_app.conf.task_default_queue == "marked"
    assert celery_app.conf.broker_url == "memory://"
    assert celery_app.strict_typing is False

def test_the_session_s_worker(celery_session_app, celery_session_worker):
    assert celery_session_app.send_task("included.ClassTask", ("a",)).get(timeout=60) == "A"
    assert celery_session_app.send_task("included.subtract", (5, 3)).get(timeout=60) == 2

class TestInClasses:
    @pytest.mark.usefixtures("celery_session_worker")
    def test_it_is_the_same(self, celery_session_app):
        assert celery_session_app.send_task("included.ClassTask", ("b",)).get(timeout=60) == "B"

def test_the_trap(celery_app, celery_worker):
    with pytest.raises(RuntimeError, match="asked the current app for 'conf'"):
        current_app.conf

def test_out_of_the_trap(celery_app, depends_on_current_app):
    assert current_app.main == celery_app.main

def test_a_worker_that_cannot_start_says_why():
    with pytest.raises(Exception, match="no pool plugin is named 'nonesuch'"):
        with workers.start_worker(TestApp(), pool="nonesuch"):
            pass

def test_a_worker_that_does_not_end_names_its_task():
    app, begun, go = TestApp(), threading.Event(), threading.Event()

    @app.task(name="slow")
    def slow():
        begun.set()
        go.wait(30)

    heard = []
    def hear(signal, **_):
        heard.append(signal.name)
    for signal in (workers.test_worker_starting, workers.test_worker_started, workers.test_worker_stopped):
        signal.connect(hear)
    with pytest.raises(RuntimeError, match=r"not ended within 0.2 s .*: slow"):
        with workers.start_worker(app, shutdown_timeout=0.2):
            slow.delay()
            begun.wait(20)
    go.set()
    assert heard == ["test_worker_starting", "test_worker_started", "test_worker_stopped"]

def test_lines_about_tasks(capfd):
    app = TestApp(enable_logging=True)
    app.task(name="said")(lambda: 1)
    with workers.start_worker(app):
        app.send_task("said").get(timeout=60)
    assert "said" in capfd.readouterr().err
"""


def test_a_test_program_for_celery_passes_with_its_imports_changed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "included.py").write_text(INCLUDED)
    (tmp_path / "test_program.py").write_text(PROGRAM)
    output = run_pytest(tmp_path, "--strict-markers")
    assert re.search(r"=+ 9 passed in", output), output


def test_without_the_line_nothing_of_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text(
        "import sys\n"
        "def test_plain(request):\n"
        "    assert 'celeriac' not in sys.modules\n"
        "    assert 'celery_app' not in request._fixturemanager._arg2fixturedefs\n"
    )
    output = run_pytest(tmp_path)
    assert re.search(r"=+ 1 passed in", output), output
