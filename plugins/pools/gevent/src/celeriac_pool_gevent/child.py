"""The child process: one hub, a greenlet for each job.

Called by `pool` right after the fork; `main` never returns. The hub is the child's own, so whatever tasks do, the
worker never waits for it. Tasks that are coroutines share an event loop in a thread beside it (`coroutines`), since two
greenlets of one thread cannot both run a loop.

A greenlet can be reached only where it waits. So what must strike one that computes comes as a signal of the parent:
Python calls the handler in the very greenlet that has the processor, which raises what is due there.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Literal, NoReturn

import gevent
import gevent.event
import gevent.hub
import gevent.socket
from gevent import monkey
from greenlet import getcurrent
from msgspec import Struct

from celeriac.exceptions import EndedByPool, SoftTimeLimitExceeded
from celeriac.spec import Job, JobReport, SlotProgram
from celeriac_pool_gevent import frames
from celeriac_pool_gevent.coroutines import Coroutines
from celeriac_support_pools import process
from celeriac_support_pools.process import COPIES

#: One that was told to end has so long; then it is answered for, and its slot is somebody else's. It is told so often.
PATIENCE_S: Final = 1.0
INSIST_S: Final = 0.1
READ_BYTES: Final = 1 << 20

Ending = Literal["cancelled", "timed_out", "lost"]


class Ends(Struct, frozen=True):
    """What a child has from its parent."""

    fd: int
    page: process.Page
    parent_pid: int


def main(program: SlotProgram, ends: Ends) -> NoReturn:
    """Be a child. Call it in a fresh fork with all signals blocked; ends the process."""

    def work() -> int:
        _begin_anew()
        return _Child(program, ends).serve()

    start_thread, sleep = monkey.get_original("_thread", "start_new_thread"), monkey.get_original("time", "sleep")
    process.be_child(work, ends.parent_pid, b"celeriac-slots", start_thread, sleep)


class Run:
    """One job that runs.

    Attributes:
        greenlet: In which it runs; None for a coroutine.
        begun: It is the program's, or was.
        inside: The program has it now, so something may be raised in it.
        ending, detail: How the pool has decided that it ends; None: not at all.
        told: How often it was told so.
        soft_at, hard_at: When its limits are reached (`time.monotonic`); the soft one only until it was raised.
    """

    __slots__ = ("begun", "detail", "ending", "greenlet", "hard_at", "inside", "job", "soft_at", "timers", "told")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.greenlet: Any = None
        self.begun = self.inside = False
        self.ending: Ending | None = None
        self.detail = ""
        self.told = 0
        self.timers: list[Any] = []
        self.soft_at = self.hard_at = float("inf")

    def decide(self, ending: Ending, detail: str = "") -> None:
        """It ends so, unless that was decided before."""
        if self.ending is None:
            self.ending, self.detail = ending, detail

    def verdict(self) -> JobReport:
        """The report of one whose end the pool has decided."""
        return JobReport(self.job.token, self.ending or "lost", detail=self.detail)


class _Child:
    """The state of one child."""

    def __init__(self, program: SlotProgram, ends: Ends) -> None:
        self._program = program
        self._fd = ends.fd
        self._words = ends.page.words
        self._pid = os.getpid()
        self._copies = COPIES.count
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self._runs: dict[int, Run] = {}
        self._by_greenlet: dict[Any, Run] = {}
        self._coroutines: Coroutines | None = None
        self._pending: deque[JobReport] = deque()
        self._out = bytearray()
        self._is_due = False
        self._has_out = gevent.event.Event()
        self._over = gevent.event.Event()
        self._stopping = False

    def serve(self) -> int:
        """Work until the parent says stop or is gone. Returns the exit code."""
        signal.signal(signal.SIGUSR1, self._on_signal)
        os.set_blocking(self._fd, False)
        gevent.spawn(_vital, self._write)
        try:
            self._program.begin()
        except BaseException as exc:
            text, says_all = process.describe_trouble(exc)
            self._send(frames.frame(frames.BROKEN, text.encode(errors="replace")))
            self._drain()
            if says_all:
                return process.BROKEN_CODE
            raise
        self._send(frames.frame(frames.READY))
        gevent.spawn(_vital, self._read)
        while not self._over.is_set():
            # A greenlet that a job has left may call `sys.exit`: the hub raises that here, where nobody is meant.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self._over.wait()
        self._flush()
        self._drain()
        self._program.end()
        return 0

    # -- what the parent says -----------------------------------------------------------------------------

    def _read(self) -> None:
        reader, watcher = frames.Reader(), self._loop.io(self._fd, 1)
        while True:
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                self._hub.wait(watcher)
                continue
            except OSError:
                data = b""
            if not data:
                os._exit(0)  # the parent is gone
            for kind, content in reader.feed(data):
                self._hear(kind, content)

    def _hear(self, kind: bytes, content: bytes) -> None:
        if kind == frames.RUN:
            for job in frames.decode_jobs(content):
                self._begin(job)
        elif kind == frames.END:
            run = self._runs.get(frames.decode_token(content))
            if run is not None:
                self._end(run, "cancelled")
        else:
            self._stopping = True
            if kind == frames.GIVE_UP:
                for run in list(self._runs.values()):
                    self._end(run, "lost", "given up when the pool was stopped")
            if not self._runs:
                self._over.set()

    # -- jobs ---------------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> None:
        run = self._runs[job.token] = Run(job)
        if job.coroutine:
            if self._coroutines is None:
                self._coroutines = Coroutines(self._program, self._emit_from_afar, self._finish_from_afar)
            self._limit(run)
            run.begun = True
            self._coroutines.begin(run)
            return
        run.greenlet = gevent.Greenlet(self._work, run)
        self._by_greenlet[run.greenlet] = run
        run.greenlet.start()

    def _limit(self, run: Run) -> None:
        """Set the clocks of a job that begins now."""
        job, now = run.job, time.monotonic()
        if job.hard_limit_s:
            run.hard_at = now + job.hard_limit_s
            self._after(run, job.hard_limit_s, self._end, "timed_out", f"{job.hard_limit_s:g}")
        if job.soft_limit_s and run.greenlet is not None:  # the program keeps a coroutine's own
            run.soft_at = now + job.soft_limit_s
            self._after(run, job.soft_limit_s, self._limit_softly)

    def _work(self, run: Run) -> None:
        """In the job's own greenlet."""
        token = run.job.token
        if self._pending:
            self._flush()  # this job may take long without letting anybody else run
        if run.ending is not None:
            self._finish(run, run.verdict())  # before it began
            return
        self._limit(run)
        try:
            run.begun = run.inside = True
            report = self._program.run(run.job, self._emit)
            run.inside = False
        except EndedByPool:
            report = run.verdict()
        except SoftTimeLimitExceeded:
            # It struck in the program's own code, around the task: the run is over, its outcome unknown.
            report = JobReport(token, "timed_out", detail="ended at its soft time limit")
        except BaseException as exc:
            report = JobReport(token, "lost", detail=f"the slot's program raised {exc!r}")
        run.inside = False
        self._finish(run, run.verdict() if run.told else report)

    def _finish(self, run: Run, report: JobReport) -> None:
        """Answer for a job, once."""
        if COPIES.count != self._copies:
            os._exit(0)  # a process that the job forked has come back out of it
        for timer in run.timers:
            timer.stop()
            timer.close()
        run.timers = []
        if self._runs.pop(run.job.token, None) is None:
            return  # somebody else has
        if run.greenlet is not None:
            self._by_greenlet.pop(run.greenlet, None)
        report.token, report.pid = run.job.token, self._pid if run.begun else 0
        self._tell(report)
        if self._stopping and not self._runs:
            self._over.set()

    def _after(self, run: Run, seconds: float, do: Any, *words: Any) -> None:
        timer = self._loop.timer(seconds)
        timer.start(do, run, *words)
        run.timers.append(timer)

    def _limit_softly(self, run: Run) -> None:
        """In the hub: the soft limit of a job that waits, or it would not be our turn."""
        if run.inside and run.ending is None:
            run.soft_at = float("inf")
            run.greenlet.throw(SoftTimeLimitExceeded(run.job.soft_limit_s))

    def _end(self, run: Run, ending: Ending, detail: str = "") -> None:
        """End a job that waits somewhere; it is told again until it ends, and then done without."""
        run.decide(ending, detail)
        if run.greenlet is not None:
            self._loop.run_callback(self._strike, run)
        elif not run.told and self._coroutines is not None:
            run.told = 1
            self._coroutines.end(run)
            self._after(run, PATIENCE_S, self._give_up)

    def _strike(self, run: Run) -> None:
        """In the hub. One that has yet to begin sees by itself that it shall not."""
        if not run.inside:
            return
        if run.told * INSIST_S >= PATIENCE_S:
            self._give_up(run)
            return
        run.told += 1
        self._after(run, INSIST_S, self._strike)
        run.greenlet.throw(EndedByPool())

    def _give_up(self, run: Run) -> None:
        self._finish(run, run.verdict())

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """SIGUSR1: raise what is due in the job that computes, if it is the one that is meant; else it must let the hub
        turn, in which the other's clock has run out.

        Never in our own code: there the job is over, or a report would be lost on its way out. The parent signals
        again until the job is reported, so a signal that comes at such a moment need not be kept.
        """
        run = self._by_greenlet.get(getcurrent())
        if run is None or not run.inside or frame is None or frame.f_globals is _OURS:
            return
        words, now = self._words, time.monotonic()
        if words[frames.MEANT] != run.job.token + 1:
            gevent.sleep(0.001)  # not 0, for which the hub would run callbacks, but no clocks
            return
        if words[frames.CANCEL]:
            run.decide("cancelled")
        elif now >= run.hard_at:
            run.decide("timed_out", f"{run.job.hard_limit_s:g}")
        if run.ending is not None:
            run.told += 1
            raise EndedByPool
        if now >= run.soft_at:
            run.soft_at = float("inf")
            raise SoftTimeLimitExceeded(run.job.soft_limit_s)

    # -- reports ------------------------------------------------------------------------------------------

    def _emit(self, report: JobReport) -> None:
        """Send a report ahead of the final one, at once: the job may let nobody else run for long."""
        report.pid = self._pid
        if report.token in self._runs:
            self._pending.append(report)
            self._flush()

    def _tell(self, report: JobReport) -> None:
        """Send a final report, with others that come in the same turn of the hub."""
        self._pending.append(report)
        if not self._is_due:
            self._is_due = True
            self._loop.run_callback(self._flush)

    def _emit_from_afar(self, report: JobReport) -> None:
        """`_emit` for another thread."""
        self._loop.run_callback_threadsafe(self._emit, report)

    def _finish_from_afar(self, run: Run, report: JobReport) -> None:
        """`_finish` for another thread."""
        self._loop.run_callback_threadsafe(self._finish, run, report)

    def _flush(self) -> None:
        """Send the reports that wait, as far as the parent has room for them; never waits."""
        self._is_due = False
        pending = self._pending
        if not pending:
            return
        batch = [pending.popleft() for _ in range(len(pending))]
        try:
            data = frames.encode(batch)
        except Exception:
            data = process.encode_each(frames.encode, batch)
        self._send(frames.frame(frames.REPORTS, data))

    def _send(self, data: bytes) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # a process that a job forked has come back into the slot: these are not its reports
        self._out += data
        self._push()

    def _push(self) -> None:
        """Write as much as there is room for."""
        out = self._out
        while out:
            try:
                sent = os.write(self._fd, memoryview(out)[:READ_BYTES])
            except BlockingIOError:
                self._has_out.set()
                return
            except OSError:
                os._exit(0)  # the parent is gone
            del out[:sent]

    def _write(self) -> None:
        """The greenlet that writes what did not fit at once."""
        watcher = self._loop.io(self._fd, 2)
        while True:
            self._has_out.wait()
            self._has_out.clear()
            self._hub.wait(watcher)
            self._push()

    def _drain(self) -> None:
        """Wait until everything is written."""
        while self._out:
            gevent.sleep(0.001)


_OURS: Final = globals()


def _vital(work: Callable[[], None]) -> None:
    """In a greenlet without which the child neither hears nor says anything more, and the parent would wait for ever:
    what ends it (a task that kills all greenlets it finds, no memory) ends the process, which the parent sees."""
    try:
        work()
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    os._exit(process.BROKEN_CODE)


def _begin_anew() -> None:
    """A hub of our own. The parent's, copied with its greenlets by the fork, must not turn here, nor be taken apart.

    So it is let go of without a word to its greenlets, and kept; only its loop, in which the kernel would report to us
    what happens on the parent's descriptors, is closed. First its sockets, which nobody could close after that.
    """
    for thing in _sockets(gevent.socket.socket):
        thing.close()
    gc.freeze()  # what came from the parent is not garbage: a greenlet that is collected wakes to end
    left = gevent.hub.get_hub()
    _left_behind.append(left)
    gevent.hub.set_hub(None)
    gevent.hub.set_loop(None)
    left.loop.destroy()
    if not monkey.is_module_patched("time"):
        monkey.patch_all()


def _sockets(kind: type[object]) -> list[Any]:
    """All there are of this kind and of those derived from it.

    A look at each object of the process would count a reference to each, and thereby copy the parent's whole heap.
    """
    found = [thing for thing in gc.get_referrers(kind) if type(thing) is kind]
    for more in kind.__subclasses__():
        found += _sockets(more)
    return found


_left_behind: Final[list[Any]] = []
