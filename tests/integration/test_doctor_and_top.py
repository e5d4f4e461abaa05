"""`celeriac doctor` and `celeriac top` beside real workers: ours, and an old one of Celery that stores nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.fleet import Fleet, make_fleet

from celeriac.cli.checkup import look_at_settings
from celeriac.cli.fleet import look_at_workers

CELERIAC = str(Path(sys.executable).parent / "celeriac")


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A worker of ours on the embedded broker."""
    fleet = make_fleet("sqlite", request, tmp_path_factory.mktemp("top"))
    try:
        fleet.worker("ours", "-P", "threads", "-c", "2", "-E")
        yield fleet
    finally:
        fleet.close()


def test_a_doctor_finds_nothing_wrong_with_a_worker_of_the_same_app(fleet: Fleet) -> None:
    for wait_s in ("2", "10", "50"):  # it waits all that time for workers, which on a busy machine may need it
        done = fleet.run("celeriac", "doctor", "--json", "--wait", wait_s, timeout_s=100)
        if "No worker answered" not in done.stdout:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    sections = {section["title"]: section for section in json.loads(done.stdout)["sections"]}
    assert list(sections) == ["settings", "plugins", "broker", "results", "workers"]
    assert sections["workers"]["findings"] == []
    assert sections["workers"]["facts"][0].startswith("ours@here: celeriac 0.1.0, ThreadsPool 2, queues controlled, ")


def test_top_shows_for_programs_what_runs_and_what_has_run(fleet: Fleet) -> None:
    fleet.app.send_task("control.nap", (900,))
    for number in range(5):
        fleet.app.send_task("control.add", (number, 1)).get(timeout=30)
    for wait_s in ("2", "10", "40"):  # as above
        done = fleet.run("celeriac", "top", "--once", "-i", "0.5", "-t", wait_s, "-Q", "controlled,empty", "--json")
        if done.returncode == 0:
            break
    found = json.loads(done.stdout)
    (worker,) = found["workers"]
    assert (worker["name"], worker["slots"], worker["pool"]) == ("ours@here", 2, "threads")
    assert worker["done"] >= 5
    assert worker["done_per_s"] is not None
    assert {queue["name"]: queue["workers"] for queue in found["queues"]} == {"controlled": 1, "empty": 0}
    tasks = {task["name"]: task for task in found["tasks"]}
    assert tasks["control.nap"]["running"] == 1
    assert tasks["control.add"]["done"] >= 5


def test_top_without_a_worker_ends_with_69(fleet: Fleet, tmp_path: Path) -> None:
    words = ["-b", f"sqlite:///{tmp_path}/nobody.db", "top", "--once", "-i", "0.2", "-t", "0.2"]
    done = fleet.run("celeriac", *words)
    assert done.returncode == 69
    assert "0 workers" in done.stdout


def test_the_live_page_wants_a_terminal(fleet: Fleet) -> None:
    done = fleet.run("celeriac", "top")
    assert done.returncode == 2
    assert "--once" in done.stderr


def test_the_live_page_is_drawn_on_a_terminal_and_ends_with_q(fleet: Fleet) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [CELERIAC, "-A", "control_app", "top", "-i", "0.5", "-t", "2"],
            cwd=fleet.place, env={**fleet.env("celeriac"), "TERM": "xterm", "LINES": "40", "COLUMNS": "100"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + 60
        while not (b"ours@here" in shown and shown.count(b"Workers") > 1):
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 65536)
        assert b"\x1b[?1049h" in shown, "it has a screen of its own"
        os.write(ours, b"q")
        while process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # the other side is closed
                    break
        assert process.wait(30) == 0
        assert b"controlled" in shown
    finally:
        os.close(ours)


@pytest.mark.services
@pytest.mark.slow
def test_the_doctor_names_the_old_worker_that_eats_the_queue_and_stores_nothing(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fleet = make_fleet("redis", request, tmp_path)
    try:
        fleet.worker("old", "-P", "solo", library="celery", CONTROL_BACKEND="disabled://")
        app = fleet.app

        @app.task(name="client.only")
        def only() -> None: ...

        _, facts = look_at_settings(app, ())
        assert facts is not None
        for wait_s in (3.0, 10.0, 40.0):  # as above
            section = look_at_workers(app, facts, wait_s)
            found = {rule: finding for rule, finding in section.findings if rule != "other-version"}
            if "no-worker" not in found:
                break
        assert set(found) == {"worker-without-results", "worker-without-tasks"}, section
        told = found["worker-without-results"]
        assert told.level == "error"
        assert told.text.startswith("old@here (Celery 5.")
        assert "consumes controlled and stores no result" in told.text
        assert "does not know client.only" in found["worker-without-tasks"].text
    finally:
        fleet.close()
