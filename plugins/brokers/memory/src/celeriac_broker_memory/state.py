"""Shared state inside one process: a dict for each space, under one lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from celeriac.spec import Change, Entry, Snapshot
from celeriac.spec.state import holds


class MemoryState:
    """See `celeriac.spec.SharedState`. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spaces: dict[str, dict[str, Entry]] = {}
        self._versions: dict[str, int] = {}

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        with self._lock:
            now = time.time()
            entries = self._living(space, now)
            if not holds(entries, given):
                return None
            version = self._versions[space] = self._versions.get(space, 0) + 1
            for change in changes:
                if change.value is None:
                    entries.pop(change.key, None)
                else:
                    expires = None if change.ttl_s is None else now + change.ttl_s
                    entries[change.key] = Entry(change.value, version, expires)
            return version

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        with self._lock:
            now = time.time()
            entries = self._living(space, now)
            found = dict(entries) if keys is None else {key: entries[key] for key in keys if key in entries}
            return Snapshot(self._versions.get(space, 0), now, found)

    def version(self, space: str) -> int:
        with self._lock:
            return self._versions.get(space, 0)

    def _living(self, space: str, now: float) -> dict[str, Entry]:
        entries = self._spaces.setdefault(space, {})
        for key in [key for key, entry in entries.items() if entry.expires is not None and entry.expires <= now]:
            del entries[key]
        return entries
