"""A user's project, and a worker of it as a process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

TASKS = """
from celeriac import Celery

app = Celery("tasks", broker="sqlite:///tasks.db", backend="sqlite:///tasks.db")


@app.task
def add(x, y):
    return x + y
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a user's tasks.py in it."""
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def start_worker(project: Path) -> Iterator[Callable[[Path, dict[str, str]], subprocess.Popen[bytes]]]:
    """Starts a worker of the project: given the command `celeriac` and an environment. It ends with the test."""
    with ExitStack() as stack:

        def start(celeriac: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
            command = [celeriac, "-A", "tasks", "worker", "-c", "1", "--loglevel=info"]
            log = stack.enter_context((project / "worker.log").open("wb"))
            worker = stack.enter_context(
                subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
            stack.callback(worker.kill)
            return worker

        yield start
