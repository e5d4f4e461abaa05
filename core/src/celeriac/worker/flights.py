"""What is on its way through this worker: deliveries that the pool has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from celeriac.spec.data import Delivery, Head
from celeriac.worker.plans import TaskPlan

#: The epoch of a flight whose run was cancelled when its link was lost: its message comes again, and is run anew.
GIVEN_UP: Final = -2


class Flight:
    """One delivery in the pool.

    Attributes:
        epoch: Of the link it came by; a later one cannot settle it. -1: its lease is lost. See `GIVEN_UP`.
        brief: It may wait in a slot with others.
        acked: It was acknowledged before it ran.
        pid: The process that runs it, once that is known.
        signum: It is revoked, to be ended by this signal; 0: not, or not by one.
        started: Unix time at which that was known.
        received: Unix time at which it came, if the result store wants to know (R13).
        told: Monitors know that it was received.
    """

    __slots__ = ("acked", "brief", "delivery", "epoch", "head", "pid", "plan", "received", "signum", "started", "told")

    def __init__(
        self, delivery: Delivery, head: Head, plan: TaskPlan, epoch: int, brief: bool, received: float = 0.0
    ) -> None:
        self.delivery = delivery
        self.head = head
        self.plan = plan
        self.epoch = epoch
        self.brief = brief
        self.received = received
        self.acked = False
        self.pid = 0
        self.signum = 0
        self.started = 0.0
        self.told = False


class Flights:
    """All of them, by job token.

    Attributes:
        long: How many of them are not brief.
    """

    def __init__(self) -> None:
        self._by_token: dict[int, Flight] = {}
        self.long = 0
        self.get = self._by_token.get

    def add(self, token: int, flight: Flight) -> None:
        """One more."""
        self._by_token[token] = flight
        if not flight.brief:
            self.long += 1

    def remove(self, token: int) -> Flight:
        """It has ended."""
        flight = self._by_token.pop(token)
        if not flight.brief:
            self.long -= 1
        return flight

    def __len__(self) -> int:
        return len(self._by_token)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._by_token.values()))

    def items(self) -> list[tuple[int, Flight]]:
        """All with their tokens."""
        return list(self._by_token.items())

    def tokens(self) -> list[int]:
        """Of all that are left."""
        return list(self._by_token)
