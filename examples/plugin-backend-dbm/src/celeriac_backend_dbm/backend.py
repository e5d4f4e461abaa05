"""Results in a dbm file. One lock guards it, so each call sees and leaves a whole file.

A value is the time when it was written, a line feed, and the document as the result serializer writes it.
"""

from __future__ import annotations

import dbm.dumb
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from celeriac.exceptions import BackendLost, BackendUnreachable, Unsupported
from celeriac.spec import Document, Host, Serializer, StoredResult, Watch
from celeriac.states import READY_STATES, SUCCESS


class DbmBackend:
    """See `celeriac.spec.ResultBackend`: every promise is written down there."""

    abilities = frozenset({"persistent", "shared"})
    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self._path = url.partition("://")[2]
        expires = settings.get("result_expires") or 0
        self._lifetime_s = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
        self._serializer_name = settings.get("result_serializer") or "json"
        self._host = host

    # Documents: `encode` runs in pool slots beside the task, so it takes the serializer as an argument.

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        return serializer.dumps(document)

    def decode(self, data: bytes) -> Document:
        document: Document = self._host.serializer(self._serializer_name).loads(data)
        return document

    # Storing: a success is final, and what is ready is not undone by what is not (R3).

    def store(self, batch: Sequence[StoredResult]) -> None:
        with self._file() as file:
            for result in batch:
                known = file.get(result.task_id.encode())
                if known is None or self._may_replace(known, result.state):
                    file[result.task_id.encode()] = b"%f\n" % time.time() + result.data

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        with self._file() as file:
            found = {task_id: file.get(task_id.encode()) for task_id in task_ids}
        return {task_id: value.partition(b"\n")[2] for task_id, value in found.items() if value is not None}

    def forget(self, task_ids: Sequence[str]) -> None:
        with self._file() as file:
            for task_id in task_ids:
                file.pop(task_id.encode(), None)

    def cleanup(self) -> int:
        if not self._lifetime_s:
            return 0
        before = time.time() - self._lifetime_s
        with self._file() as file:
            old = [key for key in file.keys() if float(file[key].partition(b"\n")[0]) < before]  # noqa: SIM118
            for key in old:
                del file[key]
        return len(old)

    # What it cannot do, it does not declare among its abilities, and is never asked for.

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        raise Unsupported("dbm backend: results cannot ride in a broker's transaction")

    def watch(self, task_ids: Sequence[str]) -> Watch:
        raise Unsupported("dbm backend: a file does not tell of new results")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    # Life: the file is open during a call only, so there is nothing to let go of.

    def ping(self, timeout_s: float) -> str:
        try:
            with self._file():
                return f"the dbm file {self._path}"
        except BackendLost as exc:
            raise BackendUnreachable(str(exc), url=f"dbm://{self._path}", hint="Is its folder there?") from exc

    def after_fork(self) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Nothing is open."""

    def _may_replace(self, value: bytes, state: str) -> bool:
        try:
            known = self.decode(value.partition(b"\n")[2])["status"]
        except (ValueError, LookupError, TypeError):
            return True  # no document of ours
        return known != SUCCESS and (known not in READY_STATES or state in READY_STATES)

    @contextmanager
    def _file(self) -> Iterator[MutableMapping[bytes, bytes]]:
        """The open file, nobody else's meanwhile. Errors of the system's become the contract's."""
        try:
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as exc:
            raise BackendLost(f"dbm backend: {self._path}: {exc.strerror}.") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with dbm.dumb.open(self._path, "c") as file:
                yield file
        except OSError as exc:
            raise BackendLost(f"dbm backend: {self._path}: {exc.strerror}.") from exc
        finally:
            os.close(lock)
