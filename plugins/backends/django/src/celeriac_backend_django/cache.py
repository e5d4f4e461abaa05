"""`django-cache`: results in one of the project's caches (setting `cache_backend` names it; `default` otherwise).

A value is the result document itself, as django-celery-results keeps it: Django's cache serializes it. A cache has no
conditional write but `add`, so who replaces a state holds a lock made by `add`, which ends by itself (R3).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.locmem import LocMemCache

from celeriac.exceptions import BackendLost, BackendUnreachable, SettingError, Unsupported
from celeriac.spec import Document, Host, Serializer, StoredResult, Watch
from celeriac_backend_django.common import bring_up, fitting_id, lifetime, replaces, winners

TASK_KEY: Final = "celery-task-meta-"
GROUP_KEY: Final = "celery-taskset-meta-"
LOCK_KEY: Final = "celeriac-lock-"
LOCK_S: Final = 10
LOCK_PAUSE_S: Final = 0.005

#: Caches of a process that forked us: kept, because letting go of one may speak on the parent's socket.
_left_to_parents: list[Any] = []


class DjangoCacheBackend:
    """See `celeriac.spec.ResultBackend`."""

    joint: str | None = None

    def __init__(self, settings: Mapping[str, Any], host: Host) -> None:
        bring_up("django-cache")
        self._alias: str = settings.get("cache_backend") or "default"
        self._host = host
        self._serializer_name: str = settings.get("result_serializer") or "json"
        kept = lifetime(settings.get("result_expires"))
        self._timeout_s = None if kept is None else max(1, int(kept.total_seconds()))
        private = {"expire", "groups", "persistent"}
        self.abilities = frozenset(private if isinstance(self._cache, LocMemCache) else private | {"shared"})

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        """See `ResultBackend.encode`."""
        return serializer.dumps(document)

    def decode(self, data: bytes) -> Document:
        """See `ResultBackend.decode`."""
        document: Document = self._host.serializer(self._serializer_name).loads(data)
        return document

    def store(self, batch: Sequence[StoredResult]) -> None:
        """See `ResultBackend.store`."""
        for task_id, result in winners((one.task_id, one.state, one) for one in batch).items():
            self._keep(TASK_KEY + fitting_id(task_id), result.state, self.decode(result.data))

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """Not with this backend."""
        raise Unsupported("django-cache backend: results cannot ride in a broker's transaction")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """See `ResultBackend.fetch`."""
        asked = {TASK_KEY + fitting_id(task_id): task_id for task_id in task_ids}
        dumps = self._host.serializer(self._serializer_name).dumps
        with self._errors():
            found = self._cache.get_many(list(asked))
        return {
            asked[key]: value if isinstance(value, bytes) else dumps(value)
            for key, value in found.items()
            if value is not None
        }

    def watch(self, task_ids: Sequence[str]) -> Watch:
        """Not with this backend: core asks by itself."""
        raise Unsupported("django-cache backend: a cache does not tell of new results; core asks repeatedly")

    def forget(self, task_ids: Sequence[str]) -> None:
        """See `ResultBackend.forget`."""
        with self._errors():
            self._cache.delete_many([TASK_KEY + fitting_id(task_id) for task_id in task_ids])

    def cleanup(self) -> int:
        """Nothing to do: the cache removes what has expired."""
        return 0

    def save_group(self, group_id: str, members: Any) -> None:
        """See `GroupBackend.save_group`."""
        with self._errors():
            self._cache.set(GROUP_KEY + fitting_id(group_id), {"result": members}, self._timeout_s)

    def load_group(self, group_id: str) -> Any:
        """See `GroupBackend.load_group`."""
        with self._errors():
            kept = self._cache.get(GROUP_KEY + fitting_id(group_id))
        return None if kept is None else kept["result"]

    def delete_group(self, group_id: str) -> None:
        """See `GroupBackend.delete_group`."""
        with self._errors():
            self._cache.delete(GROUP_KEY + fitting_id(group_id))

    def ping(self, timeout_s: float) -> str:
        """See `ResultBackend.ping`."""
        key, word = f"celeriac-ping-{uuid.uuid4().hex}", "here"
        try:
            with self._errors():
                self._cache.set(key, word, 10)
                answer = self._cache.get(key)
        except BackendLost as exc:
            raise BackendUnreachable(str(exc), url="django-cache://", hint="Does the cache's server run?") from exc
        if answer != word:
            raise BackendUnreachable(
                f"django-cache backend: the cache {self._alias!r} ({type(self._cache).__name__}) keeps nothing.",
                url="django-cache://",
                hint="Name another of CACHES in the setting cache_backend.",
            )
        return f"{type(self._cache).__name__} of the Django project, cache {self._alias!r}"

    def after_fork(self) -> None:
        """See `ResultBackend.after_fork`: caches connect anew; those of the parent are neither used nor closed."""
        for cache in caches.all(initialized_only=True):
            _left_to_parents.append(cache)
        for alias in caches:
            try:
                del caches[alias]
            except AttributeError:
                continue  # not used by this thread so far

    def close(self) -> None:
        """See `ResultBackend.close`."""
        self._cache.close()

    @property
    def _cache(self) -> Any:
        try:
            return caches[self._alias]
        except InvalidCacheBackendError as exc:
            raise SettingError(
                f"django-cache backend: {exc} Name one of the project's CACHES in cache_backend.",
                setting="cache_backend",
            ) from exc

    def _keep(self, key: str, state: str, document: Document) -> None:
        with self._errors():
            if self._cache.add(key, document, self._timeout_s):
                return
            with self._locked(key):
                known = self._cache.get(key)
                if not isinstance(known, Mapping) or replaces(str(known.get("status")), state):
                    self._cache.set(key, document, self._timeout_s)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Nobody else replaces this key's value meanwhile; a dead holder's lock ends after `LOCK_S` seconds."""
        lock, deadline = LOCK_KEY + key, time.monotonic() + 2 * LOCK_S
        while not self._cache.add(lock, 1, LOCK_S):
            if time.monotonic() > deadline:
                raise BackendLost(f"django-cache backend: {key} was locked by another for too long")
            time.sleep(LOCK_PAUSE_S)
        try:
            yield
        finally:
            self._cache.delete(lock)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever the cache's client raises means that the cache is away."""
        try:
            yield
        except (BackendLost, SettingError):
            raise
        except Exception as exc:
            raise BackendLost(f"django-cache backend: the cache {self._alias!r}: {type(exc).__name__}: {exc}") from exc
