"""Tasks that every app has, under Celery's names: what canvases are made of on the wire, and the clean-up of results.

Registered in each app when it is finalized; imported by `celeriac.app.base`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celeriac import _state, states
from celeriac.canvas.chain import chain
from celeriac.canvas.chord import chord
from celeriac.canvas.group import group
from celeriac.canvas.launch import PATIENCE_HEADER, Sending, claim_of
from celeriac.canvas.maps import chunks
from celeriac.canvas.signature import maybe_signature
from celeriac.exceptions import (
    BackendGetMetaError,
    BackendLost,
    BackendUnreachable,
    ChordError,
    OperationalError,
    PublishRejected,
    SecurityError,
    TimeoutError,
)
from celeriac.execution.followup import ERRBACK_TASK, begin_body, body_failed, list_places
from celeriac.execution.request import Context
from celeriac.messaging.failures import rebuild
from celeriac.result import AsyncResult, GroupResult, allow_join_result, result_from_tuple
from celeriac.resultstore import Stores
from celeriac.utils.ids import uuid

if TYPE_CHECKING:
    from celeriac.app.base import Celery

BACKEND_CLEANUP = "celery.backend_cleanup"

#: In messages `celery.chord_unlock`: how many parts were ready at the last look, and when that last grew.
READY_HEADER = "x-celeriac-chord-ready"
SINCE_HEADER = "x-celeriac-chord-since"

#: What says that the result store or the broker is away.
AWAY = (BackendLost, BackendUnreachable, OperationalError)


def add_builtin_tasks(app: Celery) -> None:
    """Register them; called when an app is finalized."""

    def task(name: str, fun: Any, **options: Any) -> None:
        app._make_task(fun, {"name": name, "shared": False, "typing": False, **options})

    def mapped(task: Any, it: Any) -> Any:
        call = maybe_signature(task, app=app).type
        return [call(item) for item in it]

    def starmapped(task: Any, it: Any) -> Any:
        call = maybe_signature(task, app=app).type
        return [call(*item) for item in it]

    def grouped(tasks: Any, *args: Any, **_: Any) -> Any:
        return group(list(tasks), app=app).apply_async(_partial(args)).as_tuple()

    def chained(*args: Any, tasks: Any = (), **_: Any) -> Any:
        result = chain(list(tasks or args), app=app).apply_async()
        return result and result.as_tuple()

    def joined(self: Any, header: Any, body: Any, *args: Any, **_: Any) -> Any:
        return chord(header, body, app=app).apply_async(_partial(args)).as_tuple()

    def call_errback(errback: Any, about: dict[str, Any], failure: Any, traceback: str) -> None:
        signature = maybe_signature(errback, app=app)
        exc = rebuild(failure) if isinstance(failure, dict) else Exception(failure)
        arguments = () if signature.immutable else (Context(about), exc, traceback)
        signature.type(*arguments, *signature.args, **signature.kwargs)

    def clean_up() -> int:
        """Remove all expired results; how many there were."""
        removed = 0
        for backend in app.result_plugins():
            while some := backend.cleanup():
                removed += some
        return removed

    task("celery.accumulate", _accumulate)
    task(BACKEND_CLEANUP, clean_up, ignore_result=True)
    task("celery.map", mapped)
    task("celery.starmap", starmapped)
    task("celery.chunks", lambda task, it, n: chunks.apply_chunks(task, it, n, app=app).as_tuple())
    task("celery.group", grouped)
    task("celery.chain", chained)
    task("celery.chord", joined, bind=True, ignore_result=False)
    task("celery.chord_unlock", _unlock, bind=True, max_retries=None, ignore_result=True, default_retry_delay=1)
    task(ERRBACK_TASK, call_errback, ignore_result=True)


def _accumulate(*args: Any, index: int | None = None) -> Any:
    return list(args) if index is None else args[index]


def _partial(args: tuple[Any, ...]) -> Any:
    return args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args


def _unlock(
    self: Any, group_id: str, body: Any, interval: Any = None, max_retries: Any = None, result: Any = (), **_: Any
) -> None:
    """Look whether all parts are ready: call the body then, else come again. While the result store or the broker is
    away it comes again, too: nothing else knows of the chord."""
    app = self.app
    pause_s = interval if interval is not None else app.conf["result_chord_retry_interval"]
    try:
        _look_at_parts(self, group_id, body, pause_s, max_retries, result)
    except (BackendGetMetaError, SecurityError) as exc:
        _fail(app, body, ChordError(f"the results of the parts cannot be read: {exc} (group {group_id})"))
    except AWAY as exc:
        raise self.retry(exc=exc, countdown=pause_s) from exc


def _look_at_parts(self: Any, group_id: str, body: Any, pause_s: float, max_retries: Any, result: Any) -> None:
    app = self.app
    parts = [result_from_tuple(part, app) for part in result]
    ready = _count_ready(app, parts)
    headers = dict(self.request.headers or {})
    now = time.time()
    if ready < len(parts):
        if ready > headers.get(READY_HEADER, -1):
            headers.update({READY_HEADER: ready, SINCE_HEADER: now})
        patience_s = headers.get(PATIENCE_HEADER)
        tries_over = max_retries is not None and self.request.retries >= max_retries
        if not tries_over and (patience_s is None or now - headers[SINCE_HEADER] < patience_s):
            raise self.retry(countdown=pause_s, max_retries=max_retries, headers=headers)
        missing = [index for index, part in enumerate(parts) if not part.ready()]
        text = f"{len(missing)} of {len(parts)} parts did not come: missing are the parts {list_places(missing)}"
        _fail(app, body, ChordError(f"{text} (group {group_id})"))
        return
    try:
        with allow_join_result():
            values = [_value(part, float(app.conf["result_chord_join_timeout"])) for part in parts]
    except ChordError as exc:
        _fail(app, body, exc)
        return
    launch = Sending(app)
    launch.claim = claim_of(uuid(), group_id)  # a second run of this may publish it too
    try:
        begin_body(launch, group_id, maybe_signature(body, app=app), values, self.request.root_id)
        launch.flush()
    except Exception as exc:
        if isinstance(exc, AWAY) and not isinstance(exc, PublishRejected):
            raise
        _fail(app, body, ChordError(f"the body could not be called: {exc!r}"))


def _count_ready(app: Any, parts: list[Any]) -> int:
    """How many are ready, with one look at the store for all that are single calls."""
    single = [part.id for part in parts if type(part) is AsyncResult]
    documents = app.backend.find_many(single)
    count = sum(1 for document in documents.values() if document["status"] in states.READY_STATES)
    return count + sum(1 for part in parts if type(part) is not AsyncResult and part.ready())


def _value(part: Any, timeout_s: float) -> Any:
    if isinstance(part, GroupResult):
        return [_value(child, timeout_s) for child in part.results]
    try:
        value = part.get(timeout=timeout_s, propagate=False, follow_parents=False)
    except TimeoutError as exc:
        raise ChordError(f"Dependency {part.id} raised {exc!r}") from exc
    if part.state in states.PROPAGATE_STATES:
        raise ChordError(f"Dependency {part.id} raised {value!r}")
    return value


def _fail(app: Any, body: Any, error: ChordError) -> None:
    """The body will not be called: say so wherever its results are looked for."""
    following = body_failed(app, app.backend, maybe_signature(body, app=app), error)
    Stores(app).store(following.stored)
    if following.publish:
        running = _state.running()
        if running is not None and running.request._effects is not None:
            running.request._effects.extend(following.publish)
        else:
            app.producer.send(following.publish)


_state.connect_on_finalize(add_builtin_tasks)
