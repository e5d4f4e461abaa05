"""The backend: keeps results under Celery's keys in a cache. Called by core, from any thread."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from pymemcache.exceptions import MemcacheError, MemcacheServerError

from celeriac.exceptions import BackendLost, BackendUnreachable, SettingError, Unsupported
from celeriac.spec import CLAIM_S, Chord, ChordClaim, ChordPart, Document, Host, Serializer, StoredResult, Watch
from celeriac.spec.results import ResultCompression
from celeriac.states import FAILURE, READY_STATES, SUCCESS
from celeriac_backend_memcached.chords import CAS_TRIES, Chords, is_too_large
from celeriac_backend_memcached.servers import make_cache

TASK_KEY: Final = "celery-task-meta-"
GROUP_KEY: Final = "celery-taskset-meta-"
PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
#: What is longer than thirty days the server takes for a unix time.
LONGEST_RELATIVE_S: Final = 2_592_000
PRIVATE: Final = frozenset({"count", "expire", "groups", "persistent"})


class MemcachedBackend:
    """See `celeriac.spec.ResultBackend`. Connects when first needed."""

    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self._cache, is_shared = make_cache(url, settings)
        self.abilities = PRIVATE | {"shared"} if is_shared else PRIVATE
        self._url = url
        self._host = host
        self._compression = ResultCompression(settings)
        self._serializer_name: str = settings.get("result_serializer") or "json"
        self._lifetime_s = _lifetime_s(settings.get("result_expires"))
        self._chord_lifetime_s = _lifetime_s(settings.get("result_chord_expires") or settings.get("result_expires"))
        self._chords = Chords(
            self._cache,
            fitting=lambda group: _key("", group),
            expire=lambda least_s: _until(max(self._chord_lifetime_s, int(least_s))),
            failed=self._failed_part,
        )
        self._pid = os.getpid()

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        """See `ResultBackend.encode`."""
        return self._compression.pack(serializer.dumps(document), document.get("status"))

    def decode(self, data: bytes) -> Document:
        """See `ResultBackend.decode`."""
        document: Document = self._serializer.loads(self._compression.unpack(data))
        return document

    def store(self, batch: Sequence[StoredResult]) -> None:
        """See `ResultBackend.store`. A result that is too big for the server is kept as a FAILURE that says so."""
        for result in batch:
            try:
                self._keep(result.task_id, result.state, result.data)
            except _TooBig as exc:
                self._keep(result.task_id, FAILURE, self._failure(result, exc))

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """Not with this backend."""
        raise Unsupported("memcached backend: results cannot ride in a broker's transaction")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """See `ResultBackend.fetch`."""
        asked = {_key(TASK_KEY, task_id): task_id for task_id in task_ids}
        with self._errors():
            found = self._cache.get_many(asked)
        return {asked[key]: data for key, data in found.items()}

    def watch(self, task_ids: Sequence[str]) -> Watch:
        """Not with this backend: core asks by itself."""
        raise Unsupported("memcached backend: Memcached does not tell of new results; core asks repeatedly")

    def forget(self, task_ids: Sequence[str]) -> None:
        """See `ResultBackend.forget`."""
        with self._errors():
            for task_id in task_ids:
                self._cache.delete(_key(TASK_KEY, task_id))

    def cleanup(self) -> int:
        """Nothing to do: the server removes what has expired."""
        return 0

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """See `ChordBackend.open_chords`.

        Raises:
            BackendStoreError: One has more parts than fit.
        """
        with self._errors():
            self._chords.open(chords)

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.join`. A part that is too big for the server is kept as one that failed."""
        with self._errors():
            return self._chords.join(parts, claim_s)

    def grow_chord(self, group: str, task_id: str) -> None:
        """See `ChordBackend.grow_chord`."""
        with self._errors():
            self._chords.grow(group)

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        """See `ChordBackend.close_chords`."""
        with self._errors():
            self._chords.close(claims)

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.overdue_chords`."""
        with self._errors():
            return self._chords.overdue(limit, claim_s)

    def save_group(self, group_id: str, members: Any) -> None:
        """See `GroupBackend.save_group`."""
        data = self._serializer.dumps({"result": members})
        with self._errors():
            self._cache.set(_key(GROUP_KEY, group_id), data, self._expire())

    def load_group(self, group_id: str) -> Any:
        """See `GroupBackend.load_group`."""
        key = _key(GROUP_KEY, group_id)
        with self._errors():
            data = self._cache.get_many([key]).get(key)
        return None if data is None else self._serializer.loads(data)["result"]

    def delete_group(self, group_id: str) -> None:
        """See `GroupBackend.delete_group`."""
        with self._errors():
            self._cache.delete(_key(GROUP_KEY, group_id))

    def ping(self, timeout_s: float) -> str:
        """See `ResultBackend.ping`."""
        try:
            with self._errors():
                return self._cache.version()
        except BackendLost as exc:
            raise BackendUnreachable(f"{exc}.", url=self._url, hint="Do all the servers run?") from exc

    def after_fork(self) -> None:
        """See `ResultBackend.after_fork`."""
        self._pid = os.getpid()
        self._cache.after_fork()

    def close(self) -> None:
        """See `ResultBackend.close`."""
        if os.getpid() == self._pid:
            self._cache.close()

    # how it is done

    @property
    def _serializer(self) -> Serializer:
        return self._host.serializer(self._serializer_name)

    def _keep(self, task_id: str, state: str, data: bytes) -> None:
        """R3 by compare-and-swap: what was read is replaced only if it is still what was read."""
        key = _key(TASK_KEY, task_id)
        with self._errors():
            for _ in range(CAS_TRIES):
                if self._cache.add(key, data, self._expire()):
                    return
                known, mark = self._cache.gets(key)
                if known is None:
                    continue  # it has expired or was forgotten in between
                old = self._status(known)
                if old is not None and not _replaces(old, state):
                    return
                if self._cache.cas(key, data, mark, self._expire()):
                    return
        raise BackendLost(
            f"memcached backend: the result of {task_id} was changed by others {CAS_TRIES} times in a row"
        )

    def _status(self, data: bytes) -> str | None:
        try:
            return str(self.decode(data)["status"])
        except (ValueError, KeyError, TypeError):
            return None  # not a result: what stands there is replaced

    def _expire(self) -> int:
        return _until(self._lifetime_s)

    def _failure(self, result: StoredResult, exc: Exception) -> bytes:
        described = _refused(f"the result of {len(result.data)} bytes ({result.state})", exc)
        document = {**self.decode(result.data), "status": FAILURE, "result": described}
        for name in ("args", "kwargs"):
            document.pop(name, None)  # they may be what was too big
        return self._serializer.dumps(document)

    def _failed_part(self, part: ChordPart, exc: Exception) -> bytes:
        described = _refused(f"the part of {len(part.data)} bytes", exc)
        return self._serializer.dumps([1, part.task_id, FAILURE, described])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what pymemcache raises into errors of ours."""
        try:
            yield
        except MemcacheServerError as exc:
            if is_too_large(exc):
                raise _TooBig(
                    "the server takes no values of that size (memcached -I says how large they may be, 1 MB by default)"
                ) from exc
            raise BackendLost(f"memcached backend: the server says: {exc}") from exc
        except (MemcacheError, OSError) as exc:
            raise BackendLost(f"memcached backend: {type(exc).__name__}: {exc}") from exc


class _TooBig(BackendLost):
    """A value that the server refuses for its size."""


def _refused(what: str, exc: Exception) -> dict[str, Any]:
    """A failure as it is stored: the server refuses this."""
    return {
        "exc_type": "BackendStoreError",
        "exc_message": [f"{what} could not be stored: {exc}"],
        "exc_module": "celery.exceptions",
    }


def _until(lifetime_s: int) -> int:
    """As the protocol has it: seconds, or a unix time; 0 for ever."""
    return lifetime_s if lifetime_s <= LONGEST_RELATIVE_S else int(time.time()) + lifetime_s


def _replaces(old: str, new: str) -> bool:
    """R3: a success is final, and what is ready is not undone by what is not."""
    return old != SUCCESS and (old not in READY_STATES or new in READY_STATES)


def _key(prefix: str, text: str) -> str:
    """An id as a key takes it: as it is, or its hash (R11)."""
    if not PLAIN_ID.fullmatch(text):
        text = "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return prefix + text


def _lifetime_s(expires: Any) -> int:
    """`result_expires` in whole seconds; 0 when results are kept for ever.

    Raises:
        SettingError: Neither a number nor a timedelta.
    """
    try:
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires or 0)
    except (TypeError, ValueError):
        raise SettingError(
            f"memcached backend: result_expires is {expires!r}; give seconds or a timedelta", setting="result_expires"
        ) from None
    return max(1, int(seconds)) if seconds > 0 else 0
