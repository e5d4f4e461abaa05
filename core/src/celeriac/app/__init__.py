"""The application object and what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celeriac import _state

if TYPE_CHECKING:
    from celeriac.app.base import Celery, shared_task

__all__ = ["Celery", "app_or_default", "shared_task"]


def app_or_default(app: Any = None) -> Any:
    """`app`, or the current one."""
    return app if app is not None else _state.get_current_app()


def __getattr__(name: str) -> Any:
    if name not in ("Celery", "shared_task"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from celeriac.app import base  # below everything here, and needed by nobody who imports a part of this room

    return getattr(base, name)
