"""The prefork pool: gives jobs to child processes, gathers their reports, and answers for every job it took.

Made by the plugin's hook, called by the worker's thread. It keeps, per child, the jobs given and not yet
reported, in order; the child keeps the job it started last in a shared page. So when a child dies it is
known of each job whether it had been started: those that had are reported `lost`, the others go to a
sibling without a word. `slot` is one child, `packing` decides who gets what, `child` is the other side.
"""

from __future__ import annotations

import math
import os
import signal as signals
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog

from celeriac.exceptions import PoolBroken
from celeriac.spec import Job, JobReport, PoolOptions, Recipe, SlotProgram
from celeriac_pool_prefork import child, frames
from celeriac_pool_prefork.birth import PAUSE_S, StormGuard, fork, spawn
from celeriac_pool_prefork.frames import HANDED_BACK
from celeriac_pool_prefork.limits import INSIST_S, bring_forward, enforce, strike
from celeriac_pool_prefork.news import News
from celeriac_pool_prefork.packing import STUCK_S, hand_out
from celeriac_pool_prefork.slot import OVERHEAD_S, Slot
from celeriac_support_pools.process import Page, decode_reports, signal_name

#: After a TERM, a child has so long before it is killed.
TERM_S: Final = 2.0
#: After a KILL, the pool waits so long for the end, then stops without it.
KILL_S: Final = 5.0
#: A child that leaves, and has ended its jobs, may take so long to end; then it is killed.
LEAVE_S: Final = 10.0
#: The start timeout of a child is doubled after each that missed it, up to this.
START_S: Final = 300.0
#: How many packets of each child `collect` reads before it returns.
ROUNDS: Final = 4

_NOT_FINAL: Final = frozenset({"accepted", "progress", HANDED_BACK})

log = structlog.get_logger(__name__)


class PreforkPool:
    """Runs jobs in child processes, forked from the worker or spawned as fresh interpreters."""

    abilities = frozenset({"soft_limit", "hard_limit", "terminate", "resize", "processes", "spawn"})

    def __init__(self, program: SlotProgram, options: PoolOptions) -> None:
        self._program = program
        self._options = options
        self._recipe: Recipe | None = None  # of children that are not forked
        self._target = options.slots
        self._slots: dict[int, Slot] = {}  # by pid
        self._by_fd: dict[int, Slot] = {}
        self._deaf: set[Slot] = set()  # closed their end of the reports, and are not yet known to have ended
        self._backlog: deque[Job] = deque()
        self._done: list[JobReport] = []
        self._files: dict[int, int] = {}
        self._inbox = frames.Inbox()
        self._news: News | None = None
        self._look_at = math.inf
        self._refill_at = math.inf
        self._guard = StormGuard()
        self._start_timeout_s = options.start_timeout_s
        self._fresh_kib: int | None = None
        self._trouble = ""
        self._stopping = False

    @property
    def slots(self) -> int:
        return self._target

    def pids(self) -> list[int]:
        return list(self._slots)

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._recipe = self._options.recipe() if self._options.recipe is not None else None
        self._news = News(self._options.poller)
        self._refill()
        while not any(slot.ready for slot in self._slots.values()):
            self._gather(self._done, timeout_s=0.05)
            if time.monotonic() >= self._look_at:
                self._look_after(time.monotonic())
            if trouble := self._trouble:
                self.stop(grace_s=0.0)
                raise PoolBroken(f"pool prefork: no child process came up: {trouble}")

    def stop(self, *, grace_s: float) -> list[JobReport]:
        self._stopping = True
        self.withdraw()
        if self._news is None:
            return self.collect()
        reports, self._done = self._done, []
        for slot in self._slots.values():
            self._give_back(self._send_away(slot))
            if self._recipe is not None and not slot.ready:
                slot.signal(signals.SIGTERM)  # it imports the app yet, and would hear of the end only after that
        now = time.monotonic()
        for patience, number in ((now + grace_s, signals.SIGTERM), (now + grace_s + TERM_S, signals.SIGKILL)):
            while self._slots and (left := patience - time.monotonic()) > 0:
                self._gather(reports, timeout_s=min(left, 0.5))
            for slot in self._slots.values():
                if slot.given or number == signals.SIGKILL:  # an idle one is on its way out by itself
                    slot.signal(number)
        patience = time.monotonic() + KILL_S
        while self._slots:
            self._gather(reports, timeout_s=0.1)
            if time.monotonic() > patience:  # stuck in the kernel, where not even KILL arrives
                for slot in list(self._slots.values()):
                    slot.give_up()
                    self._bury(slot, reports)
        self._news.close()
        self._news = None
        reports += self._done
        self._done = []
        return reports

    def resize(self, slots: int) -> None:
        self._target = slots
        self._refill()
        staying = [slot for slot in self._slots.values() if not slot.leaving]
        staying.sort(key=lambda slot: len(slot.given))
        for slot in staying[: max(0, len(staying) - slots)]:  # there are fewer than wanted if none can be made
            self._requeue(slot, self._send_away(slot))
        self._pump()

    def _send_away(self, slot: Slot) -> list[Job]:
        """Have a child end after what it has begun; returns what it has not."""
        self._look_at = min(self._look_at, time.monotonic() + LEAVE_S)
        return slot.tell_to_stop()

    # -- jobs ---------------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        if self._stopping:
            self._give_back(jobs)
            return
        self._backlog.extend(jobs)
        self._pump()

    def collect(self) -> list[JobReport]:
        reports, self._done = self._done, []
        if self._news is None:
            return reports  # not started, or stopped
        self._gather(reports)
        now = time.monotonic()
        if now >= self._look_at:
            self._look_after(now)
        if now >= self._refill_at:
            self._refill()
        if self._backlog:
            self._pump()
        if self._done:  # by what was just done
            reports += self._done
            self._done = []
        return reports

    def deadline(self) -> float | None:
        if self._done:
            return time.monotonic()
        at = min(self._look_at, self._refill_at)
        return None if at == math.inf else at

    def withdraw(self) -> None:
        for slot in self._slots.values():
            self._give_back(slot.recall())
            slot.withdrawn = {job.token for job in slot.given}
        self._give_back(self._backlog)
        self._backlog.clear()

    def cancel(self, token: int, *, signal: int | None = None) -> bool:
        for job in self._backlog:
            if job.token == token:
                self._backlog.remove(job)
                self._finish(JobReport(token, "cancelled"))
                return True
        slot = next((slot for slot in self._slots.values() if slot.has(token)), None)
        if slot is None:
            return False
        unread = slot.recall()
        self._requeue(slot, [job for job in unread if job.token != token])
        if any(job.token == token for job in unread):
            self._finish(JobReport(token, "cancelled"))
            found = True
        else:
            found = self._cancel_in_child(slot, token, signals.SIGTERM if signal is None else signal)
        self._pump()
        return found

    def _cancel_in_child(self, slot: Slot, token: int, number: int) -> bool:
        """Cancel a job that the child has read: the child is stopped meanwhile, so it cannot turn to another."""
        if not slot.freeze():
            return False  # it has just died; the job is `lost` or goes to a sibling
        try:
            self._read_all(slot, self._done)
            if not slot.has(token):
                return False  # it had ended: its own report is here
            running = slot.running()
            if number == 0 and running is not None and running[0] == token:
                return False  # it has started, and may go on
            if number == signals.SIGUSR1 and running is not None and running[0] == token:
                bring_forward(slot, token, running[1])
                self._look_at = min(self._look_at, slot.limit_at)
                return True
            ended = JobReport(token, "cancelled", detail=f"ended by {signal_name(number)}")
            if number == 0 or not strike(slot, token, number, ended):
                slot.doomed[token] = JobReport(token, "cancelled")
                slot.ask_not_to_start(token)
            return True
        finally:
            slot.thaw()

    def _pump(self) -> None:
        """Hand out what waits."""
        at = hand_out(self._backlog, self._slots.values(), time.monotonic())
        if at < self._look_at:
            self._look_at = at

    def _requeue(self, slot: Slot, jobs: Sequence[Job]) -> None:
        """These jobs, given to a slot, were not started there: another slot gets them, or the worker."""
        for job in reversed(jobs):
            if job.token in slot.doomed:
                self._finish(slot.doomed.pop(job.token))
            elif self._stopping or job.token in slot.withdrawn:
                self._give_back([job])
            else:
                self._backlog.appendleft(job)

    def _give_back(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._finish(JobReport(job.token, "returned"))

    def _finish(self, report: JobReport) -> None:
        """Answer for a job that no child will report."""
        self._drop_file(report.token)
        self._done.append(report)

    def _drop_file(self, token: int) -> None:
        fd = self._files.pop(token, None)
        if fd is not None:
            os.close(fd)

    # -- reports ------------------------------------------------------------------------------------------

    def _gather(self, reports: list[JobReport], timeout_s: float = 0.0) -> None:
        """Read what the children sent, and bury those that have ended."""
        assert self._news is not None
        if self._deaf:
            timeout_s = min(timeout_s, INSIST_S)
        for _ in range(ROUNDS):
            fds = self._news.ready(timeout_s)
            if not fds:
                break
            timeout_s = 0.0
            ended: set[Slot] = set()
            for fd in fds:
                slot = self._by_fd[fd]
                try:
                    if fd == slot.pidfd or not self._read(slot, reports):
                        ended.add(slot)
                except BlockingIOError:
                    pass  # nothing after all; the next round asks again
            for slot in ended:  # only now, for their successors may get the numbers of their descriptors
                self._bury(slot, reports)
        for slot in list(self._deaf):
            self._bury(slot, reports)

    def _read_all(self, slot: Slot, reports: list[JobReport]) -> None:
        try:
            while self._read(slot, reports):
                pass
        except BlockingIOError:
            pass  # that was all

    def _read(self, slot: Slot, reports: list[JobReport]) -> bool:
        """Read one packet; False at the end of the stream.

        Raises:
            BlockingIOError: There is none.
        """
        view, fd = self._inbox.receive(slot.reports)
        if fd is None and (len(view) < 2 or view[0] == frames.BROKEN[0]):
            return self._hear(slot, bytes(view))
        try:
            batch = decode_reports(view) if fd is None else frames.read_reports(fd)
        except (msgspec.MsgspecError, OSError) as exc:
            # Not a packet of ours, or there was no descriptor left for a big one: what it said is lost with the child.
            log.error("pool.reports_unreadable", pid=slot.pid, error=str(exc))
            slot.signal(signals.SIGKILL)
            return True
        self._account(slot, batch, reports)
        return True

    def _account(self, slot: Slot, batch: list[JobReport], reports: list[JobReport]) -> None:
        """Strike the jobs that these reports end off the slot's list, and pass the reports on."""
        given, files, load = slot.given, self._files, slot.load_s
        before = len(given)
        handed_back: set[int] = set()
        made_up: set[int] = set()
        for report in batch:
            if report.outcome in _NOT_FINAL:
                if report.outcome == HANDED_BACK:
                    handed_back.add(report.token)
                continue
            if not given or given[0].token != report.token:
                # A child reports in the order in which it was given; only a program that makes things up gets here.
                log.error("pool.report_ignored", pid=slot.pid, token=report.token, outcome=report.outcome)
                made_up.add(id(report))
                continue
            load -= given.popleft().cost_s + OVERHEAD_S
            if files:
                self._drop_file(report.token)
        slot.load_s = load if given else 0.0
        slot.full = False
        if len(given) != before:
            slot.stuck = False
            if slot.doomed:
                for report in batch:
                    slot.doomed.pop(report.token, None)
        if handed_back:
            slot.stuck = True
            self._requeue(slot, [*slot.take_back(handed_back), *slot.recall()])
            batch = [report for report in batch if report.outcome != HANDED_BACK]
        if made_up:
            batch = [report for report in batch if id(report) not in made_up]
        reports += batch

    def _hear(self, slot: Slot, word: bytes) -> bool:
        """A word of the child about itself; False if it is its last."""
        if word == frames.READY:
            slot.ready, slot.ready_by = True, math.inf
            if self._fresh_kib is None and self._options.max_memory_per_child_kib is not None:
                self._fresh_kib = child.resident_kib(slot.pid)
            self._pump()
        elif word == frames.LEAVING:
            slot.leaving = True
            self._look_at = min(self._look_at, time.monotonic() + LEAVE_S)
            self._requeue(slot, slot.recall())
            self._refill()
        elif word[:1] == frames.BROKEN:
            slot.trouble = word[1:].decode(errors="replace")
        return bool(word)

    # -- looking after ------------------------------------------------------------------------------------

    def _look_after(self, now: float) -> None:
        self._look_at = math.inf
        at = math.inf
        for slot in list(self._slots.values()):
            at = min(at, self._look_after_slot(slot, now))
        self._look_at = min(self._look_at, at)  # a refill may have set it meanwhile

    def _look_after_slot(self, slot: Slot, now: float) -> float:
        """See to one slot; returns when to do it again."""
        if slot in self._deaf:
            return now + INSIST_S  # `collect` tries to bury it
        if now >= slot.ready_by:
            slot.trouble = f"it was not ready within {slot.start_timeout_s:g} s"
            slot.ready_by = math.inf
            slot.signal(signals.SIGKILL)
            self._start_timeout_s = min(2 * slot.start_timeout_s, START_S)  # a slow machine needs time, not kills
        if slot.leaving and not slot.given:
            slot.gone_by = min(slot.gone_by, now + LEAVE_S)
            if now >= slot.gone_by:
                slot.signal(signals.SIGKILL)
        if now >= slot.limit_at:
            slot.limit_at = enforce(slot, now)
        slot.full = False  # try again: not every lack of room ends with a report of this slot
        at = min(slot.ready_by, slot.limit_at, slot.gone_by if now < slot.gone_by else math.inf)
        if len(slot.given) > 1 and not slot.stuck:
            running = slot.running()
            since = running[1] if running else now
            if now - since < STUCK_S:
                return min(at, since + STUCK_S)
            slot.stuck = True
            self._requeue(slot, slot.recall())
        return at

    # -- deaths and births --------------------------------------------------------------------------------

    def _bury(self, slot: Slot, reports: list[JobReport]) -> None:
        """A child has ended, or has closed its end of the reports, which is as good: answer for its jobs."""
        assert self._news is not None
        if not slot.has_ended():
            slot.signal(signals.SIGKILL)  # changes nothing for one that is on its way out
            self._unwatch(slot, slot.reports.fileno())
            self._deaf.add(slot)
            self._look_at = min(self._look_at, time.monotonic() + INSIST_S)
            return
        self._read_all(slot, reports)
        del self._slots[slot.pid]
        self._deaf.discard(slot)
        self._unwatch(slot, *slot.watched)
        outcome = self._judge(slot)
        slot.forget()
        self._replace(slot, outcome)

    def _unwatch(self, slot: Slot, *fds: int) -> None:
        assert self._news is not None
        for fd in fds:
            if fd in slot.watched:
                slot.watched.discard(fd)
                del self._by_fd[fd]
                self._news.remove(fd)

    def _replace(self, slot: Slot, outcome: str | None) -> None:
        """Bring up another child for one that has ended; at once, unless children die in a row for no known reason.

        Args:
            outcome: Of the job that ran when it ended, if one did.
        """
        pause_s = 0.0
        if not slot.ready:
            self._trouble = slot.trouble or f"its process ended with {slot.cause()}"
        if outcome == "lost":
            log.warning("pool.child_lost", pid=slot.pid, cause=slot.cause())
        elif outcome is None and not slot.leaving and not self._stopping:
            log.error("pool.child_died", pid=slot.pid, cause=slot.cause(), trouble=slot.trouble or None)
            pause_s = self._guard.count(time.monotonic())
        if pause_s:
            self._pause(pause_s, slot.trouble or slot.cause())
        elif self._refill_at == math.inf:
            self._refill()

    def _pause(self, pause_s: float, reason: str) -> None:
        log.error("pool.refill_delayed", delay_s=pause_s, reason=reason)
        self._refill_at = time.monotonic() + pause_s

    def _refill(self) -> None:
        """Bring up children until there are as many as wanted."""
        self._refill_at = math.inf
        if self._stopping:
            return
        staying = sum(not slot.leaving for slot in self._slots.values())
        try:
            for _ in range(self._target - staying):
                self._add_slot()
        except OSError as exc:  # no process or no descriptor to be had: what runs goes on, and we try again
            self._trouble = f"it cannot be made: {exc}"
            self._pause(PAUSE_S[0], self._trouble)

    def _add_slot(self) -> None:
        assert self._news is not None
        options = self._options
        limits = child.Limits(options.max_tasks_per_child, options.max_memory_per_child_kib, self._fresh_kib)
        make_slot = partial(Slot, budget=options.max_tasks_per_child, files=self._files)
        if self._recipe is not None:
            slot = spawn(self._recipe, limits, make_slot)
        else:
            slot = make_slot(Page())
            fork(self._program, slot, limits, lambda: self._let_go(slot))
        slot.start_timeout_s = self._start_timeout_s
        slot.ready_by = time.monotonic() + slot.start_timeout_s
        self._look_at = min(self._look_at, slot.ready_by)
        self._slots[slot.pid] = slot
        for fd in (slot.reports.fileno(), slot.pidfd):
            if fd is not None:
                slot.watched.add(fd)
                self._by_fd[fd] = slot
                self._news.add(fd)

    def _let_go(self, slot: Slot) -> None:
        """In a forked child: close all that is the parent's and the siblings'."""
        assert self._news is not None
        self._news.forget()
        for sibling in self._slots.values():
            sibling.forget()
        for fd in self._files.values():
            os.close(fd)
        slot.jobs.close()
        slot.reports.close()

    def _judge(self, slot: Slot) -> str | None:
        """Report what a dead child had started, requeue the rest. Returns the outcome of the job it ran, if any."""
        jobs, outcome = list(slot.given), None
        slot.given.clear()
        last, running = slot.started_last(), slot.running() is not None
        begun = next((index for index, job in enumerate(jobs, 1) if job.token == last), 0)
        for job in jobs[:begun]:
            ran = job.token == last and running
            text = slot.cause() if ran else f"{slot.cause()}, after the run and before its report"
            lost = JobReport(job.token, "lost", detail=text, pid=slot.pid)
            report = slot.doomed.pop(job.token, lost)
            outcome = report.outcome if ran else None
            self._finish(report)
        self._requeue(slot, jobs[begun:])
        return outcome
