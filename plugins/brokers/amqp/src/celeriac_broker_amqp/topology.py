"""Queues, exchanges, bindings, and Celery's delay queues. Called by `transport`, `consumer` and `publisher`.

Everything is asked on a channel of its own, because RabbitMQ closes the channel on which it refuses something.
What is declared is what Celery declares, to the last argument: two clients with different ideas of one queue
cannot both use it.

Source: kombu 5.7's entities and its `native_delayed_delivery`; captured from a running Celery.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Final

from celeriac.exceptions import ImproperlyConfigured, TransportLost
from celeriac.spec import QueueSpec, Route
from celeriac_broker_amqp import methods
from celeriac_broker_amqp.link import Channel, ChannelClosed, Link

SCRATCH_CHANNEL: Final = 2
#: Where what Celery's clients delay comes out, and in how many bits they count.
DELAYED_PREFIX: Final = "celery_delayed_"
DELIVERY_EXCHANGE: Final = f"{DELAYED_PREFIX}delivery"
DELAY_BITS: Final = 28
DEAD_PREFIX: Final = "celeriac.dead."
MAX_NAME_BYTES: Final = 255
#: What RabbitMQ says, with the same code as of a queue that does not exist, of one that is on a node that is down.
NODE_DOWN: Final = "is down or inaccessible"
DEAD_KEEP_MS: Final = 7 * 24 * 3600 * 1000
DEAD_KEEP_COUNT: Final = 10_000

_counts = Struct(">II").unpack_from
_log = logging.getLogger("celeriac.broker.amqp")


class QueueAway(TransportLost):
    """A queue cannot be used now: its node is down, or another connection has it for itself. The link lives."""


@contextmanager
def scratch(link: Link) -> Iterator[Channel]:
    """A channel for questions that may be refused."""
    channel = link.open_channel(SCRATCH_CHANNEL)
    try:
        yield channel
    finally:
        if link.lost is None:
            link.close_channel(channel)


def ask(link: Link, request: bytes, reply: int, deadline: float) -> None:
    """Ask for something, and wait for the answer.

    Raises:
        ChannelClosed: It was refused.
        TransportLost: The connection dropped, or the broker is silent.
    """
    with scratch(link) as channel:
        link.call(channel, request, reply, max(deadline - time.monotonic(), 0.1))


def default_queue(name: str) -> QueueSpec:
    """A queue of which only the name is known: durable, bound to the direct exchange of its own name, as Celery's
    created queues are; a dead-letter queue is bounded in age and length."""
    if name.startswith(DEAD_PREFIX):
        return QueueSpec(name, arguments={"x-message-ttl": DEAD_KEEP_MS, "x-max-length": DEAD_KEEP_COUNT})
    return QueueSpec(name, exchange=name, routing_key=name)


def dead_queue(queue: str) -> str:
    """The queue for the dead letters of another; of a name near AMQP's limit only the beginning goes into it."""
    name = (DEAD_PREFIX + queue).encode("utf-8", "surrogatepass")
    return name[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def declare(link: Link, spec: QueueSpec) -> bool:
    """Make a queue, its exchange and its binding exist. A queue that we may not declare, but that is there, is used as
    it is: somebody else sees to the topology.

    Returns:
        Whether it is known to be the same.
    Raises:
        ImproperlyConfigured: It exists and is not the same, or we may not declare it.
        QueueAway: It cannot be used now.
        TransportLost: The connection dropped.
    """
    if spec.no_declare:
        return False
    try:
        _declare(link, spec, with_exchange=bool(spec.exchange) and not spec.exchange.startswith("amq."))
    except ChannelClosed as exc:
        if exc.code == methods.ACCESS_REFUSED and depth(link, spec.name) is not None:
            _log.info("Queue %s at %s is used as it is, for we may not declare it: %s", spec.name, link.where, exc.text)
            return False
        raise _refused(link, spec, exc) from exc
    return True


def _declare(link: Link, spec: QueueSpec, *, with_exchange: bool) -> None:
    """As `declare`; raises `ChannelClosed`.

    An exchange that is there, and of the same type, is used as it is: how long it lasts is not in `spec`.
    """
    try:
        with scratch(link) as channel:
            if with_exchange:
                exchange = methods.declare_exchange(spec.exchange, spec.exchange_type, durable=spec.durable)
                link.call(channel, exchange, methods.EXCHANGE_DECLARE_OK)
            queue = methods.declare_queue(
                spec.name,
                durable=spec.durable,
                exclusive=spec.exclusive,
                auto_delete=spec.auto_delete,
                arguments=spec.arguments,
            )
            link.call(channel, queue, methods.QUEUE_DECLARE_OK)
            if spec.exchange:
                bind = methods.bind_queue(spec.name, spec.exchange, spec.routing_key, spec.binding_arguments)
                link.call(channel, bind, methods.QUEUE_BIND_OK)
    except ChannelClosed as exc:
        is_other = exc.code == methods.PRECONDITION_FAILED and " for exchange " in exc.text
        if not (with_exchange and is_other) or "'type'" in exc.text:
            raise
        _declare(link, spec, with_exchange=False)


def _refused(link: Link, spec: QueueSpec, exc: ChannelClosed) -> Exception:
    if exc.code == methods.PRECONDITION_FAILED:
        return ImproperlyConfigured(
            f"queue {spec.name!r} at {link.where} is not what this app declares (durable={spec.durable}, "
            f"exchange={spec.exchange!r} of type {spec.exchange_type}, arguments={spec.arguments}). RabbitMQ says: "
            f"{exc.text}. Make task_queues (or task_default_queue_type, task_queue_max_priority) say what the queue "
            f"is, use another queue name, or delete the queue once it is empty: rabbitmqctl delete_queue {spec.name}"
        )
    if exc.code == methods.ACCESS_REFUSED:
        return ImproperlyConfigured(
            f"the broker user may not declare queue {spec.name!r} at {link.where}: {exc.text}. "
            "Make the queue, or give it the permission (rabbitmqctl set_permissions)."
        )
    return QueueAway(f"queue {spec.name!r} cannot be declared at {link.where} now: {exc}")


def own_dead_letters(link: Link, spec: QueueSpec) -> Route | None:
    """Where what is rejected goes by the queue's own declaration (`x-dead-letter-exchange`), its routing key empty if
    that stays; None if it does not say, or if nothing would arrive there, which RabbitMQ would not tell."""
    exchange, key = (spec.arguments.get(f"x-dead-letter-{what}") for what in ("exchange", "routing-key"))
    if type(exchange) is not str or not (exchange or key):
        return None
    route = Route(key if type(key) is str else "", exchange)
    try:
        with scratch(link) as channel:
            if exchange:
                passive = methods.declare_exchange(exchange, "direct", passive=True)
                link.call(channel, passive, methods.EXCHANGE_DECLARE_OK)
            else:
                link.call(channel, methods.declare_queue(route.routing_key, passive=True), methods.QUEUE_DECLARE_OK)
    except ChannelClosed as exc:
        _log.error(
            "What is set aside from queue %s goes to %s, for that to which its declaration sends it cannot be used: %s",
            spec.name,
            dead_queue(spec.name),
            exc,
        )
        return None
    return route


def depth(link: Link, queue: str) -> int | None:
    """How many messages are ready in a queue; None if there is none of this name.

    Raises:
        QueueAway: It is there, but does not say.
        TransportLost: The connection dropped.
    """
    counts = _count(link, queue)
    return None if counts is None else counts[0]


def is_consumed(link: Link, queue: str) -> bool:
    """Whether somebody consumes a queue, as far as the broker knows. Raises as `depth`."""
    counts = _count(link, queue)
    return counts is not None and counts[1] > 0


def _count(link: Link, queue: str) -> tuple[int, int] | None:
    """Messages that are ready in a queue, and its consumers."""
    try:
        with scratch(link) as channel:
            answer = link.call(channel, methods.declare_queue(queue, passive=True), methods.QUEUE_DECLARE_OK)
    except ChannelClosed as exc:
        if exc.code == methods.NOT_FOUND and NODE_DOWN not in exc.text:
            return None
        raise QueueAway(f"queue {queue!r} at {link.where}: {exc}") from exc
    ready, consumers = _counts(answer, 1 + answer[0])
    return ready, consumers


def try_consuming(link: Link, queue: str) -> None:
    """See whether the broker lets us consume a queue, if there is one. If it does, a message of it may be flagged.

    Raises:
        QueueAway: It does not.
        TransportLost: The connection dropped.
    """
    tag = f"celeriac.try.{secrets.token_hex(8)}"
    try:
        with scratch(link) as channel:
            link.call(channel, methods.limit_prefetch(1), methods.BASIC_QOS_OK)
            link.call(channel, methods.consume(queue, tag), methods.BASIC_CONSUME_OK)
    except ChannelClosed as exc:
        if exc.code == methods.NOT_FOUND and NODE_DOWN not in exc.text:
            return  # it can be made
        raise QueueAway(f"queue {queue!r} cannot be consumed at {link.where} now: {exc}") from exc
    link.deliveries = [one for one in link.deliveries if one[0] != tag.encode()]  # it has gone back with the channel


def purge(link: Link, queue: str) -> int:
    """Drop the ready messages of a queue; how many there were."""
    return _ask_about(link, queue, methods.purge_queue(queue), methods.QUEUE_PURGE_OK)


def delete(link: Link, queue: str) -> None:
    """Remove a queue; it need not exist."""
    _ask_about(link, queue, methods.delete_queue(queue), methods.QUEUE_DELETE_OK)


def _ask_about(link: Link, queue: str, request: bytes, reply: int) -> int:
    try:
        with scratch(link) as channel:
            return int.from_bytes(link.call(channel, request, reply)[:4], "big")
    except ChannelClosed as exc:
        if exc.code == methods.NOT_FOUND:
            return 0
        raise TransportLost(f"queue {queue!r} at {link.where}: {exc}") from exc


# -- Celery's delays ----------------------------------------------------------------------------------------


def ensure_delays(link: Link, queue_type: str, deadline: float) -> None:
    """Make Celery's delay queues exist: one for each bit of a wait in seconds, each handing on to the next.

    The first time ever this takes a second or two on quorum queues; it may be cut short and begun again. Queues
    that are there already, of whichever type, are left as they are.
    """
    try:
        with scratch(link) as channel:
            passive = methods.declare_exchange(DELIVERY_EXCHANGE, "topic", passive=True)
            link.call(channel, passive, methods.EXCHANGE_DECLARE_OK)
    except ChannelClosed as exc:
        if exc.code != methods.NOT_FOUND:
            raise TransportLost(f"exchange {DELIVERY_EXCHANGE!r} at {link.where}: {exc}") from exc
        _declare_delays(link, queue_type, deadline)
    out = methods.bind_exchange(DELIVERY_EXCHANGE, delay_level(0), _low_key(0))
    ask(link, out, methods.EXCHANGE_BIND_OK, deadline)


def bind_for_celery(link: Link, spec: QueueSpec, queue_type: str, deadline: float) -> None:
    """Let in what Celery's clients delay natively, as a Celery worker does at its start: for quorum queues, with a
    topic or fanout exchange. They publish to the delay queues whether anybody has bound them or not."""
    if spec.arguments.get("x-queue-type") != "quorum" or spec.exchange_type not in ("topic", "fanout"):
        return
    key = spec.routing_key if spec.routing_key.startswith("#") else f"#.{spec.routing_key}"
    try:
        ensure_delays(link, queue_type, deadline)
        ask(link, methods.bind_exchange(spec.exchange, DELIVERY_EXCHANGE, key), methods.EXCHANGE_BIND_OK, deadline)
        ask(link, methods.bind_queue(spec.name, spec.exchange, key), methods.QUEUE_BIND_OK, deadline)
    except ChannelClosed as exc:
        _log.warning("What Celery's clients delay does not come into queue %s: %s", spec.name, exc)


def _declare_delays(link: Link, queue_type: str, deadline: float) -> None:
    for level in range(DELAY_BITS):
        name = delay_level(level)
        arguments = {
            "x-queue-type": queue_type,
            "x-overflow": "reject-publish",
            "x-message-ttl": 2**level * 1000,
            "x-dead-letter-exchange": delay_level(level - 1) if level else DELIVERY_EXCHANGE,
        }
        if queue_type == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
        ask(link, methods.declare_exchange(name, "topic"), methods.EXCHANGE_DECLARE_OK, deadline)
        try:
            ask(link, methods.declare_queue(name, arguments=arguments), methods.QUEUE_DECLARE_OK, deadline)
        except ChannelClosed as exc:
            if exc.code != methods.PRECONDITION_FAILED:
                raise TransportLost(f"delay queue {name!r} at {link.where}: {exc}") from exc
            _log.info("Delay queue %s is there already, and is used as it is: %s", name, exc.text)
        ask(
            link,
            methods.bind_queue(name, name, "*." * (DELAY_BITS - 1 - level) + "1.#"),
            methods.QUEUE_BIND_OK,
            deadline,
        )
        if level:
            bind = methods.bind_exchange(delay_level(level - 1), name, _low_key(level))
            ask(link, bind, methods.EXCHANGE_BIND_OK, deadline)
    # Last of all, for it says that all the others are there.
    ask(link, methods.declare_exchange(DELIVERY_EXCHANGE, "topic"), methods.EXCHANGE_DECLARE_OK, deadline)


def delay_level(level: int) -> str:
    """The name of the queue where a message waits for 2 ** `level` seconds, and of the exchange before it."""
    return f"{DELAYED_PREFIX}{level}"


def _low_key(level: int) -> str:
    """The pattern of keys whose bit for this level is not set."""
    return "*." * (DELAY_BITS - 1 - level) + "0.#"
