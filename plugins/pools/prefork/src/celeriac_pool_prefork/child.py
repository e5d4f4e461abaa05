"""The child process: reads packets of jobs, runs them one after another, sends packets of reports.

Called by `birth` right after a fork, and by `fresh`; `main` never returns. User code runs on the main thread. One more
thread, the watcher, is started when the first packet of several jobs comes: such packets hold jobs that
were expected to take a few milliseconds together, and when one of them does not, the watcher hands those
behind it back to the parent and sends the reports that wait.

Both threads take jobs by `deque.popleft`, which is atomic, so each job goes one way only. Reports are taken
and sent under a lock, so they leave in the order in which they were made.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from msgspec import Struct

from celeriac.exceptions import SoftTimeLimitExceeded
from celeriac.spec import Job, JobReport, SlotProgram
from celeriac_pool_prefork import frames
from celeriac_pool_prefork.frames import ASKED, CANCELLED, CANCELLED_LIMIT, HANDED_BACK, SINCE, SOFT, TOKEN
from celeriac_support_pools import process
from celeriac_support_pools.process import COPIES

#: A job expected to take longer is not «brief»: reports do not wait for it, and nothing waits behind it.
BRIEF_S: Final = 0.005
#: So many reports, or those of so long a time, are gathered into a packet.
GATHER: Final = 64
GATHER_NS: Final = 2_000_000
#: How often the watcher looks; what waits behind a job that it sees twice is handed back.
WATCH_S: Final = 0.025


class Limits(Struct, frozen=True):
    """When a child ends of its own accord, between two jobs; None: never."""

    max_tasks: int | None = None
    max_memory_kib: int | None = None
    #: Resident size of the pool's first child when it was fresh; None in that child itself.
    fresh_kib: int | None = None


class Ends(Struct, frozen=True):
    """What a child has from its parent."""

    jobs: socket.socket
    reports: socket.socket
    page: process.Page
    parent_pid: int
    limits: Limits


def main(get_program: Callable[[], SlotProgram], ends: Ends) -> NoReturn:
    """Be a child. Call it in a fresh process with all signals blocked; ends the process.

    Args:
        get_program: Called once this is a child: it may import the user's modules.
    """

    def work() -> int:
        gc.freeze()  # what came from the parent is not garbage; looking at it would only copy its pages
        try:
            return _Slot(ends).serve(get_program)
        except BrokenPipeError:
            if os.getppid() == ends.parent_pid:
                raise
            return process.BROKEN_CODE  # the parent was killed under our report: nobody is there to be told

    process.be_child(work, ends.parent_pid, b"celeriac-slot")


class _Slot:
    """The state of one child."""

    def __init__(self, ends: Ends) -> None:
        self._jobs = ends.jobs
        self._reports = ends.reports
        self._words = ends.page.words
        self._limits = ends.limits
        self._pid = os.getpid()
        self._copies = COPIES.count
        self._inbox = frames.Inbox()
        self._file: int | None = None
        self._batch: deque[Job] = deque()
        self._together = False  # the packet held several jobs, which are brief then
        self._pending: deque[JobReport] = deque()
        self._sending = threading.RLock()
        self._watcher: _Watcher | None = None
        self._started = 0
        self._asked = 0
        self._cancelled: frozenset[int] = frozenset()

    def serve(self, get_program: Callable[[], SlotProgram]) -> int:
        """Work until the parent says stop or is gone, or a limit is reached. Returns the exit code."""
        try:
            program = get_program()
            process.take_signals_over()  # once more: the program may have changed its mind
            signal.signal(signal.SIGUSR1, self._on_soft_limit)
            program.begin()
        except BaseException as exc:
            text, says_all = process.describe_trouble(exc)
            self._reports.send(frames.BROKEN + text.encode(errors="replace")[: frames.PACKET_BYTES // 2])
            if says_all:
                return process.BROKEN_CODE
            raise
        memory = _Memory(self._limits) if self._limits.max_memory_kib is not None else None
        self._reports.send(frames.READY)
        while self._read():
            self._run_batch(program.run)
            self._flush()
            if self._file is not None:
                os.close(self._file)
                self._file = None
            if self._is_used_up() or (memory is not None and memory.is_over()):
                self._reports.send(frames.LEAVING)
                break
        program.end()
        return 0

    # -- jobs ---------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Wait for the next packet and put its jobs into the batch; False at the end."""
        view, fd = self._inbox.receive(self._jobs)
        self._together = False
        if fd is not None:
            self._file = fd
            self._batch.extend(frames.read_jobs(fd))
            return True
        if len(view) <= 1:
            return False  # told to stop, or the parent is gone
        if view[0] == frames.FILED[0]:
            raise OSError(errno.EMFILE, "the job is in a file, and this process has no descriptor left to take it")
        self._batch.extend(frames.decode_jobs(view))
        if len(self._batch) > 1:
            self._together = True
            if self._watcher is None:
                self._watcher = _Watcher(self)
            self._watcher.wake()
        return True

    def _run_batch(self, run: Callable[[Job, Callable[[JobReport], None]], JobReport]) -> None:
        batch, pending, words, emit = self._batch, self._pending, self._words, self._emit
        monotonic_ns, pid = time.monotonic_ns, self._pid
        flushed = monotonic_ns()
        while True:
            try:
                job = batch.popleft()
            except IndexError:
                return
            now = monotonic_ns()
            if pending and (job.cost_s > BRIEF_S or now - flushed > GATHER_NS or len(pending) >= GATHER):
                self._flush()
                flushed = now
            token = job.token
            words[SINCE] = now
            words[TOKEN] = token + 1
            if words[ASKED] and self._is_cancelled(token):
                report = JobReport(token, "cancelled")
            else:
                if self._file is not None:
                    os.ftruncate(self._file, 0)  # read and begun: nobody needs these pages any more
                try:
                    report = run(job, emit)
                except SoftTimeLimitExceeded:
                    # It struck in the program's own code, around the task: the run is over, its outcome unknown.
                    report = JobReport(token, "timed_out", detail="ended at its soft time limit")
                except BaseException as exc:
                    report = JobReport(token, "lost", detail=f"the slot's program raised {exc!r}")
                if COPIES.count != self._copies:
                    os._exit(0)  # a process that the job forked has come back out of it
            words[SINCE] = 0
            self._started += 1
            report.token, report.pid = token, pid
            pending.append(report)

    def _is_cancelled(self, token: int) -> bool:
        """Whether the parent has asked that this job never starts."""
        asked = self._words[ASKED]
        if asked != self._asked:
            self._asked = asked
            self._cancelled = frozenset(self._words[CANCELLED : CANCELLED + min(asked, CANCELLED_LIMIT)])
        return token + 1 in self._cancelled

    def _on_soft_limit(self, signum: int, frame: FrameType | None) -> None:
        """SIGUSR1: raise in the task, if the job meant is the one that runs.

        Never in our own code: there the job is over, or a report would be lost on its way out. The parent
        signals again until SOFT is cleared, so a signal that comes at such a moment need not be kept.
        """
        interrupted = frame
        while frame is not None and frame.f_globals is not _OURS:
            frame = frame.f_back
        if frame is not None and (frame is interrupted or frame.f_code is not _RUN_BATCH):
            return  # else it is below the program's `run`, or on a stack of its own (a greenlet)
        words = self._words
        if words[SINCE] and words[SOFT] == words[TOKEN]:
            words[SOFT] = 0
            raise SoftTimeLimitExceeded

    # -- reports ------------------------------------------------------------------------------------------

    def _emit(self, report: JobReport) -> None:
        """Send a report ahead of the final one; at once, but for `accepted` of brief jobs that came together.

        Those gather like final reports, and the watcher sends them if their job is not brief after all: a worker
        that acknowledges early would otherwise pay a wake for each of them.
        """
        report.pid = self._pid
        self._pending.append(report)
        if report.outcome != "accepted" or not self._together:
            self._flush()

    def _flush(self) -> None:
        """Send the reports that wait. May block until the parent has room for them."""
        with self._sending:
            pending = self._pending
            if not pending:
                return
            if os.getpid() != self._pid:
                os._exit(0)  # a process that a job forked has come back into the slot: these are not its reports
            batch = [pending.popleft() for _ in range(len(pending))]
            try:
                data = frames.encode(batch)
            except Exception:
                data = process.encode_each(frames.encode, batch)
            self._send(data)

    def _send(self, data: bytes) -> None:
        if len(data) > frames.PACKET_BYTES:
            fd = frames.make_file(data)
            try:
                frames.send_file(self._reports, fd)
            finally:
                os.close(fd)
        else:
            self._reports.send(data)

    def has_waiting(self) -> bool:
        """Whether a job or a report waits for the running job to end."""
        return bool(self._batch or self._pending)

    def hand_back(self) -> None:
        """Give the parent the jobs of the batch that are not started, after the reports that wait."""
        with self._sending:
            while True:
                try:
                    job = self._batch.popleft()
                except IndexError:
                    break
                self._pending.append(JobReport(job.token, HANDED_BACK))
            self._flush()

    def _is_used_up(self) -> bool:
        return self._limits.max_tasks is not None and self._started >= self._limits.max_tasks


_OURS: Final = globals()
_RUN_BATCH: Final = _Slot._run_batch.__code__


class _Watcher:
    """Looks at the slot now and then while it works through packets of several jobs; sleeps when it does not."""

    def __init__(self, slot: _Slot) -> None:
        self._slot = slot
        self._busy = threading.Event()
        threading.Thread(target=self._watch, name="celeriac-slot-watcher", daemon=True).start()

    def wake(self) -> None:
        if not self._busy.is_set():
            self._busy.set()

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # let it interrupt what the main thread waits for
        slot, words = self._slot, self._slot._words
        seen = (0, 0)
        while True:
            if not slot.has_waiting():
                self._busy.clear()
                if not slot.has_waiting():  # else a packet came in between, and its `wake` did nothing
                    self._busy.wait()
            time.sleep(WATCH_S)
            running = words[SINCE], words[TOKEN]
            if running == seen and running[0]:
                slot.hand_back()
            seen = running


class _Memory:
    """Whether this child has grown beyond its limit.

    A child begins with the pages of its parent. If those count, the children of a parent that has grown are
    over their limit at birth and are replaced after every job. So the fresh size counts as it was in the
    pool's first child.
    """

    def __init__(self, limits: Limits) -> None:
        fresh_kib = resident_kib()
        assert limits.max_memory_kib is not None
        self._limit_kib = limits.max_memory_kib
        if limits.fresh_kib is not None:
            self._limit_kib += fresh_kib - limits.fresh_kib

    def is_over(self) -> bool:
        return resident_kib() > self._limit_kib


def resident_kib(pid: int | None = None) -> int:
    """The resident set of a process, of this one by default (without a procfs: always of this one, at its peak)."""
    known = process.resident_kib(pid or os.getpid())
    if known is not None:
        return known
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak
