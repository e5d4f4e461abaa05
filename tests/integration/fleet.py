"""Workers of celeriac and of a real Celery on one broker, and both command lines, for tests of remote control."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python

from celeriac import Celery

APPS = Path(__file__).parent / "apps"
START_S = 60.0


class Fleet:
    """One broker, one folder, and the workers on it."""

    def __init__(self, place: Path, broker: str, backend: str) -> None:
        self.place = place
        self.broker, self.backend = broker, backend
        self.processes: list[subprocess.Popen[bytes]] = []
        self.app = Celery("client", broker=broker, backend=backend, set_as_current=False)
        self.app.conf.update(task_default_queue="controlled", task_send_sent_event=True)

    def env(self, library: str, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "CONTROL_LIB": library,
            "CONTROL_BROKER": self.broker,
            "CONTROL_BACKEND": self.backend,
            "C_FORCE_ROOT": "1",
            "HOME": str(self.place),
            "PYTHONPATH": str(APPS),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
            **more,
        }

    def command(self, library: str) -> str:
        python = celery_python() if library == "celery" else Path(sys.executable)
        return str(python.with_name(library))

    def worker(self, name: str, *options: str, library: str = "celeriac", **env: str) -> subprocess.Popen[bytes]:
        """Start one, and wait until it is ready and hears what it is told.

        A worker of Celery's on Redis says that it is ready before it listens; what is told till then is lost to it.
        """
        log_path = self.place / f"{name}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [self.command(library), "-A", "control_app", "worker", "-n", f"{name}@here", "-l", "info", *options],
                cwd=self.place, env=self.env(library, **env), stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        deadline = time.monotonic() + START_S

        def is_ready() -> bool:
            return " ready." in self.log(name) and bool(self.app.control.ping([f"{name}@here"], timeout=1.0))

        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the {library} worker {name} did not get ready:\n{self.log(name)[-3000:]}")
            time.sleep(0.05)
        return process

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text(errors="replace")

    def run(self, library: str, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command line, to its end."""
        return subprocess.run(
            [self.command(library), "-A", "control_app", *words], cwd=self.place, env=self.env(library), text=True,
            capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def ask(self, library: str, *words: str) -> Any:
        """What a command prints as JSON."""
        done = self.run(library, *words, "--json")
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)

    def close(self) -> None:
        for process in self.processes:
            self.end(process)
        self.app.close()


def make_fleet(kind: str, request: pytest.FixtureRequest, place: Path) -> Fleet:
    """On a broker of the test run."""
    if kind == "redis":
        url = request.getfixturevalue("redis_service").fresh_url()
        return Fleet(place, url, url)
    if kind == "amqp":
        url = request.getfixturevalue("rabbitmq_service").fresh_url()
        return Fleet(place, url, "rpc://")
    url = f"sqlite:///{place}/control.db"
    return Fleet(place, url, url)
