"""Who is there, and who sleeps: wake-ups and signs of life between the processes that share one SQLite file.

Beside the file lies a folder `<file>.wake`. Each listener (a consumer, or a client that waits for results) keeps
two files there: a FIFO that it sleeps on, and a page of memory that everybody maps. The page says whether
the listener sleeps, which topics it cares about, and when it last gave a sign of life. So a busy listener costs a
sender one look at memory, and a sleeping one is awake within a fraction of a millisecond. The page's file is
also locked (flock) while its process lives: the kernel lets go of it at the moment of death, however that comes.

A wake-up may be lost; whoever sleeps looks again after half a second. The broker's consumer and the result store's
watch are listeners; whatever writes to the file rings.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Final
from zlib import crc32

TOPICS: Final = 256
#: The page: byte 0 says «asleep», bytes 8-15 when it last lived (CLOCK_MONOTONIC), then one byte for each topic.
_ASLEEP: Final = 0
_LIVED: Final = 8
_FIRST_TOPIC: Final = 16
_PAGE_BYTES: Final = _FIRST_TOPIC + TOPICS
_time = struct.Struct("<d")
#: A folder's time stamp has the kernel's tick as its grain: a list made sooner after it may be out of date.
_TICK_S: Final = 0.05


def folder_of(path: str) -> str:
    return f"{path}.wake"


def topic(name: str) -> int:
    """The byte in every page that stands for this name; others may share it, which costs a spurious wake-up."""
    return _FIRST_TOPIC + crc32(name.encode("utf-8", "surrogatepass")) % TOPICS


class Ear:
    """One listener. Used by one thread, `live` excepted.

    Args:
        path: Of the SQLite file.
        name: Of one that is let go of, to take its place; None: a new one.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        folder = folder_of(path)
        os.makedirs(folder, exist_ok=True)
        self._path = path
        self.name = name or f"{os.getpid()}-{secrets.token_hex(6)}"
        self.page = os.path.abspath(os.path.join(folder, f"{self.name}.page"))
        self._fifo_path = os.path.join(folder, f"{self.name}.fifo")
        os.mkfifo(self._fifo_path)
        # Opened for both directions: it never reports the end of file when the last sender closes its end.
        self.fd = os.open(self._fifo_path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock_fd = os.open(self.page + ".new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        # Written, not just stretched: a full disk is then an error here, not a fatal signal at the first store.
        os.write(self._lock_fd, bytes(_PAGE_BYTES))
        self._page = mmap.mmap(self._lock_fd, _PAGE_BYTES)
        self._wanted = [0] * _PAGE_BYTES
        self.live()
        # Only now do others see it: complete, locked and alive.
        os.rename(self.page + ".new", self.page)
        self.is_open = True
        _ears.add(self)

    def listen(self, topics: Iterable[int]) -> None:
        """Care about these topics too. Each counts as often as it is given."""
        for slot in topics:
            self._wanted[slot] += 1
            self._page[slot] = 1

    def ignore(self, topics: Iterable[int]) -> None:
        """Take back one `listen` for each of these."""
        for slot in topics:
            self._wanted[slot] -= 1
            if not self._wanted[slot]:
                self._page[slot] = 0

    def sleep(self) -> None:
        """Ask to be woken. Look for work after this, not before: what comes in between is then announced."""
        self._page[_ASLEEP] = 1

    def rise(self) -> None:
        """No need to be woken."""
        self._page[_ASLEEP] = 0

    def poke(self) -> None:
        """Make the descriptor readable for oneself."""
        try:
            os.write(self.fd, b"\0")
        except BlockingIOError:
            pass  # it is full of wake-ups, hence readable

    def drain(self) -> None:
        """Make the descriptor unreadable until the next wake-up."""
        try:
            os.read(self.fd, 65536)
        except BlockingIOError:
            pass  # nothing there

    def live(self) -> None:
        """Give a sign of life: one store to memory, which nothing can hold up."""
        try:
            _time.pack_into(self._page, _LIVED, time.monotonic())
        except ValueError:
            pass  # closed at this moment by its own thread

    def is_given_up(self) -> bool:
        """Whether others have taken us for dead: they remove our page first."""
        try:
            return os.fstat(self._lock_fd).st_nlink == 0
        except OSError:
            return False  # closed at this moment by its own thread

    def again(self) -> Ear:
        """Another of this name, whose files somebody has removed; then this one is to be let go of."""
        remove(folder_of(self._path), self.name)
        return Ear(self._path, self.name)

    def close(self) -> None:
        if self.is_open:
            self.let_go()
            for path in (self.page, self._fifo_path):
                _unlink(path)

    def let_go(self) -> None:
        """Let go of descriptors and memory, and leave the files."""
        self.is_open = False
        self._page.close()
        os.close(self._lock_fd)
        os.close(self.fd)


class Pulse:
    """Signs of life for an ear whose own process cannot give them; from another process.

    Args:
        page: The ear's `page`.
    """

    def __init__(self, page: str) -> None:
        fd = os.open(page, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._page = mmap.mmap(fd, _PAGE_BYTES)
        finally:
            os.close(fd)

    def renew(self) -> None:
        """As `Ear.live`. One that was given up has no page any more that others would see."""
        _time.pack_into(self._page, _LIVED, time.monotonic())


class _Listener:
    """A sender's view of an ear."""

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        page_fd = os.open(os.path.join(folder, f"{name}.page"), os.O_RDWR | os.O_CLOEXEC)
        self._inode = os.fstat(page_fd).st_ino
        try:
            self.page = mmap.mmap(page_fd, _PAGE_BYTES)
        finally:
            os.close(page_fd)
        try:
            # Fails at once when nobody has it open for reading, that is, when its process is gone.
            self.fd = os.open(os.path.join(folder, f"{name}.fifo"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.page.close()
            raise

    def is_present(self, folder: str) -> bool:
        """Whether its page is still the one that we have."""
        try:
            return os.stat(os.path.join(folder, f"{self.name}.page")).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        self.page.close()
        os.close(self.fd)


class Bell:
    """Wakes the listeners of one file. Safe for threads and after a fork."""

    def __init__(self, path: str) -> None:
        self._folder = folder_of(path)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._listeners: dict[str, _Listener] = {}
        self._seen_ns = 0

    def ring(self, topics: Iterable[int]) -> None:
        """Wake those who sleep and care about one of these topics. Never fails: what it announces is written."""
        if self._pid != os.getpid():
            self._forget()
        slots = list(topics)
        with self._lock:
            try:
                listeners = self._present()
            except OSError:
                return  # no such folder, no descriptors left …: the listeners look by themselves in a moment
            for listener in listeners:
                if listener.page[_ASLEEP] and any(listener.page[slot] for slot in slots):
                    self._wake(listener)

    def close(self) -> None:
        with self._lock:
            for listener in self._listeners.values():
                listener.close()
            self._listeners = {}
            self._seen_ns = 0

    def _wake(self, listener: _Listener) -> None:
        listener.page[_ASLEEP] = 0
        try:
            os.write(listener.fd, b"\0")
        except BlockingIOError:
            pass  # it has not read its earlier wake-ups yet
        except OSError:
            self._seen_ns = 0  # it is gone: look at the folder again next time

    def _present(self) -> Iterable[_Listener]:
        changed_ns = os.stat(self._folder).st_mtime_ns
        if changed_ns != self._seen_ns:
            self._look()
            settled = time.time_ns() - changed_ns > _TICK_S * 1e9
            self._seen_ns = changed_ns if settled else 0
        return self._listeners.values()

    def _look(self) -> None:
        names = set(listener_names(self._folder))
        for listener in list(self._listeners.values()):
            if not listener.is_present(self._folder):
                self._listeners.pop(listener.name).close()
        for name in names - self._listeners.keys():
            try:
                self._listeners[name] = _Listener(self._folder, name)
            except (OSError, ValueError):
                sweep(self._folder, name)  # left by a process that was killed, or going at this moment

    def _forget(self) -> None:
        """In a forked child: another thread of the parent may have had the lock at that moment."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        for listener in list(self._listeners.values()):
            listener.close()
        self._listeners = {}
        self._seen_ns = 0


def listener_names(folder: str) -> list[str]:
    return [entry[:-5] for entry in os.listdir(folder) if entry.endswith(".page")]


def is_alive(folder: str, name: str, lease_s: float) -> bool:
    """Whether the process behind this listener lives and has said so within `lease_s` seconds."""
    try:
        fd = os.open(os.path.join(folder, f"{name}.page"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it cannot be told now (no descriptors left, for instance), so nobody is taken for dead
    try:
        # A shared lock, so that two who ask at once do not take each other for the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        (lived,) = _time.unpack(os.pread(fd, _time.size, _LIVED))
        return bool(time.monotonic() - lived <= lease_s)
    finally:
        os.close(fd)
    return False


def lost_its_page(folder: str, name: str) -> bool:
    """Whether only the listener's page is gone, and its process is there: somebody has cleared the folder. False where
    it cannot be told."""
    if os.path.exists(os.path.join(folder, f"{name}.page")):
        return False
    try:
        with open(f"/proc/{name.partition('-')[0]}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def remove(folder: str, name: str) -> None:
    """Remove what a listener left; one that lives after all learns from it that it was given up."""
    for suffix in (".page", ".fifo"):
        _unlink(os.path.join(folder, name + suffix))


def sweep(folder: str, name: str) -> None:
    """Remove what a dead listener left; whose page is missing counts as dead."""
    if not is_alive(folder, name, float("inf")):
        remove(folder, name)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # already gone, or the folder is; what stays behind is swept by others


def _leave_ears_to_parent() -> None:
    """In a forked child: let go of the parent's ears, so that its locks end with it and not with us."""
    for ear in list(_ears):
        if ear.is_open:
            ear.let_go()
    _ears.clear()


_ears: weakref.WeakSet[Ear] = weakref.WeakSet()
os.register_at_fork(after_in_child=_leave_ears_to_parent)
