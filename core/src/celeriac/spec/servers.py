"""Several servers, of which one is used at a time: what `broker_url` names when it has several URLs.

For broker plugins: `Servers` says which server is connected to next, as `broker_failover_strategy` wants it. With one
URL there is one server, and none of this costs anything.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from celeriac.exceptions import ImproperlyConfigured, TransportUnreachable, mask_url

T = TypeVar("T")

STRATEGY: Final = "broker_failover_strategy"


def split_urls(url: str) -> list[str]:
    """The URLs in a text that joins several by semicolons."""
    return [part.strip() for part in url.split(";") if part.strip()]


class Servers:
    """Which of several servers is in use, and which comes next. Safe for threads.

    The one in use stays until it cannot be reached. What is tried then, each server once before it is an error:
    the first of them that answers, in the order given (strategy None); those that follow the one in use, as in a ring
    (`round-robin`); in no order (`shuffle`); or what an iterator gives (a function of the list of URLs, as for kombu,
    which makes one: its first is skipped, and it is made anew when it ends).

    Args:
        urls: At least one.
        settings: Read is `broker_failover_strategy`.
    Raises:
        ImproperlyConfigured: There is no such strategy.

    Attributes:
        current: The place among `urls` of the server in use.
    """

    def __init__(self, urls: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.urls = list(urls)
        self.current = 0
        self._strategy = settings.get(STRATEGY)
        if not (self._strategy is None or callable(self._strategy) or self._strategy in _STRATEGIES):
            raise ImproperlyConfigured(
                f"{STRATEGY} is {self._strategy!r}. Give one of {', '.join(_STRATEGIES)}, a function that takes the "
                "list of URLs and gives an iterator of them, or None for the order in which they are given."
            )
        self._lock = threading.Lock()
        self._iterator: Iterator[str] | None = None

    @property
    def url(self) -> str:
        """Of the server in use, safe to print."""
        return mask_url(self.urls[self.current])

    def connect(self, connect: Callable[[int], T]) -> T:
        """Connect to the server in use, or to another that is in use from then on.

        Args:
            connect: Connects to the server at this place in `urls`; raises `TransportUnreachable` if it cannot.
        Raises:
            TransportUnreachable: None of those that were tried can be reached.
        """
        first = self.current
        try:
            return connect(first)
        except TransportUnreachable as exc:
            if len(self.urls) == 1:
                raise
            troubles = [exc]
        for place in self._others(first):
            try:
                made = connect(place)
            except TransportUnreachable as exc:
                troubles.append(exc)
                continue
            self.current = place
            return made
        if self._strategy is None:
            self.current = 0
        said = "; ".join(dict.fromkeys(str(exc).rstrip(".") for exc in troubles))
        raise TransportUnreachable(f"None of {len(self.urls)} servers can be reached: {said}.", url=self.url)

    def _others(self, failed: int) -> Iterator[int]:
        count = len(self.urls)
        if callable(self._strategy):
            return (self._next() for _ in range(count - 1))
        others = [place for place in range(count) if place != failed]
        return iter(others if self._strategy is None else _STRATEGIES[self._strategy](others, failed))

    def _next(self) -> int:
        """What the iterator gives, as a place."""
        with self._lock:
            if self._iterator is None:
                self._iterator = self._begin()
            url = next(self._iterator, None)
            if url is None:
                self._iterator = self._begin()
                url = next(self._iterator, None)
        if url not in self.urls:
            said = "ended at once" if url is None else f"gave {mask_url(str(url))!r}"
            raise ImproperlyConfigured(f"{STRATEGY}: {self._strategy!r} {said}; it must give URLs of {self!r}.")
        return self.urls.index(url)

    def _begin(self) -> Iterator[str]:
        iterator: Iterator[str] = iter(self._strategy(list(self.urls)))  # type: ignore[misc]
        next(iterator, None)  # which is in use already, for kombu, and so for its strategies
        return iterator

    def __repr__(self) -> str:
        return mask_url("; ".join(self.urls))


def _round_robin(others: Sequence[int], failed: int) -> Sequence[int]:
    return [*(place for place in others if place > failed), *(place for place in others if place < failed)]


def _shuffle(others: Sequence[int], failed: int) -> Sequence[int]:
    return random.sample(others, len(others))


_STRATEGIES: Final[Mapping[str, Callable[[Sequence[int], int], Sequence[int]]]] = {
    "round-robin": _round_robin,
    "shuffle": _shuffle,
}
