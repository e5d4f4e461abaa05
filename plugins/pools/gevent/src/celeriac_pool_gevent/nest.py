"""One child process as its parent sees it: the descriptors to it, what it was given, and its end.

Called by `pool` on the worker's thread.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import gevent
from gevent import monkey

from celeriac.spec import Job, JobReport
from celeriac_pool_gevent import frames
from celeriac_support_pools import process

READ_BYTES: Final = 1 << 20
#: A stream that is full is tried again after so long: first, and at most.
RETRY_S: Final = (0.001, 0.05)

#: So long the hub may take to tell of a child that it has reaped.
REAPED_S: Final = 1.0

_waitpid: Final[Any] = monkey.get_original("os", "waitpid")


class Given:
    """A job that the child has, without the job.

    Attributes:
        soft_at, hard_at, cancel_at: When it should be ended (`time.monotonic`); infinite: never.
        begun: As far as is known: one that says so when it begins has not yet said so.
    """

    __slots__ = ("begun", "cancel_at", "hard_at", "hard_limit_s", "soft_at", "soft_limit_s")

    def __init__(self, job: Job, now: float) -> None:
        self.soft_limit_s, self.hard_limit_s = job.soft_limit_s, job.hard_limit_s
        self.cancel_at = math.inf
        self.begin(now)
        self.begun = not job.announce

    def begin(self, now: float) -> None:
        """It begins now."""
        self.begun = True
        self.soft_at = now + (self.soft_limit_s or math.inf)
        self.hard_at = now + (self.hard_limit_s or math.inf)

    def due(self) -> float:
        """When the first of these comes."""
        return min(self.soft_at, self.hard_at, self.cancel_at)


class Nest:
    """A child process and its jobs.

    Attributes:
        ready: It takes jobs.
        given: Jobs that it has and has not reported, by token.
        doomed: What is said of jobs when its end is seen, for which the pool has ended it.
        budget: How many jobs it may still be given.
        retry_at: When to try again to write what it had no room for (`time.monotonic`).
        ready_by: When it must be ready (`time.monotonic`).
        trouble: Why it could not begin, in its own words.
    """

    def __init__(self, pid: int, fd: int, page: process.Page, max_tasks: int | None, ready_by: float) -> None:
        self.pid = pid
        self.ready = False
        self.given: dict[int, Given] = {}
        self.doomed: dict[int, JobReport] = {}
        self.budget = sys.maxsize if max_tasks is None else max_tasks
        self.retry_at = math.inf
        self.ready_by = ready_by
        self.trouble = ""
        self.fresh_kib = 0
        self._fd = fd
        os.set_blocking(fd, False)
        self._page = page
        self._pidfd = process.open_pidfd(pid)
        self._reader = frames.Reader()
        self._out = bytearray()
        self._retry_s = RETRY_S[0]
        self._has_hung_up = False
        self._status: int | None = None
        self._gone_at = math.inf
        # With a patched library the hub reaps whatever child of this process ends, once anybody has made one.
        self._watcher: Any = gevent.get_hub().loop.child(pid) if monkey.is_module_patched("os") else None
        if self._watcher is not None:
            self._watcher.start(self._note_status)

    def fds(self) -> list[int]:
        """Readable when it says something or has ended."""
        return [self._fd] if self._pidfd is None else [self._fd, self._pidfd]

    # -- words --------------------------------------------------------------------------------------------

    def give(self, jobs: Sequence[Job], now: float) -> float:
        """Have it begin these jobs; returns when the first of them may come to a limit."""
        due = math.inf
        for job in jobs:
            given = self.given[job.token] = Given(job, now)
            due = min(due, given.due())
        self.budget -= len(jobs)
        self.send(frames.RUN, frames.encode(jobs))
        return due

    def send(self, kind: bytes, content: bytes = b"") -> None:
        """Say something; what it has no room for now is kept for `push`."""
        self._out += frames.frame(kind, content)
        self.push()

    def push(self) -> None:
        """Write what waits, as far as there is room."""
        out, self.retry_at = self._out, math.inf
        try:
            while out:
                del out[: os.write(self._fd, memoryview(out)[:READ_BYTES])]
                self._retry_s = RETRY_S[0]
        except BlockingIOError:
            self.retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_S[1])
        except (BrokenPipeError, ConnectionResetError):
            out.clear()  # nobody reads it any more

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """What it has said since: (kind, content)."""
        while not self._has_hung_up:
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._has_hung_up = True
                self.kill()  # as a rule it ends just now; else a job has closed its descriptors
                return
            if not self.fresh_kib:
                self.fresh_kib = self.resident_kib()
            yield from self._reader.feed(data)

    # -- its end ------------------------------------------------------------------------------------------

    def interrupt(self, token: int, *, cancel: bool) -> None:
        """Have the job that computes look whether it is this one, and due."""
        self._page.words[frames.MEANT] = token + 1
        self._page.words[frames.CANCEL] = int(cancel)
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the process is gone; reaps it."""
        if self._status is not None:
            return True
        try:
            pid, status = _waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody's wait() took it, or SIGCHLD is ignored
            self._gone_at = min(self._gone_at, time.monotonic())
            if self._watcher is not None and time.monotonic() - self._gone_at < REAPED_S:
                return False  # it was the hub, which will say so at its next turn
            pid, status = self.pid, process.UNKNOWN_END
        if pid == 0:
            return False
        self._status = status
        return True

    def _note_status(self) -> None:
        self._status = self._watcher.rstatus

    def give_up(self) -> None:
        """Take it for dead although it cannot be reaped."""
        self._status = process.UNKNOWN_END

    def cause(self) -> str:
        """How it ended, for people: `signal 9 (SIGKILL)`, `exit code 3`."""
        return process.describe_end(self._status)

    def close(self) -> None:
        """Let go of it."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        for fd in self.fds():
            os.close(fd)
        self._page.close()

    def forget(self) -> None:
        """In a forked sibling: let go of what is not its own."""
        for fd in self.fds():
            os.close(fd)

    def resident_kib(self) -> int:
        """Its resident set now; 0 where the system does not tell (or it is gone)."""
        return process.resident_kib(self.pid) or 0

    def _signal(self, number: int) -> None:
        if self._status is not None:
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # just what the caller wanted, or about to be noticed
