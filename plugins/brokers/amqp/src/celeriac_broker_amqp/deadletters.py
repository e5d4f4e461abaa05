"""Dead letters: messages set aside with the reason, until a person looks.

Called by `consumer` and `followers`, which bury, and by `transport`, which looks.

They go where the queue's own declaration says, if it has an `x-dead-letter-exchange`: RabbitMQ sees to that, as it does
for Celery's workers. Else they go to the queue `celeriac.dead.<queue>`, with the same bytes and these headers besides:

    x-celeriac-reason, -error      why
    x-celeriac-dead-id             its name among dead letters; later ones sort behind
    x-celeriac-queue               where it was
    x-celeriac-exchange, -key      how it came there
    x-celeriac-attempts            deliveries lost so far
    x-celeriac-time, -owner        when (unix time), by which worker
    x-celeriac-record              true if the body is the whole message, for its headers cannot be used
    x-celeriac-headers             the headers as text, of a message that could not be sent
"""

from __future__ import annotations

import heapq
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from celeriac.exceptions import OperationalError, PublishRejected, TransportLost
from celeriac.spec import COUNT_HEADERS, DeadLetter, Delivery, Payload, Route, Settlement
from celeriac_broker_amqp import message, methods, topology
from celeriac_broker_amqp.link import Channel, ChannelClosed, Link
from celeriac_broker_amqp.publisher import Item, Publisher, make_item, record_of

MAX_ERROR_CHARS: Final = 8192
#: What we add to a message that is set aside, and take away when it goes back.
_NAMES: Final = ("dead-id", "reason", "error", "time", "owner", "queue", "exchange", "key", "record")
MARKS: Final = frozenset({f"x-celeriac-{name}" for name in _NAMES} | {message.LOST_HEADER, message.SPARED_HEADER})
CHANNEL: Final = 1
#: With so many on their way back, wait for the broker to have them.
BATCH: Final = 256
SILENCE_S: Final = 10.0
#: A quorum queue counts how often a message came back, also from who only looks; RabbitMQ 4 drops it after 20 times.
#: What came back so often is published anew.
WORN_AT: Final = 10

_log = logging.getLogger("celeriac.broker.amqp")


def bury(delivery: Delivery, settlement: Settlement, owner: str, max_header_bytes: int) -> Item:
    """A delivery as a dead letter."""
    reason = {
        **_describe(settlement.reason, settlement.error, owner),
        "x-celeriac-queue": delivery.queue,
        message.LOST_HEADER: delivery.attempt - (0 if settlement.started else 1),
    }
    try:
        exchange, key, _, _ = message.split_record(delivery.raw)
        reason.update({"x-celeriac-exchange": exchange, "x-celeriac-key": key})
    except ValueError as exc:
        _log.debug("A dead letter of %s cannot be read: %s", delivery.queue, exc)
    return _set_aside(delivery.queue, delivery.raw, reason, max_header_bytes)


def forward(delivery: Delivery, way: Route) -> Item:
    """A delivery as RabbitMQ would dead-letter it, for one that it does not know by its queue (see `holding`)."""
    _, key, header, body = message.split_record(delivery.raw)
    return Item(
        Route(way.routing_key or key, way.exchange), message.with_headers(header, {}, message.DEATH_HEADERS), body
    )


def _set_aside(queue: str, record: bytes, reason: dict[str, Any], max_header_bytes: int) -> Item:
    """A message with the reason among its headers; it is the body if nobody could read them all then, or now."""
    route = Route(topology.dead_queue(queue))
    try:
        _, _, header, body = message.split_record(record)
        item = Item(route, message.with_headers(header, reason), body)
        message.unpack(record_of(item))
        if len(item.header) <= max_header_bytes:
            return item
    except ValueError as exc:
        _log.debug("A dead letter of %s is kept whole, for its headers cannot be read: %s", queue, exc)
    return Item(route, message.with_headers(message.bare_header(record), reason), record)


def make_follower(payload: Payload, owner: str, max_header_bytes: int, unsent: list[tuple[Payload, str]]) -> Item:
    """A message that follows from a task; as a dead letter if it can never be sent as it is, and then `unsent` has it
    and why."""
    try:
        item = make_item(payload)
        if len(item.header) <= max_header_bytes:
            return item
        problem = f"headers of {len(item.header)} bytes"
    except PublishRejected as exc:
        problem = str(exc)
    _log.error("A message that follows from a task cannot be sent and is set aside: %s", problem)
    unsent.append((payload, problem))
    reason = {**_describe("unsendable", problem, owner), "x-celeriac-headers": repr(payload.headers)[:MAX_ERROR_CHARS]}
    route = Route(topology.dead_queue(payload.route.routing_key or payload.route.exchange))
    return make_item(Payload(payload.body, "application/data", "binary", reason, {}, route))


def bury_refused(problem: str, item: Item, owner: str, max_header_bytes: int) -> Iterator[Item]:
    """A message that follows from a task, which the broker will not have, as a dead letter; then as one whose body it
    is, in case it is a property of it that the broker does not like."""
    _log.error("A message that follows from a task is refused and set aside: %s", problem)
    queue, record = item.route.routing_key or item.route.exchange, record_of(item)
    reason = _describe("unsendable", problem, owner)
    yield _set_aside(queue, record, reason, max_header_bytes)
    yield Item(Route(topology.dead_queue(queue)), message.with_headers(message.bare_header(record), reason), record)


def is_letter(item: Item) -> bool:
    """Whether this is a dead letter."""
    return not item.route.exchange and item.route.routing_key.startswith(topology.DEAD_PREFIX)


def bury_unroutable(text: str, record: bytes, owner: str, max_header_bytes: int) -> Item:
    """A message that follows from a task, which no queue has taken, as a dead letter.

    Args:
        text: What the broker said.
        record: What it gave back.
    """
    exchange, routing_key, _, _ = message.split_record(record)
    problem = f"{text} for exchange {exchange!r}, routing key {routing_key!r}"
    _log.error("A message that follows from a task found no queue and is set aside: %s", problem)
    return _set_aside(routing_key or exchange, record, _describe("unroutable", problem, owner), max_header_bytes)


# -- looking at them ----------------------------------------------------------------------------------------


def browse(
    link: Link, queue: str, after: str, limit: int, publish: Callable[[Sequence[Item]], None]
) -> list[DeadLetter]:
    """The first `limit` dead letters of a queue behind the one named `after`. All are read for it, and put back.

    Args:
        link: One of its own: what was read goes back to its place when it is closed, at the latest.
        publish: Sends with confirms.
    """
    worn: list[tuple[int, Item]] = []

    def renew() -> None:
        try:
            publish([item for _, item in worn])
        except OperationalError as exc:
            _log.warning("Dead letters of %s were looked at so often that RabbitMQ may drop them: %s", queue, exc)
        else:
            link.send(b"".join([methods.ack(CHANNEL, tag, False) for tag, _ in worn]))
        worn.clear()

    def read(found: Iterable[tuple[int, bytes]]) -> Iterator[DeadLetter]:
        for tag, record in found:
            item = _renew_letter(queue, record)
            if item is not None:
                worn.append((tag, item))
                if len(worn) >= BATCH:
                    renew()
            yield read_letter(queue, record)
        if worn:
            renew()

    with _reading(link, topology.dead_queue(queue)) as found:
        return heapq.nsmallest(limit, (one for one in read(found) if one.id > after), key=lambda one: one.id)


def _renew_letter(queue: str, record: bytes) -> Item | None:
    """A dead letter that came back so often that RabbitMQ will soon drop it, as it is published anew."""
    if b"x-delivery-count" not in record:
        return None
    returns = _headers(record).get("x-delivery-count")
    if type(returns) is not int or returns < WORN_AT:
        return None
    _, _, header, body = message.split_record(record)
    return Item(Route(topology.dead_queue(queue)), message.with_headers(header, {}, COUNT_HEADERS), body)


def take(link: Link, publisher: Publisher | None, queue: str, ids: Sequence[str], timeout_s: float) -> int:
    """Remove these dead letters; with a publisher, after their messages are safe in `queue` again.

    Args:
        link: As for `browse`.
    Returns:
        How many there were.
    """
    wanted, count = set(ids), 0
    tags: list[int] = []
    items: list[Item] = []

    def finish() -> None:
        try:
            if publisher is not None and items:
                publisher.send(items, time.monotonic() + timeout_s)
        except PublishRejected as exc:
            refused = set(exc.task_ids)  # the others are stored; none if all were refused
            taken = [tag for tag, item in zip(tags, items, strict=True) if refused and _task_id(item) not in refused]
            remove(taken)
            raise
        remove(tags)
        tags.clear()
        items.clear()

    def remove(tags: Sequence[int]) -> None:
        if tags:
            link.send(b"".join([methods.ack(CHANNEL, tag, False) for tag in tags]))

    with _reading(link, topology.dead_queue(queue)) as found:
        for tag, record in found:
            letter = read_letter(queue, record)
            if letter.id not in wanted:
                continue
            wanted.remove(letter.id)
            count += 1
            tags.append(tag)
            if publisher is not None:
                items.append(_renewed(queue, letter.raw))
            if len(tags) >= BATCH or not wanted:
                finish()
            if not wanted:
                break
        finish()
    return count


def _task_id(item: Item) -> str:
    """As `PublishRejected.task_ids` has it."""
    return getattr(message.scan(record_of(item))[0], "id", "")


def read_letter(queue: str, record: bytes) -> DeadLetter:
    """A message of a dead-letter queue as what it was, and why it is there."""
    headers = _headers(record)

    def text(name: str) -> str:
        value = headers.get(f"x-celeriac-{name}")
        return value if isinstance(value, str) else ""

    lost, at = headers.get(message.LOST_HEADER), headers.get("x-celeriac-time")
    return DeadLetter(
        text("dead-id") or text("time"),
        queue,
        _original(record, headers, text("exchange"), text("key") or queue),
        text("reason"),
        text("error"),
        1 + (lost if type(lost) is int else 0),
        text("owner"),
        at if isinstance(at, (int, float)) else 0.0,
    )


def _headers(record: bytes) -> dict[str, Any]:
    try:
        return message.unpack(record).headers
    except ValueError as exc:  # somebody else's bytes in our queue
        _log.debug("A dead letter has no headers that can be read: %s", exc)
        return {}


def _original(record: bytes, headers: dict[str, Any], exchange: str, key: str) -> bytes:
    """The record as it was before it was set aside."""
    try:
        _, _, header, body = message.split_record(record)
        if headers.get("x-celeriac-record") is True:
            return body
        header = message.with_headers(header, {}, MARKS | message.DEATH_HEADERS)
        return methods.short_text(exchange) + methods.short_text(key) + header[len(message.HEADER_PREFIX) :] + body
    except ValueError:
        return record


def _renewed(queue: str, raw: bytes) -> Item:
    """A message on its way back to its queue, without any sign of earlier deliveries."""
    try:
        _, _, header, body = message.split_record(raw)
        return Item(Route(queue), message.with_headers(header, {}, message.DEATH_HEADERS | COUNT_HEADERS), body)
    except ValueError:
        return Item(Route(queue), message.bare_header(raw), raw)


@contextmanager
def _reading(link: Link, queue: str) -> Iterator[Iterable[tuple[int, bytes]]]:
    """The messages that are ready in a queue, with their delivery tags; those that were not acknowledged meanwhile are
    ready again at the end."""
    left = topology.depth(link, queue)
    if not left:
        yield ()
        return
    channel = link.open_channel(CHANNEL)
    consumer_tag = f"celeriac.browse.{secrets.token_hex(8)}"
    try:
        link.call(channel, methods.consume(queue, consumer_tag), methods.BASIC_CONSUME_OK)
    except ChannelClosed as exc:  # the broker user may not read it, or it is gone by now
        raise TransportLost(f"dead letters at {link.where}: {exc}") from exc
    yield _arriving(link, channel, left)
    link.call(channel, methods.cancel(consumer_tag), methods.BASIC_CANCEL_OK)
    link.send(methods.give_back_all(CHANNEL))
    # Answered by the queue, behind what we gave back to it, unless somebody has removed it.
    with suppress(ChannelClosed):
        link.call(channel, methods.declare_queue(queue, passive=True), methods.QUEUE_DECLARE_OK)


def _arriving(link: Link, channel: Channel, left: int) -> Iterator[tuple[int, bytes]]:
    """Tag and record of the next so many deliveries, fewer if others took some of them."""
    silent_since = time.monotonic()
    while left > 0:
        arrived, link.deliveries = link.deliveries, []
        for _, tag, _, record in arrived:
            left -= 1
            yield tag, record
        if arrived:
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > SILENCE_S:
            return
        if left > 0:
            link.pump(0.1)
        if channel.cancelled and not link.deliveries:
            return  # the queue is gone
        if channel.closed is not None:
            raise TransportLost(f"dead letters at {link.where}: {channel.closed}")


def _describe(reason: str, error: str, owner: str) -> dict[str, Any]:
    return {
        "x-celeriac-dead-id": f"{time.time_ns():016x}-{secrets.token_hex(4)}",
        "x-celeriac-reason": reason,
        "x-celeriac-error": error[:MAX_ERROR_CHARS],
        "x-celeriac-time": time.time(),
        "x-celeriac-owner": owner,
    }
