"""Where the values are: one or more Memcached servers, or a dict of this process. Their verbs are those of pymemcache.

A key has one server, chosen as pymemcache's `HashClient` and so Celery choose it. A server that is away is not replaced
by another: what it keeps would be lost twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

from pymemcache.client.base import PooledClient
from pymemcache.client.rendezvous import RendezvousHash

from celeriac.exceptions import SettingError

DEFAULT_PORT: Final = 11211
#: What Celery's users write for «Memcached, by this client»; there is one client here.
CLIENTS: Final = frozenset({"memcached", "memcache", "pymemcache", "pylibmc"})
#: So long what a server's clock says is reckoned with before it is asked again.
CLOCK_S: Final = 60.0
DEFAULTS: Final = {"connect_timeout": 4.0, "timeout": 10.0, "no_delay": True, "max_pool_size": 16}


class Cache(Protocol):
    """What the backend needs of either."""

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The values of those that have one."""

    def gets(self, key: str) -> tuple[bytes | None, Any]:
        """A value, and a mark for `cas`."""

    def add(self, key: str, value: bytes, expire: int) -> bool:
        """Keep a value unless there is one; whether it did."""

    def cas(self, key: str, value: bytes, mark: Any, expire: int) -> bool:
        """Replace the value of that mark; whether it was still there."""

    def set(self, key: str, value: bytes, expire: int) -> None:
        """Keep a value."""

    def set_many(self, values: Mapping[str, bytes], expire: int) -> None:
        """Keep values."""

    def append(self, key: str, more: bytes) -> bool:
        """Add to the end of a value; False if there is none."""

    def incr(self, key: str, by: int) -> int | None:
        """Add to a value that is a number; None if there is none."""

    def delete(self, key: str) -> None:
        """Remove a value."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove values, without waiting for the answer."""

    def now(self, key: str) -> float:
        """The clock of the server that has this key, as unix time."""

    def version(self) -> str:
        """What answers, of each server."""

    def after_fork(self) -> None:
        """Connect anew."""

    def close(self) -> None:
        """Let go of all connections."""


def make_cache(url: str, settings: Mapping[str, Any]) -> tuple[Cache, bool]:
    """The cache of a URL or of `cache_backend`, not connected yet, and whether several processes share it.

    Raises:
        SettingError: It names none, or cannot be read.
    """
    text = _place(url, settings)
    client, _, rest = text.partition("://")
    if client == "memory":
        return _local(rest), False
    if client not in CLIENTS:
        raise SettingError(
            f"memcached backend: {text!r} begins with {client!r}; write memcached://host:11211/ (or memory://).",
            setting="cache_backend",
        )
    servers = [_server(word) for word in rest.strip("/").split(";") if word.strip()]
    if not servers:
        raise SettingError(
            f"memcached backend: {text!r} names no server. Write cache+memcached://host:11211/, or h1;h2.",
            setting="cache_backend",
        )
    return Servers(servers, {**DEFAULTS, **(settings.get("cache_backend_options") or {})}), True


class Servers:
    """Memcached servers. Safe for threads: at most `max_pool_size` speak to a server at once, and others wait for their
    turn, where pymemcache would raise."""

    def __init__(self, servers: list[tuple[str, int]], options: Mapping[str, Any]) -> None:
        self._servers = {f"{host}:{port}": (host, port) for host, port in servers}
        self._options = dict(options)
        self._most = int(self._options.pop("max_pool_size", 0) or 0)
        self._ring = RendezvousHash(list(self._servers))
        self._left_to_parents: list[Any] = []
        self._clocks: dict[str, tuple[float, float]] = {}  # when a server was asked, how far ahead of time.monotonic
        self._clients = self._connectable()

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name, own in self._by_server(keys).items():
            with self._lent(name) as client:
                found.update(client.get_many(own))
        return found

    def gets(self, key: str) -> tuple[bytes | None, Any]:
        with self._client(key) as client:
            found: tuple[bytes | None, Any] = client.gets(key)
        return found

    def add(self, key: str, value: bytes, expire: int) -> bool:
        with self._client(key) as client:
            return bool(client.add(key, value, expire, noreply=False))

    def cas(self, key: str, value: bytes, mark: Any, expire: int) -> bool:
        with self._client(key) as client:
            return bool(client.cas(key, value, mark, expire, noreply=False))

    def set(self, key: str, value: bytes, expire: int) -> None:
        with self._client(key) as client:
            client.set(key, value, expire, noreply=False)

    def set_many(self, values: Mapping[str, bytes], expire: int) -> None:
        for name, own in self._by_server(values).items():
            with self._lent(name) as client:
                client.set_many({key: values[key] for key in own}, expire, noreply=False)

    def append(self, key: str, more: bytes) -> bool:
        with self._client(key) as client:
            return bool(client.append(key, more, noreply=False))

    def incr(self, key: str, by: int) -> int | None:
        with self._client(key) as client:
            found: int | None = client.incr(key, by, noreply=False)
        return found

    def delete(self, key: str) -> None:
        with self._client(key) as client:
            client.delete(key, noreply=False)

    def delete_many(self, keys: Iterable[str]) -> None:
        for name, own in self._by_server(keys).items():
            with self._lent(name) as client:
                client.delete_many(own, noreply=True)

    def now(self, key: str) -> float:
        name, here = self._ring.get_node(key), time.monotonic()
        asked_at, ahead_s = self._clocks.get(name, (-CLOCK_S, 0.0))
        if here - asked_at >= CLOCK_S:
            with self._lent(name) as client:
                ahead_s = float(client.stats()[b"time"]) - here
            self._clocks[name] = here, ahead_s
        return here + ahead_s

    def version(self) -> str:
        words = []
        for name in self._servers:
            with self._lent(name) as client:
                words.append(f"{client.version().decode()} at {name}")
        return f"Memcached {', '.join(words)}"

    def after_fork(self) -> None:
        self._left_to_parents.append(self._clients)  # letting go of them might speak on the parent's sockets
        self._clients = self._connectable()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _by_server(self, keys: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in keys:
            found.setdefault(self._ring.get_node(key), []).append(key)
        return found

    def _client(self, key: str) -> AbstractContextManager[PooledClient]:
        return self._lent(self._ring.get_node(key))

    @contextmanager
    def _lent(self, name: str) -> Iterator[PooledClient]:
        """The client of this server, when it is our turn.

        Raises:
            TimeoutError: That took as long as an answer may take.
        """
        client, turns, patience_s = self._clients[name], self._turns[name], self._options.get("timeout")
        if turns is not None and not turns.acquire(timeout=patience_s):
            raise TimeoutError(f"all {self._most} connections to {name} were in use for {patience_s:g} s")
        try:
            yield client
        finally:
            if turns is not None:
                turns.release()

    def _connectable(self) -> dict[str, PooledClient]:
        self._turns = {name: threading.Semaphore(self._most) if self._most else None for name in self._servers}
        try:
            return {name: PooledClient(server, **self._options) for name, server in self._servers.items()}
        except TypeError as exc:
            raise SettingError(
                f"memcached backend: cache_backend_options are {sorted(self._options)}, which pymemcache does not "
                f"take: {exc}.",
                setting="cache_backend_options",
            ) from exc


class Local:
    """The same in a dict of this process: `cache+memory://`, for tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[bytes, int, float]] = {}  # value, mark, until
        self._mark = 0

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        with self._lock:
            found = {key: self._get(key) for key in keys}
        return {key: kept[0] for key, kept in found.items() if kept is not None}

    def gets(self, key: str) -> tuple[bytes | None, Any]:
        with self._lock:
            kept = self._get(key)
        return (None, None) if kept is None else kept

    def add(self, key: str, value: bytes, expire: int) -> bool:
        with self._lock:
            if self._get(key) is not None:
                return False
            self._put(key, value, expire)
            return True

    def cas(self, key: str, value: bytes, mark: Any, expire: int) -> bool:
        with self._lock:
            kept = self._get(key)
            if kept is None or kept[1] != mark:
                return False
            self._put(key, value, expire)
            return True

    def set(self, key: str, value: bytes, expire: int) -> None:
        with self._lock:
            self._put(key, value, expire)

    def set_many(self, values: Mapping[str, bytes], expire: int) -> None:
        with self._lock:
            for key, value in values.items():
                self._put(key, value, expire)

    def append(self, key: str, more: bytes) -> bool:
        return self._alter(key, lambda value: value + more) is not None

    def incr(self, key: str, by: int) -> int | None:
        made = self._alter(key, lambda value: str(int(value) + by).encode())
        return None if made is None else int(made)

    def delete(self, key: str) -> None:
        self.delete_many([key])

    def delete_many(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._kept.pop(key, None)

    def now(self, key: str) -> float:
        return time.time()

    def version(self) -> str:
        return f"memory of process {os.getpid()}"

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing to let go of."""

    def _get(self, key: str) -> tuple[bytes, int] | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept[2] <= time.time():
            del self._kept[key]
            return None
        return kept[:2]

    def _alter(self, key: str, change: Callable[[bytes], bytes]) -> bytes | None:
        with self._lock:
            kept = self._get(key)
            if kept is None:
                return None
            self._mark += 1
            value = change(kept[0])
            self._kept[key] = value, self._mark, self._kept[key][2]
            return value

    def _put(self, key: str, value: bytes, expire: int) -> None:
        self._mark += 1
        # As the server has it: seconds, or above thirty days a unix time.
        until = float("inf") if not expire else expire if expire > 2_592_000 else time.time() + expire
        self._kept[key] = value, self._mark, until


def _place(url: str, settings: Mapping[str, Any]) -> str:
    scheme, _, rest = url.partition("://")
    scheme = scheme.strip().lower()
    if scheme.startswith("cache+"):
        return f"{scheme.partition('+')[2]}://{rest}"
    if scheme in CLIENTS and rest:
        return f"{scheme}://{rest}"
    text = settings.get("cache_backend") or ""
    if not text:
        raise SettingError(
            f"memcached backend: {url!r} names no server. Write result_backend = 'cache+memcached://host:11211/', or "
            "set cache_backend = 'memcached://host:11211/'.",
            setting="cache_backend",
        )
    return text.removeprefix("cache+") if "://" in text else f"{text}://"


def _server(text: str) -> tuple[str, int]:
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        return text.strip(), DEFAULT_PORT
    try:
        return host.strip("[]") or "localhost", int(port)
    except ValueError:
        raise SettingError(
            f"memcached backend: {text!r} is no server; write host or host:port.", setting="cache_backend"
        ) from None


_locals: dict[str, Local] = {}
_locals_lock = threading.Lock()


def _local(name: str) -> Local:
    with _locals_lock:
        return _locals.setdefault(name.strip("/"), Local())
