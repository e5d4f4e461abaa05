"""The process that renews a worker's lease while the worker cannot: when it does, when it does not, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.testing.kit import eventually
from celeriac.worker.standin import StandIn, describe, make_stand_in
from celeriac.worker.standin_process import state_of

PLUGIN = """
import os
class Toy:
    def __init__(self, place):
        self.place = place
        if os.path.exists(place + ".away"):
            raise ConnectionError
    def renew(self):
        with open(self.place, "a") as file:
            file.write("x")
"""
#: A worker that is told what to do by lines.
WORKER = """
import sys
from types import SimpleNamespace
from celeriac.worker.standin import StandIn
sys.path.append(sys.argv[1])
stand_in = StandIn(60.0)
consumer = SimpleNamespace(stand_in=lambda: ("toy:Toy", {"place": sys.argv[2]}))
stand_in.keep(consumer, 0.05)
print(stand_in.pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "renewals"


def renewals(place: Path) -> int:
    return place.stat().st_size if place.exists() else 0


def consumer(place: Path) -> Any:
    return SimpleNamespace(stand_in=lambda: ("toy:Toy", {"place": str(place)}))


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    made = StandIn(60.0)
    yield made
    made.stop()
    assert made.pid is None


def is_quiet(place: Path) -> bool:
    """Nothing is renewed in some time in which much would be."""
    before = renewals(place)
    try:
        eventually(lambda: renewals(place) > before, 0.5)
    except AssertionError:
        return True
    return False


def test_it_renews_while_the_worker_is_silent_and_no_longer(place: Path, stand_in: StandIn) -> None:
    (place.parent / "renewals.away").touch()
    stand_in.keep(consumer(place), 0.05)
    (place.parent / "renewals.away").unlink()  # a store that is away for a moment costs a moment
    eventually(lambda: renewals(place) >= 2)
    stand_in.drop()
    eventually(lambda: is_quiet(place))
    stand_in.keep(consumer(place), 3600.0)
    stand_in.renewed()
    eventually(lambda: is_quiet(place))  # the worker had just renewed


def test_one_that_died_is_replaced_with_the_next_renewal(place: Path, stand_in: StandIn) -> None:
    stand_in.keep(consumer(place), 0.05)
    assert stand_in.pid is not None
    os.kill(stand_in.pid, signal.SIGKILL)
    eventually(lambda: stand_in.pid is None)
    before = renewals(place)
    stand_in.renewed()
    eventually(lambda: renewals(place) > before)
    assert describe(stand_in)["stand_in"]["rss_kib"] > 0


def test_a_worker_that_stays_silent_for_too_long_is_given_up(place: Path) -> None:
    stand_in = StandIn(0.4)
    try:
        for _ in range(2):
            # Again, if the process was so slow that it took the worker for silent for too long at once.
            eventually(lambda: stand_in.keep(consumer(place), 0.05) or not is_quiet(place))
            eventually(lambda: is_quiet(place))
    finally:
        stand_in.stop()


def test_it_does_nothing_for_a_stopped_worker_and_ends_with_a_dead_one(place: Path) -> None:
    words = [sys.executable, "-c", WORKER, str(place.parent), str(place)]
    worker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        eventually(lambda: renewals(place))
        worker.send_signal(signal.SIGSTOP)
        eventually(lambda: is_quiet(place))
        before = renewals(place)
        worker.send_signal(signal.SIGCONT)
        eventually(lambda: renewals(place) > before)
    finally:
        worker.kill()
        worker.communicate()
    eventually(lambda: state_of(pid) in b"ZX")


def test_only_a_worker_that_runs_tasks_in_its_own_process_has_one() -> None:
    assert make_stand_in(frozenset({"processes"}), 60.0) is None
    assert make_stand_in(frozenset(), 0.0) is None
    made = make_stand_in(frozenset({"stuck"}), 60.0)
    assert made is not None
    made.keep(SimpleNamespace(), 1.0)  # type: ignore[arg-type]  # of a transport that knows nothing of it
    assert made.pid is None
    assert describe(made) == {}


def test_a_plugin_that_cannot_say_how_costs_a_line_in_the_log(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.keep(SimpleNamespace(stand_in=lambda: 1 / 0), 1.0)  # type: ignore[arg-type]
    assert "cannot be kept by another process" in caplog.text
    assert stand_in.pid is None
