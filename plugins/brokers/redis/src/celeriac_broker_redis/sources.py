"""The lists that a consumer takes from, and the order in which each of its claims asks them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from celeriac_broker_redis.keys import Keys
from celeriac_broker_redis.options import Options

#: Orders that are kept.
MOST_MADE: Final = 32


class Source:
    """One list: its key, its queue, and how an entry of `unacked` ends for a message from it."""

    __slots__ = ("key", "queue", "step", "tail")

    def __init__(self, keys: Keys, queue: str, step: int) -> None:
        self.key = keys.list_key(queue, step)
        self.queue = queue
        self.step = step
        self.tail = f', "", {json.dumps(queue)}]'


class Order(Struct, frozen=True):
    """One turn: all sources in the order of preference, with the words that a claim says about them.

    Attributes:
        first: How many of the sources are the queues' first steps, where messages are waited for.
    """

    sources: list[Source]
    first: int
    keys: list[str]
    tails: list[str]
    delayed_keys: list[str]
    delayed_words: list[str]


class Turns:
    """The orders that a consumer goes through, one a claim. In each: all queues' first step, all their second …

    Each is made when its turn comes, for of a thousand queues all orders together are hundreds of megabytes.
    """

    def __init__(self, keys: Keys, options: Options, queues: Sequence[str]) -> None:
        names = sorted(queues) if options.order == "sorted" else list(queues)
        self._count = max(1, len(names) if options.order == "round_robin" else 1)
        self._steps = [[Source(keys, name, step) for name in names] for step in keys.steps]
        self._delayed = [(keys.delayed(name), keys.list_key(name), keys.sep) for name in names]
        self._made: dict[int, Order] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> Order:
        order = self._made.get(at)
        if order is None:
            if len(self._made) >= MOST_MADE:
                self._made.clear()
            order = self._made[at] = self._make(at)
        return order

    def _make(self, at: int) -> Order:
        if at >= self._count:
            raise IndexError(at)
        sources = [source for row in self._steps for source in row[at:] + row[:at]]
        delayed = self._delayed[at:] + self._delayed[:at]
        return Order(
            sources,
            len(delayed),
            [source.key for source in sources],
            [source.tail for source in sources],
            [key for key, _, _ in delayed],
            [word for _, *words in delayed for word in words],
        )
