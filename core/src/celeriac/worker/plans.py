"""What the worker knows of each task type beforehand, and what it learns of it: how long it takes."""

from __future__ import annotations

import inspect
from typing import Any, Final

from celeriac.spec.data import UNKNOWN_COST_S

#: What a run costs beside the task itself: decode, encode, report.
OVERHEAD_S: Final = 0.00003
#: So many runs before a type's cost is believed.
TRIAL_RUNS: Final = 3


class TaskPlan:
    """One task type in one worker.

    Attributes:
        cost_s: Expected time in a slot; `UNKNOWN_COST_S` until a few runs were seen.
        early: Acknowledged when a slot takes it, before it runs (`acks_late=False`): at most once.
        coroutine: It is a coroutine function.
        announce: The slot says when it takes a call.
        requeue_lost: Its message comes back when its process has died.
        retry_lost: Such a death is one of its retries; this goes first.
        runs: How many have ended here.
    """

    __slots__ = (
        "_trial_s",
        "ack_on_failure",
        "ack_on_timeout",
        "announce",
        "coroutine",
        "cost_s",
        "early",
        "hard_s",
        "name",
        "requeue_lost",
        "retry_lost",
        "runs",
        "soft_s",
        "task",
    )

    def __init__(self, task: Any, hard_s: float | None, soft_s: float | None, announce: bool) -> None:
        self.task = task
        self.name: str = task.name
        self.coroutine = inspect.iscoroutinefunction(task.run)
        self.renew_limits(hard_s, soft_s)
        self.early = not task.acks_late
        self.announce = announce or self.early
        base = task.acks_on_failure_or_timeout
        self.ack_on_failure = _first(task.acks_on_failure, base)
        self.ack_on_timeout = _first(task.acks_on_timeout, base)
        self.requeue_lost = not self.early and task.reject_on_worker_lost is not False
        self.retry_lost = bool(task.retry_on_worker_lost)
        self.cost_s = UNKNOWN_COST_S
        self.runs = 0
        self._trial_s: list[float] = []

    def renew_limits(self, hard_s: float | None, soft_s: float | None) -> None:
        """The task's own time limits, or these of the worker."""
        task = self.task
        self.hard_s = task.time_limit if task.time_limit is not None else hard_s
        self.soft_s = task.soft_time_limit if task.soft_time_limit is not None else soft_s

    def learn(self, runtime_s: float) -> None:
        """A run took so long.

        A truly long run makes the type long at once. One that was merely interrupted (a busy machine takes a slot's
        processor away for some milliseconds) does not.
        """
        spent_s = runtime_s + OVERHEAD_S
        self.runs += 1
        if self.cost_s == UNKNOWN_COST_S:
            self._trial_s.append(spent_s)
            if len(self._trial_s) == TRIAL_RUNS:
                self.cost_s = sorted(self._trial_s)[TRIAL_RUNS // 2]
        else:
            self.cost_s += (spent_s - self.cost_s) * (0.1 if spent_s > self.cost_s else 0.05)


def _first(value: bool | None, fallback: bool | None) -> bool:
    return bool(value if value is not None else (fallback if fallback is not None else True))
