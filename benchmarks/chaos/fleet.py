"""The campaign's workers: started, struck, and replaced."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.machine import find_tree
from celeriac.testing.services import end_process, tie_to_parent

ROOT = Path(__file__).resolve().parents[2]
CELERIAC = Path(sys.executable).parent / "celeriac"
READY_S = 60.0


class Worker:
    """One worker process, which leads a group of its own."""

    def __init__(self, number: int, folder: Path, options: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self.log_path = folder / f"worker-{number}.log"
        self.wanted = True
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*tie_to_parent(), CELERIAC, "-A", "benchmarks.chaos.app", "worker", "-l", "info", *options],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def children(self) -> list[int]:
        """Its pool's processes."""
        return sorted(find_tree([self.pid]) - {self.pid})

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def send_group(self, signum: int) -> None:
        os.killpg(self.pid, signum)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while "[queues]" not in self.log:  # the page is written when it consumes
            if not self.is_running or time.monotonic() > deadline:
                raise RuntimeError(f"a worker did not come up:\n{self.log[-3000:]}")
            time.sleep(0.05)


class Fleet:
    """All workers there are and were."""

    def __init__(self, folder: Path, size: int, options: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._folder, self._options, self._environment = folder, options, environment
        self.all: list[Worker] = []
        self.size = size

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.all if worker.wanted and worker.is_running]

    def pick(self, rng: random.Random) -> Worker:
        """One of those that run."""
        return rng.choice(self.running)

    def fill(self) -> None:
        """Start as many as are missing, and wait for them."""
        started = []
        while len(self.running) < self.size:
            worker = Worker(len(self.all), self._folder, self._options, self._environment)
            self.all.append(worker)
            started.append(worker)
        for worker in started:
            worker.wait_ready()

    def deserters(self) -> list[Worker]:
        """Those that ended although nobody wanted it."""
        return [worker for worker in self.all if worker.wanted and not worker.is_running]

    def stop(self) -> None:
        """End them all in good order."""
        for worker in self.running:
            worker.wanted = False
            worker.send(signal.SIGTERM)
        for worker in self.all:
            end_process(worker.process, signal.SIGTERM, 20.0)

    def surprises(self) -> list[str]:
        """What no worker should ever write."""
        found = []
        for worker in self.all:
            lines = worker.log.splitlines()
            found += [
                f"{worker.log_path.name}: " + " / ".join(lines[at : at + 25])[:2000]
                for at, line in enumerate(lines)
                if "unexpected error" in line or line.startswith("Traceback")
            ]
        return found
