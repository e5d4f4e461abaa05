"""The application object and what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celeriac import _state

if TYPE_CHECKING:
    from celeriac.app.base import AppPickler, Celery, shared_task

__all__ = [
    "AppPickler",
    "Celery",
    "app_or_default",
    "bugreport",
    "default_app",
    "disable_trace",
    "enable_trace",
    "pop_current_task",
    "push_current_task",
    "shared_task",
]

#: The app of threads that have none of their own.
default_app: Any = _state.Proxy(_state.get_default_app)


def app_or_default(app: Any = None) -> Any:
    """`app`, or the current one."""
    if app is not None:
        return app
    if _tracing:
        import traceback
        import warnings

        warnings.warn(f"the current app is asked for:\n{''.join(traceback.format_stack(limit=8))}", stacklevel=2)
    return _state.get_current_app()


def enable_trace() -> None:
    """Warn, with the place, whenever somebody relies on the current app: to find who does not pass an app on."""
    global _tracing
    _tracing = True


def disable_trace() -> None:
    """End what `enable_trace` began."""
    global _tracing
    _tracing = False


_tracing = False


def bugreport(app: Any = None) -> str:
    """Versions, plugins and settings of an app (default: the current one), for a bug report."""
    return str(app_or_default(app).bugreport())


_pushed: list[Any] = []


def push_current_task(task: Any) -> None:
    """For tests: `task` is the current task, with an empty request, until `pop_current_task`."""
    from celeriac.execution.request import Context

    _pushed.append(_state.push_running(task, Context()))


def pop_current_task() -> None:
    """End what `push_current_task` began."""
    _state.pop_running(_pushed.pop())


def __getattr__(name: str) -> Any:
    if name not in ("AppPickler", "Celery", "shared_task"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from celeriac.app import base  # below everything here, and needed by nobody who imports a part of this room

    return getattr(base, name)
