"""Tasks in documentation, by a real run of Sphinx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")

TASKS = '''
"""Tasks of a project."""

from celeriac import Celery

app = Celery("proj", broker="memory://")


@app.task(bind=True)
def add(self, x: int, y: int = 2) -> int:
    """Add two numbers, as :py:task:`tasks.fetch` does not."""


@app.task
async def fetch(url):
    """Fetch a page."""


@app.task
def silent():
    pass


def helper():
    """No task."""
'''


def test_tasks_are_found_prefixed_and_referred_to(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "conf.py").write_text(
        "import sys\nsys.path.insert(0, '.')\n"
        "extensions = ['celeriac.contrib.sphinx']\ncelery_task_prefix = '(a task)'\n"
    )
    (tmp_path / "index.rst").write_text(
        "Tasks\n=====\n\n.. automodule:: tasks\n   :members:\n\nOne\n===\n\n.. autotask:: tasks.fetch\n   :no-index:\n"
    )
    words = ["-q", "-n", "-W", "--keep-going", "-b", "text", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.txt").read_text()
    assert "(a task) tasks.add(x: int, y: int = 2) -> int" in page
    assert "Add two numbers, as tasks.fetch does not." in page.replace('"', "").replace("()", "")
    assert page.count("(a task) tasks.fetch(url)") == 2
    assert "tasks.helper()" in page
    assert "silent" not in page
