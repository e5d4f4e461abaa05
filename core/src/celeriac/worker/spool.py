"""Endings that wait for a result store which is away, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from celeriac.spec.data import Payload, Settlement, StoredResult

#: How a run ends: its settlement (None: none, or none any more), states to store first, messages to send then, and
#: whether it must not be lost with the consumer.
Ending = tuple[Settlement | None, Sequence[StoredResult], Sequence[Payload], bool]

#: Endings in one try: at first, and at most.
SMALLEST: Final = 1
LARGEST: Final = 256
#: An ending that was refused so often and for so long, while others were taken, is refused for good.
MAX_TRIES: Final = 5
MAX_REFUSED_S: Final = 60.0


class Refusals:
    """How often a store has refused one thing, and since when.

    Args:
        successes: How many tries, with whatever else, have succeeded so far.
    """

    def __init__(self, successes: int, now: float) -> None:
        self._tries = 0
        self._before = successes
        self._since = now

    def once_more(self, successes: int, now: float) -> bool:
        """It was refused again; whether that is for good."""
        self._tries += 1
        return self._tries >= MAX_TRIES and successes > self._before and now - self._since > MAX_REFUSED_S


class Spool:
    """Holds endings; what was refused goes to the end, so that one bad result does not hold up the others.

    Args:
        max_results, max_bytes: When it holds so many states, or so much, it is full. It still takes what comes: the
            tasks that run already may end.
    """

    def __init__(self, max_results: int = 1000, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_results = max_results
        self._max_bytes = max_bytes
        self._endings: deque[Ending] = deque()
        self._refused: dict[int, Refusals] = {}  # by id()
        self._results = 0
        self._bytes = 0
        self._batch = SMALLEST

    def __len__(self) -> int:
        return len(self._endings)

    def __iter__(self) -> Iterator[Ending]:
        return iter(list(self._endings))

    @property
    def is_full(self) -> bool:
        """It holds as much as it should."""
        return self._results >= self._max_results or self._bytes >= self._max_bytes

    @property
    def has_untried(self) -> bool:
        """It holds something that the store has not refused by itself."""
        return len(self._endings) > len(self._refused)

    @property
    def bounds(self) -> str:
        """Its bounds, for people."""
        return f"{self._max_results} results or {self._max_bytes / 1048576:g} MiB"

    def add(self, ending: Ending) -> None:
        """One more."""
        self._endings.append(ending)
        self._count(ending, 1)

    def take(self) -> list[Ending]:
        """The next ones to try: a single one until the store has taken one, then more and more. They count as held
        until `took` or `put_back` is called with them."""
        return [self._endings.popleft() for _ in range(min(self._batch, len(self._endings)))]

    def took(self, tried: Sequence[Ending]) -> None:
        """The store has taken these."""
        self._batch = min(self._batch * 4, LARGEST)
        self.drop(tried)

    def put_back(self, tried: Sequence[Ending], successes: int, now: float) -> list[Ending]:
        """The store has not taken these. Returns those that it will never take; the others wait on.

        Args:
            successes: How many tries have succeeded so far.
        """
        self._batch = SMALLEST
        if len(tried) > 1:  # which of them it was is not known
            self._endings.extendleft(reversed(tried))
            return []
        for ending in tried:
            if self._refused.setdefault(id(ending), Refusals(successes, now)).once_more(successes, now):
                self.drop(tried)
                return list(tried)
            self._endings.append(ending)
        return []

    def drop(self, tried: Sequence[Ending]) -> None:
        """These, which were taken out, are held no more."""
        for ending in tried:
            self._count(ending, -1)
            self._refused.pop(id(ending), None)

    def forget(self, tags: set[Any]) -> None:
        """Drop the endings of these deliveries."""
        gone = [ending for ending in self._endings if is_of(ending, tags)]
        if gone:
            self._endings = deque(ending for ending in self._endings if not is_of(ending, tags))
            self.drop(gone)

    def _count(self, ending: Ending, sign: int) -> None:
        self._results += sign * len(ending[1])
        self._bytes += sign * sum(len(state.data) for state in ending[1])
        self._bytes += sign * sum(len(payload.body) for payload in ending[2])


def is_of(ending: Ending, tags: set[Any]) -> bool:
    """Whether this would settle one of these deliveries."""
    return ending[0] is not None and ending[0].tag in tags
