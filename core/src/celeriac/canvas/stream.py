"""Members of a group that was made from an iterator: taken when they are first needed, and kept small from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celeriac.canvas.signature import Signature, maybe_signature


class Stream:
    """Yields the members, as often as it is asked to: so a group of a hundred thousand calls can be sent without all
    their signatures being there at once, and be sent again.

    Args:
        items: Signatures.
        flat: Takes groups among members apart.
    """

    def __init__(self, items: Iterator[Any], app: Any, flat: Callable[[list[Signature]], list[Signature]]) -> None:
        self._items = items
        self._app = app
        self._flat = flat
        self._model: Signature | None = None
        self._kept: list[tuple[Any, ...] | Signature] = []  # of calls like the model their arguments only

    def __iter__(self) -> Iterator[Signature]:
        for kept in self._kept:
            yield self._restored(kept)
        for item in self._items:
            members = self._flat([maybe_signature(item, app=self._app)])
            self._kept += map(self._small, members)
            yield from members

    def first(self) -> Signature | None:
        """The first member; None if there is none."""
        for member in self:
            return member
        return None

    def _small(self, member: Signature) -> tuple[Any, ...] | Signature:
        if (
            type(member) is not Signature
            or member["kwargs"]
            or member["options"]
            or member["immutable"]
            or member["subtask_type"]
            or type(member["args"]) is not tuple
        ):
            return member
        model = self._model = self._model or member
        return member["args"] if member["task"] == model["task"] and member._app is model._app else member

    def _restored(self, kept: tuple[Any, ...] | Signature) -> Signature:
        if type(kept) is not tuple:
            return kept  # type: ignore[return-value]
        assert self._model is not None
        return Signature(self._model["task"], kept, app=self._model._app)
