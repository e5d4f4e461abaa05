"""What pools share: reports from other threads, and processes beside the worker."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from celeriac.exceptions import ImproperlyConfigured
from celeriac.spec import JobReport, StoredResult
from celeriac_support_pools import process
from celeriac_support_pools.loops import serve
from celeriac_support_pools.outbox import Outbox, take_all


class Bed:
    """What the worker sleeps on."""

    def __init__(self) -> None:
        self.watched: list[int] = []

    def watch(self, fd: int) -> None:
        self.watched.append(fd)

    def unwatch(self, fd: int) -> None:
        self.watched.remove(fd)

    def is_woken(self) -> bool:
        return bool(select.select(self.watched, [], [], 0)[0])


def end_of(pid: int) -> str:
    return process.describe_end(os.waitpid(pid, 0)[1])


def test_reports_of_any_thread_come_in_order_and_wake_the_worker_once() -> None:
    bed = Bed()
    outbox = Outbox(bed)
    outbox.open()
    sender = threading.Thread(target=lambda: [outbox.put(JobReport(token, "succeeded")) for token in range(5)])
    assert not bed.is_woken()
    sender.start()
    sender.join()
    assert bed.is_woken()
    assert [report.token for report in outbox.take()] == [0, 1, 2, 3, 4]
    assert not bed.is_woken()
    outbox.put(JobReport(5, "succeeded"))
    assert bed.is_woken()
    assert [report.token for report in outbox.take()] == [5]
    outbox.close(is_quiet=True)
    assert not bed.watched


def test_an_outbox_into_which_somebody_may_still_put_keeps_its_pipe() -> None:
    outbox = Outbox(Bed())
    outbox.open()
    outbox.close(is_quiet=False)
    outbox.put(JobReport(1, "lost"))
    outbox._poller.watch(outbox._read_fd)
    outbox.close(is_quiet=True)


def test_all_is_taken_in_order() -> None:
    waiting = deque([1, 2, 3])
    assert take_all(waiting) == [1, 2, 3]
    assert not waiting


@pytest.mark.parametrize(
    ("last_deed", "told"),
    [
        (lambda: None, f"exit code {process.BROKEN_CODE}"),
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal 9 (SIGKILL)"),
    ],
)
def test_a_forked_child_never_comes_back_and_its_end_is_told_in_words(last_deed: Callable[[], None], told: str) -> None:
    assert end_of(process.fork(last_deed)) == told


def test_an_end_that_nobody_saw_is_told_as_such() -> None:
    assert process.describe_end(None) == process.describe_end(process.UNKNOWN_END) == "an end that nobody saw"


def test_a_child_sees_the_page_and_has_its_own_signals_and_no_input() -> None:
    page, worker = process.Page(), os.getpid()
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    def work() -> int:
        page.words[0] = os.getpid()
        page.words[1] = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and not signal.pthread_sigmask(0, ())
        page.words[2] = os.readlink("/proc/self/fd/0") == os.devnull
        return 5

    try:
        pid = process.fork(lambda: process.be_child(work, worker, b"tested"))
        assert end_of(pid) == "exit code 5"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(page.words[:3]) == [pid, 1, 1]
    page.close()


def test_a_child_whose_parent_is_gone_does_not_begin() -> None:
    assert end_of(process.fork(lambda: process.be_child(lambda: 5, 1 << 22, b"orphan"))) == "exit code 0"


def test_a_report_that_cannot_be_encoded_says_so_in_its_place() -> None:
    encode = msgspec.msgpack.Encoder().encode
    good, bad = JobReport(1, "succeeded"), JobReport(2, "succeeded", detail=object())  # type: ignore[arg-type]
    reports = msgspec.msgpack.decode(process.encode_each(encode, [good, bad]), type=list[JobReport])
    assert [(report.token, report.outcome) for report in reports] == [(1, "succeeded"), (2, "rejected")]
    assert "cannot be encoded" in reports[1].detail


def test_an_error_of_ours_needs_no_traceback() -> None:
    assert process.describe_trouble(ImproperlyConfigured("no such thing")) == ("no such thing", True)
    assert process.describe_trouble(KeyError("x")) == ("KeyError: 'x'", False)


def test_a_report_that_cannot_be_read_says_so_in_its_place() -> None:
    odd = StoredResult(5, "SUCCESS", b"")  # type: ignore[arg-type]
    said = [JobReport(1, "succeeded"), JobReport(2, "progress", stored=[odd]), JobReport(2, "succeeded", stored=[odd])]
    reports = process.decode_reports(msgspec.msgpack.encode(said))
    assert [(report.token, report.outcome) for report in reports] == [(1, "succeeded"), (2, "rejected")]
    assert "cannot be read: Expected `str`, got `int`" in reports[1].dead
    for other in ([1], [[]], {"a": 1}):
        with pytest.raises(msgspec.MsgspecError):
            process.decode_reports(msgspec.msgpack.encode(other))


def test_a_loop_goes_on_whatever_jobs_leave_in_it(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> int:
        sys.exit(3)

    loop = asyncio.new_event_loop()
    has_run = threading.Event()
    thread = threading.Thread(target=serve, args=(loop, lambda: has_run.is_set()), daemon=True)
    thread.start()
    loop.call_soon_threadsafe(loop.stop)
    loop.call_soon_threadsafe(sys.exit, 4)
    left = asyncio.run_coroutine_threadsafe(leave(), loop)
    assert isinstance(left.exception(10), SystemExit)
    loop.call_soon_threadsafe(has_run.set)
    assert has_run.wait(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    assert not thread.is_alive()
    loop.close()
    assert "SystemExit(4) came out of the event loop, which goes on" in caplog.text


def test_an_error_that_names_an_odd_file_is_still_the_error() -> None:
    encode = msgspec.msgpack.Encoder().encode
    report = JobReport(
        7, "failed", detail="no \udcff", traceback="in \udcfe", stored=[StoredResult("id", "FAILURE", b"{}")]
    )
    with pytest.raises(UnicodeEncodeError):
        encode([report])
    (said,) = process.decode_reports(process.encode_each(encode, [report]))
    assert (said.outcome, said.detail, said.traceback) == ("failed", "no \\udcff", "in \\udcfe")
    assert said.stored == report.stored
