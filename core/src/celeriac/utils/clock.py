"""A Lamport clock: numbers by which processes without a common time agree what came first."""

from __future__ import annotations

import threading
from typing import Final

#: No clock gets so far by itself; and headers of AMQP take 63 bits.
MOST: Final = 2**62


class LamportClock:
    """One for each app: forwarded with whatever is sent, adjusted by whatever is received. Safe for threads."""

    def __init__(self, initial: int = 0) -> None:
        self.value = initial
        self._lock = threading.Lock()

    def forward(self) -> int:
        """One step on; the new value."""
        with self._lock:
            self.value += 1
            return self.value

    def adjust(self, other: int) -> int:
        """Beyond what another process has seen; the new value. What no clock can show is not believed."""
        with self._lock:
            self.value = (max(self.value, other) if other < MOST else self.value) + 1
            return self.value

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        return f"<LamportClock: {self.value}>"
