"""The folder in which the messages lie. What may be raced for is done by `rename`, which one process wins.

A message's file is called `due+unique+attempt`, with `due` in nanoseconds and as many digits in every name, so that
names sort by it; while a worker holds it, and among the dead, its queue's name stands before that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote


class Name(NamedTuple):
    """A message file's name, taken apart."""

    queue: str
    due_ns: int
    unique: str
    attempt: int

    @classmethod
    def read(cls, held: str) -> Name:
        """From the form `queue+due+unique+attempt`."""
        queue, due, unique, attempt = held.split("+")
        return cls(unquote(queue), int(due), unique, int(attempt))

    @property
    def waiting(self) -> str:
        """Its name in the folder of its queue."""
        return f"{self.due_ns:020d}+{self.unique}+{self.attempt}"

    @property
    def held(self) -> str:
        """Its name outside of that."""
        return f"{_quote(self.queue)}+{self.waiting}"


class Folder:
    """Queues, held messages and dead ones under one path."""

    def __init__(self, path: str) -> None:
        self.root = Path(path)
        self.exchanges = self.root / "exchanges"
        self.held = self.root / "held"
        self.dead = self.root / "dead"

    def make(self) -> None:
        """Make the folders."""
        for folder in (self.root / "queues", self.exchanges, self.held, self.dead):
            folder.mkdir(parents=True, exist_ok=True)

    def queue(self, name: str) -> Path:
        """The folder of a queue, which exists afterwards."""
        folder = self.root / "queues" / _quote(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def bind(self, exchange: str, kind: str, key: str, queue: str) -> None:
        """Let an exchange feed a queue: an empty file whose name says it all."""
        folder = self.exchanges / _quote(exchange)
        folder.mkdir(exist_ok=True)
        (folder / "+".join(map(_quote, (kind, key, queue)))).touch()

    def bindings(self, exchange: str) -> list[list[str]]:
        """`[kind, key, queue]` of each queue that an exchange feeds."""
        folder = self.exchanges / _quote(exchange)
        return [list(map(unquote, name.split("+"))) for name in os.listdir(folder)] if folder.exists() else []

    def put(self, queue: str, raw: bytes, due: float | None) -> None:
        """Add a message: written aside first, so that nobody sees half of one."""
        name = Name(queue, _nanoseconds(due), uuid.uuid4().hex, 1)
        aside = self.held / f"{name.held}.new"
        aside.write_bytes(raw)
        aside.rename(self.queue(queue) / name.waiting)

    def ready(self, queue: str) -> list[Name]:
        """The messages of a queue that are due, the oldest first."""
        now = f"{time.time_ns():020d}"
        return [Name.read(f"{_quote(queue)}+{name}") for name in sorted(os.listdir(self.queue(queue))) if name < now]

    def take(self, name: Name, into: Path) -> bytes | None:
        """Move a waiting message into a holder's folder and read it; None if another was faster."""
        try:
            (self.queue(name.queue) / name.waiting).rename(into / name.held)
        except FileNotFoundError:
            return None
        return (into / name.held).read_bytes()

    def put_back(self, file: Path, *, lost: bool, due: float | None = None) -> None:
        """Let a held message wait again, where it stood or until it is due; one that is gone is left alone."""
        name = Name.read(file.name)
        if due is not None:
            name = name._replace(due_ns=_nanoseconds(due))
        if lost:
            name = name._replace(attempt=name.attempt + 1)
        with contextlib.suppress(FileNotFoundError):  # settled already, or taken from us
            file.rename(self.queue(name.queue) / name.waiting)

    def bury(self, file: Path, reason: str, error: str) -> None:
        """Set a held message aside."""
        with contextlib.suppress(FileNotFoundError):
            file.rename(self.dead / file.name)
            said = f"{reason}\n{error}\n"  # of a task's, so any characters may be in it
            (self.dead / f"{file.name}.reason").write_text(said, "utf-8", "backslashreplace")

    def hold(self, owner: str) -> tuple[Path, int]:
        """A folder for what this owner takes, and a descriptor whose lock says that the owner lives."""
        folder = self.held / _quote(owner)
        descriptor = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder.mkdir()  # after the lock, so that nobody finds the folder without it
        return folder, descriptor

    def release(self, folder: Path) -> None:
        """Put back all that a holder has, as lost, and forget the holder. The caller has its lock."""
        for file in list(folder.iterdir()):
            self.put_back(file, lost=True)
        folder.rmdir()
        _lock_of(folder).unlink()

    def rescue(self) -> None:
        """Release the holders that have died: their lock is free."""
        for folder in [entry for entry in self.held.iterdir() if entry.is_dir()]:
            descriptor = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.exists():
                    self.release(folder)
                else:  # released by itself or another meanwhile; then the lock file is one that we made just now
                    _lock_of(folder).unlink(missing_ok=True)
            except BlockingIOError:
                pass  # it lives
            finally:
                os.close(descriptor)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _quote(name: str) -> str:
    """Any text as one file name without the characters that mean something here."""
    return quote(name, safe="").replace(".", "%2E")


def _nanoseconds(due: float | None) -> int:
    return time.time_ns() if due is None else int(due * 1e9)
