"""What follows an outcome, as data: callbacks, the next step of a chain, errbacks, a chord's part. Nothing is sent
here.

Ids of following calls were fixed by whoever built the canvas, or follow from the id of the call that they follow: a
second run publishes the same ids. They are marked then: the first run may have published them too.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from celeriac import states
from celeriac.canvas.chain import chain
from celeriac.canvas.chord import chord
from celeriac.canvas.group import group
from celeriac.canvas.launch import Launch, claim_of, payloads_of, write_body
from celeriac.canvas.signature import Signature, as_list, maybe_signature
from celeriac.exceptions import BackendLost, BackendUnreachable, ChordError, EndedByPool
from celeriac.execution.request import Context
from celeriac.messaging.failures import rebuild
from celeriac.messaging.protocol import read_call
from celeriac.result import AsyncResult, GroupResult, result_from_tuple
from celeriac.spec.data import (
    PUBLISH_TRY_HEADER,
    Chord,
    ChordClaim,
    ChordPart,
    ChordWork,
    Payload,
    StoredResult,
)
from celeriac.utils.ids import derived_ids, derived_uuid

#: The header of a message that may have been sent before, under the same id.
AGAIN: Final = PUBLISH_TRY_HEADER

if TYPE_CHECKING:
    from celeriac.resultstore import ResultStore

#: The task that calls an errback of the new style in a slot, where the failure was noticed in none.
ERRBACK_TASK: Final = "celeriac.errback"
#: Of so many missing parts the error of a chord says the places.
NAMED_MISSING: Final = 20

_log = logging.getLogger("celeriac.task")


class Following:
    """States to store, chords to open, messages to publish and parts that have ended, in this order."""

    __slots__ = ("opened", "parts", "publish", "stored")

    def __init__(self, publish: Sequence[Payload] = ()) -> None:
        self.stored: list[StoredResult] = []
        self.opened: list[Chord] = []
        self.publish: list[Payload] = list(publish)
        self.parts: list[ChordPart] = []

    @property
    def chords(self) -> ChordWork | None:
        """What of it concerns chords."""
        return ChordWork(self.opened, self.parts) if self.opened or self.parts else None

    def take(self, other: Following) -> None:
        """All that is in another."""
        self.stored += other.stored
        self.opened += other.opened
        self.publish += other.publish
        self.parts += other.parts

    def add(self, launch: Launch, tries: int = 1) -> None:
        """Chords and calls of a launch, which may have been sent at so many tries."""
        self.opened += launch.opened
        for call in launch.calls:
            for payload in payloads_of(launch.app, call):
                if tries > 1:
                    payload.headers[AGAIN] = tries
                self.publish.append(payload)


def tries_of(request: Context) -> int:
    """At how many runs of a call what follows from it may have been sent, this one included. Of a message that may have
    been sent twice there may have been two runs, though no worker was lost with it."""
    again = bool((request.delivery_info or {}).get("redelivered"))
    return max(request.attempt, 1 + again)


def after_success(app: Any, store: ResultStore, request: Context, value: Any, trail: bool) -> Following:
    """What a returned value sets off: callbacks, then the next step of the chain; and the chord's part."""
    following, launch = Following(), Launch(app)
    children = request.children if trail else []
    for n, callback in enumerate(request.callbacks or ()):
        children.append(_begin(launch, request, callback, value, f"callback {n}"))
    if request.chain:
        *rest, step = request.chain  # reversed on the wire: the next step is last
        children.append(_begin(launch, request, step, value, f"step {len(rest)}", rest))
    following.add(launch, tries_of(request))
    if request.chord:
        following.parts = part_of(app, store, request, states.SUCCESS, value)
    return following


def after_failure(
    app: Any,
    store: ResultStore,
    request: Context,
    exc: BaseException,
    traceback: str,
    *,
    state: str = states.FAILURE,
    in_slot: bool = True,
) -> Following:
    """What a failure sets off: errbacks; the same failure of the steps that can no longer run; the chord's part, or
    that of a chord further down.

    An errback that is registered here and takes more than one argument is called at once with `(request, exception,
    traceback)`; any other is sent with the id of the failed task: see `_takes_failure`. One that raises, or cannot be
    sent, is logged.

    Args:
        in_slot: False in the worker's own process, where no task may run: errbacks of the first kind are sent too.
    """
    following = Following()
    if state == states.FAILURE:
        _call_errbacks(app, following, request, exc, traceback, in_slot)
    stored = store.failure(exc) if store.plugin is not None or app.has_own_stores else None
    for step in (maybe_signature(one, app=app) for one in request.chain or ()):
        for leaf in calls_of(step):
            keeper = app.store_of(leaf.task)
            if keeper.plugin is not None and leaf.id:
                for failed in written(keeper, str(leaf.id), states.FAILURE, stored, traceback):
                    failed.reply_to = str(leaf.options.get("reply_to") or request.reply_to or "") or None
                    following.stored.append(failed)
        for end in ends_of(step):
            following.parts += _part_of_call(app, store, end, stored)
    if request.chord:
        following.parts += part_of(app, store, request, state, stored)
    return following


def after_no_run(
    app: Any,
    request: Context,
    read_embed: Callable[[], Mapping[str, Any]],
    exc: BaseException,
    state: str = states.FAILURE,
) -> Following:
    """What follows when a call has ended without a slot's word: its state, and all that a failure sets off, as far as
    its message can be read.

    Args:
        request: What its headers say.
        read_embed: Reads what its body says besides arguments; may raise.
    """
    following = Following()
    if not request.id:
        return following
    with contextlib.suppress(Exception):  # a body that cannot be read has nothing that could follow
        vars(request).update(read_embed())
        following = after_failure(app, app.backend, request, exc, "", state=state, in_slot=False)
    store = app.store_of(request.task)
    if store.plugin is not None and _keeps_errors(app, request):
        following.stored[:0] = written(store, request.id, state, exc, None, request)
    return following


def written(
    store: ResultStore, task_id: str, state: str, result: Any, traceback: str | None = None, request: Any = None
) -> list[StoredResult]:
    """A state ready to be stored; [] if it cannot be written, which is said: all else is to be done all the same.

    Args:
        result: In its stored form, or an exception.
    """
    try:
        task_id.encode()  # half a character in it, which JSON can carry, is no store's to judge
        stored = store.failure(result) if isinstance(result, BaseException) else result
        return [store.make(task_id, state, stored, traceback, request)]
    except (EndedByPool, SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # the store's fault, which may be a panic, or the message's
        _log.exception("That %r is in state %s cannot be stored", task_id, state)
        return []


def after_no_sending(app: Any, payload: Payload, exc: BaseException) -> Following:
    """What follows when a call cannot be sent that was to follow from another: it has failed, and whoever waits for it
    or for what comes after it hears of that."""
    request = Context()
    request.tell(payload)
    return after_no_run(app, request, lambda: read_call(payload, app.codec)[2], exc)


def _keeps_errors(app: Any, request: Context) -> bool:
    """Whether it is stored how this call has failed."""
    task = app.tasks.get(request.task)
    if task is None:
        return not request.ignore_result
    ignored = task.ignore_result if request.ignore_result is None else request.ignore_result
    return not ignored or bool(task.store_errors_even_if_ignored)


def part_of(app: Any, store: ResultStore, request: Context, state: str, result: Any) -> list[ChordPart]:
    """The part that this run is of its chord; [] if the store leaves the join to a message that polls."""
    if not request.group or not _counts(store):
        return []
    body = dict(request.chord)
    body["options"] = {**(body.get("options") or {}), "parent_id": request.id}
    body["options"].setdefault("root_id", request.root_id)
    data = store.serializer.dumps([1, request.id, state, result])
    # Others than we may have written the message, with numbers where we have texts, and texts where we have numbers.
    place = request.group_index if type(request.group_index) is int else None
    return [ChordPart(str(request.group), str(request.id), place, data, write_body(app, body))]


def after_join(app: Any, store: ResultStore, claim: ChordClaim, body: Any) -> Following:
    """What the end of a chord sets off: its body with the results of all parts, or its failure.

    Args:
        body: The body's signature, as a dict.
    Raises:
        BackendLost, BackendUnreachable: The store is away, and knows whether the parts came in groups.
    """
    following = Following()
    signature = Signature.from_dict(body, app=app)
    options = signature["options"]
    try:
        values = _values(app, store, claim)
        launch = Launch(app)
        launch.claim = claim_of(claim.token, claim.group)
        begin_body(launch, claim.group, signature, values, options.get("root_id"), options.get("parent_id"))
        following.add(launch)
    except (BackendLost, BackendUnreachable):
        raise
    except Exception as exc:  # a part that failed or is missing, or what no serializer takes
        error = exc if isinstance(exc, ChordError) else ChordError(f"the body could not be called: {exc!r}")
        return body_failed(app, store, signature, error)
    return following


def begin_body(launch: Launch, group: str, body: Signature, values: Any, root_id: Any, parent_id: Any = None) -> None:
    """Hand over a chord's body, whose ids follow from the chord's where it has none."""
    with derived_ids(f"{group} body"):
        body.freeze(derived_uuid(f"{group} body"), root_id=root_id, parent_id=parent_id)
        body.begin(launch, (values,))


def calls_of(signature: Signature) -> Iterator[Signature]:
    """All single calls in a canvas."""
    if isinstance(signature, (chain, group, chord)):
        for member in signature.tasks:
            yield from calls_of(member)
        if isinstance(signature, chord) and signature.body is not None:
            yield from calls_of(signature.body)
    else:
        yield signature
        for step in signature["options"].get("chain") or ():
            yield from calls_of(maybe_signature(step))


def ends_of(signature: Signature) -> Iterator[Signature]:
    """The single calls whose results are those of a canvas."""
    if isinstance(signature, group):
        for member in signature.tasks:
            yield from ends_of(member)
    elif isinstance(signature, (chain, chord)):
        last = signature.tasks[-1] if isinstance(signature, chain) and signature.tasks else None
        last = signature.body if isinstance(signature, chord) else last
        if last is not None:
            yield from ends_of(last)
    else:
        yield signature


# -- calls --------------------------------------------------------------------------------------------------


def _begin(
    launch: Launch, request: Context, signature: dict[str, Any], value: Any, place: str, rest: Sequence[Any] = ()
) -> Any:
    """The first messages of what follows; its result. What has no id yet gets it from its place after this very task,
    so that it is the same after every attempt."""
    app = launch.app
    if signature.get("subtask_type"):
        canvas = Signature.from_dict(signature, app=app)
        if rest:
            canvas = chain(canvas, *reversed(rest), app=app)
        origin = f"{request.id} {place}"
        with derived_ids(origin):
            result = canvas.freeze(derived_uuid(origin), root_id=request.root_id, parent_id=request.id)
            canvas.begin(launch, (value,))
        return result
    args = tuple(signature.get("args") or ())
    if not signature.get("immutable"):
        args = (value, *args)
    options = dict(signature.get("options") or {})
    options.update(root_id=request.root_id, parent_id=request.id)
    if rest:
        options["chain"] = [*rest, *(options.get("chain") or ())]
    task_id = options.pop("task_id", None) or derived_uuid(f"{request.id} {place}")
    if request.delivery_info and options.get("priority") is None and app.conf["task_inherit_parent_priority"]:
        options["priority"] = request.delivery_info.get("priority")
    launch.call(signature["task"], args, signature.get("kwargs") or {}, task_id, options)
    return AsyncResult(task_id, task_name=signature["task"], app=app)


def _call_errbacks(
    app: Any, following: Following, request: Context, exc: BaseException, traceback: str, in_slot: bool
) -> None:
    """Each by itself: what goes wrong with one costs neither the others nor what else follows."""
    for n, errback in enumerate(as_list(request.errbacks)):
        launch = Launch(app)
        try:
            task = _takes_failure(app, errback)
            if task is None:
                _begin(launch, request, errback, request.id, f"errback {n}")
            elif in_slot:
                _call_errback(task, errback, request, exc, traceback)
            else:
                names = ("id", "task", "root_id", "parent_id", "group", "retries")
                about = {name: getattr(request, name) for name in names}
                described = app.backend.failure(exc) if app.backend.serializer.name != "pickle" else repr(exc)
                call = (dict(errback), about, described, traceback)
                launch.call(ERRBACK_TASK, call, {}, derived_uuid(f"{request.id} errback {n}"), {"ignore_result": True})
            following.add(launch, tries_of(request))
        except Exception:
            _log.exception("errback %r of %s[%s] raised or could not be sent", errback, request.task, request.id)


def call_errbacks_here(app: Any, request: Context, exc: BaseException, traceback: str) -> None:
    """Call the errbacks of a call that was run by its caller: first those that take the exception."""
    others = []
    for errback in as_list(request.errbacks):
        task = _takes_failure(app, errback)
        if task is not None:
            _call_errback(task, errback, request, exc, traceback)
        else:
            others.append(maybe_signature(errback, app=app))
    for errback in others:
        errback.apply((request.id,))


def _call_errback(task: Any, errback: Mapping[str, Any], request: Context, exc: BaseException, traceback: str) -> None:
    arguments = () if errback.get("immutable") else (request, exc, traceback)
    task(*arguments, *(errback.get("args") or ()), **(errback.get("kwargs") or {}))


def _takes_failure(app: Any, errback: Mapping[str, Any]) -> Any:
    """The task of an errback that is called with the failure itself; None for one that is sent with an id.

    As in Celery, a task that is given itself (`bind=True`, or a class's) is sent, whatever it takes: so it can be
    retried. And so is what consists of several calls.
    """
    task = None if errback.get("subtask_type") else app.tasks.get(errback["task"])
    if task is None or not isinstance(inspect.getattr_static(type(task), "run", None), staticmethod):
        return None
    function = getattr(task, "__wrapped__", task.run)  # and not what retries or validates it
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    own = 1 if hasattr(function, "__self__") else 0
    return task if code is not None and (code.co_argcount - own > 1 or code.co_flags & inspect.CO_VARARGS) else None


# -- chords -------------------------------------------------------------------------------------------------


def _counts(store: ResultStore) -> bool:
    return store.plugin is not None and "count" in store.plugin.abilities


def _part_of_call(app: Any, store: ResultStore, call: Signature, failure: Any) -> list[ChordPart]:
    """The failed part that a call would have been, if it stands in a chord's header."""
    options = call["options"]
    if not options.get("chord") or not options.get("task_id"):
        return []
    request = Context(
        id=options["task_id"],
        chord=options["chord"],
        group=options.get("group_id"),
        group_index=options.get("group_index"),
        root_id=options.get("root_id"),
    )
    return part_of(app, store, request, states.FAILURE, failure)


def _values(app: Any, store: ResultStore, claim: ChordClaim) -> Any:
    """The results of all parts.

    Raises:
        ChordError: One has failed, or is missing.
    """
    found: dict[str, Any] = {}
    for _, data in claim.parts:
        _, task_id, state, result = store.serializer.loads(data)
        if state in states.PROPAGATE_STATES:
            raise ChordError(f"Dependency {task_id} raised {rebuild(result)!r}")
        found[task_id] = result
    if len(claim.parts) < claim.size:
        raise ChordError(_missing(claim))
    saved = store.plugin.load_group(claim.group) if "groups" in store.plugin.abilities else None  # type: ignore[union-attr]
    if saved is not None:  # parts of groups within its header, as a Celery client sends them
        tree = _arranged(result_from_tuple(saved, app), found)
        if tree is not _ABSENT:
            return tree
    return list(found.values())


def _arranged(result: Any, values: dict[str, Any]) -> Any:
    if isinstance(result, GroupResult):
        parts = [_arranged(child, values) for child in result.results]
        return _ABSENT if any(part is _ABSENT for part in parts) else parts
    return values.get(result.id, _ABSENT)


_ABSENT: Final = object()


def _missing(claim: ChordClaim) -> str:
    count = claim.size - len(claim.parts)
    here = {index for index, _ in claim.parts}
    text = f"{count} of {claim.size} parts did not come, and no other came for long enough that none will"
    if None in here:
        return f"{text} (group {claim.group})"
    places = [index for index in range(claim.size) if index not in here]
    return f"{text}: missing are the parts {list_places(places)} (group {claim.group})"


def list_places(places: Sequence[int]) -> str:
    """Some places of parts, for an error."""
    return ", ".join(map(str, places[:NAMED_MISSING])) + (", ..." if len(places) > NAMED_MISSING else "")


def body_failed(app: Any, store: ResultStore, body: Signature, error: ChordError) -> Following:
    """A body that will not be called: its calls have failed, their errbacks are called, and who waits for it is
    told."""
    following = Following()
    failure = store.failure(error)
    errbacks: list[Any] = []
    first: Signature | None = None
    for call in calls_of(body):
        first = call if first is None else first
        keeper = app.store_of(call.task)
        if call.id and keeper.plugin is not None:
            following.stored += written(keeper, call.id, states.FAILURE, failure)
        errbacks += [errback for errback in as_list(call["options"].get("link_error")) if errback not in errbacks]
    for end in ends_of(body):
        following.parts += _part_of_call(app, store, end, failure)
    if errbacks and first is not None:
        request = Context(id=body.id or first.id, task=first.task, errbacks=errbacks, root_id=first.root_id)
        _call_errbacks(app, following, request, error, "", in_slot=False)
    return following
