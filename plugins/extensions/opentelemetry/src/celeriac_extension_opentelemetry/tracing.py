"""Listens to the signals around sending and running, and makes spans of them.

Names follow OpenTelemetry's conventions for messaging; `celery.*` attributes are those that its own instrumentation of
Celery has, so that dashboards for it go on working.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from celeriac import signals
from celeriac.exceptions import ImproperlyConfigured

TRACER: Final = "celeriac_extension_opentelemetry"
KEPT: Final = "_opentelemetry"  # of a request: its span, and the token of the context before it
#: What a broker URL's scheme stands for in `messaging.system`.
SYSTEMS: Final = {"amqp": "rabbitmq", "amqps": "rabbitmq", "pyamqp": "rabbitmq", "rediss": "redis"}

Setup = Callable[[], Any]
_setup: Setup | None = None
_set_up_in = 0
_ended = threading.local()  # `last`: the id and the span of the run that ended last in this thread


def instrument(setup: Setup | str | None = None) -> None:
    """Trace what this process sends and runs from now on, and so do the processes that it forks. Calling it again
    changes `setup` only.

    Args:
        setup: Makes the tracer provider: a function, or its path as `"proj.tracing:setup"`. Called once in each process
            that sends or runs, before its first span; after a fork, again in the child, since exporters with
            threads or connections of their own do not outlive one. None: whoever owns the process does it.
    Raises:
        ImproperlyConfigured: There is no such function.
    """
    global _setup
    if setup is not None:
        _setup = _find(setup) if isinstance(setup, str) else setup
    for signal, receiver in RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=TRACER)


def uninstrument() -> None:
    """Trace no more."""
    global _setup
    _setup = None
    for signal, receiver in RECEIVERS:
        signal.disconnect(receiver, dispatch_uid=TRACER)


def _find(path: str) -> Setup:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found: Setup = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ImproperlyConfigured(
            f"extension_options['opentelemetry']['setup']: {path!r} cannot be imported: {exc}. "
            "It should be the path of a function, as in 'proj.tracing:setup'."
        ) from exc
    return found


def _tracer() -> trace.Tracer:
    global _set_up_in
    pid = os.getpid()
    if pid != _set_up_in:
        _set_up_in = pid
        if _setup is not None:
            _setup()
    return trace.get_tracer(TRACER)


# -- sending ------------------------------------------------------------------------------------------------


def _before_publish(
    sender: str, headers: dict[str, Any], routing_key: str, exchange: str, body: bytes, **_: Any
) -> None:
    """The span of a call's making; its context travels in the headers."""
    attributes = {
        "messaging.operation.type": "create",
        "messaging.operation.name": "apply_async",
        "messaging.destination.name": exchange or routing_key,
        "messaging.message.id": headers["id"],
        "messaging.message.body.size": len(body),
        "celery.action": "apply_async",
        "celery.task_name": sender,
    }
    parent = _context_of_sender(headers)
    span = _tracer().start_span(f"create {sender}", context=parent, kind=SpanKind.PRODUCER, attributes=attributes)
    propagate.inject(headers, trace.set_span_in_context(span))
    span.end()


def _context_of_sender(headers: dict[str, Any]) -> context.Context | None:
    """None: the current one. What follows from a run (its retry, the next of its chain) is announced in its thread
    right after its end, when its span is no longer current."""
    task_id, span = getattr(_ended, "last", (None, None))
    if span is None or trace.get_current_span().get_span_context().is_valid:
        return None
    return trace.set_span_in_context(span) if task_id in (headers["id"], headers.get("parent_id")) else None


# -- running ------------------------------------------------------------------------------------------------


def _before_run(sender: Any, task_id: str, **_: Any) -> None:
    request = sender.request
    info = request.delivery_info or {}
    attributes = {
        "messaging.system": _system(sender.app),
        "messaging.operation.type": "process",
        "messaging.operation.name": "run",
        "messaging.destination.name": info.get("routing_key") or "",
        "messaging.message.id": task_id,
        "messaging.message.conversation_id": request.root_id or task_id,
        "celery.action": "run",
        "celery.task_name": sender.name,
        "celery.retries": request.retries or 0,
        "celery.hostname": request.hostname or "",
        "celery.redelivered": bool(info.get("redelivered")),
    }
    tracer = _tracer()
    headers = getattr(request, "_message_headers", None) or {}
    carried = {name: headers[name] for name in propagate.get_global_textmap().fields if headers.get(name)}
    parent = propagate.extract(carried) if carried else None  # an eager run is a part of what called it
    span = tracer.start_span(f"process {sender.name}", context=parent, kind=SpanKind.CONSUMER, attributes=attributes)
    token = context.attach(trace.set_span_in_context(span, parent))
    request.__dict__[KEPT] = span, token


def _failed(sender: Any, exception: BaseException, **_: Any) -> None:
    span = _span_of(sender.request)
    if span is not None:
        span.record_exception(exception)
        span.set_status(Status(StatusCode.ERROR, f"{type(exception).__name__}: {exception}"))
        span.set_attribute("error.type", type(exception).__qualname__)


def _retried(sender: Any, request: Any, reason: Any, **_: Any) -> None:
    span = _span_of(request)
    if span is not None:
        span.add_event("retry", {"reason": str(reason)})


def _after_run(sender: Any, state: str, **_: Any) -> None:
    _end(sender.request, state)


def _internal_error(sender: Any, request: Any, exception: BaseException, **_: Any) -> None:
    """The run ended without a word about its task."""
    span = _span_of(request)
    if span is not None:
        span.record_exception(exception)
        span.set_status(Status(StatusCode.ERROR, f"{type(exception).__name__}: {exception}"))
        _end(request, "FAILURE")


def _end(request: Any, state: str) -> None:
    span, token = request.__dict__.pop(KEPT, (None, None))
    if span is not None:
        span.set_attribute("celery.state", state)
        span.end()
        context.detach(token)
        _ended.last = request.id, span


def _span_of(request: Any) -> Span | None:
    span: Span | None = request.__dict__.get(KEPT, (None,))[0]
    return span


def _system(app: Any) -> str:
    url = app.conf["broker_url"]
    scheme = str(url if isinstance(url, str) else (url or [""])[0]).partition(":")[0]
    return SYSTEMS.get(scheme, scheme)


# -- ending -------------------------------------------------------------------------------------------------


def _flush(**_: Any) -> None:
    """A process of the pool, or the worker, ends: what exporters hold back goes out now."""
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush()


RECEIVERS: Final[tuple[tuple[signals.Signal, Callable[..., None]], ...]] = (
    (signals.before_task_publish, _before_publish),
    (signals.task_prerun, _before_run),
    (signals.task_failure, _failed),
    (signals.task_retry, _retried),
    (signals.task_postrun, _after_run),
    (signals.task_internal_error, _internal_error),
    (signals.worker_process_shutdown, _flush),
    (signals.worker_shutdown, _flush),
)
