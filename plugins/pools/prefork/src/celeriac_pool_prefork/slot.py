"""The parent's end of one child: its sockets, what it was given, what it runs, how it ends.

Called by `pool`, on the worker's thread only. The parent keeps the receiving end of the job socket open
beside the child: the kernel hands each packet to exactly one of the two, so what the child has not read can
be taken back at any moment, and it cannot be started twice or forgotten.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec import structs

from celeriac.spec import Job, JobReport
from celeriac_pool_prefork import frames
from celeriac_pool_prefork.frames import ASKED, CANCELLED, CANCELLED_LIMIT, SINCE, SOFT, TOKEN
from celeriac_support_pools import process

#: What a job costs besides its run: frames, accounting. Keeps a packet of no-ops from being endless.
OVERHEAD_S: Final = 0.000_01
#: How long to wait for a child to stop on SIGSTOP; only one deep in the kernel takes longer.
_FREEZE_S: Final = 0.05


class Slot:
    """One child as its parent sees it."""

    def __init__(self, page: process.Page, *, budget: int | None, files: dict[int, int]) -> None:
        """Make what must exist before the child does.

        Args:
            page: Which the child will have too.
            budget: How many jobs the child may be given in all; None: any number.
            files: Token → anonymous file of every big job of the pool that is on its way; shared by the slots.
        """
        self._files = files
        self.jobs, self.jobs_end = frames.socket_pair()
        self.reports, self.reports_end = frames.socket_pair()
        self.jobs.setblocking(False)
        self.reports.setblocking(False)
        self.page = page
        self.pid = 0
        self.pidfd: int | None = None
        self.watched: set[int] = set()  #: descriptors that the pool has registered
        self._status: int | None = None  # of `waitpid`, once it has ended
        self._soft_token: int | None = None  # the job that was last sent a soft limit

        self.given: deque[Job] = deque()  #: given and not reported, in the order in which they run
        self.load_s = 0.0  #: what they are expected to take together
        self.budget = math.inf if budget is None else budget  #: how many more it may be given
        self.withdrawn: set[int] = set()  #: tokens that go to the worker, not to a sibling, if they come back
        self.doomed: dict[int, JobReport] = {}  #: token → what to say of it if the child does not report it

        self.ready = False  #: it has begun
        self.leaving = False  #: it takes no more jobs and is about to end
        self.full = False  #: its socket had no room
        self.stuck = False  #: what it runs takes long, so nothing should wait behind it
        self.trouble = ""  #: why it could not begin

        # `time.monotonic` at which somebody must look:
        self.limit_at = math.inf  #: not before this does a job reach a limit
        self.ready_by = math.inf
        self.gone_by = math.inf
        self.start_timeout_s = math.inf

    def born(self, pid: int) -> None:
        """The child is there; this is the parent."""
        self.pid = pid
        self.reports_end.close()  # so that the end of the child is the end of the stream
        self.pidfd = process.open_pidfd(pid)

    def forget(self) -> None:
        """Close everything, in the parent after the child's end or in a sibling after a fork."""
        for sock in (self.jobs, self.jobs_end, self.reports, self.reports_end):
            sock.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        self.page.close()

    # -- jobs ---------------------------------------------------------------------------------------------

    def send(self, jobs: list[Job]) -> int:
        """Give the child these jobs in one packet. Returns how many it got: none if there is no room for it now."""
        try:
            if len(jobs) == 1 and (fd := self._file_of(jobs)) is not None:
                frames.send_file(self.jobs, fd, jobs[0].token)
            else:
                data = frames.encode(jobs)
                while len(data) > frames.PACKET_BYTES:  # queues have names of a hundred letters, then
                    jobs = jobs[: len(jobs) // 2]
                    data = frames.encode(jobs)
                self.jobs.send(data)
        except OSError as exc:
            if exc.errno not in _NO_ROOM:
                raise
            self.full = True
            return 0
        self.given.extend(jobs)
        self.budget -= len(jobs)
        return len(jobs)

    def is_open(self) -> bool:
        """Whether it may be given more jobs, as far as it is known."""
        return self.ready and not (self.leaving or self.full or self.stuck) and self.budget > 0

    def size_of(self, job: Job) -> int:
        """Bytes of the job's message, also of one that lies in a file already and has none left in itself."""
        return frames.PACKET_BYTES if job.token in self._files else len(job.raw)

    def recall(self) -> list[Job]:
        """Take back the jobs that the child has not read, in order.

        The child may be reading at the same time, and get a packet from between two that we get. So it is what
        the packets say that counts, not how many there are.
        """
        tokens: set[int] = set()
        told_to_stop = False
        while True:
            try:
                data, ancillary, _, _ = self.jobs_end.recvmsg(frames.PACKET_BYTES, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if ancillary:
                os.close(frames.descriptor(ancillary))  # `files` has it still
            if data[:1] == frames.FILED:
                tokens.add(frames.token_of_file(data))
            elif data == frames.STOP:
                told_to_stop = True
            elif data:
                tokens.update(job.token for job in frames.decode_jobs(data))
            else:
                break
        if told_to_stop:
            self.jobs.send(frames.STOP)
        self.full = False
        return self.take_back(tokens) if tokens else []

    def take_back(self, tokens: set[int]) -> list[Job]:
        """Forget that the child was given these jobs; returns them in order."""
        jobs = [job for job in self.given if job.token in tokens]
        self.given = deque(job for job in self.given if job.token not in tokens)
        self._ungive(jobs)
        return jobs

    def has(self, token: int) -> bool:
        return any(job.token == token for job in self.given)

    def tell_to_stop(self) -> list[Job]:
        """Let the child end after what it has begun. Returns what it has not read."""
        self.leaving = True
        unread = self.recall()
        try:
            self.jobs.send(frames.STOP)
        except OSError:
            pass  # a socket that cannot take two bytes after a recall is a child that is already gone
        return unread

    def _ungive(self, jobs: Sequence[Job]) -> None:
        self.budget += len(jobs)
        self.load_s = self.load_s - sum(job.cost_s + OVERHEAD_S for job in jobs) if self.given else 0.0

    def _file_of(self, jobs: list[Job]) -> int | None:
        """The anonymous file of a single big job; None if it fits in a packet.

        A big job's bytes are given up once they are in the file: the file is what is sent again if need be.
        """
        job = jobs[0]
        fd = self._files.get(job.token)
        if fd is None and frames.size_of(jobs) > frames.PACKET_BYTES:
            fd = self._files[job.token] = frames.make_file(frames.encode(jobs))
            jobs[0] = structs.replace(job, raw=b"")
        return fd

    # -- what it runs -------------------------------------------------------------------------------------

    def running(self) -> tuple[int, float] | None:
        """Token and start (`time.monotonic`) of the running job; None between jobs.

        Token first: the child writes it last, so that a job is never seen with an earlier job's start.
        """
        words = self.page.words
        token, since = words[TOKEN], words[SINCE]
        return (token - 1, since / 1e9) if since and token else None

    def ask_not_to_start(self, token: int) -> None:
        """Have the child report this job, which it has read, as cancelled when its turn comes."""
        words = self.page.words
        words[CANCELLED + words[ASKED] % CANCELLED_LIMIT] = token + 1
        words[ASKED] += 1

    def raise_soft_limit(self, token: int) -> None:
        """Interrupt the job, if the child still runs it. Call again until `is_soft_limit_raised`."""
        if self._soft_token != token:
            self._soft_token = token
            self.page.words[SOFT] = token + 1
        self.signal(signal.SIGUSR1)

    def forget_soft_limit(self) -> None:
        """What was raised so far does not count any more."""
        self._soft_token = None

    def is_soft_limit_raised(self, token: int) -> bool:
        return self._soft_token == token and self.page.words[SOFT] == 0

    # -- its end ------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send a signal to the child, unless it has ended. It is ours to reap, so its pid names no other process."""
        try:
            if self.pidfd is not None and hasattr(signal, "pidfd_send_signal"):
                signal.pidfd_send_signal(self.pidfd, number)
            elif self._status is None:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # just what the caller wanted, or about to be noticed

    def freeze(self) -> bool:
        """Stop the child, so that what it runs cannot change until `thaw`; False if it has ended.

        One that does not stop in time is busy inside the kernel, and so does not change what it runs either.
        """
        self.signal(signal.SIGSTOP)
        patience = time.monotonic() + _FREEZE_S
        while time.monotonic() < patience:
            status = self._wait(os.WNOHANG | os.WUNTRACED)
            if status is not None:
                return os.WIFSTOPPED(status)
            time.sleep(0.0002)
        return True

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def has_ended(self) -> bool:
        """Whether the child is gone; reaps it."""
        return self._status is not None or self._wait(os.WNOHANG) is not None

    def give_up(self) -> None:
        """Take the child for dead although it cannot be reaped."""
        self._status = process.UNKNOWN_END

    def cause(self) -> str:
        """How the child ended, for people: `signal 9 (SIGKILL)`, `exit code 3`."""
        return process.describe_end(self._status)

    def started_last(self) -> int:
        """The token of the job that the child started last; -1 if it never started any."""
        return self.page.words[TOKEN] - 1

    def _wait(self, flags: int) -> int | None:
        if self._status is not None:
            return self._status
        try:
            pid, status = os.waitpid(self.pid, flags)
        except ChildProcessError:
            self._status = process.UNKNOWN_END  # somebody's wait() took it, or SIGCHLD is ignored
            return self._status
        if pid == 0:
            return None
        if not os.WIFSTOPPED(status):
            self._status = status
        return status


_NO_ROOM: Final = frozenset(
    {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS, errno.ENOSPC}
)
