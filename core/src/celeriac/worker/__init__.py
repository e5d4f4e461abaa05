"""The worker: receives, admits, hands to the pool, and performs what the reports ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.worker.worker import WorkController

__all__ = ["WorkController"]


def __getattr__(name: str) -> Any:
    if name == "WorkController":
        from celeriac.worker.worker import WorkController  # with all that a worker is made of: for who asks

        return WorkController
    raise AttributeError(f"module 'celeriac.worker' has no attribute {name!r}")
