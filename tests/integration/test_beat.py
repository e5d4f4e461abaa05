"""`celeriac beat`, `worker -B` and `celeriac schedule` as processes, and the page about them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import stop_until

from celeriac import Celery
from celeriac.testing.services import PostgresService

PROGRAM = Path(sys.executable).parent / "celeriac"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "periodic-tasks.md"
WAIT_S = 90.0
APP = """
import os
from celeriac import Celery
from celeriac.beat import PersistentScheduler
app = Celery("proj", broker=os.environ["BROKER"], backend=os.environ.get("RESULTS"), beat_schedule={
    "second": {"task": "proj.note", "schedule": 1.0, "options": {"queue": "notes"}},
})

class Brisk(PersistentScheduler):
    # The place of who was killed is free after a part of the usual time.
    lease_s, margin_s, follow_s = 6.0, 1.5, 0.5

class InTheDatabase(PersistentScheduler):
    lease_s, margin_s, follow_s = 4.0, 1.0, 0.5

    def __init__(self, app, **words):
        super().__init__(app, state=app.backend.plugin.state(), **words)

@app.task
def note(text="tick"):
    with open("notes.txt", "a") as file:
        print(text, file=file)
"""


class Place:
    """A folder with the app, and what runs in it."""

    def __init__(self, folder: Path, url: str, stack: ExitStack, results: str = "") -> None:
        self.folder, self.url, self.stack = folder, url, stack
        (folder / "proj.py").write_text(APP)
        self.env = {**os.environ, "BROKER": url, "RESULTS": results, "PYTHONPATH": str(folder)}

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        log = self.stack.enter_context((self.folder / f"log-{time.monotonic_ns()}").open("wb"))
        process = subprocess.Popen(
            [PROGRAM, "-A", "proj", *words], cwd=self.folder, env=self.env, stdout=log, stderr=log
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def run(self, *words: str, code: int = 0) -> str:
        ran = subprocess.run(
            [PROGRAM, "-A", "proj", *words], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert ran.returncode == code, ran.stderr
        return ran.stdout + ran.stderr

    def ids(self, least: int, queue: str = "notes") -> list[str]:
        """Ids of all that waits in a queue, which are so many or more; it is left empty."""
        app = Celery("look", broker=self.url, set_as_current=False)
        found, transport = [], app.transport
        try:
            from celeriac.spec import QueueSpec
            from celeriac.testing.kit import Bench

            consumer = transport.consumer([QueueSpec(queue)], owner="look@here", poller=Bench(), window=1000)
            ends = time.monotonic() + 1.5
            while time.monotonic() < (ends if len(found) >= least else ends + WAIT_S):
                for delivery in consumer.receive(1000):
                    found.append(str(transport.unpack(delivery.raw).headers["id"]))
                time.sleep(0.02)
            consumer.close()
        finally:
            app.close()
        return found


MakePlace = Callable[..., Place]


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[MakePlace]:
    with ExitStack() as stack:
        yield lambda url, results="": Place(tmp_path, url, stack, results)


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def depth_reaches(place: Place, count: int, queue: str = "notes") -> None:
    app = Celery("depth", broker=place.url, set_as_current=False)
    wait_for(lambda: app.transport.depth(queue) >= count)
    app.close()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'broker.db'}"
    return str(request.getfixturevalue("redis_url"))


def test_of_two_beats_one_sends_and_the_other_goes_on_when_it_is_killed(make_place: MakePlace, url: str) -> None:
    place = make_place(url)
    beats = [place.start("beat", "-l", "info", "-S", "proj:Brisk") for _ in range(2)]
    depth_reaches(place, 3)
    leaders = wait_for(lambda: [beat for beat in beats if _leads(place, beat)])
    assert len(leaders) == 1
    leaders[0].kill()
    place.ids(3)
    depth_reaches(place, 2)  # within lease and a few seconds, by the other
    rest = [beat for beat in beats if beat is not leaders[0]]
    rest[0].send_signal(signal.SIGTERM)
    assert rest[0].wait(WAIT_S) == 0
    ids = place.ids(2)
    assert max(Counter(ids).values()) == 1
    place.start("beat")  # the place of who ended as it should is free at once
    depth_reaches(place, 1)


def _leads(place: Place, beat: subprocess.Popen[bytes]) -> bool:
    # The owner's name has no pid, so the log is asked: the process that wrote `beat.leads`, and not yet that it does no
    # more, for one that was kept waiting for longer than its lease leaves the lead to the other.
    log = _log_of(beat)
    return log.count("beat.leads_no_more") * 2 < log.count("beat.leads")


def _log_of(beat: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{beat.pid}/fd/2").resolve().read_text(errors="replace")


def test_people_change_what_running_beats_do(make_place: MakePlace, tmp_path: Path) -> None:
    place = make_place(f"sqlite:///{tmp_path / 'broker.db'}")
    place.start("worker", "-B", "-P", "solo", "-Q", "notes,celery", "-l", "info")
    notes = tmp_path / "notes.txt"
    wait_for(lambda: notes.exists() and notes.read_text().count("tick") >= 2)
    place.run("schedule", "pause", "second")
    place.run("schedule", "add", "hand", "proj.note", "--every", "1", "--args", '["by hand"]')
    wait_for(lambda: notes.read_text().count("by hand") >= 2)

    def rows() -> dict[str, Any]:
        return {row["name"]: row for row in json.loads(place.run("schedule", "list", "--json"))}

    wait_for(lambda: rows()["hand"]["sent"] >= 2)  # it is written down after it was sent
    assert rows()["second"]["paused"]
    assert rows()["hand"]["live"]
    assert rows()["second"]["sent"] >= 2
    assert "hand: proj.note" in place.run("schedule", "list")
    before = notes.read_text().count("tick")
    assert re.fullmatch(r"[0-9a-f-]{36}", place.run("schedule", "trigger", "second").strip())
    wait_for(lambda: notes.read_text().count("tick") > before)
    place.run("schedule", "remove", "hand")
    place.run("schedule", "resume", "second")
    again = notes.read_text().count("tick")
    wait_for(lambda: notes.read_text().count("tick") >= again + 2)
    assert "There is no periodic task 'hnad'" in place.run("schedule", "pause", "hnad", code=2)
    assert "own beat_schedule" in place.run("schedule", "remove", "second", code=2)
    assert "minute" in place.run("schedule", "add", "x", "proj.note", "--crontab", "99 * * * *", code=2)


@pytest.mark.parametrize(
    ("results", "file"), [("", "celeriacbeat-schedule"), ("db+sqlite:///results.db", "results.db")]
)
def test_on_rabbitmq_what_was_sent_is_noted_in_a_file_or_the_results_database(
    make_place: MakePlace, amqp_url: str, tmp_path: Path, results: str, file: str
) -> None:
    place = make_place(amqp_url, results)
    for _ in range(2):
        place.start("beat", "-l", "info")
    depth_reaches(place, 3)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    noted = sorted(path.name for path in files if path.read_bytes().startswith(b"SQLite format 3"))
    assert noted == [file]
    ids = place.ids(3)
    assert len(ids) == len(set(ids))
    assert "second: proj.note" in place.run("schedule", "list")


def test_two_beats_on_one_database_take_turns(
    make_place: MakePlace, postgres_service: PostgresService, tmp_path: Path
) -> None:
    place = make_place(f"sqlite:///{tmp_path / 'broker.db'}", f"db+{postgres_service.fresh_url()}")
    beats = [place.start("beat", "-l", "info", "-S", "proj:InTheDatabase") for _ in range(2)]
    depth_reaches(place, 2)
    (leader,) = wait_for(lambda: [beat for beat in beats if _leads(place, beat)])
    (other,) = [beat for beat in beats if beat is not leader]
    # It will not know that its lease has run out.
    stop_until(lambda: _leads(place, other), leader.send_signal, "the other leads")
    place.ids(2)
    leader.send_signal(signal.SIGCONT)
    wait_for(lambda: "beat.leads_no_more" in _log_of(leader))
    depth_reaches(place, 2)
    other.send_signal(signal.SIGTERM)
    assert other.wait(WAIT_S) == 0
    ids = place.ids(2)
    assert max(Counter(ids).values()) == 1


def test_the_pages_examples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module: dict[str, Any] = {"__name__": "proj"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(block, module)
    app = module["app"]
    from celeriac.beat import Scheduler

    entries = Scheduler(app).schedule
    assert {"every half minute", "on weekday mornings", "at four"} <= set(entries)
    assert entries["on weekday mornings"].options == {"queue": "reports", "expires": 600}
    assert entries["on weekday mornings"].catch_up.how == "skip"
    assert entries["at four"].task == "proj.report"
    app.close()
