"""What an extension can hear of the runs of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class Run(Struct, frozen=True):
    """One job of a worker that has ended.

    Attributes:
        task, id: Its name, the call's id.
        queue: Where its message came from.
        outcome: One of `FINAL_OUTCOMES`.
        runtime_s: As the slot measured it; 0 if it did not run, or did not live to say.
        raw: The message; `Transport.unpack` of the worker's transport reads it.
    """

    task: str
    id: str
    queue: str
    outcome: str
    runtime_s: float
    raw: bytes


class RunListener(Protocol):
    """Hears what has ended in a worker: `worker.listen(listener)`, in the hook `celeriac_worker_ready`."""

    def ended(self, runs: Sequence[Run]) -> None:
        """These have ended: all that the pool reported at once.

        Called in the worker's own thread before their results are stored: be quick, and do no I/O. What it raises is
        logged, and it is not asked again.
        """
