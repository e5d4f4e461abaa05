"""Workers whose pool processes are fresh interpreters (`worker_pool_start_method` is `spawn`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.integration.watched import Watched

from celeriac import Celery
from celeriac.exceptions import TimeLimitExceeded, WorkerLostError

pytestmark = [pytest.mark.slow]

APP = """
import logging, os, time
from celeriac import Celery, current_app, signals

app = Celery("spawned", broker="sqlite:///calls.db", backend="sqlite:///calls.db", task_max_crashes=1)
in_memory = []

def note(text):
    with open("notes", "a") as file:
        file.write(f"{text} {os.getpid()}\\n")

@signals.celeryd_init.connect
def configure(conf, **_):
    in_memory.append("the worker's")
    conf.result_expires = 77

@signals.worker_process_init.connect
def begin(sender, **_):
    note("begin")

@signals.worker_process_shutdown.connect
def end(sender, **_):
    note("end")

@app.task
def look():
    print("printed in a task")
    logging.getLogger("mine").warning("logged in a task")
    conf = current_app.conf
    return current_app.main, os.getppid(), in_memory, conf.result_expires, conf.task_default_rate_limit

@app.task
def leave(code):
    os._exit(code)

@app.task(time_limit=0.3)
def endless():
    while True:
        time.sleep(1)
"""

IN_THE_PROGRAM = """
from celeriac import Celery

app = Celery("mine", broker="sqlite://", worker_pool_start_method="spawn")
app.worker_main(["worker"])
"""

AT_RUN_TIME = """
from spawned import app

@app.task
def late():
    pass

app.worker_main(["worker", "-c", "1", "--pool-start-method", "spawn"])
"""


class Running(NamedTuple):
    """A worker with two spawned processes, and a client of it."""

    worker: Watched
    app: Celery

    def get(self, task: str, *args: Any) -> Any:
        return self.app.send_task(f"spawned.{task}", args).get(timeout=60)

    def notes(self, what: str) -> list[str]:
        notes = (self.worker.folder / "notes").read_text().split("\n")
        return [line.split()[1] for line in notes if line.startswith(what)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("spawned")
    (folder / "spawned.py").write_text(APP)
    words = ("-c", "2", "-l", "info", "--pool-start-method", "spawn", "task.default_rate_limit=9/s")
    worker = Watched(folder, "-A", "spawned", "worker", *words)
    url = f"sqlite:///{folder}/calls.db"
    try:
        worker.wait_for("ready.")
        with Celery("client", broker=url, backend=url, set_as_current=False) as app:
            yield Running(worker, app)
    finally:
        worker.close()


def test_a_process_has_the_workers_settings_and_log_and_nothing_of_its_memory(running: Running) -> None:
    worker = running.worker
    assert running.get("look") == ["spawned", worker.process.pid, [], 77, "9/s"]
    worker.wait_for("printed in a task", "logged in a task")
    for text in ("printed in a task", "logged in a task"):
        line = next(line for line in worker.err.splitlines() if text in line)
        assert "task_name=spawned.look" in line


def test_deaths_and_limits_are_those_of_the_very_task_and_processes_are_replaced(running: Running) -> None:
    with pytest.raises(WorkerLostError, match="exit code 3"):
        running.get("leave", 3)
    with pytest.raises(TimeLimitExceeded):
        running.get("endless")
    assert running.get("look")[0] == "spawned"


def test_a_warm_end_lets_the_processes_say_that_they_end(running: Running) -> None:  # the last of this worker
    assert running.get("look")[0] == "spawned"
    assert running.worker.stop() == 0
    begun, ended = running.notes("begin"), running.notes("end")
    assert len(begun) == len(set(begun)) >= 3
    assert ended
    assert set(ended) < set(begun)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (IN_THE_PROGRAM, ["only the program that runs (program.py)", "celeriac -A tasks worker"]),
        (AT_RUN_TIME, ["tasks that are not there", "spawned.late", "Put them into a module that the app imports"]),
    ],
)
def test_what_no_other_process_can_import_is_said_at_the_start(tmp_path: Path, program: str, says: list[str]) -> None:
    (tmp_path / "spawned.py").write_text(APP)
    (tmp_path / "program.py").write_text(program)
    run = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode in (1, 2)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("Error:")
    assert all(text in last for text in says), last
    assert "Traceback" not in run.stderr
