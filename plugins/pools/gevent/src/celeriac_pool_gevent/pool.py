"""The gevent pool: gives jobs to one child process, in which each has a greenlet, and answers for every job it took.

Made by the plugin's hook, called by the worker's thread. No user code runs here, so nothing that tasks do holds up the
worker, its connections and its leases; and a hub that tasks hold up can be told by signals, or killed. The child is
replaced when it dies or is used up; one that is used up finishes its jobs beside its successor.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Final

import structlog
from gevent import monkey

from celeriac.exceptions import PoolBroken
from celeriac.spec import FINAL_OUTCOMES, Job, JobReport, PoolOptions, SlotProgram
from celeriac_pool_gevent import child, frames
from celeriac_pool_gevent.nest import Nest
from celeriac_support_pools import process

#: A job that is not reported so long after its limit, or its cancelling, does not let others run: it gets a signal.
INSIST_S: Final = 0.25
#: If signals do not end it within so long after its hard limit, its process is killed, with all others in it.
KILL_AFTER_S: Final = 10.0
#: In a stop, what was told to end may take so long; then the child is killed.
TERM_S: Final = 1.5
#: After a KILL, the pool waits so long for the end, then stops without it.
KILL_S: Final = 5.0
#: The pause before the next birth after a death that no job explains: first, and at most.
PAUSE_S: Final = (1.0, 30.0)

_PATCHES: Final = ("queue", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading")

log = structlog.get_logger(__name__)


class GeventPool:
    """Runs jobs in greenlets of a child process.

    Args:
        patch_late: If the standard library is not patched yet, patch it in the child alone, rather than refuse. For
            programs that have taken nothing from it by then that blocks: no lock, no `from time import sleep`.
    """

    abilities = frozenset({"soft_limit", "hard_limit", "terminate", "resize", "coroutines"})

    def __init__(self, program: SlotProgram, options: PoolOptions, *, patch_late: bool = False) -> None:
        self._program = program
        self._options = options
        self._patch_late = patch_late
        self._target = options.slots
        self._nest: Nest | None = None  # which gets new jobs
        self._leaving: list[Nest] = []
        self._backlog: deque[Job] = deque()
        self._done: list[JobReport] = []
        self._look_at = math.inf
        self._birth_at = math.inf
        self._pause_s = PAUSE_S[0]
        self._fresh_kib: int | None = None
        self._trouble = ""
        self._stopping = True

    @property
    def slots(self) -> int:
        return self._target

    def pids(self) -> list[int]:
        return [nest.pid for nest in self._nests()]

    def _nests(self) -> list[Nest]:
        return [*([] if self._nest is None else [self._nest]), *self._leaving]

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        if not (self._patch_late or monkey.is_module_patched("time")):
            raise PoolBroken(
                "pool gevent: the standard library was not patched before the program was imported, so its tasks "
                "would wait for each other. Give -P gevent on the command line (the setting worker_pool is read too "
                "late for that), or let the program begin with: from gevent import monkey; monkey.patch_all()"
            )
        self._stopping = False
        for name in _PATCHES if self._patch_late else ():
            import_module(f"gevent.{name}")  # so that not every child has to
        self._bear()
        reports: list[JobReport] = []
        patience = time.monotonic() + self._options.start_timeout_s
        while self._nest is not None and not self._nest.ready and time.monotonic() < patience:
            self._sleep(patience)
            self._listen(reports)
        if self._nest is None or not self._nest.ready:
            trouble = self._trouble or f"it was not ready within {self._options.start_timeout_s:g} s"
            self.stop(grace_s=0.0)
            raise PoolBroken(f"pool gevent: no child process came up: {trouble}")

    def stop(self, *, grace_s: float) -> list[JobReport]:
        self.withdraw()
        reports, self._done = self._done, []
        if not self._stopping:
            self._stopping = True
            nests = self._nests()
            for nest in nests:
                nest.send(frames.STOP)
            now = time.monotonic()
            self._listen_until(now + grace_s if any(nest.given for nest in nests) else now + TERM_S, reports)
            for nest in self._nests():
                nest.send(frames.GIVE_UP)
            self._listen_until(time.monotonic() + TERM_S, reports)
            for nest in self._nests():
                nest.kill()
            self._listen_until(time.monotonic() + KILL_S, reports)
            for nest in self._nests():  # stuck in the kernel, where not even KILL arrives
                nest.give_up()
            self._listen(reports)
            time.sleep(0.001)  # a patched `os.close` closes at the next turn of the hub
        return reports

    def _listen_until(self, patience: float, reports: list[JobReport]) -> None:
        while self._nests() and time.monotonic() < patience:
            self._sleep(patience)
            self._listen(reports)

    def _sleep(self, until: float) -> None:
        """Until a child says something or ends, at most until then."""
        poll = select.poll()
        for fd in [fd for nest in self._nests() for fd in nest.fds()]:
            poll.register(fd, select.POLLIN)
        left_s = min(until, *(nest.retry_at for nest in self._nests())) - time.monotonic()
        poll.poll(max(0.0, min(left_s, 0.5)) * 1000)

    def resize(self, slots: int) -> None:
        self._target = slots
        self._pump()

    def _bear(self) -> None:
        """Fork a child; it takes jobs once it has said that it is ready."""
        self._birth_at = math.inf
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:  # no descriptor to be had
            self._plan_birth(f"it cannot be made: {exc}")
            return
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        page = process.Page()
        our_fd, their_fd = ours.detach(), theirs.detach()
        parent_pid = os.getpid()

        def be_child() -> None:
            os.close(our_fd)
            for nest in self._nests():
                nest.forget()
            child.main(self._program, child.Ends(their_fd, page, parent_pid))

        try:
            # The system's own fork: the patched one would wake the parent's greenlets in the child.
            pid = process.fork(be_child, monkey.get_original("os", "fork"))
        except OSError as exc:
            os.close(our_fd)
            page.close()
            self._plan_birth(f"it cannot be made: {exc}")
            return
        finally:
            os.close(their_fd)
        ready_by = time.monotonic() + self._options.start_timeout_s
        self._nest = nest = Nest(pid, our_fd, page, self._options.max_tasks_per_child, ready_by)
        self._look_at = min(self._look_at, ready_by)
        for fd in nest.fds():
            self._options.poller.watch(fd)

    def _retire(self, nest: Nest) -> None:
        """Let a child finish what it has, and have another take what comes."""
        nest.send(frames.STOP)
        self._leaving.append(nest)
        self._nest = None
        self._bear()

    def _bury(self, nest: Nest, reports: list[JobReport]) -> None:
        """A child has ended: what it had begun is lost with it."""
        for fd in nest.fds():
            self._options.poller.unwatch(fd)
        cause = "given up when the pool was stopped" if self._stopping else nest.cause()
        is_explained = nest.ready and bool(nest.given)
        for token in nest.given:
            reports.append(nest.doomed.get(token, JobReport(token, "lost", detail=cause, pid=nest.pid)))
        nest.close()
        if nest is not self._nest:
            self._leaving.remove(nest)
            return
        self._nest = None
        trouble = self._trouble = nest.trouble or f"it ended by {cause}"
        if self._stopping:
            return
        if is_explained:
            self._pause_s = PAUSE_S[0]
            self._bear()
        else:
            self._plan_birth(trouble)

    def _plan_birth(self, trouble: str) -> None:
        self._trouble = trouble
        log.warning("pool.birth_delayed", pause_s=self._pause_s, reason=self._trouble)
        self._birth_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_S[1])

    # -- jobs ---------------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        if self._stopping:
            self._give_back(jobs)
            return
        self._backlog.extend(jobs)
        self._pump()

    def collect(self) -> list[JobReport]:
        reports, self._done = self._done, []
        self._listen(reports)
        now = time.monotonic()
        if now >= self._birth_at:
            self._bear()
        if now >= self._look_at:
            self._look_after(now, reports)
        if self._backlog:
            self._pump()
        return reports

    def deadline(self) -> float | None:
        if self._done:
            return time.monotonic()
        at = min([self._look_at, self._birth_at, *(nest.retry_at for nest in self._nests())])
        return None if at == math.inf else at

    def withdraw(self) -> None:
        self._give_back(self._backlog)
        self._backlog.clear()

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        for job in self._backlog:
            if job.token == token:
                self._backlog.remove(job)
                self._done.append(JobReport(token, "cancelled"))
                return True
        nest = next((nest for nest in self._nests() if token in nest.given), None)
        if nest is None or signal == 0:
            return False
        nest.given[token].cancel_at = time.monotonic()
        self._look_at = min(self._look_at, time.monotonic() + INSIST_S)
        nest.send(frames.END, frames.encode(token))
        return True

    def _give_back(self, jobs: Iterable[Job]) -> None:
        self._done.extend(JobReport(job.token, "returned") for job in jobs)

    def _pump(self) -> None:
        """Give the child as many jobs as there are free slots."""
        nest, backlog = self._nest, self._backlog
        if nest is None or not nest.ready or not backlog:
            return
        room = min(self._target - sum(len(one.given) for one in self._nests()), nest.budget, len(backlog))
        parcel = [backlog.popleft() for _ in range(room)]
        if not parcel:
            return
        self._look_at = min(self._look_at, nest.give(parcel, time.monotonic()) + INSIST_S)
        if not nest.budget:
            self._retire(nest)

    # -- what children say --------------------------------------------------------------------------------

    def _listen(self, reports: list[JobReport]) -> None:
        for nest in self._nests():
            nest.push()
            ended = nest.has_ended()  # first: then all that it said is there to be read
            for kind, content in nest.read():
                if kind == frames.REPORTS:
                    self._account(nest, process.decode_reports(content), reports)
                elif kind == frames.READY:
                    nest.ready = True
                    self._trouble = ""
                    self._pump()
                elif kind == frames.BROKEN:
                    nest.trouble = content.decode(errors="replace")
            if ended:
                self._bury(nest, reports)

    def _account(self, nest: Nest, batch: list[JobReport], reports: list[JobReport]) -> None:
        for report in batch:
            if report.token not in nest.given:
                continue  # it was answered for already
            if report.outcome == "accepted":
                nest.given[report.token].begin(time.monotonic())
            elif report.outcome in FINAL_OUTCOMES:
                del nest.given[report.token]
                nest.doomed.pop(report.token, None)
            reports.append(report)
        most_kib = self._options.max_memory_per_child_kib
        if most_kib is not None and nest is self._nest:
            size_kib, fresh_kib = nest.resident_kib(), nest.fresh_kib
            if self._fresh_kib is None:
                self._fresh_kib = fresh_kib
            # A child begins with the pages of its parent, which may have grown meanwhile: these do not count.
            if size_kib - fresh_kib + self._fresh_kib > most_kib and not self._stopping:
                self._retire(nest)

    # -- limits -------------------------------------------------------------------------------------------

    def _look_after(self, now: float, reports: list[JobReport]) -> None:
        """See to jobs that should have been reported by now: these do not let the hub turn."""
        self._look_at = math.inf
        for nest in self._nests():
            if not nest.ready:
                if now >= nest.ready_by:
                    nest.trouble = f"it was not ready within {self._options.start_timeout_s:g} s"
                    nest.kill()
                else:
                    self._look_at = min(self._look_at, nest.ready_by)
            for token, given in list(nest.given.items()):
                due = given.due()
                if now < due + INSIST_S:
                    self._look_at = min(self._look_at, due + INSIST_S)
                    continue
                if now >= given.hard_at + KILL_AFTER_S and given.begun:
                    nest.doomed[token] = JobReport(token, "timed_out", detail=f"{given.hard_limit_s:g}", pid=nest.pid)
                    nest.kill()
                    break
                nest.interrupt(token, cancel=given.cancel_at < math.inf)
                # More rarely from time to time: it may have been told, and take its time to end.
                self._look_at = min(self._look_at, now + max(0.02, (now - due - INSIST_S) / 2))
