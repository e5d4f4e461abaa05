"""Remote control and events as messages: the exchanges and queues they travel by, and what is in them.

Names, arguments and shapes are Celery's, so that its `inspect`, `control`, `events` and Flower speak with our workers,
and ours with its. Pure functions; called by `app.control`, by `events` and by the worker's half of remote control.

Source: kombu's pidbox and Celery's events, as captured in `docs/reference/wire-protocol.md`.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from celeriac.exceptions import SecurityError, Unsupported
from celeriac.spec.data import ExchangeSpec, Payload, QueueSpec, Route
from celeriac.utils.ids import uuid

if TYPE_CHECKING:
    from celeriac.messaging.codec import Codec

#: Nobody misses a word of these; what a broker keeps for a slow listener it keeps in memory.
_PROPERTIES: Final = {"delivery_mode": 1, "priority": 0}
#: The settings that say how these queues are declared.
_CONTROL_QUEUE: Final = {
    "ttl": "control_queue_ttl",
    "expires": "control_queue_expires",
    "exclusive": "control_queue_exclusive",
    "durable": "control_queue_durable",
}
_EVENT_QUEUE: Final = {
    "ttl": "event_queue_ttl",
    "expires": "event_queue_expires",
    "exclusive": "event_queue_exclusive",
    "durable": "event_queue_durable",
}
#: The words for comparing a node's name with a pattern.
MATCHERS: Final = ("glob", "pcre")


class Request(Struct):
    """A command for workers.

    Attributes:
        destination: Node names; None, or none: by `pattern`, or everybody.
        ticket: Comes back with each reply; empty if no reply is wanted.
        reply_to: (exchange, routing key) of the one who asks.
    """

    method: str
    arguments: dict[str, Any]
    destination: list[str] | None = None
    pattern: str | None = None
    matcher: str | None = None
    ticket: str = ""
    reply_to: tuple[str, str] | None = None
    clock: int = 0

    def is_for(self, node: str) -> bool:
        """Whether this node is meant. A pattern that cannot be read means nobody."""
        if self.destination:  # to Celery's clients, too, an empty list says nothing
            return node in self.destination
        if self.pattern and self.matcher:
            try:
                return is_match(node, self.pattern, self.matcher)
            except (re.error, ValueError):
                return False
        return True


def is_match(node: str, pattern: str, matcher: str) -> bool:
    """Whether a node's name matches.

    Args:
        matcher: `glob` (`celery@*`) or `pcre`, a regular expression from the name's beginning.
    Raises:
        ValueError: Another matcher. `re.error`: No such expression.
    """
    if matcher == "glob":
        return fnmatch.fnmatchcase(node, pattern)
    if matcher == "pcre":
        return re.match(pattern, node) is not None
    raise ValueError(f"matcher {matcher!r} is none of {', '.join(MATCHERS)}")


def require_fanout(transport: Any, because: str) -> None:
    """Refuse a transport that cannot broadcast.

    Raises:
        Unsupported: It says who needs it.
    """
    if "fanout" not in transport.abilities:
        raise Unsupported(
            f"{because} needs a broker that can broadcast, and this one ({type(transport).__name__}) lacks the ability "
            "fanout. redis, amqp, sqlite and memory have it."
        )


# -- places -----------------------------------------------------------------------------------------------


def control_exchange(conf: Mapping[str, Any]) -> ExchangeSpec:
    """Where commands go."""
    return ExchangeSpec(f"{conf['control_exchange']}.pidbox", "fanout")


def reply_exchange(conf: Mapping[str, Any]) -> ExchangeSpec:
    """Where replies go."""
    return ExchangeSpec(f"reply.{conf['control_exchange']}.pidbox", "direct")


def event_exchange(conf: Mapping[str, Any]) -> ExchangeSpec:
    """Where events go."""
    return ExchangeSpec(conf["event_exchange"], "topic", durable=True)


def control_queue(conf: Mapping[str, Any], node: str) -> QueueSpec:
    """A worker's queue of commands."""
    exchange = control_exchange(conf)
    return _transient_queue(f"{node}.{exchange.name}", exchange, "", conf, _CONTROL_QUEUE)


def reply_queue(conf: Mapping[str, Any], key: str) -> QueueSpec:
    """A client's queue of replies."""
    exchange = reply_exchange(conf)
    return _transient_queue(f"{key}.{exchange.name}", exchange, key, conf, _CONTROL_QUEUE)


def event_queue(conf: Mapping[str, Any], name: str, key: str, **given: Any) -> QueueSpec:
    """A monitor's queue of events.

    Args:
        given: `ttl`, `expires`, `exclusive`, `durable`, where they differ from the settings.
    """
    return _transient_queue(name, event_exchange(conf), key, conf, _EVENT_QUEUE, **given)


def _transient_queue(
    name: str, exchange: ExchangeSpec, key: str, conf: Mapping[str, Any], settings: Mapping[str, str], **given: Any
) -> QueueSpec:
    def setting(word: str) -> Any:
        value = given.get(word)
        return conf[settings[word]] if value is None else value

    arguments = {
        argument: int(setting(word) * 1000)
        for word, argument in (("ttl", "x-message-ttl"), ("expires", "x-expires"))
        if setting(word) is not None
    }
    durable = bool(setting("durable"))
    return QueueSpec(
        name, exchange.name, exchange.type, key, durable, not durable, bool(setting("exclusive")), arguments
    )


# -- commands ---------------------------------------------------------------------------------------------


def make_request(request: Request, conf: Mapping[str, Any], codec: Codec, timeout_s: float | None) -> Payload:
    """A command as a message."""
    body: dict[str, Any] = {
        "method": request.method,
        "arguments": request.arguments,
        "destination": request.destination,
        "pattern": request.pattern,
        "matcher": request.matcher,
    }
    if request.reply_to is not None:
        exchange, key = request.reply_to
        body |= {"ticket": request.ticket, "reply_to": {"exchange": exchange, "routing_key": key}}
    headers = {"clock": request.clock, "expires": time.time() + timeout_s if timeout_s else 0}
    return _payload(body, conf["task_serializer"], codec, headers, "", control_exchange(conf))


def read_request(payload: Payload, codec: Codec) -> Request:
    """The command in a message.

    Raises:
        ValueError: There is none in it, or it is of a content type that is not accepted.
    """
    body = _body(payload, codec)
    method, arguments = body.get("method"), body.get("arguments")
    if type(method) is not str or not isinstance(arguments, (dict, type(None))):
        raise ValueError(f"a command has a method and arguments, not {method!r:.80} and {arguments!r:.80}")
    destination, reply_to = body.get("destination"), body.get("reply_to")
    if isinstance(destination, str):
        destination = [destination]
    if not isinstance(destination, (list, tuple, type(None))):
        raise ValueError(f"destination {destination!r:.80} is no list of node names")
    where = None
    if isinstance(reply_to, dict):
        where = str(reply_to.get("exchange") or ""), str(reply_to.get("routing_key") or "")
    clock = payload.headers.get("clock")
    return Request(
        method,
        {str(key): value for key, value in (arguments or {}).items()},
        None if destination is None else [str(name) for name in destination],
        _text(body.get("pattern")),
        _text(body.get("matcher")),
        _text(body.get("ticket")) or "",
        where,
        clock if type(clock) is int else 0,
    )


def make_reply(request: Request, node: str, value: Any, conf: Mapping[str, Any], codec: Codec, clock: int) -> Payload:
    """What a node answers. What cannot be serialized is answered as an error."""
    assert request.reply_to is not None
    exchange, key = request.reply_to
    headers = {"ticket": request.ticket, "clock": clock}
    place = ExchangeSpec(exchange, "direct")
    try:
        return _payload({node: value}, conf["task_serializer"], codec, headers, key, place)
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as exc:
        return _payload({node: {"error": repr(exc)}}, "json", codec, headers, key, place)


def read_reply(payload: Payload, codec: Codec) -> tuple[str, dict[str, Any], int]:
    """The ticket, the reply (node → value), and the clock of a reply.

    Raises:
        ValueError: It is none.
    """
    clock = payload.headers.get("clock")
    return _text(payload.headers.get("ticket")) or "", _body(payload, codec), clock if type(clock) is int else 0


# -- events -----------------------------------------------------------------------------------------------


def make_event(
    events: dict[str, Any] | Sequence[dict[str, Any]], key: str, conf: Mapping[str, Any], codec: Codec, node: str
) -> Payload:
    """One event, or several in one message (key `task.multi`)."""
    return _payload(events, conf["event_serializer"], codec, {"hostname": node}, key, event_exchange(conf))


def read_events(payload: Payload, codec: Codec) -> list[dict[str, Any]]:
    """The events in a message; those without a type are left out.

    Raises:
        ValueError: It has none.
    """
    body = _decode(payload, codec)
    events = body if isinstance(body, list) else [body]
    found = [event for event in events if isinstance(event, dict) and type(event.get("type")) is str]
    if not found:
        raise ValueError(f"no event has a type: {body!r:.200}")
    return found


def _payload(
    body: Any, serializer_name: str, codec: Codec, headers: dict[str, Any], key: str, exchange: ExchangeSpec
) -> Payload:
    serializer = codec.serializer(serializer_name)
    return Payload(
        serializer.dumps(body),
        serializer.content_type,
        serializer.content_encoding,
        headers,
        dict(_PROPERTIES),
        Route(key, exchange.name, exchange.type),
    )


def _body(payload: Payload, codec: Codec) -> dict[str, Any]:
    body = _decode(payload, codec)
    if not isinstance(body, dict):
        raise ValueError(f"not an object: {body!r:.200}")
    return body


def _decode(payload: Payload, codec: Codec) -> Any:
    try:
        return codec.decode(payload.body, payload.content_type, payload.headers.get("compression"))
    except (SecurityError, UnicodeDecodeError, TypeError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def new_ticket() -> str:
    """Names one question."""
    return uuid()
