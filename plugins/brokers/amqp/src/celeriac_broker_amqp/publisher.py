"""Publishing with confirms: a connection, the sequence numbers on it, and what became of them.

`transport.send` uses a publisher and waits; a consumer uses one and goes on, releasing its acknowledgements when the
broker has confirmed. It is a connection of its own in both cases, because RabbitMQ stops reading from one that
publishes when it runs short of memory, and acknowledgements must still come through then (B4).

Messages are mandatory unless they say otherwise: one that no queue wants comes back. If it was meant for a queue by
name, the queue is declared then, and the message published again: so no queue has to be asked about beforehand.

A publisher belongs to one thread at a time.

Source: RabbitMQ's publisher confirms; mandatory messages as in AMQP 0-9-1, basic.publish.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from celeriac.exceptions import ImproperlyConfigured, PublishRejected, PublishUncertain, TransportLost
from celeriac.spec import Payload, QueueSpec, Route
from celeriac_broker_amqp import delays, methods, topology
from celeriac_broker_amqp.link import Channel, ChannelClosed, Link
from celeriac_broker_amqp.message import (
    HEADER_PREFIX,
    body_start,
    pack_header,
    scan,
    split_record,
    unpack,
    with_due,
    with_route,
)
from celeriac_broker_amqp.methods import BODY, FRAME_OVERHEAD_BYTES, HEADER, METHOD, frame

CHANNEL: Final = 1
#: How much is written before confirms are looked at, so that a huge batch does not pile up in memory.
CHUNK_BYTES: Final = 1024 * 1024
ROUTES_KEPT: Final = 1024
#: No such exchange, no permission: the broker closes the channel.
REFUSALS: Final = frozenset({methods.NOT_FOUND, methods.ACCESS_REFUSED})
#: … which it does as well for a message that is larger than it takes, or has a property that makes no sense to it. What
#: it refuses so is not stored.
PUBLISH_REFUSALS: Final = REFUSALS | {methods.PRECONDITION_FAILED}

_log = logging.getLogger("celeriac.broker.amqp")


class Item(Struct):
    """A message ready to be written.

    Attributes:
        mandatory: Nobody to take it is an error; otherwise it is dropped then.
        due: Unix time before which it is not wanted; None for now.
    """

    route: Route
    header: bytes
    body: bytes
    mandatory: bool = True
    due: float | None = None


def make_item(payload: Payload) -> Item:
    """A payload as it goes out. With the property `mandatory` False it may be dropped if nobody takes it, for
    instance an answer to a client that has gone; a fanout exchange without listeners is no error either.

    Raises:
        PublishRejected: AMQP cannot carry its headers, or has no queues of such a name.
    """
    route = payload.route
    name_bytes = len(route.routing_key.encode("utf-8", "surrogatepass"))
    if name_bytes > topology.MAX_NAME_BYTES or len(route.exchange) > topology.MAX_NAME_BYTES:
        name = max(route.routing_key, route.exchange, key=len)
        raise PublishRejected(f"message was not sent: AMQP has no names like {name[:40]!r}…, over 255 bytes")
    mandatory = payload.properties.get("mandatory", True) is not False and route.exchange_type != "fanout"
    header = pack_header(payload)
    due = payload.due
    if due is None or route.exchange or due <= time.time() or name_bytes > delays.MAX_QUEUE_BYTES:
        return Item(route, header, payload.body, mandatory)
    if delays.is_pattern(route.routing_key):
        return Item(route, header, payload.body, mandatory)
    try:
        return Item(route, with_due(header, due, payload.headers), payload.body, mandatory, due)
    except ValueError as exc:
        task_id = payload.headers.get("id", "?")
        raise PublishRejected(f"message {task_id} was not sent: no room for its time in its headers: {exc}") from exc


def record_of(item: Item) -> bytes:
    """An item as `message` has it."""
    return b"\0\0" + identity_of(item)


def identity_of(item: Item) -> bytes:
    """What an item has in common with all records of its message, wherever it was sent."""
    return item.header[len(HEADER_PREFIX) :] + item.body


def payload_of(item: Item) -> Payload:
    """The payload that an item was made of."""
    payload = unpack(record_of(item))
    payload.route, payload.due = item.route, item.due
    return payload


class Publisher:
    """An open publisher.

    Args:
        find_queue: What to declare for a queue name that does not exist.
        delay_queue_type: Type of the delay queues, should they have to be made.
    Raises:
        TransportLost: The link dropped.
    """

    def __init__(self, link: Link, find_queue: Callable[[str], QueueSpec], delay_queue_type: str) -> None:
        self.link = link
        #: Sequence numbers that the broker has refused, for the owner to look at and clear.
        self.refused: list[int] = []
        #: (reply text, record) of messages that nobody takes, likewise.
        self.unroutable: list[tuple[str, bytes]] = []
        #: … and of those whose queue cannot be used now.
        self.away: list[tuple[str, bytes]] = []
        #: How many messages were dropped because nobody took them and nobody minded.
        self.dropped = 0
        self._find_queue = find_queue
        self._delay_queue_type = delay_queue_type
        self._channel: Channel = link.open_channel(CHANNEL)
        link.call(self._channel, methods.CONFIRM_SELECT, methods.CONFIRM_SELECT_OK)
        self._last = 0  # sequence number of the last message written
        self._settled = 0  # all up to this one are confirmed or refused
        self._early: set[int] = set()  # settled ones above it
        self._routes: dict[tuple[str, str, bool], bytes] = {}
        # While messages that found no queue are on their way again: the queues made for them, and their identities.
        self._declared: set[str] = set()
        self._again: set[bytes] = set()
        self.was_refused = False  #: the broker has refused a message in earnest, for its queue
        self._delayed: set[str] | None = None  # queues bound for delays; None: the exchanges are not known to exist
        self._waits: set[int] = set()  # delay queues that are known to exist
        #: Why the broker user may have no delay queues; what is for later goes at once then, and workers put it off.
        self.cannot_delay = ""

    @property
    def last(self) -> int:
        """The sequence number of the last message written."""
        return self._last

    @property
    def refusal(self) -> ChannelClosed | None:
        """Why the broker will have one of the messages on no account, and so has closed the channel."""
        closed = self._channel.closed
        return closed if closed is not None and closed.code in PUBLISH_REFUSALS else None

    def is_taken(self, sequence: int, item: Item) -> bool:
        """The broker has spoken about this message, and it is not on its way again."""
        is_known = sequence <= self._settled or sequence in self._early
        return is_known and not (self._again and identity_of(item) in self._again)

    def is_settled(self, sequence: int) -> bool:
        """The broker has spoken about all messages up to this one, and none is on its way again."""
        return self._settled >= sequence and not self._again

    def write(self, items: Sequence[Item], deadline: float) -> int:
        """Write messages, without waiting for confirms; returns the sequence number of the last.

        Raises:
            PublishRejected: One has headers that are too large; nothing was written.
            TransportLost: The connection dropped, or the broker does not read; `link.bytes_sent` tells whether
                any of it went out.
        """
        room = self.link.frame_max - FRAME_OVERHEAD_BYTES
        for item in items:
            if len(item.header) > room:
                raise PublishRejected(f"headers of {len(item.header)} bytes; RabbitMQ takes {room}")
            if item.due is not None:
                self._prepare_delay(item, deadline)
        out: list[bytes] = []
        size = 0
        for item in items:
            size += self._add_frames(out, item, 0 if item.due is None else self._prepare_delay(item, deadline))
            if size >= CHUNK_BYTES:
                self.link.send(b"".join(out), deadline)
                self.link.pump()
                out.clear()
                size = 0
        if out:
            self.link.send(b"".join(out), deadline)
        self._last += len(items)
        return self._last

    def absorb(self, timeout_s: float = 0.0) -> None:
        """Read what the broker has said, waiting at most so long for it, and keep the books.

        Raises:
            TransportLost: The connection dropped or the channel was closed.
        """
        while self.link.pump(timeout_s):
            timeout_s = 0.0
        channel = self._channel
        if channel.returned:
            returned, channel.returned = channel.returned, []
            for _, text, record in returned:
                self._take_back(text, record)
        if channel.confirms:
            confirms, channel.confirms = channel.confirms, []
            for sequence, multiple, taken in confirms:
                self._note(sequence, multiple, taken)
            if self._again and self._settled == self._last:
                self._again.clear()
                self._declared.clear()
        if channel.closed is not None:
            self.link.lost = TransportLost(f"RabbitMQ at {self.link.where} refused a publish: {channel.closed}")
            raise self.link.lost from channel.closed

    def send(self, items: Sequence[Item], deadline: float) -> None:
        """Write messages and wait until the broker has taken them all.

        Raises:
            PublishRejected: It refused some of them, or nobody takes them; the others are stored. After a refusal
                of the exchange itself the link is of no more use.
            PublishUncertain: It did not say in time, or would not answer for some of them; then `payloads` has all that
                it did not take for certain.
            TransportLost: Nothing was written.
        """
        while self.link.blocked:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise PublishRejected(f"RabbitMQ at {self.link.where} takes no messages: {self.link.blocked}")
            self.absorb(left_s)
        before, first = self.link.bytes_sent, self._last + 1
        try:
            self.write(items, deadline)
            while self._settled < self._last:
                left_s = deadline - time.monotonic()
                self.absorb(max(left_s, 0.0))  # a confirm that is here counts, however late we come to look for it
                if left_s <= 0 and self._settled < self._last:
                    raise PublishUncertain(self._describe_silence())
        except TransportLost as exc:
            if self.link.bytes_sent == before:
                raise
            if self.refusal is not None and len(items) == 1:
                raise PublishRejected(
                    f"message was not sent: RabbitMQ at {self.link.where} says {self.refusal}"
                ) from exc
            raise PublishUncertain(
                f"{exc}; whether the message was taken before is not known, sending it again may double it"
            ) from exc
        self._raise_refusals(items, first)

    def _describe_silence(self) -> str:
        missing = self._last - self._settled - len(self._early)
        why = f"it blocks publishers: {self.link.blocked}" if self.link.blocked else "it gave no reason"
        return f"RabbitMQ at {self.link.where} did not confirm {missing} message(s) in time ({why})"

    def _raise_refusals(self, items: Sequence[Item], first: int) -> None:
        """Raise what the broker said to these, whose sequence numbers begin with `first`."""
        count = len(items)
        refused, self.refused = self.refused, []
        unroutable, self.unroutable = self.unroutable, []
        away, self.away = self.away, []
        if not refused and not unroutable and not away:
            return
        places = [number - first for number in refused if 0 <= number - first < count]
        self.was_refused = bool(refused)
        doubtful = len(refused) - sum(self.is_refusal(items[place]) for place in places)
        if doubtful:
            uncertain = PublishUncertain(
                f"RabbitMQ at {self.link.where} does not answer for {doubtful} of {count} message(s): a queue failed, "
                "and may have handed them out before; sending them again may double them. If it is only full, let its "
                "declaration say so: x-overflow in the queue_arguments of task_queues"
            )
            uncertain.payloads = [
                *(unpack(record) for _, record in (*unroutable, *away)),
                *(payload_of(items[place]) for place in places),
            ]
            raise uncertain
        if away:
            error = PublishRejected(f"{len(away)} of {count} message(s) were not sent: {away[0][0]}")
        else:
            error = self._describe_refusals(refused, unroutable, count)
        records = [record for _, record in (*unroutable, *away)] + [record_of(items[place]) for place in places]
        if len(records) < count:
            error.task_ids = [getattr(scan(record)[0], "id", "") for record in records]
        raise error

    def is_refusal(self, item: Item) -> bool:
        """Whether a nack of this message is a full queue's, and nothing was stored.

        Else it was in a queue that failed, and what is not yet safe on its disk may have been handed out all the same.
        The broker does not say which; a queue that one message in the default exchange leads to can be known to refuse.
        """
        if item.route.exchange or item.due is not None:
            return False
        overflow = self._find_queue(item.route.routing_key).arguments.get("x-overflow")
        return isinstance(overflow, str) and overflow.startswith("reject-publish")

    def _describe_refusals(
        self, refused: Sequence[int], unroutable: Sequence[tuple[str, bytes]], count: int
    ) -> PublishRejected:
        if unroutable:
            text, record = unroutable[0]
            exchange, routing_key, _, _ = split_record(record)
            return PublishRejected(
                f"{len(unroutable)} of {count} message(s) found no queue: RabbitMQ at {self.link.where} says {text} "
                f"for exchange {exchange!r}, routing key {routing_key!r}. Declare a queue that is bound to it."
            )
        return PublishRejected(
            f"RabbitMQ at {self.link.where} refused {len(refused)} of {count} message(s): a queue is full "
            "(x-max-length with reject-publish)"
        )

    # -- the books --------------------------------------------------------------------------------------------

    def _note(self, sequence: int, multiple: bool, taken: bool) -> None:
        early = self._early
        if multiple:
            if not taken:
                self.refused.extend(number for number in range(self._settled + 1, sequence + 1) if number not in early)
            if sequence > self._settled:
                self._settled = sequence
                if early:
                    self._early = early = {number for number in early if number > sequence}
        else:
            if not taken:
                self.refused.append(sequence)
            early.add(sequence)
        while early and self._settled + 1 in early:
            self._settled += 1
            early.remove(self._settled)

    def _take_back(self, text: str, record: bytes) -> None:
        """A message came back, for no queue took it."""
        exchange, routing_key, header, body = split_record(record)
        queue, due = routing_key, None
        if exchange.startswith(delays.PREFIX):  # somebody has removed a delay queue
            queue, due = delays.queue_of(routing_key), _due_of(record)
            record = with_route(record, queue)
            self._waits.clear()
        identity = record[body_start(record) :]
        if (exchange and due is None) or identity in self._again:
            self.unroutable.append((text, record))
            return
        if due is None and queue not in self._declared:
            _log.info("A message found no queue %s at %s; declaring it.", queue, self.link.where)
            try:
                self._declare(queue)
            except topology.QueueAway as exc:
                self.away.append((str(exc), record))
                return
            self._declared.add(queue)
            if self._delayed is not None:
                self._delayed.discard(queue)  # its binding for delays has gone with the queue
        self._again.add(identity)
        item = Item(Route(queue), header, body, True, due)
        delay_s = 0 if due is None else self._prepare_delay(item, time.monotonic() + self.link.timeout_s)
        out: list[bytes] = []
        self._add_frames(out, item, delay_s)
        self.link.send(b"".join(out))
        self._last += 1

    def _declare(self, queue: str) -> None:
        try:
            topology.declare(self.link, self._find_queue(queue))
        except ImproperlyConfigured as exc:
            # Somebody else made it a moment ago, and differently: it is there, which is all a publisher needs.
            _log.warning("%s", exc)

    # -- frames -----------------------------------------------------------------------------------------------

    def _add_frames(self, out: list[bytes], item: Item, delay_s: int = 0) -> int:
        """Add the frames of one message; returns their size, nearly."""
        header, body = item.header, item.body
        out.append(self._publish_frame(item, delay_s))
        out.append(frame(HEADER, CHANNEL, header))
        size = len(body)
        room = self.link.frame_max - FRAME_OVERHEAD_BYTES
        if size <= room:
            if size:
                out.append(frame(BODY, CHANNEL, body))
        else:
            out.extend(frame(BODY, CHANNEL, body[at : at + room]) for at in range(0, size, room))
        return size + len(header)

    def _publish_frame(self, item: Item, delay_s: int) -> bytes:
        route = item.route
        if delay_s:
            key = delays.key_of(delay_s, route.routing_key)
            return frame(METHOD, CHANNEL, methods.publish(delays.way_in(delay_s), key, True))
        way = (route.exchange, route.routing_key, item.mandatory)
        written = self._routes.get(way)
        if written is None:
            written = frame(METHOD, CHANNEL, methods.publish(*way))
            if len(self._routes) < ROUTES_KEPT:
                self._routes[way] = written
        return written

    def _prepare_delay(self, item: Item, deadline: float) -> int:
        """See to it that a delayed message finds its way, which is done once per connection; returns how long it is to
        wait from now on: 0 if the broker user may have no delay queues."""
        if self.cannot_delay:
            return 0
        try:
            return self._make_way(item, deadline)
        except ChannelClosed as exc:
            if exc.code not in REFUSALS:
                raise TransportLost(f"delays of {item.route.routing_key!r} at {self.link.where}: {exc}") from exc
            self.cannot_delay = str(exc)
            _log.warning(
                "Messages for later go to %s at once, and the workers that get them hold them: %s. To have RabbitMQ "
                "hold them, give the broker user the permissions for %s*.",
                self.link.where,
                exc,
                delays.PREFIX,
            )
            return 0

    def _make_way(self, item: Item, deadline: float) -> int:
        queue = item.route.routing_key
        if self._delayed is None:
            delays.ensure_exchanges(self.link, deadline)
            self._delayed = set()
        if queue not in self._delayed:
            self._declare(queue)
            delays.bind(self.link, queue, deadline)
            self._delayed.add(queue)
        while True:
            delay_s = delays.whole_seconds(item.due or 0.0)
            missing = [wait_s for wait_s in delays.waits_of(delay_s) if wait_s not in self._waits]
            if not missing:
                return delay_s
            for wait_s in missing:  # which takes a moment, so the wait may be another then
                delays.ensure_wait(self.link, wait_s, self._delay_queue_type, deadline)
                self._waits.add(wait_s)


def _due_of(record: bytes) -> float:
    """When a message that waits is due."""
    marks = scan(record)[1]
    return time.time() if marks is None or marks.due is None else marks.due
