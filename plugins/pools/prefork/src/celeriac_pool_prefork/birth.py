"""How children come into the world, and when they had better not for a while.

Called by `pool` on the worker's thread.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from celeriac.spec import Recipe, SlotProgram
from celeriac_pool_prefork import child, frames
from celeriac_pool_prefork.slot import Slot
from celeriac_support_pools import process

#: What a fresh interpreter runs.
FRESH: Final = str(Path(__file__).with_name("fresh.py"))
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

    def be_child() -> None:
        let_go()
        child.main(lambda: program, ends)

    try:
        pid = process.fork(be_child)
    except OSError:
        slot.forget()
        raise
    slot.born(pid)


def spawn(recipe: Recipe, limits: child.Limits, make_slot: Callable[[process.Page], Slot]) -> Slot:
    """Start a fresh interpreter as the child of a new slot: it inherits the slot's ends and the standard streams, and
    no other descriptor, lock or thread.

    Raises:
        OSError: There is no process to be had, or no descriptor.
    """
    page_fd = frames.make_file(bytes(mmap.PAGESIZE))
    try:
        slot = make_slot(process.Page(page_fd))
        try:
            slot.born(_start_interpreter(recipe, limits, (slot.jobs_end.fileno(), slot.reports_end.fileno(), page_fd)))
        except OSError:
            slot.forget()
            raise
    finally:
        os.close(page_fd)
    return slot


def _start_interpreter(recipe: Recipe, limits: child.Limits, ends: tuple[int, int, int]) -> int:
    told = {
        "path": [*map(str, sys.path)],
        "argv": sys.argv,
        "ends": ends,
        "parent_pid": os.getpid(),
        "limits": (limits.max_tasks, limits.max_memory_kib, limits.fresh_kib),
        "recipe": (recipe.maker, recipe.words),
    }
    told_fd = frames.make_file(pickle.dumps(told))  # not by the command line, which everybody may read
    flags: Any = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # as multiprocessing does
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # as in `fork`; it keeps the mask
    try:
        interpreter = subprocess.Popen([sys.executable, *flags, FRESH, str(told_fd)], pass_fds=(*ends, told_fd))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(told_fd)
    interpreter.returncode = 0  # as far as `subprocess` is concerned: the slot waits for its end, and nobody else may
    return interpreter.pid


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
