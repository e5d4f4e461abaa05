"""Messages that must be safe before a delivery is acknowledged: retries, callbacks, dead letters, delays (R12).

They are published with confirms on a connection of their own. The acknowledgements of each batch wait for its own
messages; other batches go ahead. Nothing here blocks, as long as the broker refuses none of them for what it is: the
consumer asks now and then what has become safe.

Called by `consumer`, from its thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct, structs

from celeriac.exceptions import PublishRejected, PublishUncertain, TransportLost, TransportUnreachable
from celeriac.spec import Payload, Poller
from celeriac.spec.data import PUBLISH_TRY_HEADER
from celeriac_broker_amqp import message
from celeriac_broker_amqp.deadletters import bury_refused, bury_unroutable, is_letter
from celeriac_broker_amqp.holding import Terms
from celeriac_broker_amqp.methods import FRAME_OVERHEAD_BYTES
from celeriac_broker_amqp.publisher import Item, Publisher, identity_of, record_of
from celeriac_broker_amqp.topology import DEAD_PREFIX, QueueAway

PUBLISH_TIMEOUT_S: Final = 10.0
#: How long to wait before a publish that the broker refused is tried again.
REFUSED_WAIT_S: Final = 1.0
#: … before the broker is asked again for a connection that it would not give.
UNREACHABLE_WAIT_S: Final = 2.0
#: … and before it is looked again whether there may be a queue for a dead letter.
NO_PLACE_WAIT_S: Final = 10.0

_log = logging.getLogger("celeriac.broker.amqp")


class _Held(Struct):
    """Deliveries whose acknowledgement waits.

    Attributes:
        tags: Their delivery tags.
        out: What was published, by sequence number; none while all of it waits for a broker that takes nothing.
        last: The sequence number that must be confirmed; 0 if none of the present publisher.
        retry: Items that the broker refused, to be published again at `retry_at` (monotonic).
        is_stuck: Some of it was refused, or could not be sent.
    """

    tags: list[int]
    out: dict[int, Item] = {}
    last: int = 0
    retry: list[Item] = []
    retry_at: float = 0.0
    is_stuck: bool = False


class Followers:
    """What follows from the deliveries of one consumer, and the deliveries that wait for it.

    Args:
        open_publisher: Called when first needed, and when the broker has refused the one before.
        terms: What is known about the broker; learned from here.
    """

    def __init__(self, open_publisher: Callable[[], Publisher], poller: Poller, owner: str, terms: Terms) -> None:
        self._open_publisher = open_publisher
        self._poller = poller
        self._owner = owner
        self._terms = terms
        self._publisher: Publisher | None = None
        self._held: list[_Held] = []
        self._unsent: list[tuple[Payload, str]] = []
        self._is_unreachable = False
        self._open_at = 0.0  # monotonic; a connection is not asked for before
        self._lost: TransportLost | None = None  # what waits is not known to be safe, and never will be

    @property
    def is_used(self) -> bool:
        """There is a connection to look at, or something waits."""
        return self._publisher is not None or bool(self._held)

    @property
    def cannot_delay(self) -> bool:
        """The broker will not hold messages that are for later."""
        return self._publisher is not None and bool(self._publisher.cannot_delay)

    @property
    def count(self) -> int:
        """How many batches wait."""
        return len(self._held)

    @property
    def stuck_count(self) -> int:
        """How many deliveries wait for what the broker would not take so far."""
        return sum(len(held.tags) for held in self._held if held.is_stuck)

    @property
    def retry_in_s(self) -> float | None:
        """How soon to call `release` even without news; None: no need."""
        moments = [held.retry_at for held in self._held if held.retry]
        return min(moments) - time.monotonic() if moments else None

    def hold(self, tags: list[int], items: list[Item]) -> None:
        """Publish, and keep the tags until that is safe.

        Raises:
            TransportLost: The connection dropped.
        """
        if self._lost is not None:
            raise self._lost
        if not self._held:
            self._absorb()
        held = _Held(tags)
        self._held.append(held)
        self._publish(held, items)

    def release(self) -> list[int]:
        """Read what the broker has said; returns the tags that may be acknowledged now.

        Raises:
            TransportLost: The connection dropped: what waits is not known to be safe.
        """
        publisher = self._absorb()
        if publisher is not None:
            self._take_answers(publisher)
        if not self._held:
            return []
        now = time.monotonic()
        safe: list[int] = []
        waiting = []
        for held in self._held:
            if held.retry or not (held.last == 0 if publisher is None else publisher.is_settled(held.last)):
                waiting.append(held)
            else:
                safe.extend(held.tags)
        due = [held for held in waiting if held.retry and held.retry_at <= now]
        if due and publisher is not None and publisher.was_refused and publisher.is_settled(publisher.last):
            # After the death of a quorum queue's leader a channel may be refused for ever, while a new one is not.
            self.close()
            due = [held for held in waiting if held.retry]  # all, for their numbers mean other messages now
            for held in due:
                held.out, held.last = {}, 0
        self._held = waiting
        for held in due:
            self._publish(held, held.retry)
        return safe

    def tell_unsent(self, unsent: list[tuple[Payload, str]]) -> None:
        """These were set aside before they could be sent."""
        self._unsent += unsent

    def take_unsent(self) -> list[tuple[Payload, str]]:
        """What was set aside since the last call, and why."""
        unsent, self._unsent = self._unsent, []
        return unsent

    def wait(self, timeout_s: float) -> None:
        """Wait for news, at most so long."""
        retry_in_s = self.retry_in_s
        if retry_in_s is not None:
            timeout_s = max(min(timeout_s, retry_in_s), 0.0)
        if self._absorb(timeout_s) is None:
            time.sleep(timeout_s)

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

    def _open(self) -> Publisher | None:
        """A new publisher; None if there can be none now. The connection that the deliveries came by may live all the
        same (RabbitMQ limits how many there are), and else says so itself: what waits is kept."""
        if time.monotonic() < self._open_at:
            return None
        try:
            publisher = self._publisher = self._open_publisher()
        except (TransportUnreachable, TransportLost) as exc:
            self._open_at = time.monotonic() + UNREACHABLE_WAIT_S
            (_log.debug if self._is_unreachable else _log.error)(
                "What follows from tasks cannot be sent and is held, for a second connection was not to be had; it is "
                "asked for again every %g s: %s",
                UNREACHABLE_WAIT_S,
                exc,
            )
            self._is_unreachable = True
            return None
        self._is_unreachable = False
        self._poller.watch(publisher.link.fileno())
        return publisher

    def _absorb(self, timeout_s: float = 0.0) -> Publisher | None:
        """Read what the broker has said; returns the publisher that is in use then."""
        if self._lost is not None:
            raise self._lost
        publisher = self._publisher
        if publisher is not None:
            try:
                publisher.absorb(timeout_s)
            except TransportLost as exc:
                self._go_on(publisher, exc)
        return self._publisher

    def _publish(self, held: _Held, items: list[Item]) -> None:
        publisher = self._publisher or self._open()
        if publisher is None:
            held.retry = []
            _retry(held, items, UNREACHABLE_WAIT_S)
            return
        if publisher.link.blocked:  # it would not read us; acknowledgements go through all the same
            held.retry = []
            _retry(held, items, REFUSED_WAIT_S)
            return
        first = publisher.last + 1
        held.out, held.retry = {**held.out, **dict(enumerate(items, first))}, []
        held.last = first + len(items) - 1
        try:
            publisher.write(items, time.monotonic() + PUBLISH_TIMEOUT_S)
        except QueueAway as exc:  # of one that is for later; nothing was written
            for sequence in range(first, held.last + 1):
                del held.out[sequence]
            held.last = first - 1
            self._wait_for_queue(held, items, exc)
        except TransportLost as exc:
            self._go_on(publisher, exc)

    def _take_answers(self, publisher: Publisher) -> None:
        if publisher.refused:
            self._take_refusals(publisher)
        if publisher.unroutable:
            self._take_unroutable(publisher)
        if publisher.away:
            away, publisher.away = publisher.away, []
            for problem, record in away:
                held, item = self._take_back(publisher, record)
                self._wait_for_queue(held, [item], problem)

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
            held = next((held for held in self._held if sequence in held.out), None)
            if held is None:
                raise self._end(TransportLost("a message that follows from a task was refused on its second way"))
            item = held.out.pop(sequence)
            _retry(held, [item if publisher.is_refusal(item) else mark_again(item)], REFUSED_WAIT_S)

    def _take_unroutable(self, publisher: Publisher) -> None:
        """Messages that no queue takes are set aside, for a person to look at."""
        unroutable, publisher.unroutable = publisher.unroutable, []
        room = publisher.link.frame_max - FRAME_OVERHEAD_BYTES
        for text, record in unroutable:
            held, item = self._take_back(publisher, record)
            if is_letter(item):
                self._keep_letter(publisher, held, item)
            else:
                _retry(held, [bury_unroutable(text, record, self._owner, room)], 0.0)
                self._note_unsent(record, f"message was not sent: RabbitMQ at {publisher.link.where} says {text}")

    def _take_back(self, publisher: Publisher, record: bytes) -> tuple[_Held, Item]:
        """Of a message that came back: what it was published as, and the deliveries that wait for it."""
        identity = record[message.body_start(record) :]
        for held in self._held:
            sequence = next((one for one, item in held.out.items() if identity_of(item) == identity), None)
            if sequence is not None:
                return held, held.out.pop(sequence)
        where = publisher.link.where
        raise self._end(TransportLost(f"a message came back from {where} that follows from no task"))

    def _wait_for_queue(self, held: _Held, items: list[Item], problem: object) -> None:
        """The queue of a message cannot be used now: the deliveries stay ours until it can."""
        _log.error("What follows from a task is held, and tried again every %g s: %s", NO_PLACE_WAIT_S, problem)
        _retry(held, items, NO_PLACE_WAIT_S)

    def _note_unsent(self, record: bytes, problem: str) -> None:
        try:
            self._unsent.append((message.unpack(record), problem))
        except ValueError as exc:
            _log.debug("Nobody can be told that a message was not sent, for its headers cannot be read: %s", exc)

    def _keep_letter(self, publisher: Publisher, held: _Held, letter: Item) -> None:
        """There is no queue for a dead letter, and it cannot be made: the deliveries stay ours."""
        _log.error(
            "A message cannot be set aside at %s, for there is no queue %s, and none can be made. It is held here, and "
            "tried again every %g s. Make the queue, or give the broker user the permissions for %s*.",
            publisher.link.where,
            letter.route.routing_key,
            NO_PLACE_WAIT_S,
            DEAD_PREFIX,
        )
        _retry(held, [letter], NO_PLACE_WAIT_S)

    def _end(self, exc: TransportLost) -> TransportLost:
        """Nothing that waits is released after this."""
        self._lost = exc
        return exc

    # -- what the broker will not have on any account -------------------------------------------------------

    def _go_on(self, publisher: Publisher, exc: TransportLost) -> None:
        """A publisher has ended. If the broker has refused a message for what it is, it does not say which of those
        that were out: they go once more, one at a time, and that one is set aside.

        Raises:
            TransportLost: It ended for another reason while something was out, or a message is larger than what is
                known to be taken.
        """
        if publisher.refusal is None:
            if self._held:
                raise self._end(exc)
            self.close()  # whoever closed an idle connection, it costs nothing
            return
        where = publisher.link.where
        _log.warning(
            "RabbitMQ at %s refuses a message that follows from a task: %s. What was on its way with it is sent once "
            "more, one by one.",
            where,
            publisher.refusal,
        )
        self._take_answers(publisher)
        self.close()
        doubtful = []
        for held in self._held:
            out, held.out, held.last = held.out, {}, 0
            doubtful += [(held, item) for one, item in out.items() if not publisher.is_taken(one, item)]
        room = publisher.link.frame_max - FRAME_OVERHEAD_BYTES
        for held, item in doubtful:
            self._find_place(held, item if len(doubtful) == 1 else mark_again(item), room)

    def _find_place(self, held: _Held, item: Item, room: int) -> None:
        """Send an item, or set it aside if the broker will not have it."""
        problem = self._send_alone(held, item)
        if not problem:
            return
        if not item.mandatory:  # it may be lost: a copy that holds a message, an answer to a client
            _log.warning("A message that nobody need get was refused and dropped: %s", problem)
            return
        if self._terms.learn_size(problem):  # from now on it is told before anything is done
            raise self._end(TransportLost(problem))
        for letter in bury_refused(problem, item, self._owner, room):
            trouble = self._send_alone(held, letter)
            if not trouble:
                if not is_letter(item):
                    self._note_unsent(record_of(item), problem)
                return
            problem = trouble
        _log.error("It cannot be set aside either, and is held here and tried again: %s", problem)
        _retry(held, [item], NO_PLACE_WAIT_S)

    def _send_alone(self, held: _Held, item: Item) -> str:
        """Send an item and wait until the broker has it; returns why it will not, if that is due to the item."""
        publisher = self._publisher or self._open()
        if publisher is None:
            _retry(held, [item], UNREACHABLE_WAIT_S)
            return ""
        try:
            publisher.send([item], time.monotonic() + PUBLISH_TIMEOUT_S)
        except (PublishUncertain, TransportLost) as exc:
            raise self._end(TransportLost(str(exc))) from exc
        except PublishRejected as exc:
            if publisher.refusal is not None:
                self.close()
                return str(exc)
            if publisher.was_refused or publisher.link.blocked:
                _retry(held, [item], REFUSED_WAIT_S)
            elif is_letter(item):
                self._keep_letter(publisher, held, item)
            else:
                return str(exc)
        return ""


def _retry(held: _Held, items: list[Item], wait_s: float) -> None:
    """Have items published again, and all of the same deliveries that wait for it already."""
    held.retry, held.retry_at, held.is_stuck = [*held.retry, *items], time.monotonic() + wait_s, True


def mark_again(item: Item) -> Item:
    """An item that says that it may have been sent before; as it is, if its headers cannot be read."""
    try:
        tries = message.unpack(record_of(item)).headers.get(PUBLISH_TRY_HEADER)
        mark = {PUBLISH_TRY_HEADER: (tries if type(tries) is int else 1) + 1}
        return structs.replace(item, header=message.with_headers(item.header, mark))
    except ValueError:
        return item
