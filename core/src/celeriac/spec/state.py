"""Shared state: a small durable map that all processes of an app see, whichever store it lives in.

Revocations, the lease of a scheduler, live schedules and cluster-wide limits are kept here. It is no place for results
or messages: a space holds thousands of entries, not millions, and nothing asks it once per message (limits ask once per
batch of messages of the tasks that have them).

A transport or a result backend with the ability `state` has one method more than its contract, `state`
(`KeepsState`). Where neither has it, what needs it says so at the start or falls back as its docs say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

from msgspec import Struct

#: As an expected version: there is no such entry.
ABSENT: Final = 0


class Change(Struct, frozen=True):
    """One entry as it shall be.

    Attributes:
        key: Any text of at most 255 characters.
        value: None removes the entry, if it is there.
        ttl_s: The entry vanishes so many seconds from now by the store's clock; None: never.
    """

    key: str
    value: bytes | None
    ttl_s: float | None = None


class Entry(Struct, frozen=True):
    """One entry as it was found. `expires` is a unix time by the store's clock, None for never."""

    value: bytes
    version: int
    expires: float | None = None


class Snapshot(Struct, frozen=True):
    """What was found in a space at one instant.

    Attributes:
        version: Of the space: that of its latest write, 0 if there never was one.
        now: The store's clock, as unix time.
    """

    version: int
    now: float
    entries: dict[str, Entry]


class SharedState(Protocol):
    """The map. Verbs may be called from any thread; each is one atomic step of the store.

    Connection errors are those of the transport or backend it comes from, within their timeouts.
    """

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        """Make all these changes, or none.

        Args:
            space: A name such as `revoked`; spaces are made by their first write.
            given: Key → the version that its entry must have now, `ABSENT` if there must be none. An expired
                entry is none. Keys that are not changed may stand here too, which makes this a fence: "while I am
                still the leader".
        Returns:
            The new version of the space and of each entry written, larger than any before in this space; None if
            something was not as given, and then nothing was changed.
        """

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        """The entries of these keys, or all; expired ones are not there."""

    def version(self, space: str) -> int:
        """As in `Snapshot`: a cheap question for whoever keeps a copy. An entry that expires does not change it."""


class KeepsState(Protocol):
    """What the ability `state` adds to a transport or a result backend."""

    def state(self) -> SharedState:
        """The state kept in this store. Cheap; connects at the first verb."""


def holds(entries: Mapping[str, Any], given: Mapping[str, int]) -> bool:
    """Whether entries (those alive) have the versions expected of them; for stores that compare by themselves."""
    return all((entries[key].version if key in entries else ABSENT) == version for key, version in given.items())
