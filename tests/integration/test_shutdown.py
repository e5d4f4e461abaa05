"""A worker's end under load and under many signals; the long version is `benchmarks/shutdown.py`."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import pytest
from tests.integration.conftest import House, wait_until

from celeriac.exceptions import WorkerLostError

pytestmark = pytest.mark.services

ROUNDS = 5


def names(house: House, word: str) -> Counter[str]:
    return Counter(line.split()[1] for line in house.ran() if line.startswith(word))


def test_term_under_load_loses_nothing_and_runs_nothing_twice(house: House) -> None:
    sent = {f"n{n}" for n in range(ROUNDS * 20)}
    for name in sorted(sent):
        house.send("sleep", 0.05, name, ignore_result=True)
    for round in range(ROUNDS):
        before = len(house.ran())
        worker = house.worker("-c", "3")
        wait_until(
            lambda before=before: len(house.ran()) > before or len(names(house, "end")) == len(sent), what="a task"
        )
        time.sleep(0.03 * round)
        assert worker.stop() == 0
        assert "0 given up" in worker.log
        assert names(house, "start") == names(house, "end"), "one was cut short"
    last = house.worker("-c", "3")
    wait_until(lambda: set(names(house, "end")) == sent, 60, "all of them")
    assert last.stop() == 0
    assert set(names(house, "end").values()) == {1}, "one ran twice"


def test_a_storm_of_signals_ends_in_time_and_loses_nothing(sqlite_house: House) -> None:
    house, rng = sqlite_house, random.Random(7)
    for n in range(20):
        house.send("sleep", 0.2, f"n{n}", ignore_result=True)
    for _ in range(3):
        before = len(house.ran())
        worker = house.worker("-c", "2")
        wait_until(lambda before=before: len(house.ran()) > before, what="a task")
        begun = time.monotonic()
        while worker.process.poll() is None and time.monotonic() < begun + 60:
            worker.send(rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP]))
            time.sleep(0.01)
        # A HUP at first and nothing after it may have begun it anew; one that boots ends by any signal.
        assert worker.process.poll() is not None
        assert "Traceback" not in worker.log.partition("Stopped")[0]
    house.worker("-c", "2")
    wait_until(lambda: len(names(house, "end")) == 20, 60, "all of them")


def test_hup_runs_the_same_command_anew_in_the_same_process(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-c", "1")
    running = sqlite_house.send("sleep", 0.5, "running")
    wait_until(lambda: sqlite_house.ran(), what="the task's start")
    child = int(sqlite_house.ran()[0].split()[2])
    worker.send(signal.SIGHUP)
    wait_until(lambda: worker.log.count(" ready.") == 2, 60, "the new worker")
    assert running.get(timeout=30) == "running", "it was let end first"
    assert sqlite_house.send("pid").get(timeout=30) != child
    assert worker.process.poll() is None
    assert worker.stop() == 0, "a TERM still ends the new one"


def test_usr1_shows_where_every_thread_is_and_harms_nothing(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-c", "1")
    worker.send(signal.SIGUSR1)
    worker.wait_for("Current thread")
    assert "celeriac/worker/consumer.py" in worker.log
    assert sqlite_house.send("add", 1, 1).get(timeout=30) == 2
    assert worker.stop() == 0


def test_remap_sigterm_makes_term_cold(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-c", "1", REMAP_SIGTERM="SIGQUIT")
    sqlite_house.send("hold", "for-ever")
    wait_until(lambda: sqlite_house.ran(), what="the task's start")
    assert worker.stop() == 1
    assert "1 given up" in worker.log


def test_a_cold_stop_stores_the_failure_of_what_cannot_be_run_again(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-c", "1")
    result = sqlite_house.send("early", 30, "once")
    wait_until(lambda: "early once" in sqlite_house.ran(), what="the early task")
    assert worker.stop(signal.SIGQUIT) == 1
    with pytest.raises(WorkerLostError, match="told to stop"):
        result.get(timeout=30)
    assert not os.path.exists(f"/proc/{worker.pid}")


def test_hup_goes_to_the_working_folder_from_where_the_process_began(sqlite_house: House) -> None:
    inner = sqlite_house.place / "inner"
    inner.mkdir()
    worker = sqlite_house.worker("-c", "1", "--workdir", "inner", "--ready-file", "ready")
    wait_until((inner / "ready").exists, 60, "the ready file")
    worker.send(signal.SIGHUP)
    wait_until(lambda: worker.log.count(" ready.") == 2, 60, "the new worker")
    wait_until((inner / "ready").exists, 60, "the new ready file")
    assert worker.stop() == 0
