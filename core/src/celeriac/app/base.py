"""The application: settings, kernel and tasks, and where the parts are handed to each other.

Parts are made at first use, once per process: what speaks to a server is dropped in a forked child and made anew.
"""

from __future__ import annotations

import inspect
import os
import platform
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone, tzinfo
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Literal, ParamSpec, TypeVar, overload

from celeriac import _state, signals
from celeriac.app import builtin  # noqa: F401 # registers itself
from celeriac.app.annotations import annotate, read_annotations
from celeriac.app.connections import (
    acquired,
    close_pools,
    connection_pool,
    forget_pools,
    make_connection,
    producer_pool,
)
from celeriac.app.parts import Parts
from celeriac.app.periodic import PeriodicTasks
from celeriac.app.registry import TaskRegistry
from celeriac.app.revocations import Revocations
from celeriac.app.sending import build_payload, publish
from celeriac.app.settings import Settings
from celeriac.app.settings_source import check_keywords, config_module_of_environment
from celeriac.app.task import Task, autoretrying, make_check, make_task_class
from celeriac.canvas.launch import Sending, gathered
from celeriac.canvas.signature import Signature, signature
from celeriac.exceptions import (
    AlwaysEagerIgnored,
    DuplicateTaskNameWarning,
    ImproperlyConfigured,
    OperationalError,
)
from celeriac.execution.execute import run_eagerly
from celeriac.result import AsyncResult, EagerResult, GroupResult, ResultSet, class_for_app
from celeriac.utils.clock import LamportClock
from celeriac.utils.ids import ThreadOid, anon_nodename, uuid
from celeriac.utils.names import get_cls_by_name, import_package
from celeriac.utils.times import LOCAL

if TYPE_CHECKING:
    from celeriac.app.control import Control
    from celeriac.events import Events
    from celeriac.exceptions import PublishUncertain
    from celeriac.kernel.kernel import Kernel
    from celeriac.messaging.codec import Codec
    from celeriac.messaging.producer import Producer
    from celeriac.messaging.routes import Router
    from celeriac.resultstore import ResultStore
    from celeriac.spec.backend import ResultBackend
    from celeriac.spec.data import Payload
    from celeriac.spec.state import SharedState
    from celeriac.spec.transport import Transport

P = ParamSpec("P")
R = TypeVar("R")
BoundTask = TypeVar("BoundTask", bound=Task[Any, Any])


class Celery:
    """An application.

    Args:
        main: Names tasks of the module that is run as a script.
        broker, backend, include: The settings `broker_url` (also several), `result_backend` (also a class or an
            object), `include`.
        changes: Settings, as a dict; keywords that are not listed here are settings too.
        config_source: As `config_from_object`.
        fixups: Functions of the app (or their paths) that fit it into its surroundings, instead of `builtin_fixups`.
        set_as_current: Make it the current app of this thread.
        task_cls: The base class of its tasks, or a dotted path to one.
        strict_typing: Arguments of calls are checked against the function's signature.
        autofinalize: False makes a use before `finalize()` an error.
    """

    #: What a subclass may replace, by a class or a dotted path.
    task_cls: type[Task[Any, Any]] | str = Task
    #: Names (`module:function`) of what fits the app into its surroundings; see `celeriac.fixups`.
    builtin_fixups: ClassVar[frozenset[str]] = frozenset({"celeriac.fixups.django:fixup"})
    amqp_cls: Any = "celeriac.app.amqp:AMQP"
    #: Of a subclass: its result backend, as a URL, a class or the path of one, whatever `result_backend` says.
    backend_cls: Any = None
    loader_cls: Any = "celeriac.loaders.app:AppLoader"
    log_cls: Any = "celeriac.app.log:Logging"
    control_cls: Any = "celeriac.app.control:Control"
    events_cls: Any = "celeriac.events:Events"
    SYSTEM: ClassVar[str] = platform.system()
    IS_macOS: ClassVar[bool] = SYSTEM == "Darwin"
    IS_WINDOWS: ClassVar[bool] = SYSTEM == "Windows"
    registry_cls: type[TaskRegistry] = TaskRegistry
    #: Makes unpickled apps.
    Pickler: ClassVar[type[AppPickler]]

    def __init__(
        self,
        main: str | None = None,
        loader: Any = None,
        backend: Any = None,
        amqp: Any = None,
        events: Any = None,
        log: Any = None,
        control: Any = None,
        set_as_current: bool = True,
        tasks: dict[str, Any] | None = None,
        broker: str | Sequence[str] | None = None,
        include: Sequence[str] | None = None,
        changes: Mapping[str, Any] | None = None,
        config_source: Any = None,
        fixups: Any = None,
        task_cls: type[Task[Any, Any]] | str | None = None,
        autofinalize: bool = True,
        namespace: str | None = None,
        strict_typing: bool = True,
        config_source_silent: bool = False,
        **settings: Any,
    ) -> None:
        self.main = main
        self.strict_typing = strict_typing
        self.autofinalize = autofinalize
        self.namespace = namespace
        self.finalized = False
        #: `finalized` is said when that begins, for what it calls may use the app; this, when it has ended.
        self._ready = False
        if settings:
            check_keywords(settings, _keywords())
        self._given = {**(changes or {}), **{key: value for key, value in settings.items() if value is not None}}
        backend = backend if self.backend_cls is None else self.backend_cls
        for key, value in (("broker_url", broker), ("result_backend", backend), ("include", include)):
            if value is not None:
                self._given[key] = value
        if task_cls is not None:
            self.task_cls = task_cls
        self.on_configure = signals.Signal("app.on_configure")
        self.on_after_configure = signals.Signal("app.on_after_configure", {"source"})
        self.on_after_finalize = signals.Signal("app.on_after_finalize")
        self.on_after_fork = signals.Signal("app.on_after_fork")
        self._periodic = PeriodicTasks(self)
        self.conf = Settings(
            self._given,
            config_source=config_source,
            namespace=namespace,
            silent=config_source_silent,
            on_configure=lambda: self.on_configure.send(sender=self),
            on_after_configure=lambda _settings: self._after_configure(),
            on_change=lambda: self._parts.settings_changed(),
            prepare=self.prepare_config if type(self).prepare_config is not Celery.prepare_config else None,
            from_loader=self._read_by_loader,
        )
        self._annotations: list[Any] | None = None
        #: Some task has a result backend of its own.
        self.has_own_stores = False
        self._shared: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []
        self._made_task_cls: type[Task[Any, Any]] | None = None
        #: Tasks, until the app is finalized, whose base class is `Task`: their function, `bind`, and options.
        self._of_our_class: list[tuple[Task[Any, Any], Callable[..., Any], bool, dict[str, Any]]] = []
        self.user_options: dict[str, set[Any]] = defaultdict(set)
        self.steps: dict[str, set[Any]] = defaultdict(set)
        self._loader, self._amqp, self._log = loader, amqp, log
        self._control, self._events = control, events
        self._registry = tasks if isinstance(tasks, TaskRegistry) else self.registry_cls(tasks or {})
        self._lock = threading.RLock()
        self._oid = ThreadOid()
        self._autodiscover: list[tuple[Any, str | None]] = []
        self._parts = Parts(self.conf, self._oid.get)
        self.clock = LamportClock()
        if self.sends_its_own_way:
            self._send = self._through_send_task  # type: ignore[method-assign]
        self.set_as_current = set_as_current
        if set_as_current:
            self.set_current()
        _state.register_app(self)
        self.on_init()
        self._fixups = fixups
        self.fixups = list(self.builtin_fixups if fixups is None else fixups)
        self._fixed = [fixed for fixed in map(self._fix_up, self.fixups) if fixed is not None]

    def _fix_up(self, fixup: str | Callable[[Celery], Any]) -> Any:
        if callable(fixup):
            return fixup(self)
        module, _, name = fixup.replace(":", ".").rpartition(".")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as exc:
            raise ImproperlyConfigured(
                f"the fix-up {fixup!r} of the app {self.main!r} cannot be imported: {exc}. "
                "fixups are functions of the app, or their paths as in 'proj.setup:fixup'."
            ) from exc
        return function(self)

    def on_init(self) -> None:
        """Called at the end of the constructor; for subclasses."""

    # -- current --------------------------------------------------------------------------------------------

    def set_current(self) -> None:
        """Make it the current app of this thread, and of threads without one unless `set_default` chose theirs."""
        _state.set_current_app(self)
        _state.offer_default_app(self)

    def set_default(self) -> None:
        """Make it the app of threads without a current one; it stays so when other apps are made."""
        _state.set_default_app(self, chosen=True)

    # -- configuration --------------------------------------------------------------------------------------

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from a module (or its name), an object, a class or a dict; read at first use.

        Args:
            silent: A module that is missing is no error.
            force: Read it now.
            namespace: `'CELERY'` takes `CELERY_TASK_ACKS_LATE` for `task_acks_late`, and nothing else.
        Raises:
            SettingsNotFound: On reading: the module, or something that it imports, is missing; an ImportError too.
            ImproperlyConfigured: On reading: what it says makes no sense, or it raises another error.
        """
        self.conf.config_from_object(obj, silent=silent, force=force, namespace=namespace or self.namespace)

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> bool:
        """As `config_from_object`, with the module's name in an environment variable.

        Args:
            silent: A variable that is not set is no error either.
        Returns:
            Whether it names a module.
        """
        module = os.environ.get(variable_name)
        if not module:
            if silent:
                return False
            raise ImproperlyConfigured(
                f"the environment variable {variable_name!r} is not set, so the configuration cannot be loaded. "
                f"Set it to the name of a module with settings."
            )
        self.config_from_object(module, silent=silent, force=force)
        return True

    def add_defaults(self, defaults: Any) -> None:
        """Settings (a dict, or a function that returns one) for those that nobody sets."""
        self.conf.add_defaults(defaults)

    def config_from_cmdline(self, argv: Sequence[str], namespace: str = "celery") -> None:
        """Take settings from words such as `worker.prefetch_multiplier=1`; they beat all others."""
        self.conf.config_from_cmdline(argv, namespace)

    def either(self, default_key: str, *defaults: Any) -> Any:
        """The first of `defaults` that is not None, else the setting `default_key`."""
        return next((value for value in defaults if value is not None), self.conf.get(default_key))

    def setup_security(
        self,
        allowed_serializers: Sequence[str] | None = None,
        key: str | None = None,
        key_password: str | bytes | None = None,
        cert: str | None = None,
        store: str | None = None,
        digest: str | None = None,
        serializer: str = "json",
    ) -> None:
        """Sign what is sent and read only what is signed; see `celeriac.security.setup_security`."""
        from celeriac.security import setup_security  # only who signs pays for it

        setup_security(allowed_serializers, key, key_password, cert, store, digest, serializer, app=self)

    def _after_configure(self) -> None:
        self._periodic.install()
        self.on_after_configure.send(sender=self, source=self.conf)

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **opts: Any,
    ) -> str:
        """Have beat call a task again and again: add an entry to the setting `beat_schedule`.

        Args:
            schedule: Seconds, a timedelta or a schedule of `celeriac.schedules`.
            sig: A signature (`add.s(2, 2)`), or a task's name.
            args, kwargs: Put before the signature's.
            name: Of the entry; default: the call as text. Give one if a call stands in several entries.
            opts: For `apply_async` (`queue`, `expires` …); also `relative` and `catch_up`.
        Returns:
            The name.
        """
        return self._periodic.add(schedule, sig, args, kwargs, name, **opts)

    # -- tasks ----------------------------------------------------------------------------------------------

    @overload
    def task(self, fun: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
    @overload
    def task(self, **options: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    @overload
    def task(self, *args: Any, **options: Any) -> Any: ...
    def task(self, *args: Any, **options: Any) -> Any:
        """Make a task of a function; bare or with options.

        Options: `name`, `base` (a `Task` class), `bind` (the task is the first argument), and any attribute of `Task`.
        """
        if len(args) == 1 and callable(args[0]):
            return self._make_task(args[0], options)
        if args:
            raise TypeError(f"@app.task takes options by keyword only, or the function alone; it was given {args!r}")
        return lambda fun: self._make_task(fun, dict(options))

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register an instance (or class) of a `Task` class; returns the task."""
        instance = task() if isinstance(task, type) else task
        kind = type(instance)
        if not instance.name or (instance.name == kind._made_name and "name" not in kind.__dict__):  # its parent's
            instance.name = kind.name = kind._made_name = self.gen_task_name(kind.__name__, kind.__module__)
        for key, value in options.items():
            setattr(kind, key, value)
        is_static = isinstance(inspect.getattr_static(kind, "run"), staticmethod)
        if kind.__dict__.get("_check") is None and "run" in kind.__dict__:
            check = make_check(kind.run, not is_static)
            if check is not None:
                kind._check = staticmethod(check)
        if kind.autoretry_for and not ("run" in kind.__dict__ and hasattr(kind.run, "_tried")):
            run = autoretrying(getattr(kind.run, "_tried", kind.run), {}, kind)
            kind.run = staticmethod(run) if is_static else run
        if kind.typing is None:
            kind.typing = self.strict_typing
        kind.abstract = False
        known = self._registry.get(instance.name)
        if known is not None and known is not instance:
            self._warn_duplicate(instance.name, known, kind, keeps=False)
        self._add(instance)
        return instance

    def _make_task(self, fun: Callable[..., Any], options: dict[str, Any]) -> Task[Any, Any]:
        if isinstance(fun, Task):
            raise TypeError(f"{fun.name} is a task already; it was decorated twice")
        name = options.pop("name", None) or self.gen_task_name(fun.__name__, fun.__module__)
        shared = bool(options.pop("shared", True))
        given = dict(options)
        base = options.pop("base", None)
        bind = bool(options.pop("bind", False))
        options.pop("lazy", None)
        narrow = options.pop("filter", None)
        if name in self._registry:
            known = self._registry[name]
            if getattr(known, "__wrapped__", None) is not fun:
                self._warn_duplicate(name, known, fun)
            return known
        task = self._class_of(fun, base or self.Task, name, bind, options)()
        # Of the object: what a class has of that name, its objects do not.
        task.__qualname__ = getattr(fun, "__qualname__", fun.__name__)  # type: ignore[attr-defined]
        if base is None and not self.finalized:
            self._of_our_class.append((task, fun, bind, options))
        if narrow is not None:
            task = narrow(task)
        self._add(task)
        if shared:
            self._shared.append((name, fun, given))
        return task

    def _class_of(
        self, fun: Callable[..., Any], base: type[Task[Any, Any]], name: str, bind: bool, options: dict[str, Any]
    ) -> type[Task[Any, Any]]:
        kind = make_task_class(fun, base, name, bind, options)
        if kind.typing is None:
            kind.typing = self.strict_typing
        if type(self).type_checker is not Celery.type_checker:
            check = self.type_checker(fun, bound=bind)
            kind._check = None if check is None else staticmethod(check)
        kind._app = self  # its `__init__` may ask for it
        return kind

    @staticmethod
    def _warn_duplicate(name: str, known: Any, new: Any, *, keeps: bool = True) -> None:
        first = getattr(known, "__wrapped__", type(known))
        if (getattr(first, "__module__", 0), getattr(first, "__qualname__", 0)) == (new.__module__, new.__qualname__):
            return  # the same source, imported or reloaded twice
        then = f"{_where(first)} keeps it, {_where(new)} is not registered"
        then = then if keeps else f"{_where(new)} takes it over from {_where(first)}"
        warnings.warn(
            f"two tasks claim the name {name!r}: {then}. Give one of them another: @app.task(name=...)",
            DuplicateTaskNameWarning,
            stacklevel=4,
        )

    def _add(self, task: Task[Any, Any]) -> None:
        self._registry[task.name] = task
        task._app = self
        self._take_backend(task)
        if self.finalized:
            self.bind_task(task)

    def _take_backend(self, task: Any) -> None:
        if type(task).take_backend():
            self.has_own_stores = True

    def _take_shared(self, shared: tuple[str, Callable[..., Any], dict[str, Any]]) -> None:
        """Make another app's task one of this app's, unless it has one of that name."""
        name, fun, options = shared
        if name not in self._registry:
            self._make_task(fun, {**options, "name": name, "shared": False})

    def gen_task_name(self, name: str, module: str) -> str:
        """`module.name`; with `main` for the module run as a script."""
        if module == "__main__" and self.main:
            module = self.main
        return f"{module}.{name}" if module else name

    @property
    def configured(self) -> bool:
        """Whether its config source, if it has one, has been read."""
        return self.conf.configured

    def type_checker(self, fun: Callable[..., Any], bound: bool = False) -> Callable[..., Any] | None:
        """What checks the arguments of calls of a task: a function that raises `TypeError` if they do not fit.

        For subclasses to replace. Not asked for tasks with `typing=False`; None checks nothing.

        Args:
            bound: The function's first parameter is the task.
        """
        return make_check(fun, bound)

    def prepare_config(self, c: dict[str, Any]) -> Mapping[str, Any]:
        """What is taken of a config source: given its settings by name, before defaults are added; for subclasses."""
        return c

    @property
    def Task(self) -> type[Task[Any, Any]]:
        """The base class of its tasks. Another one is also that of tasks made before, until the app is finalized."""
        if self._made_task_cls is None and type(self).create_task_cls is not Celery.create_task_cls:
            self._made_task_cls = self.create_task_cls()
        return self._made_task_cls or self._given_task_cls()

    @Task.setter
    def Task(self, value: type[Task[Any, Any]]) -> None:
        self.task_cls, self._made_task_cls = value, None
        if type(self).create_task_cls is not Celery.create_task_cls:
            self._made_task_cls = self._given_task_cls()
        for task, fun, bind, options in self._of_our_class:
            task.__class__ = self._class_of(fun, self.Task, task.name, bind, options)
            task.__init__()  # type: ignore[misc] # that of the new class

    @property
    def tasks(self) -> TaskRegistry:
        """Its tasks by name."""
        self.finalize(auto=True)
        return self._registry

    def autodiscover_tasks(self, packages: Any = None, related_name: str | None = "tasks", force: bool = False) -> None:
        """Import `package.tasks` of these packages when the worker starts (or now, with `force`).

        Args:
            packages: Names, or a function that returns them; also paths of Django's AppConfigs. None: what the app's
                surroundings have, as Django's INSTALLED_APPS.
            related_name: The submodule; None imports the packages themselves.
        """
        if force:
            self._import_related(packages, related_name)
        else:
            self._autodiscover.append((packages, related_name))

    def import_default_modules(self) -> None:
        """Import all that registers tasks: settings `imports` and `include`, and what was autodiscovered."""
        for fixed in self._fixed:  # first: what they bring up, tasks may need
            getattr(fixed, "before_imports", bool)()
        for _, answer in signals.import_modules.send(sender=self):
            if isinstance(answer, Exception):
                raise answer
        for name in [*(self.conf["imports"] or ()), *(self.conf["include"] or ())]:
            import_module(name)
        for packages, related_name in self._autodiscover:
            self._import_related(packages, related_name)
        self.finalize()

    def begin_process(self) -> None:
        """In a process that runs tasks and was not forked from its worker: what the app's fix-ups do for those that
        were. Before `import_default_modules`."""
        for fixed in self._fixed:
            getattr(fixed, "begin_process", bool)()

    def _import_related(self, packages: Any, related_name: str | None) -> None:
        if not packages:
            asked = [getattr(fixed, "autodiscovered_packages", list) for fixed in self._fixed]
            packages = [package for ask in asked for package in ask()]
        found = packages() if callable(packages) else packages
        for path in [found] if isinstance(found, str) else found or ():
            package = import_package(path)
            if not related_name:
                continue
            name = f"{package}.{related_name}"
            try:
                import_module(name)
            except ModuleNotFoundError as exc:
                if exc.name != name:  # the module is there; something it imports is not
                    raise

    def finalize(self, auto: bool = False) -> None:
        """Bind all tasks to the settings; done by the first use. Other threads that use the app wait for it."""
        if self._ready:
            return
        if auto and not self.autofinalize and not self.finalized:
            raise RuntimeError("this app was made with autofinalize=False: call app.finalize() before it is used")
        self.conf.finalize()  # ahead of our lock: what is called while settings are read may come back here
        with self._lock:
            first, self.finalized = not self.finalized, True  # another thread may have been quicker
            if first:
                try:
                    self._bind_tasks()
                except BaseException:
                    self.finalized = False  # whoever comes next is told, too
                    raise
                self._ready = True
        if first:
            self.on_after_finalize.send(sender=self)

    def _bind_tasks(self) -> None:
        for callback in _state.finalize_callbacks():
            callback(self)
        for app in _state.each_app():
            if app is not self:
                for shared in list(app._shared):
                    self._take_shared(shared)
        self._of_our_class.clear()
        for task in list(self._registry.values()):
            self.bind_task(task)

    @property
    def annotations(self) -> list[Any]:
        """What `task_annotations` says, read once."""
        if self._annotations is None:
            self._annotations = read_annotations(self.conf["task_annotations"])
        return self._annotations

    def bind_task(self, task: Any) -> None:
        """Give a task this app's settings and annotations."""
        type(task).bind(self)
        if self.annotations:
            annotate(task, self.annotations)
        self._take_backend(task)

    # -- sending --------------------------------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        countdown: float | None = None,
        eta: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        connection: Any = None,
        router: Any = None,
        result_cls: Any = None,
        expires: Any = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a call of a task by its name, which need not be registered here. Options: as `Task.apply_async`."""
        if self.conf["task_always_eager"]:
            warnings.warn(AlwaysEagerIgnored("task_always_eager has no effect on send_task"), stacklevel=2)
        for key, value in (("countdown", countdown), ("eta", eta), ("expires", expires)):
            if value is not None:
                options[key] = value
        sent = Celery._send(self, name, args, kwargs, task_id or uuid(), options)
        return sent if result_cls is None else result_cls(sent.id)

    @property
    def sends_its_own_way(self) -> bool:
        """Its class has a `send_task` of its own, which calls of tasks and in canvases go through too."""
        return type(self).send_task is not Celery.send_task

    def _through_send_task(
        self, name: str, args: Any, kwargs: Any, task_id: str, options: dict[str, Any]
    ) -> AsyncResult[Any]:
        return self.send_task(name, args, kwargs, task_id=task_id, **options)

    def _send(self, name: str, args: Any, kwargs: Any, task_id: str, options: dict[str, Any]) -> AsyncResult[Any]:
        add_to_parent = options.pop("add_to_parent", True)
        if type(task_id) is not str:  # a UUID, a number
            task_id = str(task_id)
        return self.send_calls([(name, args, kwargs, task_id, options)], add_to_parent=add_to_parent)[0]

    def send_calls(
        self, calls: Sequence[tuple[str, Any, Any, str, dict[str, Any]]], *, add_to_parent: bool = True
    ) -> list[AsyncResult[Any]]:
        """Send several calls in one exchange with the broker.

        Args:
            calls: `(name, args, kwargs, task_id, options)` each; the options are consumed.
            add_to_parent: Record them as children of the running task.
        """
        results: list[AsyncResult[Any]] = []
        for (name, _, _, task_id, _), payload in zip(calls, self.publish_calls(calls), strict=True):
            result: AsyncResult[Any] = AsyncResult(task_id, self.store_of(name), name, self)
            result.ignored = bool(payload.headers["ignore_result"])
            results.append(result)
        running = _state.running()
        if running is not None and add_to_parent and running.task.trail:
            running.request.children.extend(results)
        return results

    def publish_calls(self, calls: Sequence[tuple[str, Any, Any, str, dict[str, Any]]]) -> list[Payload]:
        """As `send_calls`, for whoever has the results already."""
        if not self._ready:
            self.finalize(auto=True)
        if not calls:
            return []
        steering: dict[str, Any] = {
            key: calls[0][4][key] for key in ("retry", "retry_policy", "once") if key in calls[0][4]
        }
        payloads = [self.make_payload(*call) for call in calls]
        into = gathered()
        if into is not None:
            into += payloads
            return payloads
        wanted = [payload.headers["id"] for payload in payloads if not payload.headers["ignore_result"]]
        if wanted and self.has_own_stores:
            for payload in payloads:
                if not payload.headers["ignore_result"]:
                    self.store_of(payload.headers["task"]).expect([payload.headers["id"]])
        elif wanted:
            self.backend.expect(wanted)
        publish(self, payloads, steering)
        return payloads

    def publish_many(self, signatures: Iterable[Signature], *, add_to_parent: bool = True) -> list[Any]:
        """Send many calls, some hundreds in one exchange with the broker: `app.publish_many(add.s(n, n) for n in ids)`.

        Unlike the members of a group they have nothing in common; each may be a canvas. They are taken from the
        iterable as they are sent, so a long one needs memory only for the results.

        Args:
            add_to_parent: Record them as children of the running task.
        Returns:
            The result of each, once the broker has taken all.
        Raises:
            OperationalError: The broker did not take all; `accepted` has the results of those that it had taken for
                certain before. Of those in the exchange that failed the error says what is known: none was taken,
                but for `PublishUncertain` and those that `PublishRejected` does not name.
        """
        if self.conf["task_always_eager"]:
            return [signature.apply() for signature in signatures]
        launch = Sending(self)
        results: list[Any] = []
        taken = 0
        try:
            for signature in signatures:
                results.append(signature.launch(launch))
                if not launch.calls:
                    taken = len(results)
            launch.flush()
        except OperationalError as exc:
            exc.accepted = results[:taken]
            raise
        running = _state.running()
        if running is not None and add_to_parent and running.task.trail:
            running.request.children.extend(results)
        return results

    def send_again(self, error: PublishUncertain) -> list[AsyncResult[Any]]:
        """Send calls once more of which it is not known whether the broker took them.

        They keep their ids and get the header `x-celeriac-publish-try`; a worker that gets both runs both, and the
        second says `redelivered` in its request. So this is for tasks that may run twice.

        Args:
            error: What sending them raised.
        Returns:
            Their results, as sending would have.
        """
        if not error.payloads:
            raise ValueError("this error knows of no message that could be sent again") from error
        self.producer.send_again(error.payloads)
        return [AsyncResult(task_id, self.backend, None, self) for task_id in error.task_ids]

    def make_payload(self, name: str, args: Any, kwargs: Any, task_id: str, options: dict[str, Any]) -> Payload:
        """The payload of a call by name, not sent: with the task's own options if it is registered."""
        task = self._registry.get(name)
        if task is not None:
            for key, value in task.call_options().items():
                if options.get(key) is None:
                    options[key] = value
        return build_payload(self, name, args, kwargs, task_id, options, task)

    def signature(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature bound to this app."""
        kwargs["app"] = self
        return signature(*args, **kwargs)

    def run_eagerly(self, task: Any, request: Any, args: Any, kwargs: Any, *, raises: bool = False) -> EagerResult[Any]:
        """Run a task here and now; see `Task.apply`."""
        return run_eagerly(self, task, request, args, kwargs, raises=raises)

    # -- results --------------------------------------------------------------------------------------------

    @cached_property
    def AsyncResult(self) -> type[AsyncResult[Any]]:
        """The result of a call, by its id: `celeriac.result.AsyncResult` for this app."""
        return class_for_app(AsyncResult, self)

    @cached_property
    def ResultSet(self) -> type[ResultSet]:
        """Several results together."""
        return class_for_app(ResultSet, self)

    @cached_property
    def GroupResult(self) -> type[GroupResult]:
        """The results of a group; `restore(id)` gives those that were saved."""
        return class_for_app(GroupResult, self)

    # -- parts ----------------------------------------------------------------------------------------------

    @property
    def backend(self) -> ResultStore:
        """Its results; one that refuses to be read when `result_backend` is not set."""
        return self._parts.store

    def store_of(self, task_name: str | None) -> ResultStore:
        """Where the results of a task are: its own store, if it is known here to have one, else the app's."""
        if self.has_own_stores and task_name:
            task = self._registry.get(task_name)
            if task is not None:
                return task.backend
        return self._parts.store

    def result_plugins(self) -> list[ResultBackend]:
        """The result backends in use: the app's, and those that tasks have for themselves."""
        stores = [self.backend]
        if self.has_own_stores:
            stores += [task.backend for task in self.tasks.values()]
        found = {id(store.plugin): store.plugin for store in stores if store.plugin is not None}
        return list(found.values())

    def own_store(self, wanted: Any, task_name: str) -> ResultStore:
        """The store that a task wants for itself; the same for all who want this one."""
        return self._parts.own_store(wanted, task_name)

    @property
    def results_fingerprint(self) -> str:
        """Names the place of this app's results, without secrets: a worker tells by it whether it can deliver there."""
        return self._parts.fingerprint

    @property
    def kernel(self) -> Kernel:
        """Chooses and makes plugins."""
        return self._parts.kernel

    @property
    def codec(self) -> Codec:
        """Encodes and decodes bodies."""
        return self._parts.codec

    @property
    def router(self) -> Router:
        """Finds queues."""
        return self._parts.router

    @property
    def transport(self) -> Transport:
        """The connection to its broker, for sending."""
        return self._parts.transport

    def make_transport(self, url: str | None = None) -> Transport:
        """A transport of its own for the caller (the worker, for receiving)."""
        return self._parts.make_transport(url)

    @property
    def producer(self) -> Producer:
        """Sends payloads."""
        return self._parts.producer

    @property
    def shared_state(self) -> SharedState | None:
        """What all processes of this app share: kept by the broker, else by the result backend; None if by neither."""
        return self._parts.shared_state

    @cached_property
    def control(self) -> Control:
        """Asks workers and tells them what to do."""
        made: Control = get_cls_by_name(self._control or self.control_cls)(self)  # by its path: only who steers pays
        return made

    @cached_property
    def events(self) -> Events:
        """Sends events and hears them."""
        made: Events = get_cls_by_name(self._events or self.events_cls)(self)  # likewise: only who watches
        return made

    @property
    def revocations(self) -> Revocations:
        """Revokes calls so that workers know of it that are not there yet."""
        return Revocations(self.shared_state, float(self.conf["task_revoke_expires"]))

    @property
    def thread_oid(self) -> str:
        """The name of this process's reply queue."""
        return self._oid.get()

    @property
    def oid(self) -> str:
        """The same as `thread_oid`."""
        return self._oid.get()

    def node_of_client(self) -> str:
        """Who sends, for headers."""
        return anon_nodename()

    @property
    def timezone(self) -> tzinfo:
        """The zone of schedules and of `now`: the setting `timezone`, else UTC (or local time without `enable_utc`)."""
        name = self.conf["timezone"]
        if isinstance(name, tzinfo):
            return name
        if name and name.upper() == "LOCAL":
            return LOCAL
        if name:
            from zoneinfo import ZoneInfo

            try:
                return ZoneInfo(name)
            except (KeyError, ValueError, OSError) as exc:
                raise ImproperlyConfigured(f"timezone: no time zone is called {name!r}") from exc
        return timezone.utc if self.conf["enable_utc"] else LOCAL

    def now(self) -> datetime:
        """The time now in the app's time zone."""
        return datetime.now(timezone.utc).astimezone(self.timezone)

    @property
    def current_task(self) -> Any:
        """The task that runs here, or None."""
        running = _state.running()
        return None if running is None else running.task

    @property
    def current_worker_task(self) -> Any:
        """The task that a worker runs here, or None: not one that a task calls directly or eagerly."""
        running = _state.running()
        while running is not None:
            if running.request._effects is not None:
                return running.task
            running = running.outer
        return None

    def uses_utc_timezone(self) -> bool:
        """Whether the app's time zone is UTC."""
        return self.timezone is timezone.utc or str(self.timezone) == "UTC"

    # -- in Celery's and kombu's vocabulary -----------------------------------------------------------------

    @cached_property
    def amqp(self) -> Any:
        """Queues, routes and messages; see `celeriac.app.amqp.AMQP`."""
        return get_cls_by_name(self._amqp or self.amqp_cls)(self)

    @cached_property
    def loader(self) -> Any:
        """Finds settings and modules; see `celeriac.loaders`."""
        kind = import_module("celeriac.loaders").get_loader_cls(self._loader or self.loader_cls)
        return kind(self)

    def _read_by_loader(self) -> Any:
        """The settings that a loader of the program's own reads; None if it does not."""
        made, wanted = self.__dict__.get("loader"), self._loader or self.loader_cls
        if made is None and wanted == Celery.loader_cls:
            return None
        kind = import_module("celeriac.loaders").get_loader_cls(wanted) if made is None else type(made)
        plain = import_module("celeriac.loaders.base").BaseLoader
        return None if kind.read_configuration is plain.read_configuration else self.loader.read_configuration() or {}

    @cached_property
    def log(self) -> Any:
        """Sets logging up; see `celeriac.app.log.Logging`."""
        return get_cls_by_name(self._log or self.log_cls)(self)

    def connection_for_read(self, url: Any = None, **options: Any) -> Any:
        """A kombu connection for receiving; `Unsupported` if kombu does not know the broker."""
        return make_connection(self, url, "broker_read_url", **options)

    def connection_for_write(self, url: Any = None, **options: Any) -> Any:
        """A kombu connection for sending, likewise."""
        return make_connection(self, url, "broker_write_url", **options)

    def connection(self, hostname: Any = None, **options: Any) -> Any:
        """As `connection_for_write`."""
        return self.connection_for_write(hostname, **options)

    broker_connection = connection

    def connection_or_acquire(self, connection: Any = None, pool: bool = True) -> AbstractContextManager[Any]:
        """For `with`: this kombu connection, or one of the pool (or a new one)."""
        if connection is None and not pool:
            return self.connection_for_write()  # type: ignore[no-any-return]
        return acquired(lambda: self.pool, connection)

    default_connection = connection_or_acquire

    def producer_or_acquire(self, producer: Any = None) -> AbstractContextManager[Any]:
        """For `with`: this kombu producer, or one of the pool."""
        return acquired(lambda: self.producer_pool, producer)

    default_producer = producer_or_acquire

    @property
    def pool(self) -> Any:
        """kombu connections to the broker."""
        return connection_pool(self)

    @property
    def producer_pool(self) -> Any:
        """kombu producers for the broker."""
        return producer_pool(self)

    def select_queues(self, queues: Any = None) -> None:
        """Let workers of this app consume these queues only."""
        self.amqp.queues.select(queues)

    def bugreport(self) -> str:
        """Versions, plugins and settings, for a bug report."""
        return import_module("celeriac.app.report").bugreport(self)  # type: ignore[no-any-return]

    @property
    def Worker(self) -> Callable[..., Any]:
        """Makes a worker of this app."""
        return partial(import_module("celeriac.worker.worker").Worker, self)

    WorkController = Worker

    @property
    def Beat(self) -> Callable[..., Any]:
        """Makes a scheduler of this app; `app.Beat().run()` sends what is due until it is told to stop."""
        return partial(import_module("celeriac.beat.program").Beat, self)

    def create_task_cls(self) -> type[Any]:
        """A class of its own for this app's tasks, below `task_cls`. That of a subclass makes `app.Task`."""
        return self.subclass_with_self(self._given_task_cls(), "Task", "_app", abstract=True)  # type: ignore[no-any-return]

    def _given_task_cls(self) -> type[Any]:
        if isinstance(self.task_cls, str):
            self.task_cls = get_cls_by_name(self.task_cls)
        return self.task_cls  # type: ignore[return-value]

    def subclass_with_self(
        self, Class: Any, name: str | None = None, attribute: str = "app", keep_reduce: bool = False, **members: Any
    ) -> Any:
        """A subclass of `Class` (or of what a path leads to) with this app as an attribute."""
        kind = get_cls_by_name(Class)
        own = {attribute: self, "__module__": kind.__module__, "__doc__": kind.__doc__, **members}
        return type(name or kind.__name__, (kind,), own)

    # -- life -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of connections; they are made anew if it is used again."""
        close_pools(self)
        self._parts.close()

    def after_fork(self) -> None:
        """In a forked child: drop what speaks to servers, without speaking (B28)."""
        self._lock = threading.RLock()
        self.finalized = self._ready  # a thread that was at it is not here
        self.conf.after_fork()
        self._parts.after_fork()
        forget_pools()
        self.on_after_fork.send(sender=self)

    def start(self, argv: Sequence[str] | None = None) -> None:
        """Run the command line with this app."""
        # The door is above this room, so it is opened by name.
        import_module("celeriac.cli").main(list(argv) if argv is not None else sys.argv[1:], app=self)

    def worker_main(self, argv: Sequence[str] | None = None) -> None:
        """Run a worker with this app; `argv` begins with `worker`."""
        words = list(argv) if argv is not None else sys.argv[1:]
        if "worker" not in words:
            raise ValueError(
                "worker_main wants the command among its arguments: app.worker_main(argv=['worker', '--loglevel=info'])"
            )
        self.start(words)

    def __enter__(self) -> Celery:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        made_by = {
            "main": self.main,
            "changes": dict(self.conf.changes),
            "config_source": self.conf.source,
            "namespace": self.namespace,
            "task_cls": self.task_cls,
            "strict_typing": self.strict_typing,
            "loader": self._loader,
            "amqp": self._amqp,
            "log": self._log,
            "control": self._control,
            "events": self._events,
            "fixups": self._fixups,
            "set_as_current": False,
        }
        return _rebuild_app, (type(self), made_by)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '__main__'}:{id(self):#x}>"


@overload
def shared_task(fun: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(*, bind: Literal[True], **options: Any) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
@overload
def shared_task(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...
@overload
def shared_task(*args: Any, **options: Any) -> Any: ...
def shared_task(*args: Any, **options: Any) -> Any:
    """A task of every app: registered in all present and future ones, found in the current one when used."""

    def share(fun: Callable[..., Any], options: dict[str, Any]) -> Any:
        name = options.get("name")
        own = {key: value for key, value in options.items() if key != "name"}

        def register(app: Celery) -> Task[Any, Any]:
            return app._make_task(fun, {**own, "name": name or app.gen_task_name(fun.__name__, fun.__module__)})

        _state.connect_on_finalize(register)
        for app in _state.each_app():
            if app.finalized:
                register(app)

        def find() -> Any:
            app = _state.get_current_app()
            return app.tasks[name or app.gen_task_name(fun.__name__, fun.__module__)]

        return _state.Proxy(find)

    if len(args) == 1 and callable(args[0]):
        if isinstance(args[0], (_state.Proxy, Task)):
            raise TypeError("shared_task was applied to a task; decorate the function once")
        return share(args[0], {})
    return lambda fun: share(fun, options)


App = Celery


def _keywords() -> list[str]:
    """What the constructor takes besides settings."""
    found = inspect.signature(Celery).parameters.values()
    return [parameter.name for parameter in found if parameter.kind is not parameter.VAR_KEYWORD]


def _where(fun: Any) -> str:
    return f"{getattr(fun, '__module__', '?')}.{getattr(fun, '__qualname__', fun)}"


class AppPickler:
    """Makes an app anew from what was pickled of it. A subclass of `Celery` names its own as `Pickler`."""

    def __call__(self, cls: type[Celery], **made_by: Any) -> Celery:
        """The app.

        Args:
            made_by: What its class is called with.
        """
        app = self.construct(cls, **made_by)
        self.prepare(app, **made_by)
        return app

    def construct(self, cls: type[Celery], **made_by: Any) -> Celery:
        """Call its class."""
        return cls(**made_by)

    def prepare(self, app: Celery, **made_by: Any) -> None:
        """Called with the new app: what a subclass has to add."""


Celery.Pickler = AppPickler


def _rebuild_app(kind: type[Celery], made_by: dict[str, Any]) -> Celery:
    return kind.Pickler()(kind, **made_by)


def make_default_app() -> Celery:
    """The app of a program that uses tasks without having made one: settings from `config_module()`, if it is there."""
    default = import_module("celeriac.loaders.default")
    return Celery(
        "default",
        loader="default",
        set_as_current=False,
        config_source=default.config_module(),
        config_source_silent=config_module_of_environment() is None,  # one that was named must be there
    )


_state.set_default_app_maker(make_default_app)


def _after_fork() -> None:
    for app in _state.each_app():
        app.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
