"""A real worker on each broker: what its users see of results, errors, retries, states, times and deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import pytest
from tests.integration.conftest import CELERIAC, House, wait_until

from celeriac import chain, group
from celeriac.exceptions import TaskRevokedError, TimeLimitExceeded, TimeoutError, WorkerLostError
from celeriac.result import ResultSet

pytestmark = pytest.mark.services

#: A busy machine is seldom later than that, and hardly three times.
LATE_S = 10.0


def test_calls_come_back_with_values_and_errors(house: House) -> None:
    house.worker()
    assert house.send("add", 2, 3).get(timeout=30) == 5
    assert house.send("echo", "ä", None, [1.5, {"k": "v"}]).get(timeout=30) == [["ä", None, [1.5, {"k": "v"}]], {}]
    result = house.send("fail", 7)
    with pytest.raises(Exception, match="bad") as caught:
        result.get(timeout=30)
    assert type(caught.value).__name__ == "OddError"
    assert caught.value.args == ("bad", 7)
    assert (result.state, result.failed(), result.successful(), result.ready()) == ("FAILURE", True, False, True)
    assert 'raise OddError("bad", code)' in (result.traceback or "")
    assert "celeriac/execution" not in (result.traceback or "")
    assert isinstance(result.get(propagate=False), Exception)
    assert result.date_done is not None
    odd = house.send("unserializable")
    with pytest.raises(Exception, match="unserializable returned a object that cannot be stored"):
        odd.get(timeout=30)


def test_a_thousand_calls_all_come_back(house: House) -> None:
    house.worker()
    results = [house.send("add", n, n) for n in range(1000)]
    assert ResultSet(results).get(timeout=60) == [2 * n for n in range(1000)]


def test_retries_run_again_under_the_same_id(house: House) -> None:
    house.worker()
    result = house.send("succeed_on_try", 2)
    assert result.get(timeout=30) == 2
    assert house.ran() == [f"try {result.id} {n}" for n in range(3)]
    exhausted = house.send("succeed_on_try", 9, 0.01)
    with pytest.raises(ValueError, match="not yet"):
        exhausted.get(timeout=30)
    auto = house.send("autoretried")
    with pytest.raises(OSError, match="still down"):
        auto.get(timeout=30)
    assert house.ran().count("autoretried") == 2


def test_states_on_the_way_are_seen(house: House) -> None:
    house.worker()
    seen: list[Any] = []
    result = house.send("progress", 3)

    def hear(document: Any) -> None:
        seen.append(document["status"])
        house.release("progress")

    assert result.get(timeout=30, on_message=hear) == "all"
    assert "PROGRESS" in seen
    assert seen[-1] == "SUCCESS"
    if "replies" not in house.app.backend.plugin.abilities:  # type: ignore[union-attr]
        tracked = house.send("tracked")
        wait_until(lambda: tracked.state == "STARTED", what="STARTED")
        assert set(tracked.info) == {"pid", "hostname"}
        assert tracked.exists()
        assert not house.app.AsyncResult("no-such-id").exists()
        house.release("tracked")
        assert tracked.get(timeout=30) is None


def test_a_run_knows_all_about_itself(house: House) -> None:
    house.worker("-n", "w7@%h")
    result = house.send("about_me", 1, kwargs={"k": 2}, headers={"tenant": "acme"}, time_limit=60, priority=3)
    me = result.get(timeout=30)
    assert me["id"] == me["root_id"] == me["correlation_id"] == result.id
    assert (me["args"], me["kwargs"], me["argsrepr"]) == ([1], {"k": 2}, "(1,)")
    assert me["headers"]["tenant"] == "acme"
    assert me["timelimit"] == [60, None]
    assert me["hostname"].startswith("w7@")
    assert (me["retries"], me["attempt"], me["is_eager"], me["called_directly"]) == (0, 1, False, False)
    assert me["delivery_info"]["routing_key"] == "celery"
    assert me["delivery_info"]["priority"] == 3
    assert me["delivery_info"]["redelivered"] is False
    assert me["reply_to"] == house.app.thread_oid


def test_countdown_and_eta_are_not_early_and_not_late(house: House) -> None:
    house.worker()
    house.send("add", 1, 1).get(timeout=30)
    for seconds in (0.5, 3.0):
        late: list[float] = []
        while not late or (late[-1] > LATE_S and len(late) < 3):
            begun = time.time()
            assert house.send("add", 1, 1, countdown=seconds).get(timeout=30) == 2
            late.append(time.time() - begun - seconds)
            assert late[-1] >= 0
        assert late[-1] <= LATE_S, late


def test_an_expired_call_is_revoked(house: House) -> None:
    result = house.send("silent", "too late", expires=0.2, ignore_result=False)
    time.sleep(0.4)
    house.worker()
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=30)
    assert "silent too late" not in house.ran()


def test_time_limits_end_tasks_and_their_siblings_live_on(house: House) -> None:
    house.worker()
    soft = house.send("swallow_soft_limit", 60, soft_time_limit=1.5)
    hard = house.send("sleep", 60, time_limit=1)
    assert soft.get(timeout=30) == "cleaned up"
    with pytest.raises(TimeLimitExceeded):
        hard.get(timeout=30)
    assert house.send("add", 1, 1).get(timeout=30) == 2


@pytest.mark.parametrize("how", ["kill", "exit", "segfault"])
def test_a_task_that_kills_its_process_each_time_is_set_aside_with_its_reason(sqlite_house: House, how: str) -> None:
    worker = sqlite_house.worker()
    result = sqlite_house.send("die", how, "x")
    with pytest.raises(WorkerLostError, match=r"signal|exit"):
        result.get(timeout=30)
    assert sqlite_house.ran().count("die x") == 3
    assert sqlite_house.send("add", 1, 1).get(timeout=30) == 2
    assert "is run again" in worker.log


def test_a_process_death_costs_only_its_own_task(house: House) -> None:
    house.worker("-c", "2")
    slow = [house.send("sleep", 0.5, f"s{n}") for n in range(3)]
    dying = house.send("die_once", "a")
    assert dying.get(timeout=30) == "survived"
    assert [result.get(timeout=30) for result in slow] == ["s0", "s1", "s2"]


def test_system_exit_in_a_task_is_a_failure_like_others(sqlite_house: House) -> None:
    sqlite_house.worker()
    result = sqlite_house.send("die", "system_exit")
    with pytest.raises(Exception, match="3") as raised:  # no SystemExit, which would end who waits for it
        result.get(timeout=30)
    assert type(raised.value).__name__ == "SystemExit"
    assert sqlite_house.send("add", 1, 1).get(timeout=30) == 2


def test_ignored_and_rejected_runs(house: House) -> None:
    house.worker()
    ignored = house.send("ignore_me")
    rejected = house.send("reject_me")
    with pytest.raises(Exception, match="no good"):
        rejected.get(timeout=30)
    with pytest.raises(TimeoutError, match="no result of"):
        ignored.get(timeout=0.5)
    silent = house.send("silent", "s", ignore_result=True)
    assert silent.get(timeout=30) is None
    wait_until(lambda: "silent s" in house.ran(), what="the silent task")


def test_a_task_can_call_another_but_not_wait_for_it(house: House) -> None:
    house.worker()
    inner = house.send("call_another", 4).get(timeout=30)
    if not house.backend.startswith("rpc"):  # whose results are for the caller alone: that was the task's process
        assert house.app.AsyncResult(inner).get(timeout=30) == 5
    with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task"):
        house.send("wait_in_task", 4).get(timeout=30)


def test_an_unknown_task_is_explained_and_set_aside(sqlite_house: House) -> None:
    worker = sqlite_house.worker(SUITE_PATIENCE="0")
    result = sqlite_house.app.send_task("nobody.knows")
    with pytest.raises(Exception, match=r"nobody\.knows"):
        result.get(timeout=30)
    assert "no worker registered it" in worker.log
    assert sqlite_house.send("add", 1, 1).get(timeout=30) == 2


def test_an_unknown_task_waits_for_a_worker_that_knows_it(house: House) -> None:
    """A rolling deploy: the old worker meets a call that only the new one knows."""
    (house.place / "old_app.py").write_text(
        f"from celeriac import Celery\napp = Celery('old', broker={house.broker!r}, backend={house.backend!r})\n"
    )
    process = subprocess.Popen(
        [CELERIAC, "-A", "old_app", "worker", "-l", "info", "-c", "1"],
        cwd=house.place,
        env={**os.environ, "HOME": str(house.place)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        result = house.send("add", 20, 22)
        time.sleep(2)
        house.worker()
        assert result.get(timeout=30) == 42
    finally:
        process.terminate()
        process.wait(60)


def test_chains_and_groups(house: House) -> None:
    house.worker()

    def add(*args: Any) -> Any:
        return house.app.signature("suite_app.add", args)

    result = chain(add(1, 2), add(3), add(10))()
    assert result.get(timeout=30) == 16
    if not house.backend.startswith("rpc"):  # which tells the sender only of what it asked for
        assert [result.parent.get(timeout=30), result.parent.parent.get(timeout=30)] == [6, 3]
        broken = chain(add(1, 2), add("x"), add(10))()
        with pytest.raises(TypeError):
            broken.get(timeout=30)
    assert group(add(n, n) for n in range(1200))().get(timeout=60) == [2 * n for n in range(1200)]


# -- endings ------------------------------------------------------------------------------------------------


def test_term_finishes_what_runs_and_gives_the_rest_back(house: House) -> None:
    worker = house.worker("-c", "1")
    results = [house.send("hold", f"n{n}") for n in range(6)]
    wait_until(lambda: house.ran(), what="the first task")
    worker.send(signal.SIGTERM)
    worker.wait_for("finishing running tasks")
    house.release(*(f"n{n}" for n in range(6)))
    assert worker.process.wait(60) == 0
    begun = [line.split()[1] for line in house.ran() if line.startswith("start")]
    ended = [line.split()[1] for line in house.ran() if line.startswith("end")]
    assert begun == ended, "a task was cut off by a warm stop"
    assert ended == ["n0"]
    house.worker("-c", "2")
    assert [result.get(timeout=60) for result in results] == [f"n{n}" for n in range(6)]
    starts = [line.split()[1] for line in house.ran() if line.startswith("start")]
    assert sorted(starts) == [f"n{n}" for n in range(6)], "a task ran twice"


def test_ctrl_c_once_is_warm_and_twice_is_cold_which_is_no_crash_of_the_task(house: House) -> None:
    worker = house.worker("-c", "1", SUITE_CRASHES="1")
    result = house.send("hold", "long")
    wait_until(lambda: house.ran(), what="the task's start")
    worker.send(signal.SIGINT)
    worker.wait_for("finishing running tasks")
    assert worker.stop(signal.SIGINT) == 1
    other = house.worker("-c", "1", SUITE_CRASHES="1")
    wait_until(lambda: sum(line.startswith("start long") for line in house.ran()) == 2, 60, "the second run")
    other.send(signal.SIGQUIT)
    assert other.stop(signal.SIGQUIT) == 1
    assert not result.ready() if "rpc" not in house.backend else True


def test_a_warm_stop_waits_no_longer_than_its_grace(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-c", "1", "worker.shutdown_grace=1")
    sqlite_house.send("hold", "for-ever")
    wait_until(lambda: sqlite_house.ran(), what="the task's start")
    begun = time.monotonic()
    assert worker.stop() == 1
    assert time.monotonic() - begun >= 1
    assert "given up" in worker.log


def test_a_cold_stop_may_be_soft_first(sqlite_house: House) -> None:
    worker = sqlite_house.worker("-c", "1", "worker.soft_shutdown_timeout=50")
    result = sqlite_house.send("sleep", 1.0, "short")
    wait_until(lambda: sqlite_house.ran(), what="the task's start")
    assert worker.stop(signal.SIGQUIT) == 0
    assert result.get(timeout=30) == "short"


def test_a_warm_stop_ends_with_its_last_task(sqlite_house: House) -> None:
    idle = sqlite_house.worker("-c", "1")
    begun = time.monotonic()
    assert idle.stop() == 0
    end_s = time.monotonic() - begun  # what an end takes on this machine
    took_s = []
    for round in range(6):  # a busy machine may take its time now and then
        worker = sqlite_house.worker("-c", "1")
        result = sqlite_house.send("sleep", 1.0, f"last {round}")
        wait_until(lambda count=round + 1: len(sqlite_house.ran()) >= 2 * count - 1, what="the task's start")
        worker.send(signal.SIGTERM)
        assert result.get(timeout=30) == f"last {round}"
        ended = time.monotonic()
        assert worker.process.wait(60) == 0
        took_s.append(time.monotonic() - ended)
        if took_s[-1] < max(0.8, end_s):
            return
    raise AssertionError(f"it slept on although nothing was left to do: {took_s}, where an end takes {end_s} s")


def test_a_worker_killed_outright_loses_nothing(house: House) -> None:
    first = house.worker("-c", "2")
    results = [house.send("sleep", 0.2, f"n{n}") for n in range(10)]
    wait_until(lambda: len(house.ran()) >= 3, what="some tasks")
    first.kill_group()
    house.worker("-c", "2")
    assert [result.get(timeout=60) for result in results] == [f"n{n}" for n in range(10)]


def test_a_task_acknowledged_early_is_not_run_again(house: House) -> None:
    first = house.worker("-c", "2")
    house.send("early", 300, "once")
    wait_until(lambda: "early once" in house.ran(), what="the early task")
    for n in range(2):  # the worker settles in turn: by the second of these the early one is acknowledged
        assert house.send("add", n, 0).get(timeout=60) == n
    first.kill_group()
    house.worker("-c", "1")
    assert house.send("add", 1, 1).get(timeout=30) == 2
    assert house.ran().count("early once") == 1


def test_children_are_replaced_after_so_many_tasks(sqlite_house: House) -> None:
    sqlite_house.worker("-c", "1", "--max-tasks-per-child", "3")
    pids = [sqlite_house.send("pid").get(timeout=30) for _ in range(9)]
    assert len(set(pids)) == 3


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_the_other_pools_run_tasks_too(house: House, pool: str) -> None:
    worker = house.worker("-P", pool)
    assert house.send("add", 1, 2).get(timeout=30) == 3
    with pytest.raises(Exception, match="bad"):
        house.send("fail").get(timeout=30)
    assert house.send("succeed_on_try", 1).get(timeout=30) == 1
    assert house.send("pid").get(timeout=30) == worker.pid
    assert worker.stop() == 0


def test_a_rate_limit_holds_and_does_not_hold_up_others(sqlite_house: House) -> None:
    sqlite_house.worker()
    begun = time.time()
    for n in range(15):
        sqlite_house.send("limited", str(n), ignore_result=True)
    assert sqlite_house.send("add", 1, 1).get(timeout=30) == 2
    assert len(sqlite_house.ran()) < 15 or time.time() > begun + 2.7, "it waited for all that are limited"
    wait_until(lambda: len(sqlite_house.ran()) == 15, what="all limited tasks")
    times = sorted(float(line.split()[2]) for line in sqlite_house.ran())
    assert times[-1] - begun >= 2.7, "14 times a fifth of a second after the first"


def test_a_long_task_does_not_hold_up_short_ones(house: House) -> None:
    house.worker("-c", "2")
    for _ in range(5):
        house.send("add", 1, 1).get(timeout=30)
    long = house.send("hold", "long")
    assert ResultSet([house.send("add", n, n) for n in range(20)]).get(timeout=30) == [2 * n for n in range(20)]
    assert not [line for line in house.ran() if line.startswith("end long")]
    house.release("long")
    assert long.get(timeout=30) == "long"
