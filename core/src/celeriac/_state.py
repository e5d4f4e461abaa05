"""Which app is current, and which task is running here.

Lowest room: everyone may ask, nobody is imported. The running task is kept in a context variable, so it
is right in threads, in coroutines and in greenlets alike.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from celeriac.app.base import Celery

_local = threading.local()
_default_app: Celery | None = None
#: Somebody said which app is the default one; else it is the last that was made current.
_default_chosen = False
_make_default_app: Callable[[], Celery] | None = None
_apps: weakref.WeakSet[Any] = weakref.WeakSet()
#: Called with every app when it is finalized, now and in future (`shared_task`).
_on_finalize: list[Callable[[Any], Any]] = []


class Running(NamedTuple):
    """A task with the request it runs under, and what ran around it."""

    task: Any
    request: Any
    outer: Running | None


_running: ContextVar[Running | None] = ContextVar("celeriac_running", default=None)


def register_app(app: Celery) -> None:
    """Remember an app for `each_app` and for shared tasks."""
    _apps.add(app)


def each_app() -> list[Any]:
    """All live apps."""
    return list(_apps)


def set_current_app(app: Celery | None) -> None:
    """Make `app` current in this thread."""
    _local.app = app


def set_default_app(app: Celery | None, *, chosen: bool = False) -> None:
    """Make `app` the one that threads without a current app get.

    Args:
        chosen: It stays so when others become current: see `offer_default_app`.
    """
    global _default_app, _default_chosen
    _default_app, _default_chosen = app, chosen


def offer_default_app(app: Celery) -> None:
    """Make `app` the default one unless somebody has chosen another."""
    if _default_app is None or not _default_chosen:
        set_default_app(app)


def set_default_app_maker(make: Callable[[], Celery]) -> None:
    """Say how the app is made that a program gets which made none; `app.base` does."""
    global _make_default_app
    _make_default_app = make


def get_current_app() -> Celery:
    """The current app of this thread, else the default app; one is made if no app was made yet.

    Raises:
        RuntimeError: It cannot be made, because `celeriac.app.base` is only just being imported.
    """
    app = getattr(_local, "app", None) or _default_app
    if app is None:
        if _make_default_app is None:
            import_module("celeriac.app.base")  # above this room, so it is opened by name; it says how
        if _make_default_app is None:
            raise RuntimeError("no celeriac app has been made yet: app = Celery('name', broker=…)")
        app = _make_default_app()
        set_default_app(app)
    return app


def get_default_app() -> Celery:
    """The app of threads that have none of their own."""
    return _default_app or get_current_app()


def maybe_current_app() -> Celery | None:
    """The current app, or None."""
    return getattr(_local, "app", None) or _default_app


def remember_apps() -> tuple[Celery | None, Celery | None, bool]:
    """The current app of this thread and the default app, for `restore_apps`."""
    return getattr(_local, "app", None), _default_app, _default_chosen


def restore_apps(remembered: tuple[Celery | None, Celery | None, bool]) -> None:
    """Make current and default again what was when `remember_apps` was asked."""
    _local.app, default, chosen = remembered
    set_default_app(default, chosen=chosen)


def connect_on_finalize(callback: Callable[[Any], Any]) -> None:
    """Call `callback(app)` for each app that is finalized from now on."""
    _on_finalize.append(callback)


connect_on_app_finalize = connect_on_finalize  # as Celery calls it


def finalize_callbacks() -> list[Callable[[Any], Any]]:
    """The callbacks given to `connect_on_finalize`, in order."""
    return list(_on_finalize)


def push_running(task: Any, request: Any) -> Token[Running | None]:
    """Say that `task` runs from now on; give the token to `pop_running`."""
    return _running.set(Running(task, request, _running.get()))


def pop_running(token: Token[Running | None]) -> None:
    """End what `push_running` began."""
    _running.reset(token)


def running() -> Running | None:
    """What runs here, innermost."""
    return _running.get()


def running_request_of(task: Any) -> Any | None:
    """The innermost request under which `task` runs here, or None."""
    entry = _running.get()
    while entry is not None:
        if entry.task is task:
            return entry.request
        entry = entry.outer
    return None


class _TextOfObject(str):
    """A text that every class has of its own (`__doc__`); a proxy's is that of what it stands for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, proxy: Proxy | None, kind: type | None = None) -> Any:
        if proxy is None:
            return str(self)
        try:
            return getattr(proxy._get_current_object(), self._name, str(self))
        except RuntimeError:
            return str(self)


class Proxy:
    """Stands for an object that is found anew at each use."""

    __slots__ = ("__find",)
    __doc__ = _TextOfObject(__doc__)
    __module__ = _TextOfObject(__module__)

    def __init__(self, find: Callable[[], Any]) -> None:
        object.__setattr__(self, "_Proxy__find", find)

    def _get_current_object(self) -> Any:
        return object.__getattribute__(self, "_Proxy__find")()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get_current_object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get_current_object(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._get_current_object(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get_current_object()(*args, **kwargs)

    def __bool__(self) -> bool:
        return bool(self._get_current_object())

    def __eq__(self, other: object) -> bool:
        return bool(self._get_current_object() == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._get_current_object())

    def __repr__(self) -> str:
        try:
            return repr(self._get_current_object())
        except RuntimeError:
            return f"<{type(self).__name__} of nothing yet>"

    def __dir__(self) -> list[str]:
        return dir(self._get_current_object())

    def __getitem__(self, key: Any) -> Any:
        return self._get_current_object()[key]

    def __or__(self, other: Any) -> Any:
        return self._get_current_object() | other

    @property  # type: ignore[misc] # a proxy says that it is what it stands for
    def __class__(self) -> type:
        try:
            return type(self._get_current_object())
        except RuntimeError:  # whoever asks all objects of the process what they are, as gevent does, must not fail
            return Proxy

    @property
    def __wrapped__(self) -> Any:
        # Says to inspect and doctest what is behind; a proxy is not the function itself.
        return getattr(self._get_current_object(), "__wrapped__", self._get_current_object())

    def __reduce__(self) -> Any:
        return self._get_current_object().__reduce__()


def _current_task() -> Any:
    entry = _running.get()
    return None if entry is None else entry.task


current_app: Any = Proxy(get_current_app)
current_task: Any = Proxy(_current_task)


def get_current_task() -> Any:
    """The task that runs here, innermost; None outside of tasks."""
    return _current_task()


def get_current_worker_task() -> Any:
    """The task that a worker runs here, whatever it has called directly since; None outside of a worker's runs."""
    entry = _running.get()
    while entry is not None:
        if not entry.request.called_directly and not entry.request.is_eager:
            return entry.task
        entry = entry.outer
    return None
