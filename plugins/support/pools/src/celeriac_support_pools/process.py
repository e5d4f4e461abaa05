"""A process beside the worker that runs its jobs: how it begins, what both see of each other, and how it ends.

The first functions are called by the worker, those from `be_child` on in the process. A pool that has patched the
standard library hands over what it needs in the original.
"""

from __future__ import annotations

import _thread
import ctypes
import mmap
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from celeriac.exceptions import CeleriacError
from celeriac.spec import JobReport
from celeriac.spec.data import FINAL_OUTCOMES

#: The exit code of a child that could not begin, or found a bug of ours.
BROKEN_CODE: Final = 70
#: In place of a status of `waitpid`: the process is gone, and nobody saw how.
UNKNOWN_END: Final = -1

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024


_decode_reports: Final = msgspec.msgpack.Decoder(list[JobReport]).decode


class Copies:
    """Tells a process that a job has forked, and that comes back out of the job: it is a copy of the slot, and must end
    before it reports, takes another job or writes to the page.

    Attributes:
        count: From how many forks this process comes. Who remembers it and sees another is in a copy.
    """

    def __init__(self) -> None:
        self.count = 0
        os.register_at_fork(after_in_child=self._add)

    def _add(self) -> None:
        self.count += 1


COPIES: Final = Copies()


class Page:
    """A page of memory that worker and child both see, as 64-bit `words`.

    Args:
        fd: Of an anonymous file of that size, for a child that does not inherit its parent's memory.
    """

    def __init__(self, fd: int = -1) -> None:
        self._map = mmap.mmap(fd, mmap.PAGESIZE)
        self._bytes = memoryview(self._map)
        self.words = self._bytes.cast("Q")

    def close(self) -> None:
        """Let go of it."""
        self.words.release()
        self._bytes.release()
        self._map.close()


def fork(be_child: Callable[[], None], system_fork: Callable[[], int] = os.fork) -> int:
    """Fork; returns the child's pid.

    Args:
        be_child: Called in the child, with all signals blocked; the child ends with it.
        system_fork: Where `os.fork` is not the system's own.
    Raises:
        OSError: There is no process to be had.
    """
    sys.stdout.flush()  # else both processes print what is in the buffers
    sys.stderr.flush()
    # No signal before the child has its own handlers: with the worker's it would tell the worker to stop.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            # From 3.12 on, a fork of a process with threads warns. A child uses nothing that they may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = system_fork()
        if pid == 0:
            try:
                be_child()
            finally:
                os._exit(BROKEN_CODE)  # whatever happened, a child never returns into its parent's stack
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None where there is none to be had, and the end of the
    stream must do: another system, an old kernel, a sandbox, no descriptor left."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def describe_end(status: int | None) -> str:
    """How a process ended, for people: `signal 9 (SIGKILL)`, `exit code 3`.

    Args:
        status: Of `waitpid`; None or `UNKNOWN_END` if nobody saw it.
    """
    if status is None or status == UNKNOWN_END:
        return "an end that nobody saw"
    if os.WIFSIGNALED(status):
        return signal_name(os.WTERMSIG(status))
    return f"exit code {os.WEXITSTATUS(status)}"


def signal_name(number: int) -> str:
    """A signal for people: `signal 9 (SIGKILL)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"  # a real-time signal


def resident_kib(pid: int) -> int | None:
    """The resident set of a process now; None where the system does not tell, or it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_KIB
    except (OSError, IndexError):
        return None


# -- in the child -------------------------------------------------------------------------------------------


def be_child(
    work: Callable[[], int],
    parent_pid: int,
    name: bytes,
    start_thread: Callable[[Callable[..., None], tuple[Any, ...]], Any] = _thread.start_new_thread,
    sleep: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Be a child, in a fresh process with all signals blocked.

    Args:
        work: Returns the exit code.
        name: Of the process, in `ps` and `top`; at most 15 letters.
        start_thread, sleep: Where those of the standard library are not the system's own.
    """
    code = BROKEN_CODE
    try:
        take_signals_over()
        if sys.platform == "linux":
            libc = ctypes.CDLL(None)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # end with the parent, even in the middle of a job
            libc.prctl(_PR_SET_NAME, name, 0, 0, 0)
        else:
            start_thread(_watch_parent, (parent_pid, sleep))
        if os.getppid() != parent_pid:
            os._exit(0)  # it ended before we could ask
        _leave_standard_input()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)  # never back into the parent's stack, and none of its atexit functions


def take_signals_over() -> None:
    """Forget the worker's handlers, then let signals in (they were blocked before the child was there).

    Ctrl-C, Ctrl-backslash and a hang-up reach the whole group: the parent decides what they mean.
    """
    signal.set_wakeup_fd(-1)  # the worker's: it must not hear of our signals
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def describe_trouble(exc: BaseException) -> tuple[str, bool]:
    """Why a child cannot begin, for `PoolBroken`; and whether that says all, so that nobody needs the traceback."""
    if isinstance(exc, CeleriacError):
        return str(exc), True
    return "".join(traceback.format_exception_only(type(exc), exc)).strip(), False


def encode_each(encode: Callable[[Any], bytes], reports: list[JobReport]) -> bytes:
    """Encode reports of which some cannot be: these say so instead."""
    return encode([_sendable(encode, report) for report in reports])


def _sendable(encode: Callable[[Any], bytes], report: JobReport) -> JobReport:
    try:
        report.detail, report.dead = _legible(report.detail), _legible(report.dead)
        report.traceback = report.traceback and _legible(report.traceback)
        encode(report)
        return report
    except Exception as exc:
        return _of_no_use(report.token, report.pid, f"its report cannot be encoded: {exc}")


def _legible(text: str) -> str:
    """With the lone surrogates escaped that stand for odd bytes, as in names of files: an error may name one."""
    return text.encode("utf-8", "backslashreplace").decode()


def decode_reports(data: Any) -> list[JobReport]:
    """Read the reports that a child has encoded with msgpack. Some may be none (a program may write numbers where texts
    should be): those that should end a job say so instead.

    Raises:
        MsgspecError: All this is something else.
    """
    try:
        return _decode_reports(data)
    except msgspec.ValidationError:
        return _decode_each(data)


def _decode_each(data: Any) -> list[JobReport]:
    reports: list[JobReport] = []
    for said in msgspec.msgpack.decode(data, type=list[list[Any]]):
        try:
            reports.append(msgspec.convert(said, JobReport))
        except msgspec.ValidationError as exc:
            token, outcome = msgspec.convert(said[:2], tuple[int, str])
            if outcome in FINAL_OUTCOMES:
                reports.append(_of_no_use(token, 0, f"its report cannot be read: {exc}"))
    return reports


def _of_no_use(token: int, pid: int, why: str) -> JobReport:
    """The job has run, and would report the same if it ran again: it is set aside."""
    return JobReport(token, "rejected", detail=why, dead=why, pid=pid)


def _watch_parent(parent_pid: int, sleep: Callable[[float], None]) -> None:
    while os.getppid() == parent_pid:
        sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_standard_input() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(fd, 0)
    if fd != 0:
        os.close(fd)
