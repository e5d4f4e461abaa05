"""The lists that a consumer takes from, and the order in which each of its claims asks them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from msgspec import Struct

from celeriac_broker_redis.keys import Keys
from celeriac_broker_redis.options import Options


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


def turns(keys: Keys, options: Options, queues: Sequence[str]) -> list[Order]:
    """The orders that a consumer goes through, one a claim. In each: all queues' first step, all their second …"""
    names = sorted(queues) if options.order == "sorted" else list(queues)
    count = len(names) if options.order == "round_robin" else 1
    sources = {(name, step): Source(keys, name, step) for name in names for step in keys.steps}
    return [_order(keys, sources, names[at:] + names[:at]) for at in range(max(1, count))]


def _order(keys: Keys, sources: dict[tuple[str, int], Source], names: list[str]) -> Order:
    ordered = [sources[name, step] for step in keys.steps for name in names]
    return Order(
        ordered,
        len(names),
        [source.key for source in ordered],
        [source.tail for source in ordered],
        [keys.delayed(name) for name in names],
        [word for name in names for word in (keys.list_key(name), keys.sep)],
    )
