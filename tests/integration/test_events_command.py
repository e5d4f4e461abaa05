"""`celeriac events` as people run it: the table in a terminal with all its keys, cameras and dumps as daemons."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import wait_until
from tests.integration.fleet import APPS, Fleet, make_fleet

from celeriac.cli.group import run

WAIT_S = 60.0
KEY_DOWN = b"\x1bOB"
REDRAW = b"\x0c"


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """On SQLite, with one worker that tells about tasks."""
    fleet = make_fleet("sqlite", request, tmp_path_factory.mktemp("events"))
    try:
        fleet.worker("w1", "-P", "solo", "-E", "--prefetch-multiplier", "9", "--disable-prefetch")
        yield fleet
    finally:
        fleet.close()


def send(fleet: Fleet, task: str, *args: object) -> str:
    result = fleet.app.send_task(f"control.{task}", args)
    result.get(timeout=WAIT_S, propagate=False)
    return str(result.id)


def test_a_worker_that_is_not_to_prefetch_holds_what_it_runs(fleet: Fleet) -> None:
    stats = fleet.app.control.inspect(["w1@here"], timeout=WAIT_S, limit=1).stats()
    assert stats["w1@here"]["prefetch_count"] == 1


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, fleet: Fleet, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        env = {**fleet.env("celeriac"), "TERM": "xterm", "LINES": "40", "COLUMNS": "140"}
        command = [fleet.command("celeriac"), "-A", "control_app", *words]
        self.process = subprocess.Popen(
            command, cwd=fleet.place, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self) -> str:
        """What has been written since the last time, without the terminal's own words."""
        shown = b""
        while select.select([self._ours], [], [], 0.2)[0]:
            try:
                shown += os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                break
        return re.sub(r"\x1b(\[[?0-9;]*[a-zA-Z]|\(B|[=>])", " ", shown.decode(errors="replace"))

    def wait_for(self, *texts: str) -> str:
        """Have all drawn anew until these are there."""
        page = ""
        deadline = time.monotonic() + WAIT_S
        while not all(text in page for text in texts):
            assert self.process.poll() is None, page
            assert time.monotonic() < deadline, f"{texts} never came:\n{page}"
            self.type(REDRAW)
            page = self.read()
        return page

    def insist(self, keys: bytes, *texts: str) -> str:
        """Type until these are there: a worker that answers later than in a second is not waited for."""
        deadline = time.monotonic() + WAIT_S
        while True:
            self.type(keys)
            for _ in range(10):
                self.type(REDRAW)
                page = self.read()
                if all(text in page for text in texts):
                    return page
                assert time.monotonic() < deadline, f"{texts} never came:\n{page}"

    def wait(self) -> int:
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self.read()
        return self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        os.close(self._ours)


@pytest.fixture
def monitor(fleet: Fleet) -> Iterator[Terminal]:
    terminal = Terminal(fleet, "events")
    yield terminal
    terminal.close()


def test_the_table_obeys_all_its_keys(fleet: Fleet, monitor: Terminal) -> None:
    monitor.wait_for("1 workers", "w1@here")
    failed = send(fleet, "boom", "no luck today")
    monitor.wait_for(failed, "FAILURE")
    monitor.type(b"r")
    monitor.wait_for("result: ValueError('no luck today')")
    monitor.type(b"t")
    monitor.wait_for("Traceback (most recent call last)", "control_app.py")
    monitor.type(b"i")
    monitor.wait_for(f"uuid: {failed}", "name: control.boom")
    added = send(fleet, "add", 20, 22)
    monitor.wait_for(added, "SUCCESS")
    # The newest stands first, and the choice has stayed where it was.
    monitor.type(b"k")
    monitor.type(b"r")
    monitor.wait_for("result: 42")
    for down, up in ((b"j", b"k"), (KEY_DOWN, b"k")):
        monitor.type(down)
        monitor.type(b"r")
        monitor.wait_for("result: ValueError('no luck today')")
        monitor.type(up)
        monitor.type(b"r")
        monitor.wait_for("result: 42")
    monitor.insist(b"l7/m\n", "w1@here: {'ok': 'new rate limit set successfully'}")
    monitor.insist(b"c", f"w1@here: {{'ok': 'tasks {added} flagged as revoked'}}")
    monitor.type(b"?")
    monitor.wait_for("Ctrl-L: draw all anew", "l: how many of its kind")
    monitor.type(b"?q")
    assert monitor.wait() == 0


def test_a_table_without_a_broker_says_why_when_the_terminal_is_a_terminal_again(fleet: Fleet) -> None:
    terminal = Terminal(fleet, "-b", "redis://127.0.0.1:1/0", "events")
    try:
        page = ""
        while terminal.process.poll() is None or not page:
            page += terminal.read()
        page += terminal.read()
        assert terminal.process.wait(WAIT_S) == 69
        assert "127.0.0.1:1" in page
    finally:
        terminal.close()


def start_daemon(fleet: Fleet, name: str, *words: str, **env: str) -> int:
    """Start `celeriac events` in the background; returns its pid."""
    done = subprocess.run(
        [fleet.command("celeriac"), "-A", "control_app", "events", "--detach", f"--pidfile={name}.pid", *words],
        cwd=fleet.place, env=fleet.env("celeriac", **env), capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    return int((fleet.place / f"{name}.pid").read_text())


def end_daemon(fleet: Fleet, name: str, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not (fleet.place / f"{name}.pid").exists(), WAIT_S, "the end of the daemon")


def test_a_camera_is_a_daemon_that_takes_pictures_until_it_is_told_to_end(fleet: Fleet, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    files = ("--logfile=%n-%i%I.log", "--umask=077", "--executable", sys.executable)
    words = ("--camera", "camera.Camera", "--freq", "0.2", "--maxrate", "100/s", "-l", "info", *files)
    pid = start_daemon(fleet, "camera", *words, CAMERA_FILE=str(pictures))
    try:
        task_id = send(fleet, "add", 1, 2)

        def taken() -> list[dict[str, object]]:
            whole_lines = pictures.read_text().split("\n")[:-1] if pictures.exists() else []
            return [json.loads(line) for line in whole_lines]

        def states() -> set[object]:
            return {shot["tasks"].get(task_id) for shot in taken()}  # type: ignore[attr-defined]

        wait_until(lambda: "SUCCESS" in states(), WAIT_S, "a picture of the task")
        wait_until(lambda: any(shot["workers"] == ["w1@here"] for shot in taken()), WAIT_S, "a picture of the worker")
        wait_until(lambda: not taken()[-1]["tasks"], WAIT_S, "what has ended is forgotten after a picture")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert command[:3] == [sys.executable.encode(), b"-m", b"celeriac"]
        assert pictures.stat().st_mode & 0o777 == 0o600
        assert (fleet.place / "celeryev-0.log").exists()
    finally:
        end_daemon(fleet, "camera", pid)
    assert "Traceback" not in (fleet.place / "celeryev-0.log").read_text()


def test_a_dump_is_a_daemon_that_writes_to_its_log_file(fleet: Fleet) -> None:
    pid = start_daemon(fleet, "dump", "--dump", "--json", "--logfile=events.jsonl")
    try:
        task_id = send(fleet, "add", 1, 2)

        def told() -> bool:
            whole_lines = (fleet.place / "events.jsonl").read_text().split("\n")[:-1]
            events = map(json.loads, whole_lines)
            return any((event["type"], event.get("uuid")) == ("task-succeeded", task_id) for event in events)

        wait_until(told, WAIT_S, "its event in the file")
    finally:
        end_daemon(fleet, "dump", pid)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--detach",), "the table needs a terminal"),
        (("--camera", "nowhere.Camera"), "there is no class 'nowhere.Camera'"),
        (("--camera", "camera.Camera", "--maxrate", "often"), "--maxrate"),
        ((), "The table needs a terminal"),
    ],
)
def test_what_makes_no_sense_is_refused(
    fleet: Fleet, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(APPS)
    monkeypatch.setattr("celeriac.cli.events.set_up_log", lambda *words: True)  # this process has one
    assert run(["events", *words], fleet.app) == 2
    assert said in capsys.readouterr().err
