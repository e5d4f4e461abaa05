"""Is this SQLite file in a place that is fit for it? Called by the `diagnose` of the broker and of the result store."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from celeriac.spec.diagnosis import Finding
from celeriac_support_sqlite.file import Database
from celeriac_support_sqlite.wake import folder_of

#: File systems over a network. SQLite's log is shared memory, which they do not share.
REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph"})
LEAST_FREE_BYTES: Final = 256 * 2**20
LARGE_BYTES: Final = 4 * 2**30
LARGE_LOG_BYTES: Final = 512 * 2**20


def examine(database: Database) -> list[Finding]:
    """Look at the file, its log and the disk.

    Raises:
        StoreTrouble: The file cannot be read.
    """
    path = database.path
    folder = os.path.dirname(path)
    places = [folder, *filter(os.path.exists, (path, f"{path}-wal", f"{path}-shm", folder_of(path)))]
    # By the effective user, which the files are opened as, where the system can say.
    effective = os.access in os.supports_effective_ids
    closed = [place for place in places if not os.access(place, os.W_OK, effective_ids=effective)]
    if closed:  # reading may be refused, or may not: it says nothing about writing
        return list(_closed_to_us(closed))
    mode = database.read(lambda conn: str(conn.execute("PRAGMA journal_mode").fetchone()[0]))
    return list(
        judge(
            path,
            system=file_system_of(path),
            mode=mode,
            size=_size(path),
            log=_size(f"{path}-wal"),
            free=shutil.disk_usage(folder).free,
            public=[place for place in places[1:] if os.stat(place).st_mode & stat.S_IWOTH],
        )
    )


def _closed_to_us(places: Sequence[str]) -> Iterator[Finding]:
    yield Finding(
        "error",
        "permissions",
        f"This user ({os.geteuid()}) may not write to {', '.join(places)}, where all who use the file must: it has a "
        "log and a folder of wake-ups beside it.",
        "Run all of them as one user, or give the folder and its files to a group of theirs (chmod g+w, umask 002).",
    )


def judge(
    path: str, *, system: str, mode: str, size: int, log: int, free: int, public: Sequence[str] = ()
) -> Iterator[Finding]:
    """What is unsafe about a file of this size (bytes) in such a place.

    Args:
        log, free: The size of its log; what is free on its disk; in bytes.
        public: What of it every user of the machine may write to.
    """
    if public:
        yield Finding(
            "warning",
            "permissions",
            f"Every user of this machine may write to {', '.join(public)}: to send calls, and to change results.",
            "chmod o-w, and start what makes them with --umask=027.",
        )
    if system in REMOTE:
        yield Finding(
            "error",
            "file system",
            f"{path} is on {system}, over a network: its locks do not hold between machines, and the file breaks.",
            "Move it to a local disk, or use Redis or RabbitMQ for several machines.",
        )
    if mode != "wal":
        yield Finding(
            "warning",
            "journal",
            f"The journal mode of {path} is {mode}, not wal: readers and writers wait for each other.",
            "Close all programs that have it open and run: sqlite3 FILE 'PRAGMA journal_mode=wal'.",
        )
    if free < LEAST_FREE_BYTES:
        yield Finding(
            "error" if free < LEAST_FREE_BYTES / 8 else "warning",
            "disk",
            f"{free / 2**20:.0f} MiB are free on the disk of {path}; when it is full, calls are refused.",
            "Make room.",
        )
    if log > LARGE_LOG_BYTES:
        yield Finding(
            "warning",
            "log",
            f"The log beside {path} has {log / 2**20:.0f} MiB: a program that reads for a long time holds it back.",
            "Look for one that keeps a transaction open (fuser FILE).",
        )
    if size > LARGE_BYTES:
        yield Finding(
            "note",
            "size",
            f"{path} has {size / 2**30:.1f} GiB.",
            "Shorten result_expires, or give results a file of their own; VACUUM gives room back.",
        )


def file_system_of(path: str, mounts: str = "/proc/self/mounts") -> str:
    """The type of the file system that a path is on; empty where the system does not tell."""
    try:
        with open(mounts, encoding="utf-8", errors="replace") as lines:
            points = [line.split()[1:3] for line in lines if len(line.split()) > 2]
    except OSError:
        return ""
    path = os.path.realpath(path)
    best, found = "", ""
    for point, system in points:
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, system
    return found


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # not there
        return 0
