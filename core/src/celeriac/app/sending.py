"""From the options of a call to a payload on its way: what `apply_async`, `send_task` and `retry` share.

Celery's words for options are translated here, once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celeriac import _state, signals
from celeriac.app.models import dump_calls_models
from celeriac.exceptions import CeleriacError
from celeriac.messaging.announce import announce_after, announce_before
from celeriac.messaging.notices import RESULTS_HEADER
from celeriac.messaging.protocol import Message, make_payload
from celeriac.spec.data import Payload
from celeriac.utils.times import UTC, after, as_moment, as_seconds

if TYPE_CHECKING:
    from celeriac.app.base import Celery
    from celeriac.app.task import Task

_log = logging.getLogger("celeriac.app")

#: Options that steer the sending itself and never travel.
_NOT_SENT = frozenset(
    {
        "queue", "exchange", "routing_key", "exchange_type", "router", "route_name", "task_type", "result_cls",
        "once", "retry", "retry_policy", "producer", "publisher", "connection", "add_to_parent", "declare",
        "event_dispatcher", "mandatory", "immediate", "timeout", "confirm_timeout", "compress", "throw",
    }
)  # fmt: skip
#: Attributes of a task that are defaults of its calls.
TASK_OPTIONS = (
    "queue", "exchange", "routing_key", "exchange_type", "priority", "serializer", "compression", "delivery_mode",
    "time_limit", "soft_time_limit", "expires", "ignore_result",
)  # fmt: skip


def build_payload(
    app: Celery,
    name: str,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    task_id: str,
    options: dict[str, Any],
    task: Task[Any, Any] | None = None,
) -> Payload:
    """The payload of a call with these options; nothing is sent.

    Args:
        options: Consumed. Known ones are Celery's (`countdown`, `eta`, `expires`, `link` …); what is not known
            goes into the message's properties.
    Raises:
        TypeError, ValueError: An option that makes no sense, by name.
        EncodeError: The arguments cannot be serialized.
    """
    conf = app.conf
    args = () if args is None else args
    if isinstance(args, (str, bytes)) or not isinstance(args, (list, tuple)):
        # Of an iterator nothing may be left: the check of the arguments has been through it.
        if isinstance(args, (str, bytes, Mapping)) or not hasattr(args, "__iter__") or hasattr(args, "__next__"):
            raise no_arguments(name, args)
        args = tuple(args)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs of {name} must be a mapping, not {type(kwargs).__name__}")
    if task is not None and task.pydantic and (options.get("serializer") or task.serializer) != "pickle":
        args, kwargs = dump_calls_models(args, kwargs or {})
    route, extra = app.router.route(name, args, kwargs, options, task)
    for key, value in extra.items():
        if options.get(key) is None:
            options[key] = value
    take = options.pop
    running = _state.running()
    parent = running.request if running is not None and not running.request.called_directly else None
    priority = take("priority", None)
    if priority is None:
        if parent is not None and conf["task_inherit_parent_priority"] and parent.delivery_info:
            priority = parent.delivery_info.get("priority")
        if priority is None:
            priority = conf["task_default_priority"]
    hard, soft = take("time_limit", None), take("soft_time_limit", None)
    if hard is not None:
        hard = _seconds("time_limit", hard)
    if soft is not None:
        soft = _seconds("soft_time_limit", soft)
    if hard is not None and soft is not None and soft > hard:
        raise ValueError(f"soft_time_limit ({soft} s) of {name} must not be greater than its time_limit ({hard} s)")
    group_id, reply_to = take("group_id", None), take("reply_to", None) or app.thread_oid
    message = Message(
        name,
        task_id,
        args,
        kwargs if kwargs is not None else {},
        _embed(take("link", None), take("link_error", None), take("chain", None), take("chord", None)),
        take("headers", None),
        None,
        take("shadow", None),
        _eta(take("countdown", None), take("eta", None)),
        _expires(take("expires", None)),
        group_id if group_id is None or type(group_id) is str else str(group_id),
        take("group_index", None),
        take("retries", 0),
        (hard, soft),
        take("root_id", None) or (parent.root_id if parent is not None else None) or task_id,
        take("parent_id", None) or (parent.id if parent is not None and parent.id != task_id else None),
        take("argsrepr", None),
        take("kwargsrepr", None),
        take("origin", None) or (parent.hostname if parent is not None else None),
        take("ignore_result", None),
        take("replaced_task_nesting", 0),
        take("stamped_headers", None),
        None,
        reply_to if type(reply_to) is str else str(reply_to),
        None if priority is None else _priority(priority),
        _delivery_mode(take("delivery_mode", None) or conf["task_default_delivery_mode"]),
        take("serializer", None) or conf["task_serializer"],
        take("compression", None) or conf["task_compression"],
    )
    if message.stamped_headers:
        message.stamps = {key: take(key, None) for key in message.stamped_headers}
    rest = {key: value for key, value in options.items() if key not in _NOT_SENT}
    if rest:
        message.properties = rest
    codec = app.codec
    payload = make_payload(message, codec, route)
    fingerprint = app.results_fingerprint
    if fingerprint and message.ignore_result is not True:
        payload.headers[RESULTS_HEADER] = fingerprint
    if codec.seal is not None:
        codec.seal.put_on(payload)
    return payload


def no_arguments(name: str, args: Any) -> TypeError:
    """The error for `args` that are no list: most often `(x)`, which is x."""
    return TypeError(f"args of {name} must be a list or tuple, not {type(args).__name__}: did you forget a comma?")


def publish(app: Celery, payloads: Sequence[Payload], options: Mapping[str, Any]) -> None:
    """Send payloads, with the signals around each."""
    if signals.before_task_publish.receivers:
        announce_before(payloads, app.codec.seal, options.get("retry_policy"))
    app.producer.send(
        payloads, retry=options.get("retry"), policy=options.get("retry_policy"), once=options.get("once")
    )
    if signals.after_task_publish.receivers:
        announce_after(payloads)
    if app.producer.tells_sent:
        _tell_sent(app, payloads)


def _tell_sent(app: Celery, payloads: Sequence[Payload]) -> None:
    """Tell monitors what was sent (`task_send_sent_event`). Trouble with that is no reason not to have sent it."""
    dispatcher = app.events.dispatcher
    events = []
    for payload in payloads:
        headers, route = payload.headers, payload.route
        fields = {
            "uuid": headers["id"],
            "root_id": headers["root_id"],
            "parent_id": headers["parent_id"],
            "name": headers["task"],
            "args": headers["argsrepr"],
            "kwargs": headers["kwargsrepr"],
            "retries": headers["retries"],
            "eta": headers["eta"],
            "expires": headers["expires"],
            "queue": route.queue,
            "exchange": route.exchange,
            "routing_key": route.routing_key,
        }
        events.append(dispatcher.complete("task-sent", fields))
    try:
        dispatcher.send_all(events)
    except CeleriacError as exc:
        _log.warning("task-sent was not told: %s", exc)


def _embed(link: Any, link_error: Any, chain: Any, chord: Any) -> dict[str, Any] | None:
    if link is None and link_error is None and chain is None and chord is None:
        return None
    return {"callbacks": _as_list(link), "errbacks": _as_list(link_error), "chain": chain, "chord": chord}


def _as_list(value: Any) -> list[Any] | None:
    if value is None:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _eta(countdown: Any, eta: Any) -> datetime | None:
    if countdown is not None:
        try:
            seconds = as_seconds(countdown)
            if seconds:  # 0 is no delay, and takes no way that delayed calls take
                return after(seconds)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"countdown must be a number of seconds, not {countdown!r}") from None
    if eta is None:
        return None
    if not isinstance(eta, (datetime, str)):
        raise TypeError(f"eta must be a datetime or ISO 8601 text, not {type(eta).__name__}: {eta!r}")
    try:
        return as_moment(eta)
    except ValueError:
        raise ValueError(f"eta must be a datetime or ISO 8601 text, not {eta!r}") from None


def _expires(expires: Any) -> datetime | None:
    if expires is None:
        return None
    try:
        if isinstance(expires, (datetime, str)):
            return as_moment(expires)
        return after(as_seconds(expires)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expires must be seconds, a datetime or ISO 8601 text, not {expires!r}") from None


def _seconds(option: str, value: Any) -> float:
    try:
        return value if type(value) is int else as_seconds(value)
    except (TypeError, ValueError):
        raise ValueError(f"{option} must be a number of seconds, not {value!r}") from None


def _priority(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"priority must be a whole number from 0 to 9, not {value!r}") from None


def _delivery_mode(mode: Any) -> int:
    return int({"persistent": 2, "transient": 1}.get(mode, mode))
