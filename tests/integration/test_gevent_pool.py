"""The gevent pool in real workers: `-P gevent` patches first of all, and greenlets have limits and can be ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from tests.integration.conftest import House, make_house, wait_until

from celeriac.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celeriac.result import ResultSet

pytestmark = pytest.mark.services


@pytest.fixture(scope="module", params=["sqlite", "redis"], ids=str)
def green(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With a worker of 500 greenlets."""
    place = tmp_path_factory.mktemp("green")
    if request.param == "redis":
        url = request.getfixturevalue("redis_service").fresh_url()
        made = House(place, url, url)
    else:
        made = make_house(request.param, request, place)
    made.worker("-P", "gevent", "-c", "500", SUITE_CRASHES="1")
    yield made
    made.close()


def test_a_thousand_sleep_in_one_process(green: House) -> None:
    begun = time.monotonic()
    results = [green.send("sleep", 1.0, "here") for _ in range(1000)]
    assert ResultSet(results).get(timeout=100) == ["here"] * 1000
    assert time.monotonic() - begun < 100  # one after the other: 1,000 s
    pids = {green.send("pid").get(timeout=30) for _ in range(3)}
    assert len(pids) == 1
    assert pids != {green.workers[0].pid}


def test_limits_and_revoking_end_one_that_waits_and_one_that_computes(green: House) -> None:
    soft = [green.send("sleep", 60, soft_time_limit=0.3), green.send("spin", 60, soft_time_limit=0.3)]
    for result in soft:
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(timeout=30)
    hard = [green.send("sleep", 60, time_limit=0.3), green.send("spin", 60, time_limit=0.3)]
    for result in hard:
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=30)
    for task in ("sleep", "spin"):
        victim = green.send(task, 60, f"victim-{task}")
        wait_until(lambda task=task: any(f"victim-{task}" in line for line in green.ran()), what="the victim")
        victim.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            victim.get(timeout=30)
    assert green.send("add", 1, 2).get(timeout=30) == 3


def test_coroutines_and_calls_within_tasks_go_on_beside_them(green: House) -> None:
    naps = [green.send("anap", 0.5) for _ in range(20)]
    limited = green.send("anap", 60, soft_time_limit=0.3)
    ended = green.send("anap", 60, time_limit=0.3)
    inner = [green.send("join_in_task", number) for number in range(10)]
    assert green.send("shell", "sleep 0.2; echo done").get(timeout=30) == "done\n"
    assert ResultSet(naps).get(timeout=60) == ["slept"] * 20
    assert [result.get(timeout=60) for result in inner] == [number + 1 for number in range(10)]
    with pytest.raises(SoftTimeLimitExceeded):
        limited.get(timeout=30)
    with pytest.raises(TimeLimitExceeded):
        ended.get(timeout=30)


def test_a_crash_costs_what_ran_in_the_process_and_not_the_worker(green: House) -> None:
    with pytest.raises(WorkerLostError, match="SIGSEGV"):
        green.send("die", "segfault").get(timeout=30)
    assert green.send("add", 2, 3).get(timeout=30) == 5
    assert green.send("shell", "echo again").get(timeout=30) == "again\n"
    assert green.workers[0].process.poll() is None


def test_it_stops_warmly_and_then_coldly(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-P", "gevent", "-c", "10")
    short, long = sqlite_house.send("sleep", 1.5, "short"), sqlite_house.send("sleep", 600, "long")
    wait_until(lambda: len(sqlite_house.ran()) == 2, what="both")
    worker.send(signal.SIGTERM)
    worker.wait_for("finishing running tasks")  # it has heard the first, so the second is one
    assert short.get(timeout=30) == "short"
    assert worker.process.poll() is None
    worker.send(signal.SIGTERM)
    assert worker.process.wait(60) == 1
    assert long.state == "PENDING"
    other = sqlite_house.worker("-P", "gevent", "-c", "10")
    wait_until(lambda: len([line for line in sqlite_house.ran() if "long" in line]) == 2, what="the other run")
    os.kill(other.pid, signal.SIGKILL)


def test_one_that_is_not_named_on_the_command_line_says_what_to_do(sqlite_house: House) -> None:
    worker = sqlite_house.worker("worker.pool=gevent", ready=False)
    worker.wait_for("was not patched before the program was imported")
    assert worker.process.wait(60) != 0
    assert "-P gevent" in worker.log
