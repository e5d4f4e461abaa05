"""Dead letters: messages set aside with the reason, until a person looks. Pure; called by `consumer` and `followers`.

They go to the queue `celeriac.dead.<queue>`, with the same bytes and these headers besides:

    x-celeriac-reason, -error      why
    x-celeriac-queue               where it was
    x-celeriac-attempts            deliveries lost so far
    x-celeriac-time, -owner        when (unix time), by which worker
    x-celeriac-record              true if the body is the whole message, for its headers cannot be used
    x-celeriac-headers             the headers as text, of a message that could not be sent
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from celeriac.exceptions import PublishRejected
from celeriac.spec import Delivery, Payload, Route, Settlement
from celeriac_broker_amqp import message, topology
from celeriac_broker_amqp.publisher import Item, make_item

MAX_ERROR_CHARS: Final = 8192

_log = logging.getLogger("celeriac.broker.amqp")


def bury(delivery: Delivery, settlement: Settlement, owner: str, max_header_bytes: int) -> Item:
    """A delivery as a dead letter."""
    reason = {
        **_describe(settlement.reason, settlement.error, owner),
        "x-celeriac-queue": delivery.queue,
        message.LOST_HEADER: delivery.attempt - (0 if settlement.started else 1),
    }
    route = Route(topology.dead_queue(delivery.queue))
    try:
        _, _, header, body = message.split_record(delivery.raw)
        header = message.with_headers(header, reason)
        if len(header) <= max_header_bytes:
            return Item(route, header, body)
    except ValueError as exc:
        _log.debug("A dead letter of %s is kept whole, for its headers cannot be read: %s", delivery.queue, exc)
    return Item(route, message.with_headers(message.bare_header(delivery.raw), reason), delivery.raw)


def make_follower(payload: Payload, owner: str, max_header_bytes: int) -> Item:
    """A message that follows from a task; as a dead letter if it can never be sent as it is."""
    try:
        item = make_item(payload)
        if len(item.header) <= max_header_bytes:
            return item
        problem = f"headers of {len(item.header)} bytes"
    except PublishRejected as exc:
        problem = str(exc)
    _log.error("A message that follows from a task cannot be sent and is set aside: %s", problem)
    reason = {**_describe("unsendable", problem, owner), "x-celeriac-headers": repr(payload.headers)[:MAX_ERROR_CHARS]}
    route = Route(topology.dead_queue(payload.route.routing_key or payload.route.exchange))
    return make_item(Payload(payload.body, "application/data", "binary", reason, {}, route))


def bury_unroutable(text: str, record: bytes, owner: str) -> Item:
    """A message that follows from a task, which no queue has taken, as a dead letter.

    Args:
        text: What the broker said.
        record: What it gave back.
    """
    exchange, routing_key, header, body = message.split_record(record)
    problem = f"{text} for exchange {exchange!r}, routing key {routing_key!r}"
    _log.error("A message that follows from a task found no queue and is set aside: %s", problem)
    route = Route(topology.dead_queue(routing_key or exchange))
    return Item(route, message.with_headers(header, _describe("unroutable", problem, owner)), body)


def _describe(reason: str, error: str, owner: str) -> dict[str, Any]:
    return {
        "x-celeriac-reason": reason,
        "x-celeriac-error": error[:MAX_ERROR_CHARS],
        "x-celeriac-time": time.time(),
        "x-celeriac-owner": owner,
    }
