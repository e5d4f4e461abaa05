"""Names for tasks, clients and workers."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import count
from uuid import NAMESPACE_OID, uuid5

_derived: ContextVar[Iterator[str] | None] = ContextVar("celeriac_derived_ids", default=None)


def uuid() -> str:
    """A random task id: the text of a uuid4, without the cost of a `uuid.UUID`."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def next_id() -> str:
    """The id of a call in a canvas that has none so far: a random one, or within `derived_ids` the next of these."""
    ids = _derived.get()
    return uuid() if ids is None else next(ids)


@contextmanager
def derived_ids(origin: str) -> Iterator[None]:
    """Within it, `next_id` gives ids that follow from `origin` and their order: the same each time."""
    token = _derived.set(derived_uuid(f"{origin} {n}") for n in count())
    try:
        yield
    finally:
        _derived.reset(token)


def derived_uuid(origin: str) -> str:
    """The task id that follows from `origin`: the same for the same text."""
    return str(uuid5(NAMESPACE_OID, ascii(origin)))  # ids come from outside, and may hold what UTF-8 does not


@lru_cache(maxsize=1)
def hostname() -> str:
    """This machine's name."""
    return socket.gethostname()


def anon_nodename() -> str:
    """The name of a client without a node name, as message headers carry it: `gen<pid>@<host>`."""
    return f"gen{os.getpid()}@{hostname()}"


def default_nodename(name: str | None = None) -> str:
    """A worker's node name from what the user gave: `w1` → `celery@w1`'s form is kept for whole names.

    `%h` is the host, `%n` the part before the @, `%d` the domain, `%%` a percent sign.
    """
    host = hostname()
    short, _, domain = host.partition(".")
    if not name:
        return f"celery@{host}"
    expanded = name
    for code, value in (("%h", host), ("%n", short), ("%d", domain)):
        expanded = expanded.replace(code, value)
    expanded = expanded.replace("%%", "%")
    return expanded if "@" in expanded else f"celery@{expanded}"


class ThreadOid:
    """A reply-queue name for each process: made once, made anew in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._oid = ""

    def get(self) -> str:
        """The name; the same for all threads of a process."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._oid, self._pid = uuid(), os.getpid()
        return self._oid
