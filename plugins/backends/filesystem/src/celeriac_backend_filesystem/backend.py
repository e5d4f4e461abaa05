"""The backend: one file for each result. Called by core, from any thread.

A file is written beside its place, flushed to the disk and renamed, so that a reader sees the old or the new one (S8).
Who replaces a state holds the lock of the file's shard meanwhile (R3); Celery's writers do not know that lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from zlib import crc32

from celeriac.exceptions import BackendLost, BackendStoreError, BackendUnreachable, SettingError, Unsupported
from celeriac.spec import CLAIM_S, Chord, ChordClaim, ChordPart, Document, Host, Serializer, StoredResult, Watch
from celeriac.spec.results import ResultCompression
from celeriac.states import FAILURE, READY_STATES, SUCCESS
from celeriac_backend_filesystem.chords import Chords

TASK_KEY: Final = "celery-task-meta-"
GROUP_KEY: Final = "celery-taskset-meta-"
#: A folder within the folder, for locks and for files that are being written.
OWN_FOLDER: Final = ".celeriac"
#: A folder within that one.
CHORDS_FOLDER: Final = "chords"
SHARDS: Final = 64
#: File names have 255 bytes; longer ids are hashed.
LONGEST_ID_BYTES: Final = 200
EXPIRED_PER_CLEANUP: Final = 10_000
#: What is older and still not renamed was left behind by a writer that died.
LEFT_BEHIND_S: Final = 3600


class FilesystemBackend:
    """See `celeriac.spec.ResultBackend`."""

    abilities = frozenset({"count", "groups", "persistent", "shared"})
    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self._url = url
        self._folder = _folder_of(url)
        self._host = host
        self._compression = ResultCompression(settings)
        self._serializer_name: str = settings.get("result_serializer") or "json"
        self._lifetime_s = _lifetime_s(settings.get("result_expires"))
        lifetime_s = _lifetime_s(settings.get("result_chord_expires") or settings.get("result_expires"))
        self._chords = Chords(self._chord_path, lifetime_s, self._locked, self._write)

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        """See `ResultBackend.encode`."""
        return self._compression.pack(serializer.dumps(document), document.get("status"))

    def decode(self, data: bytes) -> Document:
        """See `ResultBackend.decode`."""
        document: Document = self._serializer.loads(self._compression.unpack(data))
        return document

    def store(self, batch: Sequence[StoredResult]) -> None:
        """See `ResultBackend.store`. A result that is too big for the file system is kept as a FAILURE that says so."""
        with self._errors():
            for result in batch:
                path = self._path(TASK_KEY, result.task_id)
                with self._locked(path):
                    known = self._status(path)
                    if known is None or _replaces(known, result.state):
                        self._keep(path, result)
            self._sync(self._folder)

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """Not with this backend."""
        raise Unsupported("filesystem backend: results cannot ride in a broker's transaction")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """See `ResultBackend.fetch`."""
        with self._errors():
            found = {task_id: _read(self._path(TASK_KEY, task_id)) for task_id in task_ids}
        return {task_id: data for task_id, data in found.items() if data is not None}

    def watch(self, task_ids: Sequence[str]) -> Watch:
        """Not with this backend: core asks by itself."""
        raise Unsupported("filesystem backend: a folder does not tell of new results; core asks repeatedly")

    def forget(self, task_ids: Sequence[str]) -> None:
        """See `ResultBackend.forget`."""
        with self._errors():
            for task_id in task_ids:
                self._path(TASK_KEY, task_id).unlink(missing_ok=True)

    def cleanup(self) -> int:
        """See `ResultBackend.cleanup`: files older than `result_expires`, by the file system's clock."""
        with self._errors():
            now = self._clock()
            self._remove(self._own_folder(), "new-", now - LEFT_BEHIND_S)
            removed = self._chords.expire(self._chord_folder(), now, EXPIRED_PER_CLEANUP)
            if self._lifetime_s:
                removed += self._remove(self._folder, "celery-task", now - self._lifetime_s)
            return removed

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """See `ChordBackend.open_chords`."""
        with self._errors():
            self._chords.open(chords, self._clock())
            self._sync(self._chord_folder())

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.join`."""
        with self._errors():
            claims = self._chords.join(parts, claim_s, self._clock())
            self._sync(self._chord_folder())
        return claims

    def grow_chord(self, group: str, task_id: str) -> None:
        """See `ChordBackend.grow_chord`."""
        with self._errors():
            self._chords.grow(group)

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        """See `ChordBackend.close_chords`."""
        with self._errors():
            self._chords.close(claims, self._clock())

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.overdue_chords`."""
        with self._errors():
            return self._chords.overdue(self._chord_folder(), limit, claim_s, self._clock())

    def save_group(self, group_id: str, members: Any) -> None:
        """See `GroupBackend.save_group`."""
        with self._errors():
            self._write(self._path(GROUP_KEY, group_id), self._serializer.dumps({"result": members}))
            self._sync(self._folder)

    def load_group(self, group_id: str) -> Any:
        """See `GroupBackend.load_group`."""
        with self._errors():
            data = _read(self._path(GROUP_KEY, group_id))
        return None if data is None else self._serializer.loads(data)["result"]

    def delete_group(self, group_id: str) -> None:
        """See `GroupBackend.delete_group`."""
        with self._errors():
            self._path(GROUP_KEY, group_id).unlink(missing_ok=True)

    def ping(self, timeout_s: float) -> str:
        """See `ResultBackend.ping`: a file can be written there."""
        try:
            self._clock()
        except OSError as exc:
            raise BackendUnreachable(
                f"filesystem backend: {self._folder}: {exc.strerror}.",
                url=self._url,
                hint="The folder must exist, and this user must be allowed to write into it.",
            ) from exc
        return f"the folder {self._folder}"

    def after_fork(self) -> None:
        """Nothing is held open between two calls."""

    def close(self) -> None:
        """Nothing is held open between two calls."""

    # how it is done

    @property
    def _serializer(self) -> Serializer:
        return self._host.serializer(self._serializer_name)

    def _path(self, prefix: str, text: str) -> Path:
        """Where a result is."""
        return self._folder / (prefix + _fitting(text))

    def _chord_path(self, group: str) -> Path:
        return self._chord_folder() / _fitting(group)

    def _own_folder(self) -> Path:
        return _made(self._folder / OWN_FOLDER)  # the folder above is the user's to make

    def _chord_folder(self) -> Path:
        return _made(self._own_folder() / CHORDS_FOLDER)

    def _write(self, path: Path, data: bytes) -> None:
        new = self._own_folder() / f"new-{uuid.uuid4().hex}"
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    @staticmethod
    def _sync(folder: Path) -> None:
        """Names are on the disk too."""
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Nobody else of ours replaces this file meanwhile. The system lets go for a process that dies."""
        shard = crc32(os.fsencode(path.name)) % SHARDS
        fd = os.open(self._own_folder() / f"lock-{shard:02}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _keep(self, path: Path, result: StoredResult) -> None:
        try:
            self._write(path, result.data)
        except OSError as exc:
            if exc.errno != errno.EFBIG:
                raise
            described = {
                "exc_type": "BackendStoreError",
                "exc_message": [
                    f"the result of {len(result.data)} bytes ({result.state}) could not be stored: {exc.strerror}"
                ],
                "exc_module": "celery.exceptions",
            }
            document = {**self.decode(result.data), "status": FAILURE, "result": described}
            for name in ("args", "kwargs"):
                document.pop(name, None)  # they may be what was too big
            self._write(path, self._serializer.dumps(document))

    def _status(self, path: Path) -> str | None:
        data = _read(path)
        if data is None:
            return None
        try:
            return str(self.decode(data)["status"])
        except (ValueError, KeyError, TypeError):
            return None  # not a result: something else may stand there instead

    def _clock(self) -> float:
        """The time that a file written now has; another machine's, if the folder is on a server."""
        probe = self._own_folder() / f"new-{uuid.uuid4().hex}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    @staticmethod
    def _remove(folder: Path, prefix: str, before: float) -> int:
        removed = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                if removed >= EXPIRED_PER_CLEANUP:
                    break
                if not entry.name.startswith(prefix):
                    continue
                try:
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)
                        removed += 1
                except FileNotFoundError:
                    continue  # another's cleanup was quicker
        return removed

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the system says into errors of ours."""
        try:
            yield
        except FileNotFoundError as exc:
            raise BackendUnreachable(
                f"filesystem backend: the folder {self._folder} is not there.",
                url=self._url,
                hint="Make it, or mount it.",
            ) from exc
        except OSError as exc:
            if exc.errno in (errno.EFBIG, errno.ENAMETOOLONG):
                raise BackendStoreError(f"filesystem backend: {self._folder}: {exc.strerror}") from exc
            raise BackendLost(f"filesystem backend: {self._folder}: {exc.strerror}") from exc


def _fitting(text: str) -> str:
    """An id as a file's name takes it: as it is, or its hash (R11)."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > LONGEST_ID_BYTES or "/" in text or "\0" in text or text in ("", ".", ".."):
        return "sha256-" + hashlib.sha256(data).hexdigest()
    return text


def _made(folder: Path) -> Path:
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
    return folder


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if path.parent.is_dir():
            return None
        raise


def _replaces(old: str, new: str) -> bool:
    """R3: a success is final, and what is ready is not undone by what is not."""
    return old != SUCCESS and (old not in READY_STATES or new in READY_STATES)


def _folder_of(url: str) -> Path:
    """The folder of a `file:///folder` URL.

    Raises:
        SettingError: It names none, or one of another machine.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
        raise SettingError(
            f"filesystem backend: {url!r} names no folder of this machine; write file:///var/lib/results, with three "
            "slashes.",
            setting="result_backend",
        )
    return Path(unquote(parts.path))


def _lifetime_s(expires: Any) -> float:
    """`result_expires` in seconds; 0 when results are kept for ever.

    Raises:
        SettingError: Neither a number nor a timedelta.
    """
    try:
        return expires.total_seconds() if isinstance(expires, timedelta) else float(expires or 0)
    except (TypeError, ValueError):
        raise SettingError(
            f"filesystem backend: result_expires is {expires!r}; give seconds or a timedelta", setting="result_expires"
        ) from None
