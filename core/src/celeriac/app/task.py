"""A task: a function that can be called here, elsewhere, and later.

`@app.task` makes one from a function; classes derive from `Task`. Attributes set to None take the app's
setting when the app is finalized.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NoReturn, ParamSpec, TypeVar

from celeriac import _state, states
from celeriac.app.annotations import add_around, annotate
from celeriac.app.models import dump_calls_models, validating
from celeriac.app.sending import TASK_OPTIONS, no_arguments, publish
from celeriac.canvas.chain import chain
from celeriac.canvas.composite import as_one
from celeriac.canvas.launch import payloads_of, send
from celeriac.canvas.maps import chunks, xmap, xstarmap
from celeriac.canvas.signature import Signature, maybe_signature
from celeriac.exceptions import (
    Ignore,
    ImproperlyConfigured,
    MaxRetriesExceededError,
    OperationalError,
    Reject,
    Retry,
    Unsupported,
)
from celeriac.execution.request import Context
from celeriac.result import AsyncResult, EagerResult, denied_join_result
from celeriac.utils.ids import derived_ids, uuid
from celeriac.utils.time import get_exponential_backoff_interval

if TYPE_CHECKING:
    from celeriac.app.base import Celery
    from celeriac.resultstore import ResultStore

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A registered function; see `docs/reference/tasks.md` for all attributes.

    Attributes:
        max_retries: How often `retry` may ask for another run; None: without end.
        default_retry_delay: Seconds before the next try, when `retry` is given none.
        autoretry_for, dont_autoretry_for: Exceptions after which the task is retried by itself, and those of
            them after which it is not.
        retry_backoff: True or a factor in seconds: the pause doubles with each try up to `retry_backoff_max`.
        retry_jitter: The pause is drawn at random between 0 and that.
        throws: Exceptions that are expected: logged without a traceback.
        time_limit, soft_time_limit: Seconds.
        rate_limit: `'10/s'`, `'10/m'`, `'10/h'` or a number per second.
        rate_limit_scope: `'worker'`: in each worker; `'cluster'`: over all workers together.
        rate_limit_key: With the scope `'cluster'`, what is limited apart: text with the names of arguments, such as
            `'{tenant}'`, or a function of the arguments. None: all calls together.
        rate_limit_group: With the scope `'cluster'`, tasks of one group share one limit.
        expires: Seconds, or a datetime.
    """

    MaxRetriesExceededError: ClassVar[type[Exception]] = MaxRetriesExceededError
    OperationalError: ClassVar[type[Exception]] = OperationalError
    #: (attribute, the setting that answers when it is None); a subclass may add its own.
    from_config: ClassVar[tuple[tuple[str, str], ...]] = (
        ("serializer", "task_serializer"),
        ("rate_limit", "task_default_rate_limit"),
        ("rate_limit_scope", "task_default_rate_limit_scope"),
        ("priority", "task_default_priority"),
        ("track_started", "task_track_started"),
        ("acks_late", "task_acks_late"),
        ("acks_on_failure_or_timeout", "task_acks_on_failure_or_timeout"),
        ("acks_on_failure", "task_acks_on_failure"),
        ("acks_on_timeout", "task_acks_on_timeout"),
        ("reject_on_worker_lost", "task_reject_on_worker_lost"),
        ("retry_on_worker_lost", "task_retry_on_worker_lost"),
        ("ignore_result", "task_ignore_result"),
        ("store_eager_result", "task_store_eager_result"),
        ("store_errors_even_if_ignored", "task_store_errors_even_if_ignored"),
    )

    name: str = None  # type: ignore[assignment]
    typing: bool | None = None
    max_retries: int | None = 3
    default_retry_delay: float = 180
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600
    retry_jitter: bool = True
    rate_limit: str | float | None = None
    rate_limit_scope: Literal["worker", "cluster"] | None = None
    rate_limit_key: str | Callable[..., Any] | None = None
    rate_limit_group: str | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    ignore_result: bool | None = None
    store_errors_even_if_ignored: bool | None = None
    store_eager_result: bool | None = None
    acks_late: bool | None = None
    acks_on_failure_or_timeout: bool | None = None
    acks_on_failure: bool | None = None
    acks_on_timeout: bool | None = None
    reject_on_worker_lost: bool | None = None
    retry_on_worker_lost: bool | None = None
    track_started: bool | None = None
    serializer: str | None = None
    compression: str | None = None
    expires: Any = None
    priority: int | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    exchange_type: str | None = None
    delivery_mode: Any = None
    send_events: bool = True
    trail: bool = True
    throws: tuple[type[BaseException], ...] = ()
    resultrepr_maxsize: int = 1024
    pydantic: bool = False
    pydantic_strict: bool = False
    pydantic_context: Mapping[str, Any] | None = None
    pydantic_dump_kwargs: Mapping[str, Any] | None = None
    abstract: bool = True

    _app: Celery | None = None
    #: A class, or the path of one, that hears in the worker what becomes of calls; see `celeriac.worker.request`.
    Request: Any = "celeriac.worker.request:Request"
    _check: Callable[..., Any] | None = None
    _bound = False
    #: See `request`.
    _idle_request: Context | None = None
    #: The name that a class without one was given when it was registered.
    _made_name: str | None = None
    #: What was given as `backend`: a result backend of its own.
    own_backend: Any = None

    # -- being a function -----------------------------------------------------------------------------------

    @property
    def __name__(self) -> str:
        return type(self).__name__  # type: ignore[return-value] # which is that of the class, and no property

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The body; a class of the user's defines it."""
        raise TypeError(f"task {self.name} has no run method")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the body here and now, as an ordinary call.

        A `__call__` of a class of the program's own that calls this one leaves the request of the run in place.
        """
        entry = _state.running()
        if entry is not None and entry.task is self and entry.request._through_call:
            entry.request._through_call = False
            return self.run(*args, **kwargs)  # type: ignore[no-any-return]
        token = _state.push_running(self, Context(args=args, kwargs=kwargs))
        try:
            return self.run(*args, **kwargs)  # type: ignore[no-any-return]
        finally:
            _state.pop_running(token)

    # -- calling --------------------------------------------------------------------------------------------

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call with these arguments; `apply_async` without options."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """As `delay`, for coroutines: whoever shares their loop goes on meanwhile."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """As `apply_async`, for coroutines."""
        from celeriac.awaiting import aside

        return await aside(self.apply_async, args, kwargs, **options)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send a call.

        Args:
            task_id: Its id; a new one by default.
            link, link_error: Signatures to call when it has returned, or failed.
            shadow: The name to show in logs and monitors.
            options: `countdown` (seconds), `eta` (datetime), `expires` (seconds or datetime), `queue`, `exchange`,
                `routing_key`, `priority` (0-9), `serializer`, `compression`, `headers`, `ignore_result`, `reply_to`,
                `time_limit`, `soft_time_limit`, `retry`, `retry_policy`, `add_to_parent`; others go to the broker.
        Returns:
            The result to be, once the broker has taken the message.
        Raises:
            TypeError: The arguments do not fit the function (unless `typing` is off).
            EncodeError: They cannot be serialized.
            OperationalError: The broker did not take it; `PublishUncertain` if that is not known.
        """
        app = self.app
        self.check_arguments(args, kwargs)
        if app.conf["task_always_eager"]:
            args, kwargs = self._as_they_would_arrive(args, kwargs, options.get("serializer"))
            with denied_join_result():  # as where it will run; who says `apply` is not asked to keep to that
                return self.apply(args, kwargs, task_id=task_id or uuid(), link=link, link_error=link_error, **options)
        if link is not None:
            options["link"] = link
        if link_error is not None:
            options["link_error"] = link_error
        if shadow is None and type(self).shadow_name is not Task.shadow_name:
            shadow = self.shadow_name(tuple(args or ()), dict(kwargs or {}), options)
        if shadow is not None:
            options["shadow"] = shadow
        return app._send(self.name, args, kwargs, task_id or uuid(), options)

    def check_arguments(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> None:
        """Nothing, if a call with these arguments fits the function or `typing` is off.

        Raises:
            TypeError: It does not, in Python's words.
        """
        if self._check is not None and self.typing is not False:
            try:
                self._check(*(args or ()), **(kwargs or {}))
            except TypeError as exc:
                if args is not None and not hasattr(args, "__iter__"):
                    raise no_arguments(self.name, args) from None
                raise TypeError(str(exc).replace("<lambda>", self.name)) from None

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int = 0,
        throw: bool | None = None,
        logfile: str | None = None,
        loglevel: int | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult[R]:
        """Run it here and now, as a worker would, and return its result.

        Args:
            throw: Raise what it raises; default: `task_eager_propagates`.
        """
        app = self.app
        app.finalize()
        task_id = task_id or uuid()
        if self.pydantic:
            args, kwargs = dump_calls_models(args or (), kwargs or {})
        ignored = options.get("ignore_result")
        call_args, call_kwargs = tuple(args or ()), dict(kwargs or {})
        running = _state.running()
        parent = running.request if running is not None and not running.request.called_directly else None
        request = Context(
            id=task_id,
            task=self.name,
            args=call_args,
            kwargs=call_kwargs,
            retries=retries,
            is_eager=True,
            called_directly=False,
            hostname=app.node_of_client(),
            callbacks=_as_list(link),
            errbacks=_as_list(link_error),
            headers=dict(headers or {}),
            delivery_info={
                "is_eager": True,
                "exchange": options.get("exchange"),
                "routing_key": options.get("routing_key"),
                "priority": options.get("priority"),
            },
            root_id=task_id if parent is None else parent.root_id,
            parent_id=None if parent is None else parent.id,
            loglevel=loglevel,
            logfile=logfile,
            ignore_result=bool(self.ignore_result if ignored is None else ignored),
        )
        if options.get("stamped_headers"):
            request.stamped_headers = list(options["stamped_headers"])
            request.stamps = {key: options.get(key) for key in request.stamped_headers}
        raises = bool(throw if throw is not None else app.conf["task_eager_propagates"])
        result: EagerResult[R] = app.run_eagerly(self, request, call_args, call_kwargs, raises=raises)
        if raises:
            result.get(propagate=True, disable_sync_subtasks=False)
        return result

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> NoReturn:
        """Ask for another run of this call, and end this one by raising `Retry`.

        Args:
            args, kwargs: Instead of the call's own.
            exc: Why; raised itself when the tries are used up.
            throw: False returns the `Retry` instead of raising it.
            countdown: Seconds; default `default_retry_delay`.
            max_retries: Instead of the task's, for this decision.
        Raises:
            Retry: Always, unless the tries are used up, `throw` is false, or the task was called directly.
            MaxRetriesExceededError: The tries are used up and no `exc` was given.
        """
        request = self.request
        limit = self.max_retries if max_retries is None else max_retries
        if request.called_directly:
            if exc is not None:
                raise exc
            raise Retry("task can be retried", None)
        if countdown is None and eta is None:
            countdown = self.default_retry_delay
        if limit is not None and request.retries >= limit:
            if exc is not None:
                raise exc
            raise self.MaxRetriesExceededError(  # type: ignore[call-arg]
                f"Can't retry {self.name}[{request.id}] args:{request.args} kwargs:{request.kwargs}",
                task_args=request.args,
                task_kwargs=request.kwargs,
            )
        if (args is None) != (kwargs is None):
            args, kwargs = reconciled(self, request, args, kwargs)
        again = self.signature_from_request(
            request, args, kwargs, countdown=countdown, eta=eta, retries=request.retries + 1, **options
        )
        stop = Retry(exc=exc, when=countdown if eta is None else eta, is_eager=request.is_eager, sig=again)
        if not request.is_eager:
            try:
                self._send_again(request, again)
            except Exception as trouble:
                raise Reject(trouble, requeue=False) from trouble
        if throw:
            raise stop
        return stop  # type: ignore[misc]

    def signature_from_request(
        self,
        request: Context | None = None,
        args: Any = None,
        kwargs: Any = None,
        queue: str | None = None,
        **extra: Any,
    ) -> Signature:
        """A signature of the running call: same id, family, callbacks, limits and headers."""
        request = self.request if request is None else request
        options = request.as_execution_options()
        info = request.delivery_info or {}
        if queue is not None:
            options["queue"] = queue
        elif info.get("exchange"):
            options.update(exchange=info["exchange"], routing_key=info.get("routing_key"))
        elif info.get("routing_key"):
            options["queue"] = info["routing_key"]
        if info.get("priority") is not None:
            options["priority"] = info["priority"]
        if request.stamped_headers:
            options["stamped_headers"] = request.stamped_headers
            options.update(request.stamps or {})
        if request.ignore_result is not None:
            options["ignore_result"] = request.ignore_result
        options = {key: value for key, value in options.items() if value is not None}
        options.update(extra)
        return Signature(
            self.name,
            request.args if args is None else args,
            request.kwargs if kwargs is None else kwargs,
            options,
            app=self.app,
            immutable=True,
        )

    subtask_from_request = signature_from_request

    # -- as a value -----------------------------------------------------------------------------------------

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Signature:
        """A signature of this task."""
        starkwargs.setdefault("app", self.app)
        return Signature(self.name, args, *starargs, **starkwargs)

    subtask = signature

    def send_event(self, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any) -> None:
        """Tell monitors something about the running call: `self.send_event("task-progress", percent=50)`."""
        self.app.events.dispatcher.send(type_, **{"uuid": self.request.id, **fields})

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """`.s(2, 2)`: a signature with these arguments."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """As `s`, taking no further arguments."""
        return self.signature(args, kwargs, immutable=True)

    def map(self, it: Any) -> Any:
        """One message that calls this task for each item; see `celeriac.canvas.xmap`."""
        return xmap(self.s(), it, app=self.app)

    def starmap(self, it: Any) -> Any:
        """One message that calls this task with each tuple of arguments; see `celeriac.canvas.xstarmap`."""
        return xstarmap(self.s(), it, app=self.app)

    def chunks(self, it: Any, n: int) -> Any:
        """Messages that call this task with `n` tuples of arguments each; see `celeriac.canvas.chunks`."""
        return chunks(self.s(), it, n, app=self.app)

    @property
    def sends_its_own_way(self) -> bool:
        """Its class has an `apply_async` of its own, which calls in a canvas, and what follows from a run, go through
        too."""
        return type(self).apply_async is not Task.apply_async

    # -- in a run -------------------------------------------------------------------------------------------

    @property
    def request(self) -> Any:
        """What the innermost run of this task here knows about itself. Outside a run: one that is empty but for what
        was put there, as tests do."""
        found = _state.running_request_of(self)
        if found is None:
            found = self._idle_request
            if found is None:
                found = self._idle_request = Context()
        return found

    def push_request(self, *args: Any, **kwargs: Any) -> None:
        """For tests: pretend to run with this request, until `pop_request`."""
        self._pushed().append(_state.push_running(self, Context(*args, **kwargs)))

    def pop_request(self) -> None:
        """End what `push_request` began."""
        _state.pop_running(self._pushed().pop())

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Store a state of the running task (or of `task_id`), with any meta data.

        In a worker the worker stores it, at once and in order with the task's other states.

        Raises:
            ValueError: It is larger than `result_max_bytes`; nothing is stored.
        """
        request = self.request
        task_id = task_id or request.id
        if task_id is None:
            raise ValueError(f"update_state of {self.name} outside a run needs a task_id")
        store = self.backend
        if store.plugin is None:
            return
        state = states.PENDING if state is None else state
        result = store.failure(meta) if isinstance(meta, BaseException) else meta
        made = store.make(task_id, state, result, None, request if request.id else None)
        allowed = int(self.app.conf["result_max_bytes"])
        if len(made.data) > allowed:
            raise ValueError(
                f"update_state of {self.name}: state {state!r} with its meta has {len(made.data)} bytes, "
                f"of {allowed} allowed (result_max_bytes)"
            )
        if request._emit is None or task_id != request.id:
            store.plugin.store([made])
        else:
            request._emit(made)

    def replace(self, sig: Any) -> Any:
        """Let another call (of any shape) stand in this one's place: with its id, its place in chains and chords, and
        its callbacks. Ends this run.

        Raises:
            Ignore: Always, in a worker; in eager mode the other call's value is returned.
        """
        request, app = self.request, self.app
        sig = maybe_signature(sig, app=app, clone=True)
        if isinstance(sig, chain) and not sig.tasks:
            raise ImproperlyConfigured("a task cannot be replaced by an empty chain: nothing would have its result")
        sig = as_one(sig)
        if request.stamps:
            sig.stamp(**request.stamps)
        self.on_replace(sig)
        if request.is_eager:
            return sig.apply(task_id=request.id).get(disable_sync_subtasks=False)
        for callback in request.callbacks or ():
            sig.link(maybe_signature(callback, app=app, clone=True))
        for errback in request.errbacks or ():
            sig.link_error(maybe_signature(errback, app=app, clone=True))
        last = sig.last()
        last.set(replaced_task_nesting=(request.replaced_task_nesting or 0) + 1)
        if request.chain:
            last.set(chain=[*request.chain, *(last.options.get("chain") or ())])
        place = request.group, request.chord, request.root_id, request.parent_id, request.group_index
        with derived_ids(f"{request.id} replaced {request.replaced_task_nesting or 0}"):
            sig.freeze(request.id, *place)
            send(app, sig.begin, add_to_parent=False)
        raise Ignore(f"replaced by {sig!r}")

    def on_replace(self, sig: Any) -> None:
        """Called with what will stand in this run's place, before it is sent."""

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Add a call to the header of the chord that the running task is a part of; the body waits for it, too.

        Args:
            lazy: Return the signature, ready to be called, instead of calling it.
        Raises:
            ValueError: The running task is no part of a chord.
            Unsupported: This result backend does not join chords itself.
        """
        request, app = self.request, self.app
        if not request.chord or not request.group:
            raise ValueError(f"{self.name} is not running as a part of a chord, so nothing can be added to it")
        plugin: Any = app.backend.plugin
        if plugin is None or "count" not in plugin.abilities:
            raise Unsupported("add_to_chord wants a result backend that joins chords itself (the ability count)")
        sig = maybe_signature(sig, app=app, clone=True)
        result = sig.freeze(group_id=request.group, chord=request.chord, root_id=request.root_id)
        plugin.grow_chord(request.group, result.id)
        return sig if lazy else sig.delay()

    def add_trail(self, result: Any) -> Any:
        """Record a call made by the running task as its child."""
        if self.trail:
            self.request.children.append(result)
        return result

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult[R]:
        """The result of a call of this task, by its id."""
        return self.app.AsyncResult(task_id, **{"backend": self.backend, "task_name": self.name, **kwargs})

    # -- hooks for subclasses -------------------------------------------------------------------------------

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called in the slot before the body."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called in the slot when the body has returned."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called in the slot when the body has raised."""

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called in the slot when another run was asked for."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called in the slot last, with SUCCESS or FAILURE; not when it is tried again, ignored or rejected."""

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str | None:
        """The name to show for a call, if not the task's."""

    # -- belonging to an app --------------------------------------------------------------------------------

    @property
    def app(self) -> Celery:
        """The app it belongs to."""
        return self._app or _state.get_current_app()

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Belong to `app`; attributes that are None take its settings."""
        cls._app = app
        for attribute, setting in cls.from_config:
            if getattr(cls, attribute, None) is None:
                setattr(cls, attribute, app.conf.get(setting))
        cls._bound = True
        cls.on_bound(app)
        return app

    @property
    def backend(self) -> ResultStore:
        """Where its results are: in its own store, if it was given one, else in the app's."""
        own = self.own_backend
        return self.app.backend if own is None else self.app.own_store(own, self.name)

    @classmethod
    def take_backend(cls) -> bool:
        """What the program or `task_annotations` set as `backend` becomes `own_backend`, of which `backend` then is the
        store. Done when it is bound; returns whether it has one."""
        given: Any = cls.backend
        if given is not Task.backend:
            cls.own_backend = given  # as in Celery, None stands for the app's
            cls.backend = Task.backend  # type: ignore[method-assign]
        return cls.own_backend is not None

    def annotate(self) -> None:
        """Take what the app's `task_annotations` say of this task; done when it is bound."""
        annotate(self, self.app.annotations)

    @classmethod
    def add_around(cls, attr: str, around: Callable[[Any], Any]) -> None:
        """Put `around(method)` in a method's place."""
        add_around(cls, attr, around)

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Called when the class begins to belong to an app."""

    def call_options(self) -> dict[str, Any]:
        """Options that each call of this task has unless it says otherwise."""
        found = {}
        for key in TASK_OPTIONS:
            value = getattr(self, key)
            if value is not None:
                found[key] = value
        return found

    def _as_they_would_arrive(self, args: Any, kwargs: Any, serializer: str | None) -> Any:
        """Arguments as a worker would read them, so that a task that is run eagerly meets no other types than there."""
        if self.pydantic:
            args, kwargs = dump_calls_models(args or (), kwargs or {})
        wire = self.app.codec.serializer(serializer or self.serializer or self.app.conf["task_serializer"])
        return wire.loads(wire.dumps([list(args or ()), dict(kwargs or {})]))

    def _send_again(self, request: Context, again: Signature) -> None:
        app = self.app
        options = dict(again["options"])
        task_id = options.pop("task_id")
        payloads = payloads_of(app, (self.name, again["args"], again["kwargs"], task_id, options))
        if request._effects is None:
            publish(app, payloads, {})
        else:
            request._effects.extend(payloads)

    def _pushed(self) -> list[Any]:
        found: list[Any] = self.__dict__.setdefault("_pushed_requests", [])
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _find_task, (self.name, type(self).__module__)

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {self.app.main}>" if self._app else f"<unbound {type(self).__name__}>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # A task made from a method in a class body stays a task, whoever looks it up.
        return self


BaseTask = Task

__all__ = ["BaseTask", "Context", "Task"]


def make_task_class(
    fun: Callable[..., Any], base: type[Task[Any, Any]], name: str, bind: bool, options: dict[str, Any]
) -> type[Task[Any, Any]]:
    """The class of a decorated function's task."""
    run = _validating(fun, name, base, options) if options.get("pydantic", base.pydantic) else fun
    run = autoretrying(run, options, base) if options.get("autoretry_for") or base.autoretry_for else run
    attributes: dict[str, Any] = {
        "name": name,
        "run": run if bind else staticmethod(run),
        "abstract": False,
        "_decorated": True,
        "__doc__": fun.__doc__,
        "__name__": fun.__name__,
        "__module__": fun.__module__,
        "__annotations__": getattr(fun, "__annotations__", {}),
        "__wrapped__": staticmethod(fun),
        **options,
    }
    check = make_check(fun, bind)
    attributes["_check"] = None if check is None else staticmethod(check)
    return type(fun.__name__, (base,), attributes)


def _validating(
    fun: Callable[..., Any], name: str, base: type[Task[Any, Any]], options: Mapping[str, Any]
) -> Callable[..., Any]:
    def option(key: str) -> Any:
        return options.get(key, getattr(base, key))

    return validating(
        fun,
        name,
        _state.get_current_app,
        strict=option("pydantic_strict"),
        context=option("pydantic_context"),
        dump_kwargs=option("pydantic_dump_kwargs"),
    )


def make_check(fun: Callable[..., Any], bound: bool) -> Callable[..., Any] | None:
    """A function with the parameters of `fun` and no body: calling it checks arguments at a tenth of
    `inspect.signature().bind`'s cost. None for what has no signature."""
    try:  # not what it wraps: a decorator may give it more arguments than a call has
        parameters = list(inspect.signature(fun, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return None
    parts: list[str] = []
    star = slash = False
    positional_only = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        if parameter.kind is parameter.VAR_POSITIONAL:
            star = True
            parts.append("*" + parameter.name)
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts.append("**" + parameter.name)
        else:
            parts.append(parameter.name if parameter.default is parameter.empty else f"{parameter.name}=None")
        if not slash and positional_only and parameter is positional_only[-1]:
            parts.append("/")
            slash = True
    # Names come from a signature, so they are identifiers. Of «builtins», Python's messages name no module.
    check = eval(f"lambda {', '.join(parts)}: None", {"__name__": "builtins"})
    if not bound:
        return check  # type: ignore[no-any-return]
    return lambda *args, **kwargs: check(None, *args, **kwargs)


def autoretrying(fun: Callable[..., Any], options: Mapping[str, Any], base: type[Task[Any, Any]]) -> Callable[..., Any]:
    """`fun`, retried by itself after the exceptions that its task names."""

    def option(name: str) -> Any:
        return options.get(name, getattr(base, name))

    retried = tuple(option("autoretry_for"))
    kept = (Ignore, Retry, Reject, *option("dont_autoretry_for"))

    def retry_after(exc: BaseException) -> None:
        """Raise `Retry`, or return if the error stays what it is."""
        running = _state.running()
        if running is None or isinstance(exc, kept):
            return
        task = running.task
        settings = dict(option("retry_kwargs"))
        if option("retry_backoff"):
            settings["countdown"] = get_exponential_backoff_interval(
                max(1.0, float(option("retry_backoff"))),
                task.request.retries,
                option("retry_backoff_max"),
                option("retry_jitter"),
            )
        task.retry(exc=exc, **settings)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            value = fun(*args, **kwargs)
        except retried as exc:
            retry_after(exc)
            raise
        return awaited(value) if type(value) is CoroutineType else value

    async def awaited(coroutine: Any) -> Any:
        try:
            return await coroutine
        except retried as exc:
            retry_after(exc)
            raise

    async def arun(*args: Any, **kwargs: Any) -> Any:
        return await awaited(fun(*args, **kwargs))

    retrying: Any = wraps(fun)(arun if inspect.iscoroutinefunction(fun) else run)
    retrying._tried = fun
    return retrying  # type: ignore[no-any-return]


def reconciled(task: Any, request: Context, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments of the next try, when only one kind was given anew: what it names gives way in the other.

    `retry(kwargs={"x": 2})` of a call `f(1)` of `def f(x)` means `f(x=2)`; without this the next try would be given
    `x` twice.
    """
    old_args, old_kwargs = list(request.args or ()), dict(request.kwargs or {})
    try:
        parameters = list(inspect.signature(task.run).parameters.values())
    except (TypeError, ValueError):
        return args, kwargs
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if args is not None:
        taken = set(names[: len(args)])
        return args, {key: value for key, value in old_kwargs.items() if key not in taken}
    if not any(name in kwargs for name in names[: len(old_args)]):
        return old_args, kwargs
    cut = min(index for index, name in enumerate(names) if name in kwargs)
    moved = dict(zip(names[cut:], old_args[cut:], strict=False))
    return old_args[:cut], {**moved, **kwargs}


def _as_list(value: Any) -> list[Any] | None:
    return None if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _find_task(name: str, module: str | None = None) -> Any:
    app = _state.get_current_app()
    if name not in app.tasks and module:
        __import__(module)
    return app.tasks[name]
