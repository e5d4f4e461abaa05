"""A real worker process on a real broker, for tests that look at both from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery

APPS = Path(__file__).parent / "apps"
CELERIAC = str(Path(sys.executable).parent / "celeriac")
START_S = 60.0

BROKERS = [
    pytest.param("sqlite"),
    pytest.param("redis"),
    pytest.param("amqp", marks=pytest.mark.xdist_group("rabbitmq")),
]


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0, what: str | Callable[[], str] = "") -> Any:
    """The first true answer of `condition`; fails when there is none in time, which is there to end a hang."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.02)
    pytest.fail(f"not within {timeout_s} s: {what() if callable(what) else what or condition}")


def stop_until(condition: Callable[[], Any], send: Callable[[int], None], what: str) -> None:
    """Stop a process until something has happened because it stands still; `send` sends it a signal.

    One that was stopped within a transaction keeps all others from its rows, or from the whole file, for as long as it
    stands. So it goes on for a moment and is stopped again.
    """
    for _ in range(4):
        send(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.05)
        send(signal.SIGCONT)
        time.sleep(0.2)
    pytest.fail(f"not although it stood still: {what}")


class WorkerProcess:
    """`celeriac worker` as a user starts it."""

    def __init__(self, house: House, *options: str, app: str = "suite_app", **env: str) -> None:
        self._log_path = house.place / f"worker-{time.monotonic_ns()}.log"
        self._log = self._log_path.open("wb")
        self.process = subprocess.Popen(
            [CELERIAC, "-A", env.get("SUITE_APP", app), "worker", "-l", "info", *options],
            cwd=house.place,
            env={**os.environ, **house.env, **env},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = START_S) -> WorkerProcess:
        """Until the log has `text`."""

        def there() -> bool:
            if self.process.poll() is not None and text not in self.log:
                pytest.fail(f"the worker ended with {self.process.returncode} before {text!r}:\n{self.log[-3000:]}")
            return text in self.log

        wait_until(there, timeout_s, lambda: f"{text!r} in the worker's log:\n{self.log[-3000:]}")
        return self

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def stop(self, signum: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Send a signal and wait; the exit code."""
        if self.process.poll() is None:
            self.send(signum)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.end()

    def kill_group(self) -> None:
        """As a power cut: the worker and its children, at once."""
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(60)
        self._log.close()

    def end(self) -> None:
        """Whatever happened, leave nothing behind."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait(60)
        self._log.close()


class House:
    """One broker and result store, one folder, one client app, and the workers of one test."""

    def __init__(self, place: Path, broker: str, backend: str) -> None:
        self.place = place
        self.broker = broker
        self.backend = backend
        self.env = {
            "SUITE_BROKER": broker,
            "SUITE_BACKEND": backend,
            "SUITE_PLACE": str(place),
            "PYTHONPATH": str(APPS),
            "HOME": str(place),
        }
        self.workers: list[WorkerProcess] = []
        self.app = Celery("client", broker=broker, backend=backend)

    def worker(self, *options: str, ready: bool = True, app: str = "suite_app", **env: str) -> WorkerProcess:
        """Start one; `-c 2` unless told otherwise."""
        concurrency = () if "-c" in options else ("-c", "2")
        worker = WorkerProcess(self, *concurrency, *options, app=app, **env)
        self.workers.append(worker)
        return worker.wait_for(" ready.") if ready else worker

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Call a task of `suite_app` by name."""
        return self.app.send_task(f"suite_app.{task}", args, **options)

    def ran(self) -> list[str]:
        """What tasks noted."""
        path = self.place / "ran"
        return path.read_text().splitlines() if path.exists() else []

    def release(self, *names: str) -> None:
        """Let tasks that wait for it go on."""
        for name in names:
            (self.place / f"release-{name}").touch()

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.app.close()


def make_house(kind: str, request: pytest.FixtureRequest, place: Path) -> House:
    if kind == "sqlite":
        url = f"sqlite:///{place}/suite.db"
        return House(place, url, url)
    if kind == "redis":
        url = request.getfixturevalue("redis_url")
        return House(place, url, url)
    return House(place, request.getfixturevalue("amqp_url"), "rpc://")


@pytest.fixture(params=BROKERS)
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """On each broker."""
    made = make_house(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture
def sqlite_house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """On the embedded broker, for what does not depend on the broker."""
    made = make_house("sqlite", request, tmp_path)
    yield made
    made.close()
