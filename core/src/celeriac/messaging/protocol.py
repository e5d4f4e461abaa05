"""Calls to payloads and back: Celery's message protocol 2, and the body of protocol 1. Pure functions.

Source: Celery 5.7's protocol 2; `docs/reference/wire-protocol.md`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from msgspec import Struct

from celeriac.messaging.codec import Codec, compress
from celeriac.spec.data import Payload, Route
from celeriac.utils.ids import anon_nodename
from celeriac.utils.text import bounded_repr

REPR_CHARS: Final = 1024
EMPTY_EMBED: Final[dict[str, Any]] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Message(Struct):
    """One call on its way, as data.

    Attributes:
        embed: `callbacks`, `errbacks`, `chain` (reversed: the next step is last), `chord`; signatures as dicts.
        headers: The user's own.
        properties: What the user gave for the broker beyond the known options.
        timelimit: (hard, soft) in seconds.
    """

    task: str
    id: str
    args: Any
    kwargs: Any
    embed: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None
    shadow: str | None = None
    eta: datetime | None = None
    expires: datetime | None = None
    group: str | None = None
    group_index: int | None = None
    retries: int = 0
    timelimit: tuple[float | None, float | None] = (None, None)
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    reply_to: str = ""
    priority: int | None = None
    delivery_mode: int = 2
    serializer: str = "json"
    compression: str | None = None


def make_payload(message: Message, codec: Codec, route: Route) -> Payload:
    """The payload of a call.

    Raises:
        EncodeError: The arguments cannot be serialized; it says which task and why.
    """
    serializer = codec.serializer(message.serializer)
    embed = message.embed or EMPTY_EMBED
    content = [message.args, message.kwargs, embed] if codec.protocol == 2 else _protocol_1_body(message, embed)
    try:
        body = serializer.dumps(content)
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as exc:
        raise EncodeError(
            f"arguments of {message.task} cannot be serialized as {serializer.name}: {type(exc).__name__}: {exc}"
        ) from exc
    headers = make_headers(message, codec.repr_depth)
    if message.compression:
        body, headers["compression"] = compress(body, message.compression)
    properties: dict[str, Any] = {
        "correlation_id": message.id,
        "reply_to": message.reply_to,
        "delivery_mode": message.delivery_mode,
        "priority": message.priority or 0,
    }
    due = None
    if message.eta is not None:
        due = message.eta.timestamp()
    # Of `expires` the worker hears, in the headers. RabbitMQ would heed it as the property `expiration` by dropping the
    # call in its queue without a word to whoever waits for its end.
    if message.properties:
        properties.update(message.properties)
        if type(properties.get("expiration")) in (int, float):  # seconds, as for Celery; on the wire it is a text
            properties["expiration"] = str(max(0, int(properties["expiration"] * 1000)))
    return Payload(body, serializer.content_type, serializer.content_encoding, headers, properties, route, due)


def _protocol_1_body(message: Message, embed: dict[str, Any]) -> dict[str, Any]:
    """The body of Celery 2 and 3, which name the task in it. They do not look at protocol 2's headers, which go along
    for everybody else; and they know no chain, so its steps are callbacks, each of the one before."""
    callbacks = embed["callbacks"]
    if embed["chain"]:
        callbacks = [*(callbacks or ()), _as_callback(embed["chain"])]
    return {
        "task": message.task,
        "id": message.id,
        "args": message.args,
        "kwargs": message.kwargs,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "eta": None if message.eta is None else message.eta.isoformat(),
        "expires": None if message.expires is None else message.expires.isoformat(),
        "utc": True,
        "callbacks": callbacks,
        "errbacks": embed["errbacks"],
        "timelimit": list(message.timelimit),
        "taskset": message.group,
        "chord": embed["chord"],
    }


def _as_callback(chain: list[Any]) -> dict[str, Any]:
    """The next step of a chain, which is last in it, with the others behind it."""
    *rest, step = chain
    options = dict(step.get("options") or {})
    rest += options.pop("chain", None) or ()
    step = {**step, "options": options}
    return _linked(step, _as_callback(rest)) if rest else step


def _linked(step: dict[str, Any], callback: dict[str, Any]) -> dict[str, Any]:
    """A signature with one more callback: a chord is followed by what follows its body."""
    kwargs = step.get("kwargs") or {}
    if step.get("subtask_type") == "chord" and kwargs.get("body"):
        return {**step, "kwargs": {**kwargs, "body": _linked(kwargs["body"], callback)}}
    options = step.get("options") or {}
    link = options.get("link") or []
    link = [*link] if isinstance(link, (list, tuple)) else [link]
    return {**step, "options": {**options, "link": [*link, callback]}}


def make_headers(message: Message, repr_depth: int = 3) -> dict[str, Any]:
    """Protocol 2 headers, all of them, in Celery's order; the user's own merged in at the top level."""
    headers: dict[str, Any] = {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": message.shadow,
        "eta": None if message.eta is None else message.eta.isoformat(),
        "expires": None if message.expires is None else message.expires.isoformat(),
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": list(message.timelimit),
        "root_id": message.root_id or message.id,
        "parent_id": message.parent_id,
        "argsrepr": (
            bounded_repr(message.args, REPR_CHARS, repr_depth) if message.argsrepr is None else message.argsrepr
        ),
        "kwargsrepr": (
            bounded_repr(message.kwargs, REPR_CHARS, repr_depth) if message.kwargsrepr is None else message.kwargsrepr
        ),
        "origin": message.origin or anon_nodename(),
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": message.stamped_headers,
        "stamps": message.stamps or {},
    }
    if message.headers:
        headers.update(message.headers)
    return headers


def read_call(payload: Payload, codec: Codec) -> tuple[list[Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What a payload calls: `(args, kwargs, embed, headers)`.

    Protocol 1 (and the hybrid of protocol 2 headers with an object body) is turned into protocol 2's shape.

    Raises:
        ContentDisallowed: The content type is not accepted.
        ValueError: The body is not a call.
    """
    headers = payload.headers
    body = codec.decode(payload.body, payload.content_type, headers.get("compression"))
    if type(body) is dict:
        return _read_protocol_1(body, headers)
    try:
        args, kwargs, embed = body
    except (TypeError, ValueError):
        raise ValueError(f"body is not [args, kwargs, embed] but {bounded_repr(body, 100)}") from None
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        raise ValueError(f"args must be a list and kwargs an object, not {bounded_repr([args, kwargs], 100)}")
    return args, kwargs, embed if isinstance(embed, dict) else EMPTY_EMBED, headers  # type: ignore[return-value]


def _read_protocol_1(
    body: dict[str, Any], headers: dict[str, Any]
) -> tuple[list[Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    args, kwargs = body.get("args") or [], body.get("kwargs") or {}
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        raise ValueError("args must be a list and kwargs an object")
    if not headers.get("task"):
        if not isinstance(body.get("task"), str) or not isinstance(body.get("id"), str):
            raise ValueError("neither the headers nor the body name a task and an id")
        headers = {
            **headers,
            "task": body["task"],
            "id": body["id"],
            "root_id": body["id"],
            "eta": body.get("eta"),
            "expires": body.get("expires"),
            "group": body.get("taskset") or body.get("group"),
            "group_index": body.get("group_index"),
            "retries": body.get("retries") or 0,
            "timelimit": body.get("timelimit") or [None, None],
        }
    embed = {key: body.get(key) for key in EMPTY_EMBED}
    return list(args), kwargs, embed, headers


class EncodeError(TypeError, ValueError):
    """The arguments of a call cannot be serialized."""
