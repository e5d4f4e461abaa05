"""Time limits at their three levels, deaths of children, and slots that cannot be ended, on real workers.

None of it depends on the broker: that brokers settle what is reported so is told by the tests of each.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import House, WorkerProcess, make_house, wait_until

from celeriac.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

pytestmark = pytest.mark.services


def send(house: House, task: str, *args: Any, **options: Any) -> Any:
    """Call a task of `limits_app` by name."""
    return house.app.send_task(f"limits.{task}", args, **options)


def children(worker: WorkerProcess) -> set[int]:
    """Its pool's processes."""
    listed = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text(encoding="ascii")
    return {int(pid) for pid in listed.split()}


# -- limits -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With a worker whose own limits are 1 s (soft) and 5 s (hard)."""
    made = make_house("sqlite", request, tmp_path_factory.mktemp("limited"))
    made.worker("-c", "4", "--soft-time-limit", "1", "--time-limit", "5", app="limits_app")
    yield made
    made.close()


def nap(house: House, task: str, seconds: float, **options: Any) -> Any:
    """One that no hard limit ends, which on a busy machine might come first."""
    return send(house, task, seconds, time_limit=100, **options)


def test_of_soft_limits_the_call_s_counts_then_the_task_s_then_the_worker_s(limited: House) -> None:
    by_worker, by_task = nap(limited, "nap", 60), nap(limited, "nap_own", 60)
    by_call = nap(limited, "nap_own", 60, soft_time_limit=2.8)
    by_call_alone = nap(limited, "nap_free", 60, soft_time_limit=1.0)
    assert by_worker.get(timeout=30) < 60
    assert by_task.get(timeout=30) > 1.2, "the worker's limit was not the one"
    assert by_call.get(timeout=30) > 1.8, "nor was the task's"
    assert by_call_alone.get(timeout=30) < 60


def test_of_hard_limits_the_call_s_counts_then_the_task_s_then_the_worker_s(limited: House) -> None:
    calls = [
        (5, send(limited, "work", 60)),
        (1.5, send(limited, "work_own", 60)),
        (0.9, send(limited, "work_own", 60, time_limit=0.9)),
        (3, send(limited, "work_own", 60, time_limit=3)),
    ]
    for limit_s, result in calls:
        with pytest.raises(TimeLimitExceeded) as caught:
            result.get(timeout=30)
        assert caught.value.args == (limit_s,)
    assert send(limited, "pid", soft_time_limit=100, time_limit=100).get(timeout=30)


def test_a_task_without_limits_is_free_of_the_worker_s(limited: House) -> None:
    calls = [nap(limited, "nap_free", 1.5), send(limited, "work_free", 6)]
    assert calls[1].get(timeout=30) == "had its time"
    assert calls[0].get(timeout=30) > 1.4


def test_a_soft_limit_that_nobody_catches_fails_its_task_alone(limited: House) -> None:
    result = nap(limited, "pid", 60)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=30)
    assert send(limited, "pid", soft_time_limit=100, time_limit=100).get(timeout=30)


def test_a_run_is_told_the_limits_of_its_call(limited: House) -> None:
    assert send(limited, "own_limits", time_limit=20, soft_time_limit=10).get(timeout=30) == [20, 10]


# -- deaths -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mortal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With a worker of three children, in which a call that killed one is not run again."""
    made = make_house("sqlite", request, tmp_path_factory.mktemp("mortal"))
    made.worker("-c", "3", app="limits_app")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("task", "arguments", "cause"),
    [
        ("fall", ["segfault"], "SIGSEGV"),
        ("fall", ["exit"], "exit code 7"),
        ("fall", ["abort"], "SIGABRT"),
        ("fall", ["kill"], "SIGKILL"),
        ("run_out", [], "SIGSEGV"),
    ],
    ids=["segfault", "exit", "abort", "kill", "out-of-memory"],
)
def test_a_child_s_death_is_told_of_its_own_task_and_harms_no_sibling(
    mortal: House, task: str, arguments: list[str], cause: str
) -> None:
    worker, name = mortal.workers[0], f"{task}-{'-'.join(arguments)}"
    siblings = [send(mortal, "hold", f"{name}-{number}") for number in range(2)]
    holds = [f"hold {name}-{number} " for number in range(2)]
    wait_until(lambda: all(any(line.startswith(one) for line in mortal.ran()) for one in holds), what="the siblings")
    before = children(worker)
    dying = send(mortal, task, *arguments)
    with pytest.raises(WorkerLostError, match=cause):
        dying.get(timeout=30)
    wait_until(lambda: len(children(worker)) == 3, what="a new child")
    assert len(before & children(worker)) == 2, "only one of them died"
    assert send(mortal, "pid").get(timeout=30) not in before
    mortal.release(f"{name}-0", f"{name}-1")
    assert [sibling.get(timeout=30) for sibling in siblings] == [f"{name}-0", f"{name}-1"]
    lines = [line.split() for line in mortal.ran() if f" {name}-" in line]
    assert len(lines) == 4, "each sibling ran once"
    assert {line[2] for line in lines} <= {str(pid) for pid in before}


def test_a_child_killed_from_outside_is_told_of_the_task_it_ran(mortal: House) -> None:
    victim, sibling = send(mortal, "hold", "victim"), send(mortal, "hold", "sibling")
    wait_until(lambda: {"victim", "sibling"} <= {line.split()[1] for line in mortal.ran()}, what="both")
    pid = next(int(line.split()[2]) for line in mortal.ran() if line.startswith("hold victim"))
    os.kill(pid, signal.SIGKILL)  # as the kernel does when the machine is out of memory
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        victim.get(timeout=30)
    mortal.release("sibling")
    assert sibling.get(timeout=30) == "sibling"


def test_a_task_that_wants_too_much_memory_fails_and_its_child_lives_on(mortal: House) -> None:
    worker = mortal.workers[0]
    wait_until(lambda: len(children(worker)) == 3, what="all children")
    before = children(worker)
    with pytest.raises(MemoryError):
        send(mortal, "devour", 1024, 64).get(timeout=30)
    assert send(mortal, "devour", 1, 64).get(timeout=30) == 1 << 20
    assert children(worker) == before


def test_a_child_that_has_grown_ends_its_task_and_is_replaced_after_it(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-c", "1", "--max-memory-per-child", "250000", app="limits_app")
    (first,) = children(worker)
    assert send(sqlite_house, "pid").get(timeout=30) == first
    assert send(sqlite_house, "grow", 300).get(timeout=30) == first
    assert send(sqlite_house, "pid").get(timeout=30) != first
    wait_until(lambda: first not in children(worker), what="the end of the grown child")
    (second,) = children(worker)
    assert {send(sqlite_house, "pid").get(timeout=30) for _ in range(5)} == {second}


# -- slots that cannot be ended -----------------------------------------------------------------------------


def test_a_thread_beyond_its_hard_limit_is_told_of_once_and_works_on(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-P", "threads", "-c", "3", app="limits_app")
    result = send(sqlite_house, "work", 4.0, time_limit=0.5)
    worker.wait_for(f"limits.work[{result.id}] runs beyond its hard time limit of 0.5 s")
    assert send(sqlite_house, "pid").get(timeout=30) == worker.pid
    assert result.get(timeout=30) == "had its time"
    assert worker.log.count("its slot is stuck") == 1
    assert worker.stop() == 0


def test_with_half_its_threads_stuck_a_worker_makes_room_for_a_new_one(sqlite_house: House) -> None:
    options = ("-P", "threads", "-c", "2", "worker.recycle_stuck=true")
    worker = sqlite_house.worker(*options, app="limits_app")
    busy = send(sqlite_house, "hold", "busy")
    wait_until(lambda: sqlite_house.ran(), what="the other task")
    stuck = send(sqlite_house, "work", 600, time_limit=0.5)
    worker.wait_for("1 of 2 slots are stuck")
    worker.wait_for("Stopping")
    with pytest.raises(TimeLimitExceeded):
        stuck.get(timeout=30)
    later = send(sqlite_house, "pid")
    assert worker.process.poll() is None, "it waits for the task that is in time"
    sqlite_house.release("busy")
    assert busy.get(timeout=30) == "busy"
    assert worker.process.wait(60) == 4
    assert "0 given up while they ran" in worker.log
    other = sqlite_house.worker(*options, app="limits_app")
    assert later.get(timeout=30) == other.pid


def test_a_solo_worker_that_is_stuck_ends_and_its_message_is_another_s(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-P", "solo", "-c", "1", "worker.recycle_stuck=true", app="limits_app")
    result = send(sqlite_house, "work", 600, time_limit=0.3)
    worker.wait_for("runs beyond its hard time limit of 0.3 s")
    assert worker.process.wait(60) == 4
    sqlite_house.worker(app="limits_app")
    with pytest.raises(WorkerLostError):
        result.get(timeout=30)
