"""Workers in the background: `--detach`, pid files, other users, and `celeriac multi`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import CELERIAC, House, wait_until

pytestmark = pytest.mark.services


class Daemons:
    """Runs commands beside a house, and leaves no daemon behind."""

    def __init__(self, house: House) -> None:
        self.house = house

    def run(self, *words: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [CELERIAC, *words],
            cwd=self.house.place,
            env={**os.environ, **self.house.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    def pid(self, name: str) -> int:
        return int((self.house.place / f"{name}.pid").read_text())

    def close(self) -> None:
        for path in self.house.place.glob("*.pid"):
            pid = int(path.read_text() or 0)
            if pid and is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: it went while its file was open
        return False


@pytest.fixture
def daemons(sqlite_house: House) -> Iterator[Daemons]:
    made = Daemons(sqlite_house)
    yield made
    made.close()


def test_a_detached_worker_works_when_the_command_returns(daemons: Daemons) -> None:
    words = ("-A", "suite_app", "worker", "-c", "1", "-n", "w1@%h", "-l", "info", "--detach")
    files = ("--pidfile", "%n.pid", "--logfile", "%n.log")
    daemons.run(*words, *files)
    pid = daemons.pid("w1")
    assert is_alive(pid)
    assert os.getsid(pid) != os.getsid(0)
    assert daemons.house.send("add", 1, 2).get(timeout=30) == 3
    assert "add" in (daemons.house.place / "w1.log").read_text()
    said = daemons.run(*words, *files, code=2)
    assert f"belongs to process {pid}, which runs" in said
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), 60, "its end")
    assert not (daemons.house.place / "w1.pid").exists()


def test_a_detached_worker_that_cannot_start_says_why(daemons: Daemons) -> None:
    words = ("-A", "suite_app", "-b", "redis://127.0.0.1:1/0", "worker", "--detach", "--pidfile", "w1.pid")
    assert "127.0.0.1:1" in daemons.run(*words, "broker.connection_retry_on_startup=False", code=69)
    assert not (daemons.house.place / "w1.pid").exists()


def test_the_pid_file_of_a_killed_worker_keeps_nobody_away(daemons: Daemons) -> None:
    words = ("-A", "suite_app", "worker", "-c", "1", "--detach", "--pidfile", "w1.pid")
    daemons.run(*words)
    first = daemons.pid("w1")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_alive(first), 60, "its end")

    def second() -> bool:  # its children hold the lock until they have ended too
        done = subprocess.run(
            [CELERIAC, *words], cwd=daemons.house.place, env={**os.environ, **daemons.house.env}, capture_output=True
        )
        return done.returncode == 0

    wait_until(second, 60, "a second start")
    assert daemons.pid("w1") != first


def test_multi_starts_restarts_and_stops_workers(daemons: Daemons) -> None:
    place = daemons.house.place
    files = (f"--pidfile={place}/%n.pid", f"--logfile={place}/%n%I.log")
    said = daemons.run("multi", "start", "w1", "w2", "-A", "suite_app", "-c", "1", "-l", "info", *files)
    assert said.count("OK") == 2
    before = daemons.pid("w1"), daemons.pid("w2")
    assert daemons.house.send("add", 1, 2).get(timeout=30) == 3
    assert "runs already" in daemons.run("multi", "start", "w1", "-A", "suite_app", *files)
    said = daemons.run("multi", "restart", "w1", "-A", "suite_app", "-c", "1", *files)
    assert "has ended" in said
    after = daemons.pid("w1"), daemons.pid("w2")
    assert after[0] != before[0]
    assert after[1] == before[1]
    daemons.run("multi", "stopwait", "w1", "w2", *files)
    assert not any(map(is_alive, after))
    assert "does not run" in daemons.run("multi", "stop", "w1", *files)


def test_settings_stand_in_for_daemon_options_that_are_not_given(daemons: Daemons) -> None:
    place = daemons.house.place
    settings = ("beat.pidfile=%n.pid", "beat.logfile=%n.log", "beat.umask=077")
    daemons.run(
        "-A", "suite_app", "beat", "--detach", "-l", "info", "-n", "b1@%h", "--enable-remote-control", *settings
    )
    pid = daemons.pid("b1")
    assert (place / "b1.pid").stat().st_mode & 0o777 == 0o600
    told = re.search(r"remote control -> (b1@\S+)", (place / "b1.log").read_text())
    assert told is not None
    assert "b1@" in daemons.run("-A", "suite_app", "status", "-t", "60", "-d", told[1])
    said = daemons.run("-A", "suite_app", "beat", "--pidfile", "b1.pid", "--executable", "/no/such/python", code=2)
    assert f"belongs to process {pid}" in said
    assert "cannot run" in daemons.run("-A", "suite_app", "beat", "-D", "--executable", "/no/such/python", code=2)
    files = ("--pidfile", "b2.pid", "--logfile", "b2.log")
    assert "cannot run '/usr'" in daemons.run("-A", "suite_app", "beat", "-D", "--executable", "/usr", *files, code=2)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not (place / "b1.pid").exists(), 60, "its end")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_worker_becomes_another_user_wholly(daemons: Daemons, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o711)
    script = """
import os, sys
from celeriac.cli.daemon import drop_privileges
drop_privileges("nobody", None)
print(os.getresuid(), os.getresgid(), os.getgroups(), os.environ["USER"])
try:
    os.setuid(0)
except PermissionError:
    print("for good")
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("(65534, 65534, 65534) (65534, 65534, 65534) [65534] nobody")
    assert "for good" in said
    said = daemons.run("-A", "suite_app", "worker", "--uid", "nobody-here", code=2)
    assert "there is no user 'nobody-here'" in said


THREADED = """
import pathlib, threading, time
from celeriac import Celery

app = Celery("threaded", broker={url!r}, backend={url!r})

def tick():
    while True:
        pathlib.Path({ticks!r}).touch()
        time.sleep(0.05)

threading.Thread(target=tick, daemon=True).start()
"""


def test_a_daemon_has_what_importing_its_app_began_and_hup_keeps_its_process(daemons: Daemons) -> None:
    place = daemons.house.place
    (place / "threaded.py").write_text(THREADED.format(url=daemons.house.broker, ticks=str(place / "ticks")))
    (place / "inner").mkdir()
    env = {"PYTHONPATH": str(place)}
    words = ("-A", "threaded", "--workdir", "inner", "worker", "-P", "solo", "-l", "info", "--detach")
    daemons.run(*words, "--pidfile", "../w1.pid", "--logfile", "../w1.log", env=env)
    pid = daemons.pid("w1")
    for count in (1, 2):
        wait_until(lambda: (place / "w1.log").read_text().count(" ready.") == count, 60, "the worker")  # noqa: B023
        (place / "ticks").unlink(missing_ok=True)
        wait_until((place / "ticks").exists, 60, "the app's thread")
        os.kill(pid, signal.SIGHUP)
    wait_until(lambda: (place / "w1.log").read_text().count(" ready.") == 3, 60, "the worker")
    assert daemons.pid("w1") == pid
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), 60, "its end")
