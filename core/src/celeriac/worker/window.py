"""How many messages the worker holds: found, not configured.

One for each slot, until the tasks at hand are known to be short; then so many that they are some milliseconds of
work for each slot: more than an exchange takes with a broker that writes to its disk, on a busy machine. A long or
unknown task is never held behind another. `worker_prefetch_multiplier`, when the user sets it, is obeyed instead.
"""

from __future__ import annotations

from typing import Final

WORK_AHEAD_S: Final = 0.02
CAP: Final = 256
#: A task that takes less than this is brief: it may wait with others in one slot.
BRIEF_S: Final = 0.01
#: More than an interruption by the operating system: such a task is truly long.
LONG_S: Final = 0.05


class Window:
    """The bound on unsettled deliveries.

    Args:
        slots: Of the pool.
        multiplier: The user's, or None; 0 means no bound.
    """

    def __init__(self, slots: int, multiplier: int | None) -> None:
        self._multiplier = multiplier
        self._mean_s: float | None = None
        self.slots = slots
        self.size = self._fixed() or slots

    @property
    def fixed(self) -> bool:
        """The user has set it."""
        return self._multiplier is not None

    def resize(self, slots: int) -> None:
        """The pool has so many slots now."""
        self.slots = slots
        self.size = self._fixed() or self._found()

    def learn(self, cost_s: float, count: int) -> None:
        """`count` tasks that ended cost `cost_s` seconds of slot time each."""
        if self._multiplier is not None:
            return
        if self._mean_s is None:
            self._mean_s = cost_s
        else:
            weight = 0.5 if cost_s >= LONG_S else min(0.5, 0.02 * count)
            self._mean_s += (cost_s - self._mean_s) * weight
        self.size = self._found()

    def shrink(self) -> None:
        """Long or unknown tasks have come: back to one for each slot."""
        if self._multiplier is None:
            self._mean_s = None
            self.size = self.slots

    def _fixed(self) -> int | None:
        if self._multiplier is None:
            return None
        return 65535 if self._multiplier == 0 else max(1, self._multiplier * self.slots)

    def _found(self) -> int:
        if self._mean_s is None or self._mean_s >= BRIEF_S:
            return self.slots
        ahead = int(WORK_AHEAD_S / self._mean_s) * self.slots
        return max(self.slots, min(ahead, CAP))
