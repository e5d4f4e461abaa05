"""What core makes of a result backend: documents with Celery's keys, writing, reading and waiting.

`AsyncResult` reads through it; the executor makes its documents with it; `app.backend` is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celeriac import states
from celeriac.exceptions import (
    BackendError,
    BackendGetMetaError,
    BackendLost,
    BackendUnreachable,
    ContentDisallowed,
    GroupsUnsupported,
    ImproperlyConfigured,
    OperationalError,
    SecurityError,
    TimeoutError,
    TransportLost,
    TransportUnreachable,
    mask_url,
)
from celeriac.messaging import failures
from celeriac.spec.backend import Document, ResultBackend
from celeriac.spec.data import StoredResult
from celeriac.spec.results import AcceptedResults
from celeriac.spec.serializer import Serializer
from celeriac.utils.times import now_iso, parse_iso

if TYPE_CHECKING:
    from celeriac.awaiting import Awaiter

REREAD_S: Final = 5.0  # a lost notice delays a waiter by no more than this (R8)
LAST_LOOK_S: Final = 0.4  # so long a store is asked once more when a wait is over (R8)
LAST_LOOKED_AT: Final = 1000
FIRST_HINT_S: Final = 1.0  # so soon, and then so often, it is asked whether what is waited for can come at all
HINT_S: Final = 2.0
FIRST_PAUSE_S: Final = 0.002
FIRST_OUTAGE_S: Final = 0.1

T = TypeVar("T")

_log = logging.getLogger("celeriac.results")


class NoResultBackend(ImproperlyConfigured, NotImplementedError):
    """A result was asked for in an app that keeps none."""

    def __init__(self, what: str = "a result was asked for") -> None:
        super().__init__(
            f"{what}, but this app has no result backend, so results are neither kept nor read. "
            f"Give it one, here and in the worker: Celery(..., backend='sqlite://'), backend='redis://...', or backend='rpc://'."
        )


class ResultStore:
    """Results of one app in one process.

    Args:
        backend: The plugin's object, or None when results are disabled.
        serializer: Encodes documents.
        extended: Documents also say name, args, kwargs, worker, retries and queue (`result_extended`).
        url: Where it is, for people.
        missing_hint: Asked now and then by a waiter: an exception to raise if the result can never come.
        accepted: With which serializers results may have been written; None: with any.
        pauses: Makes the pauses between attempts while the store is away, in seconds; None ends them.
        remembered: How many successes are kept in this process: -1 none, 0 all.
        keeper: A task whose own store it is; "" for the app's.
    """

    def __init__(
        self,
        backend: ResultBackend | None,
        serializer: Serializer,
        *,
        extended: bool = False,
        missing_hint: Callable[[str], BaseException | None] | None = None,
        accepted: AcceptedResults | None = None,
        pauses: Callable[[], Iterable[float | None]] = lambda: (None,),
        remembered: int = -1,
        url: str = "",
        keeper: str = "",
    ) -> None:
        self.plugin = backend
        self.keeper = keeper
        self.serializer = serializer
        self._extended = extended
        self._missing_hint = missing_hint
        self._pauses = pauses
        self._remembered = remembered
        self._known: OrderedDict[str, Document] = OrderedDict()
        self._known_lock = threading.Lock()
        # Where answers are messages, each says what it was written with, and the backend looks at that.
        self._accepted = None if backend is None or "replies" in backend.abilities else accepted
        self._url = url
        #: It has answered in this process: who cannot reach it now meets an outage, and no wrong URL.
        self.was_reached = False

    # -- documents ------------------------------------------------------------------------------------------

    def document(
        self, task_id: str, state: str, result: Any, traceback: str | None = None, request: Any = None
    ) -> Document:
        """A result document; `result` is already in its stored form."""
        ready = state in states.READY_STATES
        children: list[Any] = []
        if request is not None and request._children:
            children = [child.as_tuple() for child in request._children]
        document: Document = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": children,
            "date_done": now_iso() if ready else None,
            "task_id": task_id,
        }
        if request is not None:
            if request.group:
                document["group_id"] = request.group
            if request.parent_id:
                document["parent_id"] = request.parent_id
            if self._extended:
                self._extend(document, request)
        return document

    def failure(self, exc: BaseException) -> Any:
        """The stored form of an exception, with arguments that the serializer knows."""
        if self.serializer.name == "pickle" and self._comes_back(exc):
            return exc
        return failures.describe(exc, self.serializer.dumps)

    def _comes_back(self, exc: BaseException) -> bool:
        """Whether it can be pickled and read again, which many a constructor's arguments prevent."""
        try:
            return type(self.serializer.loads(self.serializer.dumps(exc))) is type(exc)
        except Exception:  # whatever its class says to that
            return False

    def make(
        self, task_id: str, state: str, result: Any, traceback: str | None = None, request: Any = None
    ) -> StoredResult:
        """A state ready to be stored; `result` is already in its stored form.

        Raises:
            ValueError, TypeError: It cannot be serialized.
        """
        assert self.plugin is not None
        data = self.plugin.encode(self.document(task_id, state, result, traceback, request), self.serializer)
        if request is None:
            made = StoredResult(task_id, state, data)
        else:
            reply_to, group = request.reply_to, request.group  # as the message says: others may write numbers
            if reply_to is not None and type(reply_to) is not str:
                reply_to = str(reply_to)
            if group is not None and type(group) is not str:
                group = str(group)
            made = StoredResult(task_id, state, data, reply_to, group)
        if self.keeper:
            made.keeper = self.keeper
        return made

    def _extend(self, document: Document, request: Any) -> None:
        info = request.delivery_info or {}
        document.update(
            name=request.task,
            args=request.args,
            kwargs=request.kwargs,
            worker=request.hostname,
            retries=request.retries,
            queue=info.get("routing_key"),
        )
        if request.stamps:
            document["stamped_headers"] = request.stamped_headers
            document.update(request.stamps)

    # -- writing --------------------------------------------------------------------------------------------

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> Any:
        """Keep a state of a task. Exceptions are stored as data."""
        if self.plugin is None:
            return result
        stored = self.failure(result) if isinstance(result, BaseException) else result
        made, plugin = self.make(task_id, state, stored, traceback, request), self.plugin
        self._persist(lambda: plugin.store([made]))
        return result

    def mark_as_started(self, task_id: str, **meta: Any) -> Any:
        """Store STARTED with `meta`."""
        return self.store_result(task_id, meta, states.STARTED)

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, **_: Any) -> None:
        """Store SUCCESS."""
        self.store_result(task_id, result, states.SUCCESS, request=request)

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: str | None = None, request: Any = None, **_: Any
    ) -> None:
        """Store FAILURE."""
        self.store_result(task_id, exc, states.FAILURE, traceback, request)

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, **_: Any) -> None:
        """Store REVOKED."""
        from celeriac.exceptions import TaskRevokedError

        self.store_result(task_id, TaskRevokedError(reason), states.REVOKED, request=request)

    def as_uri(self, include_password: bool = True) -> str:
        """Where results are kept, `disabled://` if nowhere."""
        url = self._url or "disabled://"
        return url if include_password else mask_url(url)

    def forget(self, task_id: str) -> None:
        """Remove a result."""
        plugin = self._required("forget")
        with self._known_lock:
            self._known.pop(task_id, None)
        self._persist(lambda: plugin.forget([task_id]))

    def expect(self, task_ids: Sequence[str]) -> None:
        """See `ResultBackend.expect`."""
        if self.plugin is not None:
            self.plugin.expect(task_ids)

    # -- reading --------------------------------------------------------------------------------------------

    def get_task_meta(self, task_id: str) -> Document:
        """The document of a task; PENDING if there is none."""
        return self.find(task_id) or pending(task_id)

    def find(self, task_id: str) -> Document | None:
        """The document of a task, or None."""
        return self.find_many([task_id]).get(task_id)

    def find_many(self, task_ids: Sequence[str]) -> dict[str, Document]:
        """The documents of those tasks that have one."""
        plugin = self._required("a result")
        if self._remembered < 0:
            found = self._persist(lambda: plugin.fetch(task_ids)) if task_ids else {}
            return {task_id: self.decode(task_id, data) for task_id, data in found.items()}
        with self._known_lock:
            known = {task_id: dict(self._known[task_id]) for task_id in task_ids if task_id in self._known}
        asked = [task_id for task_id in task_ids if task_id not in known]
        found = self._persist(lambda: plugin.fetch(asked)) if asked else {}
        documents = {task_id: self.decode(task_id, data) for task_id, data in found.items()}
        self._remember(documents)
        return {**known, **documents}

    def _remember(self, documents: Mapping[str, Document]) -> None:
        """Keep the successes among these, for no other state is final for good."""
        with self._known_lock:
            for task_id, document in documents.items():
                if document["status"] == states.SUCCESS:
                    self._known[task_id] = dict(document)
            while self._remembered and len(self._known) > self._remembered:
                self._known.popitem(last=False)

    def _persist(self, call: Callable[[], T]) -> T:
        """Do what may be done twice; again while the store is away, as often as `pauses` says."""
        for pause_s in self._pauses():
            try:
                answer = call()
            except (BackendLost, BackendUnreachable):
                if pause_s is None:
                    raise
                time.sleep(pause_s)
            else:
                self.was_reached = True
                return answer
        raise AssertionError("unreachable: the last pause is None")

    def save_group(self, group_id: str, result: Any) -> None:
        """Keep a group's results, or rather where they are."""
        plugin = self._groups()
        self._persist(lambda: plugin.save_group(group_id, result.as_tuple()))

    def load_group(self, group_id: str) -> Any:
        """The tuple form of what `save_group` kept; None if there is nothing."""
        self._check_accepted()
        plugin = self._groups()
        return self._persist(lambda: plugin.load_group(group_id))

    def delete_group(self, group_id: str) -> None:
        """Remove what `save_group` kept."""
        plugin = self._groups()
        self._persist(lambda: plugin.delete_group(group_id))

    def _groups(self) -> Any:
        plugin = self._required("a saved group")
        if "groups" not in plugin.abilities:
            raise GroupsUnsupported(type(plugin).__name__)
        return plugin

    def cleanup(self) -> int:
        """Remove expired results, a bounded number; returns how many."""
        return self._required("a clean-up").cleanup()

    def get_state(self, task_id: str) -> str:
        """The state of a task."""
        return str(self.get_task_meta(task_id)["status"])

    get_status = get_state

    def get_result(self, task_id: str) -> Any:
        """The result (or exception) of a task."""
        return result_of(self.get_task_meta(task_id))

    def get_traceback(self, task_id: str) -> str | None:
        """The traceback of a failed task."""
        return self.get_task_meta(task_id).get("traceback")

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        on_interval: Callable[[], Any] | None = None,
    ) -> Document:
        """The document of a task, once it is in a ready state.

        Raises:
            TimeoutError: Not ready within `timeout` seconds.
        """
        for _, document in self.wait_for_any([task_id], timeout, interval, on_interval):
            return document
        raise AssertionError("unreachable: waiting ends with a document or an error")

    def wait_for_any(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        on_interval: Callable[[], Any] | None = None,
        on_message: Callable[[Document], Any] | None = None,
    ) -> Iterator[tuple[str, Document]]:
        """Yield `(task_id, document)` as each becomes ready, until all are.

        Args:
            timeout: Seconds for all of it; None waits for ever.
            interval: The longest pause between two looks, for backends that cannot push.
            on_message: Called with each state that arrives, ready or not.
        Raises:
            TimeoutError: Some were not ready in time; it says which.
        """
        plugin = self._required("a result")
        waiting = dict.fromkeys(task_ids)
        deadline = None if timeout is None else time.monotonic() + timeout
        arrivals = (
            self._pushed(plugin, waiting, deadline)
            if "push" in plugin.abilities
            else self._polled(plugin, waiting, deadline, interval)
        )
        hint_at = time.monotonic() + FIRST_HINT_S
        try:
            for batch in arrivals:
                for task_id, data in batch:
                    if task_id not in waiting:
                        continue
                    document = self.decode(task_id, data)
                    if on_message is not None:
                        on_message(document)
                    if document["status"] in states.READY_STATES:
                        del waiting[task_id]
                        yield task_id, document
                if not waiting:
                    return
                if on_interval is not None:
                    on_interval()
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    break
                if now >= hint_at:
                    hint_at = now + HINT_S
                    self.raise_what_is_missing(waiting)
        finally:
            arrivals.close()
        yield from self.last_look(waiting, timeout, on_message)

    def last_look(
        self, task_ids: Iterable[str], timeout: float | None, on_message: Callable[[Document], Any] | None = None
    ) -> Iterator[tuple[str, Document]]:
        """Yield `(task_id, document)` of those that have ended, for whoever has waited for `timeout` seconds, which may
        be less than a watch takes to begin.

        Raises:
            TimeoutError: Some have not, or the store does not say; it says which.
        """
        waiting = dict.fromkeys(task_ids)
        found, trouble = self._look_briefly(list(islice(waiting, LAST_LOOKED_AT)))
        known = next(iter(waiting)) in found
        for task_id, data in found.items():
            document = self.decode(task_id, data)
            if on_message is not None:
                on_message(document)
            if document["status"] in states.READY_STATES:
                del waiting[task_id]
                yield task_id, document
        if waiting:
            raise TimeoutError(self._timeout_text(waiting, timeout, known, trouble))

    def _look_briefly(self, task_ids: Sequence[str]) -> tuple[dict[str, bytes], Exception | None]:
        """What the store has of these, and why it does not say: it may hang, so a thread asks."""
        plugin = self._required("a result")
        answer: list[tuple[dict[str, bytes], Exception | None]] = []

        def look() -> None:
            try:
                answer.append((plugin.fetch(task_ids), None))
            except Exception as exc:
                answer.append(({}, exc))

        thread = threading.Thread(target=look, name="celeriac-last-look", daemon=True)
        thread.start()
        thread.join(LAST_LOOK_S)
        return answer[0] if answer else ({}, BackendLost(f"it did not answer within {LAST_LOOK_S} s"))

    def _pushed(
        self, plugin: ResultBackend, waiting: dict[str, None], deadline: float | None
    ) -> Generator[list[tuple[str, bytes]], None, None]:
        """What a watch tells, and every few seconds what the store has; through outages of the store too."""
        pause_s, reached = FIRST_OUTAGE_S, False
        while True:
            try:
                watch = plugin.watch(list(waiting))
                try:
                    reread_at = time.monotonic() + REREAD_S
                    while True:
                        arrived = watch.wait(_until(min(time.monotonic() + 1.0, reread_at), deadline))
                        pause_s, reached = FIRST_OUTAGE_S, True
                        self.was_reached = True
                        yield arrived
                        if time.monotonic() >= reread_at:
                            reread_at = time.monotonic() + REREAD_S
                            yield list(plugin.fetch(list(waiting)).items())
                finally:
                    watch.close()
            except (BackendError, OperationalError) as exc:
                if not (reached or self.is_away(exc)):
                    raise  # never seen alive: more likely a wrong URL than an outage
                _log.warning("waiting for results, but their store is away: %s", exc)
                time.sleep(_until(time.monotonic() + pause_s, deadline))
                pause_s = min(pause_s * 2, REREAD_S)
                yield []

    def is_away(self, exc: BaseException) -> bool:
        """Whether this is an outage, as far as one can tell, and the store worth waiting for."""
        unreachable = self.was_reached and isinstance(exc, (BackendUnreachable, TransportUnreachable))
        return unreachable or isinstance(exc, (BackendLost, TransportLost))

    def _polled(
        self, plugin: ResultBackend, waiting: dict[str, None], deadline: float | None, interval: float
    ) -> Generator[list[tuple[str, bytes]], None, None]:
        pause_s, reached = FIRST_PAUSE_S, False
        while True:
            found: list[tuple[str, bytes]] = []
            try:
                found = list(plugin.fetch(list(waiting)).items())
                self.was_reached = True
            except (BackendLost, BackendUnreachable) as exc:
                if not (reached or self.is_away(exc)):
                    raise  # never seen alive: more likely a wrong URL than an outage
                _log.warning("waiting for results, but their store is away: %s", exc)
                pause_s = interval
            reached = True
            yield found
            time.sleep(_until(time.monotonic() + pause_s, deadline))
            pause_s = min(pause_s * 1.5, interval)

    def decode(self, task_id: str, data: bytes) -> Document:
        """The document in a stored form.

        Raises:
            ContentDisallowed: Results of its serializer are not accepted.
            BackendGetMetaError: It cannot be read.
        """
        assert self.plugin is not None
        self._check_accepted()
        try:
            document = self.plugin.decode(data)
        except ContentDisallowed:
            raise
        except (ValueError, SecurityError) as exc:
            raise BackendGetMetaError(f"the stored result of {task_id} cannot be read: {exc}", task_id=task_id) from exc
        document.setdefault("status", states.PENDING)
        return document

    def _check_accepted(self) -> None:
        if self._accepted is not None:
            self._accepted.check(self.serializer.name, self.serializer.content_type)

    def why_missing(self, task_id: str) -> BaseException | None:
        """Why a result can never come, as far as somebody has told us."""
        return None if self._missing_hint is None else self._missing_hint(task_id)

    def raise_what_is_missing(self, task_ids: Iterable[str]) -> None:
        """Raise why one of these can never come, if somebody has told us."""
        for task_id in task_ids if self._missing_hint is not None else ():
            trouble = self.why_missing(task_id)
            # Two spellings of one store look like two; the result itself knows better.
            if trouble is not None and not self._required("a result").fetch([task_id]):
                raise trouble

    def timeout_error(self, task_ids: Iterable[str], timeout: float | None) -> TimeoutError:
        """What to raise when these did not come in time."""
        waiting = dict.fromkeys(task_ids)
        found, trouble = self._look_briefly(list(islice(waiting, 1)))
        return TimeoutError(self._timeout_text(waiting, timeout, bool(found), trouble))

    @cached_property
    def awaiter(self) -> Awaiter:
        """Waits on behalf of coroutines."""
        from celeriac.awaiting import Awaiter  # asyncio costs 30 ms to import, and few need it

        return Awaiter(self)

    def _required(self, what: str) -> ResultBackend:
        if self.plugin is None:
            raise NoResultBackend(f"{what} was asked for")
        return self.plugin

    def _timeout_text(
        self, waiting: dict[str, None], timeout: float | None, known: bool, trouble: Exception | None
    ) -> str:
        first = next(iter(waiting))
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        text = f"The operation timed out: no result of {first}{more} within {timeout} s."
        if trouble is not None:
            return f"{text} Their store is away: {trouble}"
        if known or "replies" in self._required("a result").abilities:
            return text
        return (
            f"{text} Nothing is known of it yet: does a worker run that consumes its queue and has this result backend?"
        )


def _until(moment: float, deadline: float | None) -> float:
    """Seconds until `moment`, or until `deadline` if that is sooner; at least 0."""
    return max(0.0, (moment if deadline is None else min(moment, deadline)) - time.monotonic())


def pending(task_id: str) -> Document:
    """The document of a task that the store knows nothing of."""
    return {"status": states.PENDING, "result": None, "task_id": task_id}


def result_of(document: Document) -> Any:
    """The result in a document; an exception for the states that hold one."""
    if document["status"] in states.EXCEPTION_STATES:
        return failures.rebuild(document["result"])
    return document["result"]


def date_done(document: Document) -> Any:
    """When the task ended: a datetime, or None."""
    value = document.get("date_done")
    return parse_iso(value) if isinstance(value, str) else value


class Stores:
    """All result stores of an app as one that can store: each state goes to the one that it was made for."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def store(self, batch: Sequence[StoredResult]) -> None:
        """See `ResultBackend.store`."""
        parted: dict[str, list[StoredResult]] = {}
        for state in batch:
            parted.setdefault(state.keeper, []).append(state)
        for keeper, states_ in parted.items():
            plugin = self._app.store_of(keeper or None).plugin
            if plugin is not None:
                plugin.store(states_)
