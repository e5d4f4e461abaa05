"""Programs written for Celery, each run twice without a change: by a real Celery, and by celeriac under Celery's name.

The programs are whole projects in `programs/`: a worker is started with the command `celery`, `client.py` talks to it
and prints what it got. Both libraries have to give the same answers, which stand here: those of Celery show that the
program is one of Celery's, those of celeriac that it needs no change. `CELERY_BROKER_URL` and `CELERY_RESULT_BACKEND`
lead them to the broker of the test run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python

from celeriac.testing.services import RedisService

PROGRAMS = Path(__file__).parent / "programs"
START_S = 60.0
CLIENT_S = 100.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Program:
    """A copy of one of the programs, the library that runs it, and the processes of it that were started."""

    def __init__(self, name: str, library: str, place: Path, broker: str, backend: str) -> None:
        self.place = shutil.copytree(PROGRAMS / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.notes = place / "notes.txt"
        self.python = celery_python() if library == "celery" else Path(sys.executable)
        self.processes: list[subprocess.Popen[bytes]] = []
        others = ("PYTHON", "CELER", "DJANGO")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(others)},
            "CELERY_BROKER_URL": broker,
            "CELERY_RESULT_BACKEND": backend,
            "NOTES": str(self.notes),
            "PYTHONPATH": str(self.place),
            "HOME": str(place),
            "C_FORCE_ROOT": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `celery …`; its log is `<place>/<number>.log`."""
        command = [str(self.python.with_name("celery")), *words]
        with self._log(len(self.processes)).open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.place, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_worker(self, app: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is ready."""
        process = self.start("-A", app, "worker", "-c", "2", "-l", "INFO", *words)
        log = self._log(self.processes.index(process))
        deadline = time.monotonic() + START_S
        while "ready" not in (text := log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the worker did not get ready:\n{text[-3000:]}")
            time.sleep(0.05)
        return process

    def answers(self) -> Any:
        """What `client.py` prints: the JSON of its last line."""
        finished = subprocess.run(
            [str(self.python), "client.py"], cwd=self.place, env=self.environment, capture_output=True, text=True,
            timeout=CLIENT_S,
        )  # fmt: skip
        assert finished.returncode == 0, f"{finished.stderr}\n{self.logs()}"
        return json.loads(finished.stdout.splitlines()[-1])

    def logs(self) -> str:
        return "\n".join(self._log(number).read_text(errors="replace")[-3000:] for number in range(len(self.processes)))

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def _log(self, number: int) -> Path:
        return self.place / f"{number}.log"


@pytest.fixture(params=["celery", "celeriac"])
def library(request: pytest.FixtureRequest) -> str:
    """Who answers to `import celery`."""
    return str(request.param)


@pytest.fixture
def program(
    request: pytest.FixtureRequest, library: str, tmp_path: Path, redis_service: RedisService
) -> Iterator[Program]:
    """The program that the test is named after."""
    name = request.function.__name__.removeprefix("test_")
    made = Program(name, library, tmp_path, redis_service.fresh_url(), redis_service.fresh_url())
    yield made
    made.close()


def test_first_steps(program: Program) -> None:
    program.start_worker("tasks", "-Q", "celery,low")
    assert program.answers() == {
        "add": 8,
        "ready": [True, True, "SUCCESS"],
        "again": 8,
        "name": "tasks.add",
        "routed": 5,
        "by name": 3,
        "error": ["ZeroDivisionError", "division by zero", "FAILURE", True],
        "kept in": "ZeroDivisionError",
        "timezone": "Europe/Oslo",
    }


def test_canvas(program: Program) -> None:
    program.start_worker("proj")
    assert program.answers() == {
        "chain": 9,
        "partial": 32,
        "group": [0, 2, 4, 6, 8],
        "chord": 90,
        "in a chain": 9,
        "starmap": [3, 7],
        "map": [3, 3],
        "chunks": [[0, 2], [4, 6], [8, 10]],
        "replaced": 32,
        "link": ["linked"],
        "errback": ["errback: ValueError: no room for 7"],
        "broken chord": True,
        "its errback": True,
        "by json": [True, True],
        "its answer": 20,
    }


def test_tasks_with_hooks(program: Program) -> None:
    program.start_worker("crawler", "-c", "1")  # with two a retry may begin before the first try is over
    fetch, by_itself = "crawler.fetch", "crawler.fetch_by_itself"
    assert program.answers() == {
        "fetch": ["http://a", 2, True],
        "its notes": [
            f"{fetch} starts 0",
            f"{fetch} is tried again after Flaky",
            f"{fetch} starts 1",
            f"{fetch} is tried again after Flaky",
            f"{fetch} starts 2",
            f"{fetch} succeeded with ('http://a', 2, True)",
            f"{fetch} is over SUCCESS",
        ],
        "error": "http://b",
        "state": True,
        "its hooks": [
            f"{by_itself} starts 0",
            f"{by_itself} is tried again after Flaky",
            f"{by_itself} starts 1",
            f"{by_itself} failed with Flaky True",
            f"{by_itself} is over FAILURE",
        ],
        "give up": "gave up",
        "soft limit": "stopped in time",
        "own state": ["PROGRESS", {"done": 3, "of": 7}],
        "rejected": True,
        "class": 3,
        "registered": "Counting",
        "called": ["crawler.give_up", 3],
        "not over": ["crawler.own_state starts 0", "crawler.unwanted starts 0", "unwanted is rejected"],
    }


def test_periodic(program: Program) -> None:
    program.start_worker("clock")
    program.start("-A", "clock", "beat", "-s", "beat-schedule", "-l", "INFO")
    assert program.answers() == {
        "ticks": ["from code", "often"],
        "kind": True,
        "days": [1, 2, 3, 4, 5],
        "every third": [0, 3, 6, 9],
        "until monday": (2 * 24 + 23.5) * 3600,
        "same": True,
        "half a minute": 30,
        "entry": "clock.tick",
    }


def test_web_shop(program: Program) -> None:
    program.start_worker("website")
    assert program.answers() == {
        "order": 17,
        "queue": "shop",
        "receipt": "order 17: 6.50, from north",
        "current app": "website",
        "same app": True,
        "default queue": "shop",
        "found": ["mails.tasks.send_receipt", "orders.tasks.place", "website.celery.debug_task"],
    }


def test_watched(program: Program) -> None:
    worker = program.start_worker("proj", "-n", "w1@here")
    answers = program.answers()
    assert answers == {
        "greeting": "hello ann, marked by the client",
        "failure": "'no key'",
        "notes": [
            "init",
            "child",
            "ready",
            "lamp on",
            "before proj.greet",
            "after proj.greet SUCCESS",
            "success hello ann, marked by the client",
            "failure KeyError",
            "after proj.fail FAILURE",
        ],
        "ping": [{"ok": "pong"}],
        "lamp": [{"lamp": "is on"}],
        "dim": [[{"ok": "dimmed to 3"}]],
        "registered": ["proj.fail", "proj.greet"],
    }
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert {"lamp off", "shutdown"} <= set(program.noted())


def test_no_app(program: Program) -> None:
    assert program.answers() == {
        "result": 5,
        "eager": True,
        "task": True,
        "queue": "from-celeryconfig",
        "version": True,
        "error": True,
        "when": 3,
    }
