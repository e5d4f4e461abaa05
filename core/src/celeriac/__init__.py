"""celeriac: a distributed task queue for Python whose every organ is a plugin.

The names that programs use; each is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
VERSION = version_info = (0, 1, 0, "", "")
SERIES = "celeriac"
VERSION_BANNER = f"{__version__} ({SERIES})"

if TYPE_CHECKING:
    from celeriac._state import current_app, current_task
    from celeriac.app import bugreport
    from celeriac.app.base import Celery, shared_task
    from celeriac.app.task import Task
    from celeriac.canvas.chain import chain
    from celeriac.canvas.chord import chord
    from celeriac.canvas.group import group
    from celeriac.canvas.maps import chunks, xmap, xstarmap
    from celeriac.canvas.signature import Signature, maybe_signature, signature, subtask
    from celeriac.kernel.prelude import maybe_patch_concurrency
    from celeriac.spec.hooks import hookimpl
    from celeriac.utils.ids import uuid

_WHERE = {
    "Celery": "celeriac.app.base",
    "Signature": "celeriac.canvas.signature",
    "Task": "celeriac.app.task",
    "bugreport": "celeriac.app",
    "chain": "celeriac.canvas.chain",
    "chord": "celeriac.canvas.chord",
    "chunks": "celeriac.canvas.maps",
    "xmap": "celeriac.canvas.maps",
    "xstarmap": "celeriac.canvas.maps",
    "current_app": "celeriac._state",
    "current_task": "celeriac._state",
    "group": "celeriac.canvas.group",
    "hookimpl": "celeriac.spec.hooks",
    "maybe_patch_concurrency": "celeriac.kernel.prelude",
    "maybe_signature": "celeriac.canvas.signature",
    "shared_task": "celeriac.app.base",
    "signature": "celeriac.canvas.signature",
    "subtask": "celeriac.canvas.signature",
    "uuid": "celeriac.utils.ids",
}

__all__ = [
    "SERIES",
    "VERSION",
    "VERSION_BANNER",
    "Celery",
    "Signature",
    "Task",
    "__version__",
    "bugreport",
    "chain",
    "chord",
    "chunks",
    "current_app",
    "current_task",
    "group",
    "hookimpl",
    "maybe_patch_concurrency",
    "maybe_signature",
    "shared_task",
    "signature",
    "subtask",
    "uuid",
    "version_info",
    "xmap",
    "xstarmap",
]


def __getattr__(name: str) -> Any:
    try:
        value = getattr(import_module(_WHERE[name]), name)
    except KeyError:
        raise AttributeError(f"module 'celeriac' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
