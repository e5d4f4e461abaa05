"""How RabbitMQ keeps messages until they are due. Called by `publisher`, `consumer` and `transport`.

A wait is a number of whole seconds in base 16, spent digit by digit, the highest first. For each digit that is not 0
there is a queue that nobody reads, where a message expires after as many seconds; it then goes by a topic exchange to
the queue of its next digit, and in the end by another one to the queue that it is for. Both look at its routing key,
which is the digits and that queue's name: `0.0.0.0.1.a.3.celery` waits for 256, 160 and 3 seconds.

So an hour is three hops at most, and messages that were sent together spread soon. Celery's own layout does the same in
base 2, see `docs/decisions/0016-waits-at-rabbitmq-are-counted-in-sixteens.md`; what comes out by it is heeded too.

Source: RabbitMQ's message expiry, dead-letter exchanges, topic exchanges.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from celeriac_broker_amqp import methods
from celeriac_broker_amqp.link import ChannelClosed, Link
from celeriac_broker_amqp.topology import MAX_NAME_BYTES, ask, scratch

DIGIT_BITS: Final = 4
DIGITS: Final = 7
MAX_DELAY_S: Final = (1 << DIGIT_BITS * DIGITS) - 1
#: How long the name of a queue may be that messages are delayed for: its key must be one of AMQP's. Those for others
#: go at once, to be put off by workers; see `check_queue`.
MAX_QUEUE_BYTES: Final = MAX_NAME_BYTES - 2 * DIGITS
#: Of everything that is ours.
PREFIX: Final = "celeriac.delay."
WAY_OUT: Final = f"{PREFIX}out"
#: For a binding that is only to be made sure of.
BIND_TIMEOUT_S: Final = 4.0

_DIGIT_MASK: Final = (1 << DIGIT_BITS) - 1
_log = logging.getLogger("celeriac.broker.amqp")


def whole_seconds(due: float) -> int:
    """How long a message waits at the broker, in the whole seconds that it counts by; the consumer holds it for
    the fraction."""
    return max(0, min(int(due - time.time()), MAX_DELAY_S))


def key_of(delay_s: int, queue: str) -> str:
    """The routing key by which a message waits `delay_s` seconds on its way to `queue`."""
    return ".".join(f"{delay_s:0{DIGITS}x}") + "." + queue


def check_queue(queue: str) -> None:
    """Make sure that messages can be delayed for a queue of such a name.

    Raises:
        ValueError: It leaves no room for the wait, or topic exchanges would take it for a pattern and let out into it
            what is for others.
    """
    methods.short_text(key_of(0, queue))
    if is_pattern(queue):
        raise ValueError(f"queue {queue!r} has a name that is a pattern to topic exchanges")


def is_pattern(queue: str) -> bool:
    """Whether a queue has `*` or `#` for one of the words of its name."""
    return ("*" in queue or "#" in queue) and not {"*", "#"}.isdisjoint(queue.split("."))


def queue_of(key: str) -> str:
    """The queue to which a message with that key is on its way."""
    return key[2 * DIGITS :]


def way_in(delay_s: int) -> str:
    """The exchange to which it is published: that of its highest digit."""
    return _exchange((delay_s.bit_length() - 1) // DIGIT_BITS)


def waits_of(delay_s: int) -> Iterator[int]:
    """The parts, in seconds, in which a wait is spent: each has a queue of its own."""
    shift = 0
    while delay_s >> shift:
        if part := (delay_s >> shift & _DIGIT_MASK) << shift:
            yield part
        shift += DIGIT_BITS


def ensure_exchanges(link: Link, deadline: float) -> None:
    """Make the exchanges exist, one for each digit, each with a way to the next for those that have a 0 here.

    Raises:
        ChannelClosed: The broker refuses; likewise `ensure_wait` and `bind`.
    """
    last = _exchange(DIGITS - 1)
    try:
        with scratch(link) as channel:
            link.call(channel, methods.declare_exchange(last, "topic", passive=True), methods.EXCHANGE_DECLARE_OK)
    except ChannelClosed as exc:
        if exc.code != methods.NOT_FOUND:
            raise
        _declare_exchanges(link, deadline)


def ensure_wait(link: Link, wait_s: int, queue_type: str, deadline: float) -> None:
    """Make the queue exist where messages wait for so long, one of `waits_of`. One that is there already, of whichever
    type, is left as it is."""
    level = (wait_s.bit_length() - 1) // DIGIT_BITS
    name = f"{PREFIX}{wait_s}"
    arguments = {
        "x-queue-type": queue_type,
        "x-overflow": "reject-publish",
        "x-message-ttl": wait_s * 1000,
        "x-dead-letter-exchange": _exchange(level - 1) if level else WAY_OUT,
    }
    if queue_type == "quorum":
        arguments["x-dead-letter-strategy"] = "at-least-once"
    try:
        ask(link, methods.declare_queue(name, arguments=arguments), methods.QUEUE_DECLARE_OK, deadline)
    except ChannelClosed as exc:
        if exc.code != methods.PRECONDITION_FAILED:
            raise
        _log.info("Delay queue %s is there already, and is used as it is: %s", name, exc.text)
    pattern = _pattern(level, wait_s >> DIGIT_BITS * level)
    ask(link, methods.bind_queue(name, _exchange(level), pattern), methods.QUEUE_BIND_OK, deadline)


def bind(link: Link, queue: str, deadline: float) -> None:
    """Let delayed messages for `queue` out into it. Exactly for it: `#.b` would also take those for `a.b`."""
    ask(link, methods.bind_queue(queue, WAY_OUT, "*." * DIGITS + queue), methods.QUEUE_BIND_OK, deadline)


def bind_again(link: Link, queue: str) -> bool:
    """As `bind`, for a queue that may have been made anew, which its senders do not hear of; False if nothing was ever
    delayed here, of which RabbitMQ's log complains, so it is better not asked for every queue.

    Raises:
        TransportLost: The connection dropped.
    """
    try:
        check_queue(queue)
    except ValueError:
        return True  # nothing is delayed for it
    try:
        bind(link, queue, time.monotonic() + BIND_TIMEOUT_S)
    except ChannelClosed as exc:
        if exc.code != methods.NOT_FOUND:
            _log.warning("Queue %s gets no delayed messages if it was made anew: %s", queue, exc)
        return exc.code != methods.NOT_FOUND
    return True


def _declare_exchanges(link: Link, deadline: float) -> None:
    ask(link, methods.declare_exchange(WAY_OUT, "topic"), methods.EXCHANGE_DECLARE_OK, deadline)
    below = WAY_OUT
    for level in range(DIGITS):
        name = _exchange(level)
        ask(link, methods.declare_exchange(name, "topic"), methods.EXCHANGE_DECLARE_OK, deadline)
        if level < DIGITS - 1:  # the last one says that all are there; nothing comes to it with a 0
            ask(link, methods.bind_exchange(below, name, _pattern(level, 0)), methods.EXCHANGE_BIND_OK, deadline)
        below = name


def _exchange(level: int) -> str:
    return f"{PREFIX}digit-{level}"


def _pattern(level: int, digit: int) -> str:
    """Of keys with this digit at this level."""
    return "*." * (DIGITS - 1 - level) + f"{digit:x}.#"
