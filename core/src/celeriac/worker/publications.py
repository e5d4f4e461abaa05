"""Of several messages that are one call, published under several claims on its chord, one is run.

Whoever claims a chord publishes its body, and closes it. If it dies in between nobody can tell whether the body is out,
so the next one that claims the chord publishes it again, under the same id. The first of these messages that any worker
receives is noted in the result store, as a success of an id that follows from the call's: a stored success is never
replaced (R3), so all workers agree which one that is. It is in the broker, which keeps it until it has run; so the
others may go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celeriac import states
from celeriac.canvas.launch import chord_of
from celeriac.spec.data import Head
from celeriac.utils.ids import derived_uuid


class Publications:
    """What one worker knows of them. Its `backend` keeps results."""

    def __init__(self, app: Any) -> None:
        self._store = app.backend

    def admitted(self, heads: Sequence[Head]) -> list[bool]:
        """Which of these messages, all with a claim, may run.

        Raises:
            BackendError: The store cannot say.
        """
        plugin = self._store.plugin
        if plugin is None or "replies" in plugin.abilities:
            return [True] * len(heads)
        notes = [derived_uuid(f"{head.id} published by {chord_of(head.claim)}") for head in heads]
        plugin.store(
            [self._store.make(note, states.SUCCESS, head.claim) for note, head in zip(notes, heads, strict=True)]
        )
        found = self._store.find_many(notes)
        return [
            note not in found or found[note]["result"] == head.claim for note, head in zip(notes, heads, strict=True)
        ]
