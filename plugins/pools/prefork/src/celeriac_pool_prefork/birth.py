"""How children come into the world, and when they had better not for a while.

Called by `pool` on the worker's thread.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

from celeriac.spec import SlotProgram
from celeriac_pool_prefork import child
from celeriac_pool_prefork.slot import Slot

#: Storm guard (P4): so many deaths in so long that no job explains, and new children are held back.
STORM_DEATHS: Final = 5
STORM_S: Final = 10.0
#: How long: first, and at most. Doubled from storm to storm until there was calm for STORM_S.
PAUSE_S: Final = (1.0, 30.0)


def fork(program: SlotProgram, slot: Slot, limits: child.Limits, let_go: Callable[[], None]) -> None:
    """Fork a child for this slot.

    Args:
        let_go: Called in the child first: closes what belongs to the parent and to siblings.
    Raises:
        OSError: There is no process to be had; the slot is closed.
    """
    ends = child.Ends(slot.jobs_end, slot.reports_end, slot.page, os.getpid(), limits)
    sys.stdout.flush()  # else both processes print what is in the buffers
    sys.stderr.flush()
    # No signal before the child has its own handlers: with the worker's it would tell the worker to stop.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            # From 3.12 on, a fork of a process with threads warns. A child uses nothing that they may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _be_child(program, ends, let_go)
    except OSError:
        slot.forget()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    slot.born(pid)


def _be_child(program: SlotProgram, ends: child.Ends, let_go: Callable[[], None]) -> NoReturn:
    try:
        let_go()
        child.main(program, ends)
    finally:
        os._exit(70)  # whatever happened, a child never returns into its parent's stack


class StormGuard:
    """Counts the deaths that no job explains."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=STORM_DEATHS)
        self._pause_s = PAUSE_S[0]
        self._calm_at = 0.0

    def count(self, now: float) -> float:
        """One more death. Returns how long to wait with the next birth: mostly 0."""
        self._deaths.append(now)
        if len(self._deaths) < STORM_DEATHS or now - self._deaths[0] > STORM_S:
            return 0.0
        self._pause_s = min(2 * self._pause_s, PAUSE_S[1]) if now < self._calm_at else PAUSE_S[0]
        self._calm_at = now + self._pause_s + STORM_S
        self._deaths.clear()
        return self._pause_s
