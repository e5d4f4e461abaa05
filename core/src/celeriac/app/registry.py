"""Task name → task, for one app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celeriac.exceptions import NotRegistered

if TYPE_CHECKING:
    from celeriac.app.task import Task


class TaskRegistry(dict[str, "Task[Any, Any]"]):
    """A dict whose missing key says which task is not registered."""

    NotRegistered = NotRegistered

    def __missing__(self, name: str) -> Task[Any, Any]:
        raise self.NotRegistered(name)

    def register(self, task: Task[Any, Any]) -> None:
        """Add a task (or a task class) under its name."""
        instance: Task[Any, Any] = task() if isinstance(task, type) else task
        self[instance.name] = instance

    def unregister(self, name: str | Task[Any, Any]) -> None:
        """Remove a task by itself or by name.

        Raises:
            NotRegistered: There is none.
        """
        key = name if isinstance(name, str) else name.name
        if key not in self:
            raise self.NotRegistered(key)
        del self[key]

    def regular(self) -> dict[str, Task[Any, Any]]:
        """The user's own tasks."""
        return {name: task for name, task in self.items() if not name.startswith(("celery.", "celeriac."))}
