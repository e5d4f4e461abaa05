"""Messages that must be safe before a delivery is acknowledged: retries, callbacks, dead letters, delays (R12).

They are published with confirms on a connection of their own. The acknowledgements of each batch wait for its own
messages; other batches go ahead. Nothing here blocks: the consumer asks now and then what has become safe.

Called by `consumer`, from its thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct, structs

from celeriac.exceptions import TransportLost, TransportUnreachable
from celeriac.spec import Poller
from celeriac.spec.data import PUBLISH_TRY_HEADER
from celeriac_broker_amqp import message
from celeriac_broker_amqp.deadletters import bury_unroutable
from celeriac_broker_amqp.methods import FRAME_OVERHEAD_BYTES
from celeriac_broker_amqp.publisher import Item, Publisher, record_of

PUBLISH_TIMEOUT_S: Final = 10.0
#: How long to wait before a publish that the broker refused is tried again.
REFUSED_WAIT_S: Final = 1.0

_log = logging.getLogger("celeriac.broker.amqp")


class _Held(Struct):
    """Deliveries whose acknowledgement waits.

    Attributes:
        tags: Their delivery tags.
        items: What was published last; none while all of it waits for a broker that takes nothing.
        first, last: The sequence number of the first of `items`; the one that must be confirmed.
        retry: Items that the broker refused, to be published again at `retry_at` (monotonic).
    """

    tags: list[int]
    items: list[Item]
    first: int = 0
    last: int = 0
    retry: list[Item] = []
    retry_at: float = 0.0


class Followers:
    """What follows from the deliveries of one consumer, and the deliveries that wait for it.

    Args:
        open_publisher: Called when first needed, and when the broker has refused the one before.
    """

    def __init__(self, open_publisher: Callable[[], Publisher], poller: Poller, owner: str) -> None:
        self._open_publisher = open_publisher
        self._poller = poller
        self._owner = owner
        self._publisher: Publisher | None = None
        self._held: list[_Held] = []

    @property
    def is_open(self) -> bool:
        """There is a connection to look at."""
        return self._publisher is not None

    @property
    def cannot_delay(self) -> bool:
        """The broker will not hold messages that are for later."""
        return self._publisher is not None and bool(self._publisher.cannot_delay)

    @property
    def count(self) -> int:
        """How many batches wait."""
        return len(self._held)

    @property
    def retry_in_s(self) -> float | None:
        """How soon to call `release` even without news; None: no need."""
        moments = [held.retry_at for held in self._held if held.retry]
        return min(moments) - time.monotonic() if moments else None

    def hold(self, tags: list[int], items: list[Item]) -> None:
        """Publish, and keep the tags until that is safe.

        Raises:
            TransportLost: The broker cannot be reached, or the connection dropped.
        """
        publisher = self._publisher or self._open()
        held = _Held(tags, items)
        self._held.append(held)
        self._publish(publisher, held, items)

    def release(self) -> list[int]:
        """Read what the broker has said; returns the tags that may be acknowledged now.

        Raises:
            TransportLost: The connection dropped: what waits is not known to be safe.
        """
        publisher = self._publisher
        if publisher is None:
            return []
        publisher.absorb()
        if publisher.refused:
            self._take_refusals(publisher)
        if publisher.unroutable:
            self._take_unroutable(publisher)
        if not self._held:
            return []
        now = time.monotonic()
        safe: list[int] = []
        waiting = []
        for held in self._held:
            if held.retry or not publisher.is_settled(held.last):
                waiting.append(held)
            else:
                safe.extend(held.tags)
        due = [held for held in waiting if held.retry and held.retry_at <= now]
        if due and publisher.was_refused and publisher.is_settled(publisher.last):
            # After the death of a quorum queue's leader a channel may be refused for ever, while a new one is not.
            self.close()
            publisher = self._open()
            due = [held for held in waiting if held.retry]  # all, for their numbers mean other messages now
        for held in due:
            self._publish(publisher, held, held.retry)
        self._held = waiting
        return safe

    def wait(self, timeout_s: float) -> None:
        """Wait for news, at most so long."""
        if self._publisher is not None:
            retry_in_s = self.retry_in_s
            self._publisher.absorb(timeout_s if retry_in_s is None else max(min(timeout_s, retry_in_s), 0.0))

    def close(self) -> None:
        """Hang up. What waits comes again. Idempotent."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            self._poller.unwatch(publisher.link.fileno())
            publisher.link.close()

    def drop(self) -> None:
        """Hang up without a word, and leave the poller alone: for a forked child."""
        if self._publisher is not None:
            self._publisher.link.drop()

    def _open(self) -> Publisher:
        try:
            publisher = self._publisher = self._open_publisher()
        except TransportUnreachable as exc:
            raise TransportLost(str(exc)) from exc
        self._poller.watch(publisher.link.fileno())
        return publisher

    def _publish(self, publisher: Publisher, held: _Held, items: list[Item]) -> None:
        if publisher.link.blocked:  # it would not read us; acknowledgements go through all the same
            held.items, held.retry, held.retry_at = [], items, time.monotonic() + REFUSED_WAIT_S
            return
        held.items, held.retry = items, []
        held.first = publisher.last + 1
        held.last = publisher.write(items, time.monotonic() + PUBLISH_TIMEOUT_S)

    def _take_refusals(self, publisher: Publisher) -> None:
        """What a queue would not answer for is tried again, and its deliveries stay ours until it is taken. Unless the
        queue is simply full, there may then be two of it, and the second says so."""
        refused, publisher.refused = publisher.refused, []
        publisher.was_refused = True
        _log.warning(
            "%d message(s) were refused by a queue at %s, which is full or failed; trying again.",
            len(refused),
            publisher.link.where,
        )
        for sequence in refused:
            for held in self._held:
                if held.first <= sequence < held.first + len(held.items):
                    item = held.items[sequence - held.first]
                    held.retry = [*held.retry, item if publisher.is_refusal(item) else mark_again(item)]
                    held.retry_at = time.monotonic() + REFUSED_WAIT_S
                    break
            else:
                raise TransportLost("a message that follows from a task was refused on its second way")

    def _take_unroutable(self, publisher: Publisher) -> None:
        """Messages that no queue takes are set aside, for a person to look at."""
        unroutable, publisher.unroutable = publisher.unroutable, []
        room = publisher.link.frame_max - FRAME_OVERHEAD_BYTES
        items = [bury_unroutable(text, record, self._owner, room) for text, record in unroutable]
        last = publisher.write(items, time.monotonic() + PUBLISH_TIMEOUT_S)
        for held in self._held:  # one of them it was; which one, a returned message does not say
            held.last = last


def mark_again(item: Item) -> Item:
    """An item that says that it may have been sent before; as it is, if its headers cannot be read."""
    try:
        tries = message.unpack(record_of(item)).headers.get(PUBLISH_TRY_HEADER)
        mark = {PUBLISH_TRY_HEADER: (tries if type(tries) is int else 1) + 1}
        return structs.replace(item, header=message.with_headers(item.header, mark))
    except ValueError:
        return item
