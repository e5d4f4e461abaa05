"""What shapes of several calls have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from celeriac.canvas.signature import Signature, maybe_signature

Shape = TypeVar("Shape", bound="Composite")


class Composite(Signature):
    """A signature whose keyword `tasks` holds others.

    Args:
        tasks: The members, or one iterable of them; those of the same shape are taken apart into theirs.
    """

    shape = ""

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        members: Iterable[Any] = tasks
        if len(tasks) == 1 and not isinstance(tasks[0], dict):
            members = tasks[0]
        flat: list[Signature] = []
        for member in members:
            one = maybe_signature(member, app=app)
            flat.extend(one.tasks if isinstance(one, type(self)) else [one])
        super().__init__(f"celery.{self.shape}", (), {"tasks": flat}, options, subtask_type=self.shape, app=app)

    @classmethod
    def from_dict(cls: type[Shape], data: Mapping[str, Any], app: Any = None) -> Shape:
        """See `Signature.from_dict`."""
        return cls(*data["kwargs"]["tasks"], app=app, **data.get("options") or {})

    @property
    def tasks(self) -> list[Signature]:
        """Its members, in order."""
        return self["kwargs"]["tasks"]  # type: ignore[no-any-return]

    @property
    def app(self) -> Any:
        """The app of its members."""
        return self._app or (self.tasks[0].app if self.tasks else super().app)

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True  # an empty one is one, too
