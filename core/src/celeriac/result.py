"""Results in the caller's hand: `AsyncResult`, `EagerResult`, `ResultSet`, `GroupResult`.

They read through the app's `ResultStore`; nothing is asked of the store until a question is put.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from itertools import islice
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeVar, cast

from celeriac import _state, states
from celeriac.exceptions import BackendUnreachable, ImproperlyConfigured, IncompleteStream, TimeoutError
from celeriac.messaging.tracebacks import frames_of
from celeriac.resultstore import FIRST_HINT_S, HINT_S, ResultStore, date_done, result_of
from celeriac.spec.backend import Document
from celeriac.utils.graph import DependencyGraph

T = TypeVar("T")
R = TypeVar("R")

#: How long to wait for results of one store before it is another's turn.
TURN_S: Final = 0.2
#: Of so many results before it the tuple form of a result tells: each stands within the next, and serializers read only
#: so deep.
PARENTS_TOLD: Final = 100
#: Pickle and copy go so deep from one result into the one before it; what has more before it is taken as one list.
PARENTS_NESTED: Final = 40

_join_allowed: ContextVar[bool | None] = ContextVar("celeriac_join_allowed", default=None)  # None: as it is run

E_WOULDBLOCK = (
    "Never call result.get() within a task: it waits in a slot that other tasks need, and can wait for ever. "
    "Use a callback or a chain, or say that you mean it: with allow_join_result(): …"
)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Within it, a task may wait for results."""
    token = _join_allowed.set(True)
    try:
        yield
    finally:
        _join_allowed.reset(token)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Within it, a task may not wait for results: the ordinary case in a worker, not where `apply` runs it."""
    token = _join_allowed.set(False)
    try:
        yield
    finally:
        _join_allowed.reset(token)


def task_join_will_block() -> bool:
    """Whether waiting here would hold a slot."""
    running = _state.running()
    if running is None or running.request.called_directly:
        return False
    allowed = _join_allowed.get()
    return _state.get_current_worker_task() is not None if allowed is None else not allowed


def assert_will_not_block() -> None:
    """Raise RuntimeError if waiting here would hold a slot."""
    if task_join_will_block():
        raise RuntimeError(E_WOULDBLOCK)


class ResultBase:
    """What is common to all results: nothing but the name, for `isinstance`."""

    __slots__ = ()


class AsyncResult(ResultBase, Generic[T]):
    """The result of a call, by its task id.

    Args:
        backend: The app's `ResultStore`; None finds it through `app`.
        parent: The result of the call before, in a chain.
    """

    #: A client may hold a hundred thousand; a dict, for attributes of others, is made for those that have some.
    __slots__ = (
        "__dict__", "__weakref__", "_app", "_backend", "_document_known", "_waiting", "id", "ignored", "parent",
        "task_name",
    )  # fmt: skip

    TimeoutError = TimeoutError

    def __init__(
        self, id: str, backend: Any = None, task_name: str | None = None, app: Any = None, parent: Any = None
    ) -> None:
        if id is None:
            raise ValueError(f"AsyncResult needs a task id, not {id!r}")
        self.id = id if type(id) is str else str(id)
        self._app = app
        self._backend = backend
        self.task_name = task_name
        self.parent = parent
        self.ignored = False
        self._document_known: Document | None = None
        #: Of `then`: what to call when it is known to have ended.
        self._waiting: list[tuple[Callable[[Any], Any], Callable[[BaseException], Any] | None]] | None = None

    @property
    def _final(self) -> Document | None:
        """Its document, once that is known not to change."""
        return self._document_known

    @_final.setter
    def _final(self, document: Document | None) -> None:
        self._document_known = document
        if document is not None and self._waiting:
            waiting, self._waiting = self._waiting, None
            for callback, on_error in waiting:
                _fulfil(self, callback, on_error)

    @property
    def app(self) -> Any:
        """The app it was called in."""
        return self._app or _state.get_current_app()

    @property
    def task_id(self) -> str:
        """The same as `id`."""
        return self.id

    @property
    def backend(self) -> ResultStore:
        """Where it is read."""
        if self._backend is None:
            self._backend = self.app.store_of(self.task_name)
        return self._backend  # type: ignore[no-any-return]

    # -- waiting --------------------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[Document], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
        **_: Any,
    ) -> T:
        """Wait until the task is done and return what it returned.

        Args:
            timeout: Seconds; None waits for ever.
            propagate: Raise the task's exception; with False it is returned.
            interval: The longest pause between two looks, for backends that cannot push.
            follow_parents: A failure of an earlier step of the chain is raised too.
            callback: Called with (id, result).
            on_message: Called with the document of each state that arrives.
        Raises:
            TimeoutError: Not ready in time.
            NoResultBackend: This app keeps no results.
            BackendMismatch: A worker ran the task and keeps its results elsewhere.
            RuntimeError: Called within a task.
        """
        if self.ignored:
            return None  # type: ignore[return-value]
        if disable_sync_subtasks:
            assert_will_not_block()
        if follow_parents and propagate and self.parent is not None:
            before = [leaf for parent in reversed(list(_before(self))) for leaf in _leaves_of(parent)]
            _look_up(before)
            _raise_known(before)
        document = self._final
        if document is None:
            for _id, document in self.backend.wait_for_any([self.id], timeout, interval, on_interval, on_message):
                self._final = document
        assert document is not None
        value = self._outcome(document, propagate)
        if callback is not None:
            callback(self.id, value)
        return value  # type: ignore[no-any-return]

    wait = get

    def then(
        self, callback: Callable[[Any], Any], on_error: Callable[[BaseException], Any] | None = None, weak: bool = False
    ) -> Any:
        """Call `callback(result)` when it is known to have ended, well or not: at once if it is known, else as soon as
        a question or a wait in this process finds out.

        Args:
            on_error: Called with what `callback` raises, instead of raising it.
        Returns:
            `callback`, so that it decorates.
        """
        if self._final is not None:
            _fulfil(self, callback, on_error)
        else:
            self._waiting = [*(self._waiting or ()), (callback, on_error)]
        return callback

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> T:
        """As `get`, for coroutines: other tasks of the loop go on meanwhile. `await result` is `await result.aget()`.

        Raises:
            As `get`; within a task it is allowed, since it holds up nobody but the task itself.
        """
        if self.ignored:
            return None  # type: ignore[return-value]
        if self._final is None:
            from celeriac.awaiting import within

            store = self.backend
            self._final = await within(
                store.awaiter.document(self.id), timeout, lambda: dict(store.last_look([self.id], timeout))[self.id]
            )
        return self._outcome(self._final, propagate)  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, Any, T]:
        return self.aget().__await__()

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raise the task's exception if it is known to have failed; else return what is there."""
        value = self._outcome(self._document(), propagate)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def throw(self, *args: Any, **kwargs: Any) -> Any:
        """As `maybe_throw`."""
        return self.maybe_throw(*args, **kwargs)

    def collect(self, intermediate: bool = False, **kwargs: Any) -> Iterator[tuple[AsyncResult[Any], Any]]:
        """Yield `(result, value)` of this and of all results below it, waiting for each."""
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**kwargs)

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Yield `(parent, result)` of this and of all results below it.

        Raises:
            IncompleteStream: One is not ready, and `intermediate` is false.
        """
        stack: list[tuple[Any, Any]] = [(None, self)]
        while stack:
            parent, node = stack.pop(0)
            yield parent, node
            if node.ready():
                stack.extend((node, child) for child in node.children or [])
            elif not intermediate:
                raise IncompleteStream

    def get_leaf(self) -> Any:
        """The value at the end: of the last result below it, waiting for each."""
        value: Any = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def build_graph(self, intermediate: bool = False, formatter: Callable[[Any], str] = str) -> DependencyGraph:
        """This and all results below it, with what comes after what.

        Raises:
            IncompleteStream: One is not ready, and `intermediate` is false.
        """
        graph = DependencyGraph(formatter=formatter)
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph.add_arc(node)
            if parent is not None:
                graph.add_edge(parent, node)
        return graph

    @property
    def graph(self) -> DependencyGraph:
        """`build_graph` of what is known so far."""
        return self.build_graph(intermediate=True)

    @property
    def supports_native_join(self) -> bool:
        """The store tells of results by itself."""
        plugin = self.backend.plugin
        return plugin is not None and "push" in plugin.abilities

    # -- asking ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or a custom state. PENDING also means unknown."""
        return str(self._document()["status"])

    @property
    def status(self) -> str:
        """The same as `state`."""
        return self.state

    @property
    def result(self) -> Any:
        """What the task returned, its exception, or the meta data of its state."""
        return result_of(self._document())

    @property
    def info(self) -> Any:
        """The same as `result`."""
        return self.result

    @property
    def traceback(self) -> str | None:
        """The traceback of a failed task, as text."""
        return self._document().get("traceback")

    def exists(self) -> bool:
        """Whether the store knows anything of this task: tells «unknown» from «waiting» where states are tracked."""
        return self._final is not None or self.backend.find(self.id) is not None

    def ready(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in states.READY_STATES

    def successful(self) -> bool:
        """Whether it returned."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Whether it raised."""
        return self.state == states.FAILURE

    @property
    def date_done(self) -> Any:
        """When it ended: an aware datetime in UTC, or None."""
        return date_done(self._document())

    @property
    def children(self) -> list[Any] | None:
        """Results of the calls that the task made; None while it has not ended."""
        children = self._document().get("children")
        return None if children is None else [result_from_tuple(child, self._app) for child in children]

    @property
    def name(self) -> str | None:
        """The task's name (`result_extended`, or a result from a call made here)."""
        return self._document().get("name") or self.task_name

    @property
    def args(self) -> Any:
        """The call's positional arguments (`result_extended`)."""
        return self._document().get("args")

    @property
    def kwargs(self) -> Any:
        """The call's keyword arguments (`result_extended`)."""
        return self._document().get("kwargs")

    @property
    def worker(self) -> str | None:
        """The node that ran it (`result_extended`)."""
        return self._document().get("worker")

    @property
    def retries(self) -> int | None:
        """How often it was retried (`result_extended`)."""
        return self._document().get("retries")

    @property
    def queue(self) -> str | None:
        """The queue it came through (`result_extended`)."""
        return self._document().get("queue")

    # -- doing ----------------------------------------------------------------------------------------------

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Have the task not run. When this returns, every worker will obey within seconds, also after a restart.

        Where neither broker nor result backend can keep it (ability `state`), only workers that run now hear of it,
        and a warning is logged.

        Args:
            terminate: End it by a signal if it runs already (pool prefork).
            signal: Which one, by name or number; None: TERM.
            wait, timeout: Wait for the workers to have heard of it, at most so many seconds (1).
        Raises:
            Unsupported: It can neither be kept nor be told.
            OperationalError, BackendError: It is not known whether it is kept.
        """
        _revoke(self.app.control.revoke, self.id, terminate, signal, wait, timeout)

    def revoke_by_stamped_headers(
        self,
        headers: Any,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """As `revoke`, for all tasks that carry one of these stamps: `{"customer": ["a", "b"]}`."""
        _revoke(self.app.control.revoke_by_stamped_headers, headers, terminate, signal, wait, timeout)

    def forget(self) -> None:
        """Remove the result from the store, and those before it in the chain."""
        for result in (*_before(self), self):
            result._forget()

    def _forget(self) -> None:
        self._final = None
        self.backend.forget(self.id)

    def as_tuple(self) -> tuple[Any, Any]:
        """`((id, parent), children)`: the form in which results travel; of the longest chains it has the end only."""
        return _told(self)

    def as_list(self) -> list[str]:
        """The ids of this result and of those before it."""
        return [self.id, *(result.id for result in _before(self))]

    def _document(self) -> Document:
        if self._final is not None:
            return self._final
        document = self.backend.get_task_meta(self.id)
        if document["status"] in states.READY_STATES:
            self._final = document
        return document

    def _outcome(self, document: Document, propagate: bool) -> Any:
        value = result_of(document)
        if document["status"] in states.PROPAGATE_STATES and propagate:
            if not isinstance(value, BaseException):
                value = Exception(value)
            trace = document.get("traceback")
            if trace:
                frames = frames_of(trace) if self.app.conf["task_remote_tracebacks"] else None
                if frames is not None:
                    raise value.with_traceback(frames)
                value.__cause__ = RemoteTraceback(trace)
            raise value
        return value

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return other.id == self.id
        return other == self.id if isinstance(other, str) else NotImplemented

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self)

    def _arguments(self, parent: Any) -> tuple[Any, ...]:
        return self.id, None, self.task_name, None, parent

    def __copy__(self) -> AsyncResult[T]:
        return type(self)(self.id, self._backend, self.task_name, self._app, self.parent)


class RemoteTraceback(Exception):
    """The traceback of the run in the worker, shown as the cause of the exception raised here."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'in the worker:\n"""\n{self.text.rstrip()}\n"""'


def _fulfil(result: Any, callback: Callable[[Any], Any], on_error: Callable[[BaseException], Any] | None) -> None:
    if on_error is None:
        callback(result)
        return
    try:
        callback(result)
    except Exception as exc:
        on_error(exc)


class EagerResult(AsyncResult[T]):
    """The result of a call that ran here and now: known from the start."""

    def __init__(
        self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(id, task_name=name)
        self._known: Document = {
            "status": state,
            "result": ret_value,
            "traceback": traceback,
            "task_id": id,
            "children": [],
            "name": name,
        }
        self._final = self._known

    def forget(self) -> None:
        """Nothing is stored, so there is nothing to forget."""

    def _forget(self) -> None:
        pass

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Too late to stop it: only the state changes."""
        self._known["status"] = states.REVOKED

    def _outcome(self, document: Document, propagate: bool) -> Any:
        value = document["result"]
        if document["status"] in states.PROPAGATE_STATES and propagate:
            raise value if isinstance(value, BaseException) else Exception(value)
        return value

    @property
    def result(self) -> Any:
        """What the task returned, or its exception."""
        return self._known["result"]

    @property
    def supports_native_join(self) -> bool:
        """Nothing to join."""
        return False

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        known = self._known
        return type(self), (self.id, known["result"], known["status"], known["traceback"], self.task_name)


class _Failed(Exception):
    """One of a set has failed, and the others need not be waited for."""

    def __init__(self, result: Any) -> None:
        self.result = result
        super().__init__(result)


class ResultSet(ResultBase):
    """Several results, asked and awaited together, in the order given."""

    def __init__(self, results: list[Any], app: Any = None, **_: Any) -> None:
        self.results = list(results)
        self._app = app

    @property
    def app(self) -> Any:
        """The app of its results."""
        return self._app or (self.results[0].app if self.results else _state.get_current_app())

    def add(self, result: Any) -> None:
        """Add one, unless it is there."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Any) -> None:
        """Remove one, given as such or by id; KeyError if it is not there."""
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Any) -> None:
        """Remove one if it is there."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Any) -> None:
        """Add those that are not there."""
        for result in results:
            self.add(result)

    def clear(self) -> None:
        """Remove all."""
        self.results.clear()

    def leaves(self) -> list[Any]:
        """The results of single calls in it, those of groups in it included."""
        found: list[Any] = []
        for result in self.results:
            found.extend(_leaves_of(result))
        return found

    def ready(self) -> bool:
        """All have ended."""
        return all(result._final is not None for result in self._looked_up())

    def successful(self) -> bool:
        """All have returned."""
        return all(result._final is not None and result.successful() for result in self._looked_up())

    def failed(self) -> bool:
        """At least one has raised."""
        return any(result._final is not None and result.failed() for result in self._looked_up())

    def waiting(self) -> bool:
        """At least one has not ended."""
        return not self.ready()

    def completed_count(self) -> int:
        """How many have returned."""
        return sum(1 for result in self._looked_up() if result._final is not None and result.successful())

    def then(
        self, callback: Callable[[Any], Any], on_error: Callable[[BaseException], Any] | None = None, weak: bool = False
    ) -> Any:
        """Call `callback(self)` when all are known to have ended; see `AsyncResult.then`."""
        left = {id(result): result for result in self.leaves() if result._final is None and not result.ignored}
        if not left:
            _fulfil(self, callback, on_error)

        def one(result: Any) -> None:
            del left[id(result)]
            if not left:
                _fulfil(self, callback, on_error)

        for result in list(left.values()):
            result.then(one)
        return callback

    @property
    def supports_native_join(self) -> bool:
        """The store tells of results by itself."""
        return bool(self.results) and self.results[0].supports_native_join

    @property
    def backend(self) -> ResultStore:
        """Where they are read."""
        return self.app.backend  # type: ignore[no-any-return]

    def _looked_up(self) -> list[Any]:
        """Its leaves, after one look at the store for all that are not known to have ended."""
        leaves = self.leaves()
        _look_up(leaves)
        return [result for result in leaves if not result.ignored]

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Revoke all of them; see `AsyncResult.revoke`."""
        ids = [result.id for result in self.leaves()]
        _revoke(self.app.control.revoke, ids, terminate, signal, wait, timeout)

    def forget(self) -> None:
        """Forget all."""
        for result in self.results:
            result.forget()

    def _forget(self) -> None:
        self.forget()

    def maybe_throw(self, callback: Any = None, propagate: bool = True) -> None:
        """Raise the first known failure."""
        for result in self._looked_up():
            if result._final is not None:
                result.maybe_throw(callback=callback, propagate=propagate)

    maybe_reraise = maybe_throw

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[[Document], Any] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> list[Any]:
        """All values, in order; the first failure is raised, or returned in its place without `propagate`."""
        if disable_sync_subtasks:
            assert_will_not_block()
        leaves = self.leaves()
        open_ones, twins = _not_known(leaves)
        if open_ones:
            if propagate:
                _raise_known(leaves)
            for task_id, document in _wait_for(open_ones.values(), timeout, interval, on_interval, on_message):
                for result in (open_ones[task_id], *twins.get(task_id, ())):
                    result._final = document
                if propagate:
                    open_ones[task_id]._outcome(document, propagate)
        values: list[Any] = []
        for result in self.results:
            if isinstance(result, ResultSet):
                values.append(result.get(0, propagate, interval, callback, disable_sync_subtasks=False))
                continue
            value = None if result.ignored else result._outcome(result._final, propagate)
            if callback is not None:
                callback(result.id, value)
            values.append(value)
        return values

    join = get
    join_native = get

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> list[Any]:
        """As `get`, for coroutines; see `AsyncResult.aget`."""
        from celeriac.awaiting import together, within

        async def one(result: Any) -> None:
            result._final = await result.backend.awaiter.document(result.id)
            if propagate and result._final["status"] in states.PROPAGATE_STATES:
                raise _Failed(result)  # and not its own error, which may be a TimeoutError

        leaves = self.leaves()
        waited_for = [result for result in leaves if result._final is None and not result.ignored]

        def late() -> NoReturn:
            missing = [result for result in waited_for if result._final is None] or waited_for
            store: ResultStore = missing[0].backend
            raise store.timeout_error([result.id for result in missing], timeout)

        if propagate and waited_for:
            _raise_known(leaves)
        try:
            if waited_for:
                await within(together(one(result) for result in waited_for), timeout, late)
        except _Failed as failed:
            failed.result._outcome(failed.result._final, True)
        return [await result.aget(propagate=propagate) for result in self.results]

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self.aget().__await__()

    def iterate(self, timeout: float | None = None, propagate: bool = True) -> Iterator[Any]:
        """Yield values as they become ready."""
        for result in self._arrivals(timeout):
            yield result._outcome(result._final, propagate)

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Document], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, Document]]:
        """Yield `(id, document)` as they become ready."""
        for result in self._arrivals(timeout, interval, on_interval, on_message):
            yield result.id, result._final

    def progress(self, timeout: float | None = None) -> Iterator[Progress]:
        """Yield how many have ended: now, and whenever that is more, until all have.

        Raises:
            TimeoutError: Not all ended within `timeout` seconds.
        """
        leaves = self._looked_up()
        step = Progress(0, 0, len(leaves))
        for result in leaves:
            step = step.with_one(result) if result._final is not None else step
        yield step
        for result in self._arrivals(timeout, known=False):
            step = step.with_one(result)
            yield step

    def show_progress(self, timeout: float | None = None, stream: Any = None) -> None:
        """Show a bar in the terminal until all have ended.

        Args:
            stream: Where; default: standard error.
        Raises:
            TimeoutError: Not all ended within `timeout` seconds.
        """
        # The door is above this room, so it is opened by name.
        import_module("celeriac.cli.progress").show(self, timeout, stream)

    def _arrivals(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        on_interval: Callable[[], Any] | None = None,
        on_message: Callable[[Document], Any] | None = None,
        known: bool = True,
    ) -> Iterator[Any]:
        """Its leaves as they become ready; those that are known to be (if `known`) first."""
        leaves = [result for result in self.leaves() if not result.ignored]
        if known:
            yield from (result for result in leaves if result._final is not None)
        left, twins = _not_known(leaves)
        if left:
            for task_id, document in _wait_for(left.values(), timeout, interval, on_interval, on_message):
                for result in (left[task_id], *twins.get(task_id, ())):
                    result._final = document
                    yield result

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: int) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __eq__(self, other: object) -> bool:
        return other.results == self.results if isinstance(other, ResultSet) else NotImplemented

    def __hash__(self) -> int:
        raise TypeError(f"unhashable: {self!r} changes with its results")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(r.id for r in self.results)}]>"


def _before(result: Any) -> Iterator[Any]:
    """The results before it in its chain, the nearest first."""
    result = result.parent
    while result is not None:
        yield result
        result = result.parent


def _reduced(result: Any) -> tuple[Any, ...]:
    """For pickle and copy, which go from one into the next: a long line of results is one list to them."""
    line, before = [result], result.parent
    ours: tuple[Any, ...] = AsyncResult.__reduce__, GroupResult.__reduce__
    while type(before).__reduce__ in ours:
        line.append(before)
        before = before.parent
    if len(line) <= PARENTS_NESTED:
        return type(result), result._arguments(result.parent)
    return _in_line, ([(type(one), one._arguments(None)) for one in line], before)


def _in_line(line: list[tuple[type[Any], tuple[Any, ...]]], before: Any) -> Any:
    for kind, arguments in reversed(line):
        made = kind(*arguments)
        made.parent = before
        before = made
    return before


def _told(result: Any) -> tuple[Any, Any]:
    told: Any = None
    for one in reversed([result, *islice(_before(result), PARENTS_TOLD)]):
        members = [member.as_tuple() for member in one.results] if isinstance(one, GroupResult) else None
        told = (one.id, told), members
    return told  # type: ignore[no-any-return]


def _not_known(leaves: Iterable[Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Those that are not known to have ended, by id; and others that stand for the same calls once more."""
    found: dict[str, Any] = {}
    twins: dict[str, list[Any]] = {}
    for result in leaves:
        if result._final is None and not result.ignored:
            if result.id in found:
                twins.setdefault(result.id, []).append(result)
            else:
                found[result.id] = result
    return found, twins


def _leaves_of(result: Any) -> list[Any]:
    """The results of single calls that it stands for."""
    return result.leaves() if isinstance(result, ResultSet) else [result]


def _look_up(leaves: Iterable[Any]) -> None:
    """One look at the store for all of these that are not known to have ended."""
    unknown, twins = _not_known(leaves)
    for store, ids in _by_store(unknown.values()):
        for task_id, document in store.find_many(ids).items():
            if document["status"] in states.READY_STATES:
                for result in (unknown[task_id], *twins.get(task_id, ())):
                    result._final = document


def _raise_known(leaves: Iterable[Any]) -> None:
    """Raise the first failure that is known: nobody need wait for the others then."""
    for result in leaves:
        if result._final is not None and result._final["status"] in states.PROPAGATE_STATES:
            result._outcome(result._final, True)


def _by_store(results: Iterable[Any]) -> list[tuple[ResultStore, list[str]]]:
    """The stores in which they are, each with their ids."""
    found: dict[int, tuple[ResultStore, list[str]]] = {}
    for result in results:
        found.setdefault(id(result.backend), (result.backend, []))[1].append(result.id)
    return list(found.values())


def _wait_for(
    results: Iterable[Any], timeout: float | None, interval: float, on_interval: Any, on_message: Any
) -> Iterator[tuple[str, Document]]:
    """As `ResultStore.wait_for_any`; of several stores by turns, as results of tasks with a store of their own are."""
    stores = _by_store(results)
    if len(stores) == 1:
        store, ids = stores[0]
        yield from store.wait_for_any(ids, timeout, interval, on_interval, on_message)
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    hint_at, reached = time.monotonic() + FIRST_HINT_S, set()
    while stores:
        for store, ids in stores:
            try:
                for task_id, document in store.wait_for_any(list(ids), TURN_S, interval, on_interval, on_message):
                    ids.remove(task_id)
                    yield task_id, document
            except TimeoutError:
                reached.add(store)  # and the others' turn
            except BackendUnreachable:
                if store not in reached and not store.was_reached:
                    raise  # never seen alive: more likely a wrong URL than an outage
                time.sleep(TURN_S)
        if time.monotonic() >= hint_at:
            hint_at = time.monotonic() + HINT_S
            for store, ids in stores:
                store.raise_what_is_missing(ids)
        stores = [(store, ids) for store, ids in stores if ids]
        if stores and deadline is not None and time.monotonic() >= deadline:
            raise stores[0][0].timeout_error([task_id for _, ids in stores for task_id in ids], timeout)


class Progress(NamedTuple):
    """How many of several results have ended, of these how many badly, and of how many."""

    done: int
    failed: int
    total: int

    def with_one(self, result: Any) -> Progress:
        """The same with one more."""
        return Progress(self.done + 1, self.failed + (not result.successful()), self.total)


class GroupResult(ResultSet):
    """The results of a group, with the group's id."""

    def __init__(
        self, id: str | None = None, results: list[Any] | None = None, parent: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(results or [], **kwargs)
        self.id = id
        self.parent = parent

    @property
    def children(self) -> list[Any]:
        """The results."""
        return self.results

    def save(self, backend: Any = None) -> None:
        """Keep it in the result store, to be restored by its id, here or elsewhere.

        Raises:
            Unsupported: The result backend keeps no groups.
        """
        (backend or self.app.backend).save_group(self.id, self)

    def delete(self, backend: Any = None) -> None:
        """Remove what `save` kept, and not the results."""
        (backend or self.app.backend).delete_group(self.id)

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: Any = None) -> GroupResult | None:
        """What `save` kept under this id; None if there is nothing."""
        app = app or getattr(cls, "of_app", None) or _state.get_current_app()
        found = (backend or app.backend).load_group(id)
        return None if found is None else result_from_tuple(found, app)

    def as_tuple(self) -> tuple[Any, Any]:
        """`((id, parent), children)`; see `AsyncResult.as_tuple`."""
        return _told(self)

    def as_list(self) -> list[Any]:
        """The ids of the group and of the results before it."""
        return [self.id, *(result.id for result in _before(self))]

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return other.id == self.id and other.results == self.results and other.parent == self.parent
        return other == self.id if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self)

    def _arguments(self, parent: Any) -> tuple[Any, ...]:
        return self.id, self.results, parent

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} [{', '.join(str(result.id) for result in self.results)}]>"


class _OfApp(type):
    """The classes that `class_for_app` makes, and what programs derive from them."""

    of_app: Any

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        plain = vars(cls).get("plain")
        made = super().__call__(*args, **kwargs) if plain is None else plain(*args, **kwargs)
        if made._app is None:
            made._app = cls.of_app
        return made

    def __instancecheck__(cls, instance: Any) -> bool:
        plain = vars(cls).get("plain")
        if plain is None:
            return super().__instancecheck__(instance)
        return isinstance(instance, plain) and instance.app is cls.of_app


def class_for_app(kind: type[R], app: Any) -> type[R]:
    """A class of results that are this app's unless another is named.

    Its results are of `kind` itself, as those of calls are, so they can be pickled; and all of `kind` that are this
    app's are instances of it.
    """
    made = _OfApp(kind.__name__, (kind,), {"of_app": app, "plain": kind, "__doc__": kind.__doc__, "__slots__": ()})
    return cast("type[R]", made)


def _revoke(
    command: Callable[..., Any], what: Any, terminate: bool, signal: Any, wait: bool, timeout: float | None
) -> None:
    options = {} if timeout is None else {"timeout": timeout}
    command(what, terminate=terminate, signal="SIGTERM" if signal is None else signal, reply=wait, **options)


def result_from_tuple(data: Any, app: Any = None) -> Any:
    """The result in a tuple form (`as_tuple`), or `data` itself if it is a result."""
    if isinstance(data, (AsyncResult, ResultSet)):
        return data
    try:
        identity, children = data
    except (TypeError, ValueError):
        raise ImproperlyConfigured(f"not the tuple form of a result: {data!r}") from None
    task_id, parent = identity if isinstance(identity, (list, tuple)) else (identity, None)
    parent = result_from_tuple(parent, app) if parent else None
    if children is not None:
        return GroupResult(task_id, [result_from_tuple(child, app) for child in children], parent=parent, app=app)
    return AsyncResult(task_id, app=app, parent=parent)
