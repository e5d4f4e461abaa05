"""Tasks that can be asked to stop while they run, and look whether they were.

The request is a state of the result, so it needs a result backend that keeps states (not `rpc`), and the task decides
when it looks: `if self.is_aborted(): return`.
"""

from __future__ import annotations

from typing import Any, Final

from celeriac.app.task import Task
from celeriac.result import AsyncResult

__all__ = ["AbortableAsyncResult", "AbortableTask"]

ABORTED: Final = "ABORTED"


class AbortableAsyncResult(AsyncResult[Any]):
    """A result whose task may be asked to stop."""

    def is_aborted(self) -> bool:
        """Whether it was asked to stop, and has not ended since."""
        return self.state == ABORTED

    def abort(self) -> None:
        """Ask it to stop. A task that does not look runs on, and its end overwrites the request."""
        self.backend.store_result(self.id, None, ABORTED)


class AbortableTask(Task[Any, Any]):
    """Base class: `@app.task(bind=True, base=AbortableTask)`."""

    abstract = True

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AbortableAsyncResult:
        """The result of a call of this task, by its id."""
        return AbortableAsyncResult(task_id, self.backend, self.name, self.app)

    def is_aborted(self, task_id: str | None = None, **kwargs: Any) -> bool:
        """Whether the running call (or `task_id`) was asked to stop. One look at the result backend."""
        wanted = task_id or self.request.id
        return wanted is not None and self.AsyncResult(wanted).is_aborted()

    def apply_async(self, *args: Any, **kwargs: Any) -> AbortableAsyncResult:
        """As of any task, with a result that can be aborted."""
        sent = super().apply_async(*args, **kwargs)
        result = self.AsyncResult(sent.id)
        result.ignored = sent.ignored
        return result
