"""A worker and beat as services of systemd: a datagram socket stands where systemd has one."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import CELERIAC, House, wait_until

pytestmark = pytest.mark.services
WATCHDOG_S = 1.0
HANG_S = 8.0
SO_TIMESTAMP = 29  # of Linux; Python has no name for it
TIMEVAL = struct.Struct("@ll")


class Manager(threading.Thread):
    """Notes what it is told, and when that was sent, however late it is read."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        self._socket.bind(name.replace("@", "\0"))
        self.heard: list[tuple[float, list[str]]] = []
        self.environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        self.start()

    def run(self) -> None:
        while True:
            text, ((_, _, stamp),), _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(TIMEVAL.size))
            if text == b"end":
                return
            seconds, micros = TIMEVAL.unpack(stamp)
            self.heard.append((seconds + micros / 1e6, text.decode().splitlines()))

    def times(self, word: str) -> list[float]:
        return [when for when, lines in self.heard if word in lines]

    def wait_for(self, word: str, count: int = 1) -> list[str]:
        """The lines that came with it at last."""
        wait_until(
            lambda: len(self.times(word)) >= count, 60, lambda: f"{word} {count} times; heard: {self.heard[-5:]}"
        )
        return [lines for _, lines in self.heard if word in lines][-1]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", self._socket.getsockname())
        self.join(10)
        self._socket.close()


@pytest.fixture(params=["abstract", "file"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(f"@celeriac-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.mark.parametrize("manager", ["abstract"], indirect=True)
def test_a_worker_says_what_happens_and_one_that_hangs_falls_silent(sqlite_house: House, manager: Manager) -> None:
    house = sqlite_house
    worker = house.worker(app="service_app", ready=False, **manager.environ)
    ready = manager.wait_for("READY=1")
    assert ready[1].startswith("STATUS=Consuming celery: 0 in hand, 0 finished.")
    assert house.send("add", 1, 1).get(timeout=30) == 2
    manager.wait_for("STATUS=Consuming celery: 0 in hand, 1 finished.")
    manager.wait_for("WATCHDOG=1", len(manager.times("WATCHDOG=1")) + 2)
    house.app.control.broadcast("hang", {"seconds": HANG_S})
    wait_until(lambda: any(line.startswith("goes on") for line in house.ran()), 60, "the end of its hanging")
    began, ended = (float(line.split()[-1]) for line in house.ran())
    fed = [when for when in manager.times("WATCHDOG=1") if began + 5 * WATCHDOG_S < when < ended]
    assert fed == [], "a worker that hangs said that it lives"
    manager.wait_for("WATCHDOG=1", len(manager.times("WATCHDOG=1")) + 1)
    worker.send(signal.SIGHUP)
    manager.wait_for("READY=1", 2)
    (anew,) = [lines for _, lines in manager.heard if "RELOADING=1" in lines]
    assert anew[1].startswith("MONOTONIC_USEC=")
    assert manager.times("STOPPING=1") == []
    assert house.send("pid").get(timeout=30) != worker.pid, "prefork"
    assert worker.stop() == 0
    assert manager.wait_for("STOPPING=1")[1] == "STATUS=Stopping."


@pytest.mark.parametrize("manager", ["file"], indirect=True)
def test_beat_says_that_it_is_ready_lives_and_ends(sqlite_house: House, manager: Manager) -> None:
    house = sqlite_house
    beat = subprocess.Popen(
        [CELERIAC, "-A", "suite_app", "beat"],
        cwd=house.place,
        env={**os.environ, **house.env, **manager.environ},
        stdout=subprocess.DEVNULL,
    )
    try:
        assert "periodic tasks." in manager.wait_for("READY=1")[1]
        manager.wait_for("WATCHDOG=1", 3)
        beat.terminate()
        assert beat.wait(60) == 0
        manager.wait_for("STOPPING=1")
    finally:
        beat.kill()
        beat.wait()


def test_the_unit_files_of_the_page_are_in_order(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    page = Path(__file__).parents[2] / "docs" / "reference" / "daemons.md"
    units = re.findall(r"```ini\n(# (\S+\.service)\n.*?)```", page.read_text(), re.DOTALL)
    assert len(units) == 2
    for text, name in units:
        here = text.replace("/srv/tasks/venv/bin", str(Path(CELERIAC).parent)).replace("/srv/tasks", str(tmp_path))
        (tmp_path / name).write_text(here.replace("User=tasks", f"User={getpass.getuser()}"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(tmp_path / name for _, name in units)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
    )  # fmt: skip
    assert not [line for line in done.stdout.splitlines() if "celeriac" in line], done.stdout
    assert done.returncode == 0, done.stdout
