"""Tasks that every app has, under Celery's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac import _state

if TYPE_CHECKING:
    from celeriac.app.base import Celery

BACKEND_CLEANUP = "celery.backend_cleanup"


def add_builtin_tasks(app: Celery) -> None:
    """Register them; called when an app is finalized."""

    @app.task(name=BACKEND_CLEANUP, shared=False, ignore_result=True)
    def backend_cleanup() -> int:
        """Remove all expired results; how many there were."""
        backend, removed = app.backend.plugin, 0
        while backend is not None and (some := backend.cleanup()):
            removed += some
        return removed


_state.connect_on_finalize(add_builtin_tasks)
