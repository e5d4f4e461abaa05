"""What the worker's loop reads of the world outside besides broker, store and pool: time and chance.

Handed in, so that a simulation can run the same code on a time and a chance of its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="celeriac-aside", daemon=True).start()


class Clock(NamedTuple):
    """Time and chance.

    Attributes:
        monotonic, unix: As `time.monotonic` and `time.time`.
        uniform, sleep: As `random.uniform` and `time.sleep`.
        aside: Runs a function that may take long beside the loop, which must not wait for it.
    """

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
    uniform: Callable[[float, float], float] = random.uniform
    sleep: Callable[[float], None] = time.sleep
    aside: Callable[[Callable[[], None]], None] = _in_a_thread


SYSTEM: Final = Clock()
