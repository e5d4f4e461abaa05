"""What the prefork pool promises beyond the contract of all pools."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from celeriac.exceptions import PoolBroken, SoftTimeLimitExceeded
from celeriac.spec import Job, JobReport, Payload, Pool, PoolOptions, Route, SlotProgram, StoredResult
from celeriac.testing.kit import eventually
from celeriac.testing.pool_suite import (
    ENDLESS_S,
    PATIENCE_S,
    PoolConformance,
    PoolDriver,
    ScriptedProgram,
    brief,
    job,
    lines,
    own_size_kib,
)
from celeriac_pool_prefork import birth, frames
from celeriac_pool_prefork import pool as pool_module
from celeriac_pool_prefork.pool import PreforkPool


class Prefork(PoolConformance):
    __test__ = False

    def make_pool(self, program: SlotProgram, options: PoolOptions) -> Pool:
        return PreforkPool(program, options)


class Calls(ScriptedProgram):
    """Runs a function of the test module, named by the job, in the child; its text goes into the report."""

    def __init__(self, **functions: Callable[[], Any]) -> None:
        super().__init__()
        self._functions = functions

    def run(self, job: Job, emit: Callable[[JobReport], None]) -> JobReport:
        function = self._functions.get(job.raw.decode())
        if function is None:
            return super().run(job, emit)
        try:
            return JobReport(job.token, "succeeded", detail=str(function()))
        except Exception as exc:
            return JobReport(job.token, "failed", detail=repr(exc))


started = Prefork().started


# -- the process of a job -------------------------------------------------------------------------------------


def test_a_child_has_no_input_and_only_its_own_sockets() -> None:
    def facts() -> str:
        sockets = sum(_is_socket(fd) for fd in os.listdir("/proc/self/fd"))
        return f"{os.readlink('/proc/self/fd/0')} {sockets}"

    gc.collect()  # sockets that other tests have left behind would be closed at any time
    ours = sum(_is_socket(fd) for fd in os.listdir("/proc/self/fd"))
    with started(Calls(facts=facts), slots=4) as driver:
        driver.until(lambda: all(slot.ready for slot in driver.pool._slots.values()), "all slots")
        jobs = [job("facts") for _ in range(8)]
        driver.submit(*jobs)
        assert {driver.final(one).detail for one in jobs} == {f"/dev/null {ours + 2}"}


def test_signals_for_the_group_leave_children_alone() -> None:
    with started() as driver:
        one = job("sleep 0.3")
        driver.submit(one)
        driver.idle(0.1)
        for pid in driver.pool.pids():
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
                os.kill(pid, number)
        assert driver.final(one).outcome == "succeeded"


def test_a_signal_to_a_child_never_runs_the_workers_handler(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    heard: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append(1))
    signal.set_wakeup_fd(writer.fileno())
    try:
        with started() as driver:
            one = job(f"note {ran} x; sleep {ENDLESS_S}")
            driver.submit(one)
            _until_they_run(driver, ran, 1)
            for pid in driver.pool.pids():
                os.kill(pid, signal.SIGUSR2)
            assert driver.final(one).outcome == "lost"
            reader.setblocking(False)
            with pytest.raises(BlockingIOError):
                reader.recv(1)
    finally:
        signal.set_wakeup_fd(-1)  # not what was there: it may be a descriptor that another test has closed since
        signal.signal(signal.SIGUSR2, before)
        reader.close()
        writer.close()
    assert not heard


def test_a_process_forked_by_a_job_does_not_report_in_its_name() -> None:
    def fork() -> str:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    with started(Calls(fork=fork)) as driver:
        jobs = [job("fork") for _ in range(6)]
        driver.submit(*jobs)
        assert {driver.final(one).detail for one in jobs} == {"parent"}
        driver.idle(0.1)


def test_a_report_that_cannot_be_encoded_costs_its_own_job_only() -> None:
    class Odd(ScriptedProgram):
        def run(self, job: Job, emit: Callable[[JobReport], None]) -> JobReport:
            report = super().run(job, emit)
            if job.raw == b"padded":
                report.publish = [Payload(b"", "", "", {"huge": 1 << 70}, {}, Route("q"))]
            return report

    with started(Odd()) as driver:
        jobs = [brief("padded" if number == 5 else "pass") for number in range(20)]
        driver.submit(*jobs)
        assert driver.outcomes(jobs) == ["succeeded"] * 5 + ["rejected"] + ["succeeded"] * 14
        assert "cannot be encoded" in driver.final(jobs[5]).detail


def test_a_report_that_cannot_be_read_costs_its_own_job_only() -> None:
    class Odd(ScriptedProgram):
        def run(self, job: Any, emit: Any) -> Any:
            report = super().run(job, emit)
            if job.raw == b"padded":
                report.stored = [StoredResult(5, "SUCCESS", b"")]  # type: ignore[arg-type]
            return report

    with started(Odd()) as driver:
        jobs = [brief("padded" if number == 5 else "pass") for number in range(20)]
        driver.submit(*jobs)
        assert driver.outcomes(jobs) == ["succeeded"] * 5 + ["rejected"] + ["succeeded"] * 14


def test_what_is_printed_before_a_fork_is_printed_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys
            from celeriac.testing.pool_suite import PoolConformance, job
            from celeriac_pool_prefork.pool import PreforkPool

            class Prefork(PoolConformance):
                def make_pool(self, program, options):
                    return PreforkPool(program, options)

            print("before")
            with Prefork().started() as driver:
                driver.submit(one := job("pass"))
                driver.final(one)
            """
        )
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("before\n", "")


def test_a_pool_may_live_in_a_thread_of_its_own() -> None:
    outcomes: list[str] = []

    def work() -> None:
        with started() as driver:
            jobs = [job("sleep 5", soft_limit_s=0.1), job("kill 9"), *(brief() for _ in range(10))]
            driver.submit(*jobs)
            outcomes.extend(driver.outcomes(jobs))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcomes == ["failed", "lost"] + ["succeeded"] * 10


# -- replacing children ---------------------------------------------------------------------------------------


def test_children_of_a_parent_that_has_grown_are_not_over_their_limit_at_birth() -> None:
    with started(slots=1, max_memory_per_child_kib=own_size_kib() + (150 << 10)) as driver:
        driver.until(lambda: driver.pool._fresh_kib is not None, "a fresh child")
        grown = b"x" * (300 << 20)
        killer = job("kill 9")
        driver.submit(killer, *(jobs := [job("pass") for _ in range(5)]))
        driver.final(killer)
        assert len({driver.final(one).pid for one in jobs}) == 1
        del grown


def test_a_child_that_leaves_is_replaced_before_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LEAVE_S", 600.0)

    class Slow(ScriptedProgram):
        def end(self) -> None:
            time.sleep(600)

    with started(Slow(), slots=1, max_tasks_per_child=1) as driver:
        jobs = [job("pass") for _ in range(3)]
        driver.submit(*jobs)
        assert driver.outcomes(jobs) == ["succeeded"] * 3


def test_a_child_that_does_not_end_when_it_leaves_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LEAVE_S", 0.3)

    class Clinging(ScriptedProgram):
        def end(self) -> None:
            time.sleep(60)

    with started(Clinging(), slots=2) as driver:
        driver.until(lambda: len(driver.pool.pids()) == 2, "both slots")
        driver.pool.resize(1)
        driver.until(lambda: len(driver.pool.pids()) == 1, "the end of one")


def test_children_that_die_in_a_row_for_no_known_reason_are_replaced_with_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(birth, "PAUSE_S", (0.6, 1.0))
    monkeypatch.setattr(birth, "STORM_S", 600.0)  # however long a slow machine takes for so many children
    with started(slots=1) as driver:
        for _ in range(birth.STORM_DEATHS):
            driver.until(lambda: any(slot.ready for slot in driver.pool._slots.values()), "a slot")
            killed, before = driver.pool.pids(), time.monotonic()
            os.kill(killed[0], signal.SIGKILL)
            driver.until(lambda killed=killed: driver.pool.pids() != killed, "the death")
        assert driver.pool.pids() == []
        one = job("pass")
        driver.submit(one)
        assert driver.final(one).outcome == "succeeded"
        assert time.monotonic() - before >= 0.6


def test_jobs_that_kill_their_slots_are_no_reason_for_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(birth, "PAUSE_S", (60.0, 60.0))  # nobody here waits so long
    with started(slots=1) as driver:
        jobs = [job("kill 9") for _ in range(8)]
        driver.submit(*jobs)
        assert driver.outcomes(jobs) == ["lost"] * 8


def test_a_child_that_does_not_get_ready_in_time_breaks_the_start() -> None:
    class Endless(ScriptedProgram):
        def begin(self) -> None:
            time.sleep(600)

    began = time.monotonic()
    with pytest.raises(PoolBroken, match=r"not ready within 0\.3 s"), started(Endless(), start_timeout_s=0.3):
        pass
    assert time.monotonic() - began < 100.0


def test_a_child_that_dies_at_its_start_breaks_the_start() -> None:
    class Dying(ScriptedProgram):
        def begin(self) -> None:
            os._exit(7)

    with pytest.raises(PoolBroken, match="exit code 7"), started(Dying()):
        pass


def test_a_slot_told_to_go_goes_even_when_its_jobs_are_withdrawn(tmp_path: Path) -> None:
    with started(slots=2) as driver:
        busy = [brief(f"note {tmp_path / 'ran'} x; sleep 0.5") for _ in range(2)]
        driver.submit(*busy)
        driver.until(lambda: len(lines(tmp_path / "ran")) == 2 or driver.idle(0.01) is not None, "two running jobs")
        driver.pool.resize(1)
        driver.pool.withdraw()
        assert driver.outcomes(busy) == ["succeeded"] * 2
        driver.until(lambda: len(driver.pool.pids()) == 1, "the end of a slot")


# -- out of descriptors ---------------------------------------------------------------------------------------


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """This process can open nothing until the end of the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_big_job_waits_until_a_descriptor_is_free() -> None:
    with started() as driver:
        jobs = [job(f"padded {'x' * 200_000}"), job("pass")]
        with no_descriptors_left():
            driver.submit(*jobs)
            driver.idle(0.2)
            assert len(driver.open) == 2
        assert driver.outcomes(jobs) == ["succeeded"] * 2


def test_a_big_report_that_cannot_be_taken_costs_its_own_job_and_the_pool_recovers() -> None:
    with started() as driver:
        one, after = job("echo 200000"), [job("pass") for _ in range(5)]
        with no_descriptors_left():
            driver.submit(one)
            assert driver.final(one).outcome == "lost"
        driver.submit(*after)
        assert driver.outcomes(after) == ["succeeded"] * 5
        driver.until(lambda: len(driver.pool.pids()) == 2, "two slots")


# -- packing --------------------------------------------------------------------------------------------------


def test_brief_jobs_are_spread_over_the_slots_and_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    packets: list[int] = []
    encode = frames.encode
    monkeypatch.setattr(frames, "encode", lambda jobs: packets.append(len(jobs)) or encode(jobs))
    with started() as driver:
        driver.until(lambda: all(slot.ready for slot in driver.pool._slots.values()), "both slots")
        jobs = [brief() for _ in range(64)]
        driver.submit(*jobs)
        assert len(packets) == 2
        assert abs(packets[0] - packets[1]) <= 2
        driver.outcomes(jobs)
        packets.clear()
        unknown = [job("pass") for _ in range(4)]
        driver.submit(*unknown)
        assert packets == [1, 1]
        driver.outcomes(unknown)


def test_brief_jobs_are_accepted_before_their_end_and_a_long_one_among_them_soon(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    with started(slots=1) as driver:
        jobs = [brief(announce=True) for _ in range(20)]
        slow = brief(f"until {go_on}", announce=True)
        driver.submit(*jobs, slow)
        assert driver.outcomes(jobs) == ["succeeded"] * 20
        driver.until(lambda: any(report.token == slow.token for report in driver.reports), "accepted")
        assert slow.token in driver.open
        said = [report.outcome for report in driver.reports]
        assert said == ["accepted", "succeeded"] * 20 + ["accepted"]
        go_on.touch()
        assert driver.final(slow).outcome == "succeeded"


def test_long_queue_names_do_not_burst_a_packet() -> None:
    with started() as driver:
        jobs = [brief(f"padded {'x' * 400}", queue="ж" * 600) for _ in range(200)]
        driver.submit(*jobs)
        assert driver.outcomes(jobs) == ["succeeded"] * 200


def test_a_brief_job_that_is_not_is_left_alone_with_its_slot(tmp_path: Path) -> None:
    ran, go_on = tmp_path / "ran", tmp_path / "go-on"
    with started(slots=1) as driver:
        first = brief(f"note {ran} first; until {go_on}")
        driver.submit(first, *(behind := [brief(f"note {ran} x") for _ in range(100)]))
        _until_they_run(driver, ran, 1)
        driver.until(lambda: all(len(slot.given) == 1 for slot in driver.pool._slots.values()), "the others, back")
        driver.pool.withdraw()
        driver.turn()
        assert driver.open == {first.token}
        assert driver.outcomes(behind) == ["returned"] * 100
        go_on.touch()
        assert driver.final(first).outcome == "succeeded"
        assert lines(ran) == ["first"]


def _until_they_run(driver: PoolDriver, path: Path, count: int) -> None:
    eventually(lambda: driver.turn() or len(lines(path)) >= count, PATIENCE_S)


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def test_growing_without_a_process_to_be_had_costs_none_of_those_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError("no process left")

    with started(slots=3) as driver:
        driver.until(lambda: all(slot.ready for slot in driver.pool._slots.values()), "all slots")
        with monkeypatch.context() as patch:
            patch.setattr(pool_module, "fork", refuse)
            driver.pool.resize(4)
            assert [slot.leaving for slot in driver.pool._slots.values()] == [False] * 3
        driver.until(lambda: len(driver.pool.pids()) == 4, "the fourth")


def test_a_job_that_is_cancelled_by_usr1_is_at_its_soft_limit_as_often_as_that() -> None:
    reader, writer = os.pipe()

    def work() -> int:
        struck = 0
        while struck < 2:
            try:
                os.write(writer, b"!")
                time.sleep(600)
            except SoftTimeLimitExceeded:
                struck += 1
        return struck

    with started(Calls(work=work), slots=1) as driver:
        one, waiting = job("work"), job("sleep 0")
        driver.submit(one, waiting)
        for _ in range(2):
            patience = time.monotonic() + 60
            while not select.select([reader], [], [], 0.02)[0]:
                assert time.monotonic() < patience
                driver.turn()
            os.read(reader, 1)
            assert driver.pool.cancel(one.token, signal=signal.SIGUSR1)
        report = driver.final(one)
        assert (report.outcome, report.detail) == ("succeeded", "2")
        assert driver.final(waiting).outcome == "succeeded"
    os.close(reader)
    os.close(writer)
