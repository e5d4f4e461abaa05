"""The module `celery`, answered by celeriac: programs written for Celery run on celeriac without a change.

`celery.<path>` is the module object `celeriac.<path>`, so classes, exceptions and signals are the same under both
names. This module itself is its own, because it says which Celery it stands for; its names are celeriac's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from celery._forward import forward, refuse_beside_celery

refuse_beside_celery()
forward()

if TYPE_CHECKING:
    from celeriac import (
        Celery,
        Signature,
        Task,
        bugreport,
        chain,
        chord,
        chunks,
        current_app,
        current_task,
        group,
        maybe_patch_concurrency,
        maybe_signature,
        shared_task,
        signature,
        subtask,
        uuid,
        xmap,
        xstarmap,
    )


class version_info_t(NamedTuple):
    """A version in parts, as programs compare it."""

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: str


#: The Celery whose public surface this is: what programs that ask for the version decide by.
VERSION = version_info = version_info_t(5, 7, 0, "", "")
__version__ = "5.7.0"
SERIES = "celeriac"
VERSION_BANNER = f"{__version__} ({SERIES})"

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
    """A name of celeriac's, or a submodule that nobody has imported yet (`celery.signals.task_success`)."""
    if name in __all__:
        value = getattr(import_module("celeriac"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module 'celery' has no attribute {name!r}")
    else:
        try:
            value = import_module(f"celery.{name}")
        except ModuleNotFoundError as exc:
            if exc.name != f"celery.{name}":
                raise
            raise AttributeError(
                f"module 'celery' has no attribute {name!r}: it is celeriac's (celeriac-compat-celery), "
                "which has neither such a name nor such a module"
            ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
