"""Slots that are stuck: their task runs beyond its hard time limit, and the pool cannot end it (P3).

The watchdog looks once a second, from its own thread. It says which task it is, once, and asks for a new process when
half the slots are stuck, if the app wants that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from celeriac.spec.data import JobReport

if TYPE_CHECKING:
    from celeriac.worker.consumer import Loop

#: A loop that has not turned so long after the worker was told to stop has the stuck task in its own thread.
PATIENCE_S: Final = 10.0

_log = logging.getLogger("celeriac.worker")


class StuckSlots:
    """See the module.

    Args:
        pool: With the ability `stuck`.
        recycle: Has the worker stop, so that a new process begins; None: that is not wanted.
        end: Ends the process at once, for a worker that cannot stop; None: the process is not ours to end.
    """

    def __init__(
        self,
        loop: Loop,
        pool: Any,
        pool_name: str,
        recycle: Callable[[], None] | None,
        end: Callable[[], None] | None,
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._pool_name = pool_name
        self._recycle = recycle
        self._end = end
        self._told: set[int] = set()
        self._asked_at: float | None = None
        self._turns = 0

    def look(self) -> None:
        """Say what is new, and ask for a new process if it is time to."""
        stuck: dict[int, float] = self._pool.stuck()
        for token in stuck.keys() - self._told:
            self._tell(token, stuck[token], len(stuck))
        self._told = set(stuck)
        if self._recycle is None or 2 * len(stuck) < self._pool.slots:
            return
        if self._asked_at is None:
            self._asked_at, self._turns = time.monotonic(), self._loop.turns
            _log.error(
                "%d of %d slots are stuck. Ending, so that a new process takes over.", len(stuck), self._pool.slots
            )
            self._recycle()
        elif self._end and self._turns == self._loop.turns and time.monotonic() - self._asked_at > PATIENCE_S:
            _log.error("The stuck task holds up the worker itself, which cannot stop: ending the process as it is.")
            self._end()

    def give_up(self) -> None:
        """From the worker's thread, while it stops for them: they end as by their limit, and nobody waits for them."""
        reports = [
            JobReport(token, "timed_out", detail=f"{limit_s:g}") for token, limit_s in self._pool.stuck().items()
        ]
        self._loop.endings.digest(reports)

    def _tell(self, token: int, limit_s: float, count: int) -> None:
        flight = self._loop.flights.get(token)
        if flight is not None:
            _log.error(
                "%s[%s] runs beyond its hard time limit of %g s, and the pool %r cannot end it: its slot is stuck "
                "(%d of %d are).",
                flight.plan.name, flight.head.id, limit_s, self._pool_name, count, self._pool.slots,
            )  # fmt: skip
