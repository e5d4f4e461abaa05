"""Time limits and the end of single jobs: what must strike one job, and no other.

Called by `pool` on the worker's thread. The child may turn to its next job at any moment, so a signal that
ends a process is sent only after the child was stopped and seen to run the very job that is meant. The soft
limit needs no stop: the child itself compares the job that is meant with the one that it runs.
"""

from __future__ import annotations

import signal
import time
from math import inf
from typing import Final

from msgspec import structs

from celeriac.spec import Job, JobReport
from celeriac_pool_prefork.slot import Slot

#: A soft limit is signalled again until the child has raised it: after so long, then after twice as long …
INSIST_S: Final = 0.020


def least_limit(job: Job) -> float:
    """The first limit that a run of this job can reach, in seconds; infinite without one. 0 is none, as in Celery."""
    return min(job.soft_limit_s or inf, job.hard_limit_s or inf)


def enforce(slot: Slot, now: float) -> float:
    """Act on the limits of what the slot runs; returns when the next limit may be reached (`time.monotonic`)."""
    running = slot.running()
    at = inf
    for job in slot.given:
        least_s = least_limit(job)
        if least_s == inf:
            continue
        if running is not None and running[0] == job.token:
            at = min(at, _enforce_on(slot, job, running[1], now))
        else:
            at = min(at, now + least_s)  # not before, for it has yet to start
    return at


def strike(slot: Slot, token: int, number: int, report: JobReport) -> bool:
    """Signal the child if it runs this job; when that ends it, `report` will be what is said of the job.

    Returns whether it was struck. The caller holds the child frozen.
    """
    running = slot.running()
    if running is None or running[0] != token:
        return False
    report.runtime_s = time.monotonic() - running[1]
    report.pid = slot.pid
    slot.doomed[token] = report
    slot.signal(number)
    return True


def bring_forward(slot: Slot, token: int, since: float) -> None:
    """Have the job, which has run since then, be at its soft limit now, once more if it was; `enforce` raises it."""
    now = time.monotonic()
    for index, job in enumerate(slot.given):
        if job.token == token:
            slot.given[index] = structs.replace(job, soft_limit_s=max(now - since, 1e-6))  # 0 is none
    slot.forget_soft_limit()
    slot.limit_at = now


def _enforce_on(slot: Slot, job: Job, since: float, now: float) -> float:
    soft_at = since + (job.soft_limit_s or inf)
    hard_at = since + (job.hard_limit_s or inf)
    if now >= hard_at:
        _kill(slot, job)
        return inf
    if now < soft_at:
        return min(soft_at, hard_at)
    if slot.is_soft_limit_raised(job.token):
        return hard_at
    slot.raise_soft_limit(job.token)
    return min(hard_at, now + max(INSIST_S, now - soft_at))


def _kill(slot: Slot, job: Job) -> None:
    if slot.freeze():
        limit_s = f"{job.hard_limit_s:g}"
        if strike(slot, job.token, signal.SIGKILL, JobReport(job.token, "timed_out", detail=limit_s)):
            slot.leaving = True  # give it nothing more
        slot.thaw()
