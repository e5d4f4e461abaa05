"""What follows an outcome, as data: callbacks, the next step of a chain, errbacks. Nothing is sent here.

Ids of following calls were fixed by whoever built the chain, or follow from the id of the call that they follow: a
second run publishes the same ids. They are marked then: the first run may have published them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celeriac.spec.data import PUBLISH_TRY_HEADER, Payload
from celeriac.utils.ids import derived_uuid

#: The header of a message that may have been sent before, under the same id.
AGAIN: Final = PUBLISH_TRY_HEADER

if TYPE_CHECKING:
    from celeriac.execution.request import Context


def after_success(app: Any, request: Context, value: Any) -> list[Payload]:
    """Messages that a returned value sets off: callbacks, then the next step of the chain."""
    payloads = [
        _next_call(app, request, callback, value, f"callback {n}") for n, callback in enumerate(request.callbacks or ())
    ]
    if request.chain:
        *rest, step = request.chain  # reversed on the wire: the next step is last
        payloads.append(_next_call(app, request, step, value, f"step {len(rest)}", chain=rest or None))
    return payloads


def after_failure(app: Any, request: Context, exc: BaseException, traceback: str) -> list[Payload]:
    """Messages that a failure sets off. An errback registered here that takes more than one argument is called
    at once with `(request, exception, traceback)`; any other is sent with the id of the failed task."""
    payloads = []
    for n, errback in enumerate(request.errbacks or ()):
        task = app.tasks.get(errback["task"])
        if task is not None and _takes_more_than_one(task):
            arguments = () if errback.get("immutable") else (request, exc, traceback)
            task(*arguments, *errback.get("args", ()), **errback.get("kwargs", {}))
        else:
            payloads.append(_next_call(app, request, errback, request.id, f"errback {n}"))
    return payloads


def failed_steps(request: Context) -> list[str]:
    """The ids of the steps of a chain that can no longer run."""
    return [step["options"]["task_id"] for step in request.chain or () if (step.get("options") or {}).get("task_id")]


def _next_call(app: Any, request: Context, signature: dict[str, Any], value: Any, place: str, **more: Any) -> Payload:
    """The message of a following call. One that has no id yet gets it from its place after this very task, so that
    it is the same after every attempt."""
    args = tuple(signature.get("args") or ())
    if not signature.get("immutable"):
        args = (value, *args)
    options = dict(signature.get("options") or {})
    options.update(more, root_id=request.root_id, parent_id=request.id)
    task_id = options.pop("task_id", None) or derived_uuid(f"{request.id} {place}")
    if request.delivery_info and options.get("priority") is None and app.conf["task_inherit_parent_priority"]:
        options["priority"] = request.delivery_info.get("priority")
    payload: Payload = app.make_payload(signature["task"], args, signature.get("kwargs") or {}, task_id, options)
    if request.attempt > 1:
        payload.headers[AGAIN] = request.attempt
    return payload


def _takes_more_than_one(task: Any) -> bool:
    code = getattr(getattr(task.run, "__func__", task.run), "__code__", None)
    if code is None:
        return False
    bound = 1 if hasattr(task.run, "__self__") else 0
    return bool(code.co_argcount - bound > 1 or code.co_flags & 0x04)
