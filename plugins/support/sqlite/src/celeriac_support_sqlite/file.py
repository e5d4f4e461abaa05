"""One SQLite file and the connections to it: how it is opened, locked, given up after a fork, and what its errors mean.

The broker and the result store of celeriac call it, each with tables of its own (`Database`, part), often in one file.

Rules that keep SQLite calm under many processes: WAL; every write begins with `BEGIN IMMEDIATE`, so a
transaction never finds out late that it may not write; transactions are short; a connection is never used
by two threads at once and never after a fork.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qs, unquote

from celeriac.exceptions import ImproperlyConfigured, mask_url

DEFAULT_FILE: Final = "celeriac.db"
MIN_SQLITE: Final = (3, 35, 0)
LOCK_TIMEOUT_S: Final = 30.0
LEASE_S: Final = 15.0
#: How long to sleep before asking for the write lock again. SQLite's own pauses begin at a millisecond and grow
#: to a hundred; a transaction of ours holds the lock for a fraction of one.
FIRST_PAUSE_S: Final = 0.000_1
LONGEST_PAUSE_S: Final = 0.002
#: Of the write-ahead log, once it can be begun anew.
WAL_KEPT_BYTES: Final = 64 * 1024 * 1024
DURABILITIES: Final = {"process": "NORMAL", "host": "FULL"}

T = TypeVar("T")
Trouble = Literal["unreachable", "locked", "full", "lost"]


class StoreTrouble(Exception):
    """The file could not be used. The plugin turns it into an error of celeriac's own.

    Attributes:
        kind: `unreachable`: somebody must do something first; `locked`: another process kept the lock;
            `full`: no room, nothing was stored; `lost`: the file went away or broke under us.
        hint: What to do.
    """

    def __init__(self, kind: Trouble, message: str, hint: str = "") -> None:
        self.kind = kind
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}".strip())


class Location:
    """Where a `sqlite:` URL points, and the options in its query.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `sqlite://` for `celeriac.db` in the current folder;
            `?durability=host` waits for the disk at every commit, `process` (the default) does not; `?lease=15` is
            after how many seconds without a sign of life the broker gives a worker up.
        durability, lease: Instead of those in the URL.
    Raises:
        ImproperlyConfigured: The URL or the option makes no sense.
    """

    def __init__(self, url: str, durability: str | None = None, lease: Any = None) -> None:
        text, _, query = url.partition("?")
        rest = text.partition(":")[2]
        if rest.startswith("//"):
            host, slash, path = rest[2:].partition("/")
            if host:
                host = mask_url(f"x://{host}").removeprefix("x://")
                raise ImproperlyConfigured(
                    f"sqlite: {mask_url(url)!r} has {host!r} where a host would stand; a file beside you is "
                    f"sqlite:///{host}{slash}{path}, an absolute one sqlite:////{host}{slash}{path}"
                )
        else:
            path = rest
        if path == ":memory:":
            raise ImproperlyConfigured(f"sqlite: {url!r} would be private to one connection; use memory://")
        # Resolved now, so that a later chdir changes nothing and all names of a file are one.
        self.path = os.path.realpath(unquote(path) or DEFAULT_FILE)
        options = parse_qs(query)
        self.durability = durability or options.pop("durability", ["process"])[-1]
        self.lease_s = _seconds("lease", lease or options.pop("lease", [LEASE_S])[-1])
        if options:
            raise ImproperlyConfigured(
                f"sqlite: unknown option {sorted(options)[0]!r} in {url!r}; there are durability and lease"
            )
        if self.durability not in DURABILITIES:
            raise ImproperlyConfigured(
                f"sqlite: durability is {self.durability!r}; it can be {' or '.join(map(repr, DURABILITIES))}"
            )

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    @property
    def joint(self) -> str:
        """Equal for a broker and a result store in the same file: one transaction can serve both."""
        return f"sqlite:{self.path}"


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        raise ImproperlyConfigured(f"sqlite: {name} is {value!r}; it is a number of seconds above 0")
    return seconds


class Database:
    """Hands out connections to one file; safe for threads and for forks.

    Args:
        part: Names the tables that this plugin keeps in the file (`broker`, `backend`).
        version: Of these tables.
        schema: Statements that make them.
        upgrades: Version → statements that make the next version of it.
    """

    def __init__(
        self,
        location: Location,
        part: str,
        version: int,
        schema: Sequence[str],
        upgrades: Mapping[int, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise ImproperlyConfigured(
                f"sqlite: this Python has SQLite {sqlite3.sqlite_version}; celeriac needs "
                f"{'.'.join(map(str, MIN_SQLITE))} or newer"
            )
        self.path = location.path
        self._synchronous = DURABILITIES[location.durability]
        self._part = part
        self._version = version
        self._schema = schema
        self._upgrades = upgrades
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._identity: tuple[int, int] | None = None
        self._open: list[sqlite3.Connection] = []
        self._free: list[sqlite3.Connection] = []

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Borrow a connection for a moment; errors of SQLite come out as `StoreTrouble`."""
        conn = self._take()
        identity = self._identity
        try:
            yield conn
        except sqlite3.Error as exc:
            self.disconnect(conn)  # whatever state it is in, nobody gets it after us
            raise trouble(exc, self.path) from exc
        except BaseException:
            self.disconnect(conn)
            raise
        if self._identity == identity:
            self._free.append(conn)
        else:
            self.disconnect(conn)  # another thread has found the file replaced meanwhile: this is the old one

    @contextmanager
    def transaction(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[sqlite3.Connection]:
        """Borrow a connection for one write transaction: committed at the end, rolled back by any exception."""
        with self.connection() as conn:
            begin(conn, self.path, timeout_s)
            yield conn
            conn.execute("COMMIT")

    def read(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """What `step` reads with a borrowed connection; it may be called again."""
        with self.connection() as conn:
            return patiently(lambda: step(conn), self.path)

    def connect(self) -> sqlite3.Connection:
        """A new connection for the caller alone, who gives it to `disconnect`; the tables are in place.

        Raises:
            StoreTrouble: The file cannot be had.
        """
        self._forget_parent()
        try:
            # Connections move between threads, one at a time: a lock or a single owner sees to that.
            conn = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as exc:
            raise trouble(exc, self.path) from exc
        self._open.append(conn)
        try:
            self._prepare(conn)
        except sqlite3.Error as exc:
            self.disconnect(conn)
            raise trouble(exc, self.path) from exc
        except BaseException:
            self.disconnect(conn)
            raise
        return conn

    def disconnect(self, conn: sqlite3.Connection) -> None:
        """Close a connection, unless it is the parent's."""
        if conn in self._open:
            self._open.remove(conn)
            conn.close()

    def is_replaced(self) -> bool:
        """Whether the file we opened is no longer the one under our path (B30). SQLite would not tell."""
        return self._identity is not None and _identity(self.path) != self._identity

    def forget(self) -> None:
        """In a forked child: never touch the parent's connections again, not even to close them."""
        self._forget_parent(force=True)

    def close(self) -> None:
        """Close the connections that nobody has borrowed."""
        self._forget_parent()
        while self._free:
            self.disconnect(self._free.pop())

    def _take(self) -> sqlite3.Connection:
        self._forget_parent()
        if self.is_replaced():
            self.close()
        try:
            return self._free.pop()
        except IndexError:
            return self.connect()

    def _forget_parent(self, *, force: bool = False) -> None:
        if force or self._pid != os.getpid():
            _inherited.append(self._open)
            self._open, self._free = [], []
            self._identity = None
            self._lock = threading.Lock()
            self._pid = os.getpid()

    def _prepare(self, conn: sqlite3.Connection) -> None:
        patiently(lambda: conn.execute("PRAGMA journal_mode=WAL"), self.path)
        conn.execute(f"PRAGMA synchronous={self._synchronous}")
        conn.execute("PRAGMA temp_store=MEMORY")
        # So much a long reader's wake may keep of the disk; without it, all that it ever was.
        conn.execute(f"PRAGMA journal_size_limit={WAL_KEPT_BYTES}")
        with self._lock:
            # At every connection: a file may have been replaced by a fresh one that got the same inode.
            if patiently(lambda: _read_version(conn, self._part), self.path) != self._version:
                self._make_tables(conn)
            self._identity = _identity(self.path)

    def _make_tables(self, conn: sqlite3.Connection) -> None:
        begin(conn, self.path, LOCK_TIMEOUT_S)
        version = _read_version(conn, self._part)  # another process may have been quicker
        if version is None:
            conn.execute("CREATE TABLE IF NOT EXISTS celeriac_parts (part TEXT PRIMARY KEY, version INTEGER NOT NULL)")
            for statement in self._schema:
                conn.execute(statement)
            conn.execute("INSERT INTO celeriac_parts VALUES (?, ?)", (self._part, self._version))
            version = self._version
        while version in self._upgrades and version < self._version:
            for statement in self._upgrades[version]:
                conn.execute(statement)
            version += 1
            conn.execute("UPDATE celeriac_parts SET version = ? WHERE part = ?", (version, self._part))
        conn.execute("COMMIT")
        if version != self._version:
            raise StoreTrouble(
                "unreachable",
                f"the {self._part} tables in {self.path} have version {version}, this celeriac reads {self._version}.",
                "Use the version of celeriac that wrote them, or another file.",
            )


def column(text: str) -> str | bytes:
    """Any text as a column takes it (R11): UTF-8 has no lone surrogates, so a text with some is bytes there."""
    if text.isascii():
        return text
    data = text.encode("utf-8", "surrogatepass")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data
    return text


def text_of(value: str | bytes) -> str:
    """What `column` was given."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


def is_odd(text: str) -> bool:
    """Whether `json_each` would give this text back as another: one that ends at its first NUL, or none at all."""
    return "\0" in text or not isinstance(column(text), str)


def begin(conn: sqlite3.Connection, path: str, timeout_s: float) -> None:
    """Begin a write transaction, waiting at most `timeout_s` for the others' to end.

    Raises:
        StoreTrouble: `locked`, after that time.
        sqlite3.Error: As it comes; see `trouble`.
    """
    patiently(lambda: conn.execute("BEGIN IMMEDIATE"), path, timeout_s)


def patiently(step: Callable[[], T], path: str, timeout_s: float = LOCK_TIMEOUT_S) -> T:
    """Do it, again and again while the file is locked. Even a reader can meet a lock, for the moment in which another
    process opens the file after a crash or is the last to close it.

    Raises:
        StoreTrouble: `locked`, after `timeout_s`.
        sqlite3.Error: As it comes; see `trouble`.
    """
    pause_s = FIRST_PAUSE_S
    deadline: float | None = None
    while True:
        try:
            return step()
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc):
                raise
        if deadline is None:
            deadline = time.monotonic() + timeout_s
        elif time.monotonic() >= deadline:
            raise StoreTrouble(
                "locked",
                f"{path} was locked by another process for {timeout_s:g} seconds.",
                f"A transaction of celeriac takes milliseconds; see who has it: fuser {path}",
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)


def rollback(conn: sqlite3.Connection) -> None:
    """End a transaction that failed, if it is still open."""
    if conn.in_transaction:
        try:
            conn.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # SQLite has already rolled back by itself, or closing the connection will


def trouble(exc: sqlite3.Error, path: str) -> StoreTrouble:
    """What an error of SQLite means for a person."""
    text = str(exc)
    if "unable to open database file" in text:
        return _cannot_open(path)
    if "readonly" in text:
        return StoreTrouble("unreachable", f"{path} cannot be written.", _who_may_write(path))
    if "not a database" in text:
        return StoreTrouble(
            "unreachable", f"{path} is not a SQLite database.", "Name another file, or move this one away."
        )
    if "is full" in text:
        return StoreTrouble("full", f"there is no room to write {path}.", "Free some space on its disk.")
    if "locked" in text:
        return StoreTrouble("locked", f"{path} is locked by another process.", f"See who has it: fuser {path}")
    if "malformed" in text:
        return StoreTrouble(
            "unreachable", f"{path} is damaged: {text}.", f"Save what can be saved: sqlite3 {path} .recover"
        )
    return StoreTrouble("lost", f"{path}: {text}.")


def cannot_listen(folder: str, exc: OSError) -> StoreTrouble:
    """The folder of wake-ups (see `wake`) cannot be used."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreTrouble(
            "full", f"there is no room for a listener's files in {folder}.", "Free some space on its disk."
        )
    return StoreTrouble(
        "unreachable",
        f"a listener's files cannot be made in {folder}: {exc.strerror}.",
        f"User {os.getuid()} must be allowed to write there, and its file system must know FIFOs.",
    )


def _read_version(conn: sqlite3.Connection, part: str) -> int | None:
    try:
        row = conn.execute("SELECT version FROM celeriac_parts WHERE part = ?", (part,)).fetchone()
    except sqlite3.OperationalError as exc:
        if "no such table" in str(exc):
            return None
        raise
    return None if row is None else int(row[0])


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _cannot_open(path: str) -> StoreTrouble:
    folder = Path(path).parent
    try:
        if not folder.is_dir():
            return StoreTrouble("unreachable", f"the folder {folder} does not exist.", f"Make it: mkdir -p {folder}")
        if Path(path).is_dir():
            return StoreTrouble("unreachable", f"{path} is a folder.", "Name a file in it.")
    except PermissionError:
        pass  # a folder above is closed to this user, which is what will be said
    return StoreTrouble("unreachable", f"{path} cannot be opened.", _who_may_write(path))


def _who_may_write(path: str) -> str:
    return (
        f"User {os.getuid()} must be allowed to write the file and its folder {Path(path).parent} "
        f"(SQLite keeps its journal there)."
    )


#: Connections that came along in a fork. SQLite forbids to close them there, so they are kept from the collector.
_inherited: list[list[sqlite3.Connection]] = []
