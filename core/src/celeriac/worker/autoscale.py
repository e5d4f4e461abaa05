"""Grows the pool while all its slots are busy, and shrinks it when they have not been for a while (`--autoscale`).

The loop asks it once a turn; a class of one's own is named by the setting `worker_autoscaler`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from celeriac.worker.worker import Worker

#: So long slots must have been idle before they are taken away; so often more are added, so that they can come up.
KEEPALIVE_S: Final = float(os.environ.get("AUTOSCALE_KEEPALIVE", "30"))
GROW_PAUSE_S: Final = 0.25

_log = logging.getLogger("celeriac.worker")


class Autoscaler:
    """Keeps the number of slots between two bounds.

    Args:
        most, least: The bounds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        worker: Worker,
        most: int,
        least: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._keepalive_s = keepalive_s
        self._grow_at = 0.0
        self._busy_at = clock()
        self._peak = 0  # most slots busy at once since the last shrinking
        self.max_concurrency = most
        self.min_concurrency = least

    def look(self) -> None:
        """See whether there are too few slots, or too many."""
        worker, now = self._worker, self._clock()
        slots, busy = worker.pool.slots, len(worker.loop.flights)
        self._peak = max(self._peak, busy)
        if busy >= slots:
            self._busy_at = now
            if slots < self.max_concurrency and now >= self._grow_at:
                self._grow_at = now + GROW_PAUSE_S
                self._scale(min(self.max_concurrency, slots * 2))
        elif slots > self.min_concurrency and now - self._busy_at >= self._keepalive_s:
            self._busy_at = now
            self._scale(max(self.min_concurrency, min(slots - 1, self._peak)))
            self._peak = busy

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:
        """Other bounds; returns those that hold now.

        Raises:
            ValueError: They make no sense.
        """
        most = self.max_concurrency if max is None else int(max)
        least = self.min_concurrency if min is None else int(min)
        if not 1 <= least <= most:
            raise ValueError(f"autoscale: {least} to {most} slots make no sense; at least 1, and not more than max")
        self.max_concurrency, self.min_concurrency = most, least
        slots = self._worker.pool.slots
        if not least <= slots <= most:
            self._scale(most if slots > most else least)
        return most, least

    def info(self) -> dict[str, Any]:
        """For `inspect stats`."""
        worker = self._worker
        return {
            "max": self.max_concurrency,
            "min": self.min_concurrency,
            "current": worker.pool.slots,
            "qty": len(worker.loop.flights),
        }

    def _scale(self, slots: int) -> None:
        before = self._worker.pool.slots
        _log.info("Scaling %s from %d to %d slots.", "up" if slots > before else "down", before, slots)
        self._worker.loop.resize(slots)
