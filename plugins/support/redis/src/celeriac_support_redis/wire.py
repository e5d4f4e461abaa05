"""A connection to Redis that carries packed bytes: what both Redis plugins stand on.

hiredis packs and parses; TLS is the standard library's; log-in and choice of database are the dozen lines
below. redis-py is not used: importing it costs 0.55 s and 24 MB in every process (measured with 8.1), and each
command through its client layers about 100 µs, against 18 µs here (docs/decisions/0007-redis-without-redis-py.md).

A `Wire` belongs to one thread at a time. Its socket never blocks; whoever waits does so with a deadline.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis

from celeriac.exceptions import ImproperlyConfigured, mask_url

DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
READ_BYTES: Final = 128 * 1024
#: URLs with several hosts → how each of them would be written alone.
MANY_HOSTS: Final = {"sentinel": "redis", "redis+cluster": "redis", "rediss+cluster": "rediss"}
#: Before all keys of a `redis+cluster://` URL that says nothing else: what stands in braces decides on the slot.
CLUSTER_PREFIX: Final = "{celeriac}"
#: How often one node of a cluster may send us on to the next.
MOST_MOVES: Final = 5
#: Errors that say that another server is the one to ask, or will be. A new connection may lead there.
ELSEWHERE: Final = frozenset({"CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "READONLY"})
_ABSENT: Final = object()
_IN_SCRIPT: Final = "ERR Error running script"
_CERT_REQS: Final = {
    "none": ssl.CERT_NONE,
    "cert_none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "cert_optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
    "cert_required": ssl.CERT_REQUIRED,
}
_FLAGS: Final = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
#: TLS options that may be shown.
_TLS_SHOWN: Final = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_ciphers")
_MORE: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Hosts = tuple[tuple[str, int], ...]
#: Sentinels, or nodes → which of them led to the master last.
_answered: dict[Hosts, tuple[str, int]] = {}

#: Packs one command, a tuple of words, into the bytes that a server reads.
pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
#: What a connection of protocol 3 says unasked, news of a subscription: a list.
PushNotification = hiredis.PushNotification


class WireLost(Exception):
    """The connection dropped, or nothing came in time. What was under way may or may not have been done."""


class WireUnreachable(WireLost):
    """No connection could be made, so nothing was done.

    Attributes:
        hint: What to check.
    """

    def __init__(self, message: str, hint: str) -> None:
        self.hint = hint
        super().__init__(message)


class ReplyError(Exception):
    """The server answered with an error. `code` is its first word, such as `WRONGTYPE`."""

    @property
    def code(self) -> str:
        text = str(self)
        if text.startswith(_IN_SCRIPT):  # Redis 6.2 wraps what a script met: `…: @user_script: 8: -OOM command …`
            text = text.rpartition(": -")[2]
        return text.partition(" ")[0]

    @property
    def is_elsewhere(self) -> bool:
        """Nothing was done, for this server is not the one to ask, or not any more: see `ELSEWHERE`."""
        return self.code in ELSEWHERE


@dataclass(frozen=True)
class Address:
    """Where a server is and how to log in, from a URL and options.

    Attributes:
        path: Of a unix socket; `host` and `port` are unused then.
        tls: Keyword options by redis-py's names (`ssl_cert_reqs`, `ssl_ca_certs` …), None for plain TCP.
        keepalive: TCP keepalive options by socket constant; empty for the defaults below.
        sentinels: Hosts and ports of Redis Sentinels; whoever they say is the master of `master_name` is connected to,
            and `host` and `port` are unused.
        sentinel_options: How to log in to the Sentinels, by redis-py's names: `username`, `password`, `ssl`, `ssl_…`.
        nodes: Hosts and ports of nodes of a Redis Cluster; whichever has the slot is connected to, and `host` and
            `port` are unused.
        slot_key: A key in whose slot of a cluster all keys are; "" if they have nothing in common.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    credential_provider: Any = field(default=None, repr=False)
    client_name: str = ""
    connect_timeout_s: float = 4.0
    timeout_s: float = 10.0
    keepalive: Mapping[int, int] = field(default_factory=dict)
    sentinels: Hosts = ()
    master_name: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    nodes: Hosts = ()
    slot_key: str = ""

    @property
    def store(self) -> str:
        """Names the keys that are reached and as whom; equal for two ways to write one address."""
        place = f"unix:{self.path}" if self.path else f"{_plain_host(self.host)}:{self.port}"
        if self.sentinels:
            place = f"sentinel:{_join_hosts(self.sentinels)}:{self.master_name}"
        elif self.nodes:
            place = f"cluster:{_join_hosts(self.nodes)}"
        return f"{place}/{self.db}/{self.username}" + (f"/{hash_tag(self.slot_key)}" if self.slot_key else "")

    def __str__(self) -> str:
        place = f"unix socket {self.path}" if self.path else f"{self.host}:{self.port}"
        if self.sentinels:
            place = f"the master {self.master_name!r} of {len(self.sentinels)} Sentinels"
        elif self.nodes:
            place = f"a cluster, by {len(self.nodes)} of its nodes"
        return f"Redis at {place}, database {self.db}"


def parse_url(url: str) -> tuple[Address, dict[str, str]]:
    """Read a URL: `redis[s]://[user:password@]host[:port][/db]`, `redis+socket:///path?virtual_host=db`, `unix:///path?db=n`.

    Returns:
        The address and the query's words, those that are part of the address taken out.
    Raises:
        ImproperlyConfigured: Something in it makes no sense.
    """
    scheme = url.partition(":")[0]
    if scheme in MANY_HOSTS:
        return _parse_hosts(url, scheme)
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    by_socket = parts.scheme in ("unix", "redis+socket", "rediss+socket")
    db_text = query.pop("virtual_host", None) or query.pop("db", None) or ("" if by_socket else parts.path)
    db_text = db_text.strip("/")
    if db_text and not db_text.isdigit():
        raise ImproperlyConfigured(
            f"{mask_url(url)!r}: a Redis database is a number, not {db_text!r}. Write {parts.scheme}://host:port/0"
        )
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError as exc:
        raise ImproperlyConfigured(f"{mask_url(url)!r}: {exc}") from None
    tls = {name: query.pop(name) for name in list(query) if name.startswith("ssl_")}
    address = Address(
        host=unquote(parts.hostname or "127.0.0.1"),
        port=port,
        path=unquote(parts.path) if by_socket else "",
        db=int(db_text or 0),
        username=unquote(parts.username) if parts.username else query.pop("username", ""),
        password=unquote(parts.password) if parts.password else query.pop("password", ""),
        tls=tls if parts.scheme == "rediss" else None,
    )
    return address, query


def _parse_hosts(url: str, scheme: str) -> tuple[Address, dict[str, str]]:
    """`sentinel://[:password@]h1:26379;h2;h3:26380/db`: each part may repeat the scheme, as Celery's users write it."""
    words = [word.strip().removeprefix(f"{scheme}://") for word in url.split(";") if word.strip()]
    alone = [f"{MANY_HOSTS[scheme]}://{word}" for word in words]
    parsed = [parse_url(each) for each in alone]
    default_port = SENTINEL_PORT if scheme == "sentinel" else DEFAULT_PORT
    hosts = tuple(
        (address.host, urlsplit(each).port or default_port) for each, (address, _) in zip(alone, parsed, strict=True)
    )
    first, query = parsed[0][0], {key: value for _, more in parsed for key, value in more.items()}
    tls = {key: value for address, _ in parsed for key, value in (address.tls or {}).items()}
    address = replace(
        first,
        db=max(address.db for address, _ in parsed),
        username=next((address.username for address, _ in parsed if address.username), ""),
        password=next((address.password for address, _ in parsed if address.password), ""),
        tls=None if first.tls is None else tls,
    )
    return replace(address, sentinels=hosts) if scheme == "sentinel" else replace(address, nodes=hosts), query


def through_sentinels(address: Address, options: Mapping[str, Any], setting: str) -> Address:
    """The address with what the options say of Sentinels: `master_name`, and `sentinel_kwargs`.

    Args:
        setting: The options' own name, for errors.
    Raises:
        ImproperlyConfigured: A `sentinel://` URL, and no name of a master, or no dict of options.
    """
    if not address.sentinels:
        return address
    name = str(options.get("master_name") or "")
    if not name:
        raise ImproperlyConfigured(
            f"a sentinel:// URL needs the name of the master that the Sentinels watch: transport option master_name, "
            f"as in {setting} = {{'master_name': 'mymaster'}}."
        )
    login = options.get("sentinel_kwargs") or {}
    if not isinstance(login, Mapping):
        raise ImproperlyConfigured(f"{setting}['sentinel_kwargs'] must be a dict, as in {{'password': '…'}}.")
    return replace(address, master_name=name, sentinel_options=login)


def unknown_tls(address: Address) -> set[str]:
    """Options of TLS that have no effect, and should be said: somebody may take himself for safe."""
    return set(address.tls or ()) - {*_TLS_SHOWN, "ssl_check_hostname", "ssl_password"}


def read_flag(value: Any) -> bool:
    """An option that is on or off; in a URL it is a word.

    Raises:
        ValueError: A word that says neither.
    """
    if not isinstance(value, str):
        return bool(value)
    if value.lower() not in _FLAGS:
        raise ValueError(f"must be one of {', '.join(_FLAGS)}")
    return _FLAGS[value.lower()]


def read_keepalive(value: Any) -> dict[int, int]:
    """`socket_keepalive_options`, by the constants of `socket` or by their names.

    Raises:
        ValueError: Something else.
    """
    try:
        return {int(getattr(socket, name) if isinstance(name, str) else name): int(n) for name, n in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError("must be a dict of socket options, as in {'TCP_KEEPIDLE': 60}") from None


def load_provider(value: Any) -> Any:
    """A credential provider as redis-py knows them: an object, or the dotted path of its class."""
    if not isinstance(value, str):
        return value
    module, _, name = value.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as exc:
        raise ImproperlyConfigured(
            f"the credential provider {value!r} cannot be had: {exc}. Give an object, or a path: 'proj.auth.Provider'."
        ) from exc


def in_one_slot(address: Address, prefix: str, setting: str) -> Address:
    """The address for keys that all begin with `prefix`. With a hash tag in it they are in one slot of a cluster.

    Raises:
        ImproperlyConfigured: A URL of a cluster, and a prefix that would spread the keys over it.
    """
    if hash_tag(prefix):
        return replace(address, slot_key=prefix)
    if address.nodes:
        raise ImproperlyConfigured(
            f"on a Redis Cluster all keys must be in one slot, but {setting}['global_keyprefix'] is {prefix!r}, "
            f"which has no hash tag. Put a part of it in braces, as in {CLUSTER_PREFIX!r}, or leave it out."
        )
    return address


def hash_tag(key: str) -> str:
    """What alone decides in which slot of a cluster a key is, where braces say so; else ""."""
    return key.partition("{")[2].partition("}")[0] if "}" in key.partition("{")[2] else ""


class Wire:
    """One connection, logged in. Made by `connect`."""

    __slots__ = (
        "_buffer", "_feed", "_next", "_poll", "_reader", "_view", "address", "client_id", "last_heard", "mode", "sock",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self.address = address
        self.client_id = 0
        #: What the server says that it is: `standalone`, `cluster` or `sentinel`; "" if it does not.
        self.mode = ""
        self.last_heard = time.monotonic()
        self._reader = hiredis.Reader(protocolError=WireLost, replyError=ReplyError, notEnoughData=_ABSENT)
        self._next = self._reader.gets
        self._feed: Callable[[Any, int, int], None] = self._reader.feed  # any buffer will do
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)

    def fileno(self) -> int:
        return self.sock.fileno()

    def write(self, data: bytes, timeout_s: float | None = None) -> None:
        """Hand over all of `data`.

        Raises:
            WireLost: Not all of it could be handed over in time.
        """
        try:
            sent = self.sock.send(data)
        except _MORE:
            sent = 0
        except OSError as exc:
            raise WireLost(f"{self.address}: {exc}") from exc
        if sent != len(data):
            self._write_rest(data, sent, self.address.timeout_s if timeout_s is None else timeout_s)

    def _write_rest(self, data: bytes, sent: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        rest = memoryview(data)[sent:]
        while rest:
            self._wait(select.POLLOUT, deadline)
            try:
                rest = rest[self.sock.send(rest) :]
            except _MORE:
                continue
            except OSError as exc:
                raise WireLost(f"{self.address}: {exc}") from exc

    def replies(self) -> list[Any]:
        """The replies that are here, without waiting. Errors are among them as `ReplyError` objects.

        Raises:
            WireLost: The connection is closed, and nothing more was to be read from it.
        """
        found: list[Any] = []
        get, feed = self._next, self._feed
        while True:
            try:
                size = self.sock.recv_into(self._buffer)
            except _MORE:
                return found
            except OSError as exc:
                if found:
                    return found
                raise WireLost(f"{self.address}: {exc}") from exc
            if not size:
                if found:
                    return found
                raise WireLost(f"{self.address} closed the connection")
            self.last_heard = time.monotonic()
            feed(self._buffer, 0, size)
            while (reply := get()) is not _ABSENT:
                found.append(reply)
            if size < READ_BYTES and type(self.sock) is socket.socket:
                return found

    def read(self, count: int, timeout_s: float | None = None) -> list[Any]:
        """Wait for `count` replies; more than that is an error of the caller.

        Raises:
            WireLost: They did not come in time.
        """
        deadline = time.monotonic() + (self.address.timeout_s if timeout_s is None else timeout_s)
        found: list[Any] = []
        while len(found) < count:
            self._wait(select.POLLIN, deadline)
            found += self.replies()
        return found

    def call(self, *words: bytes | str | int | float, timeout_s: float | None = None) -> Any:
        """One command and its reply.

        Raises:
            ReplyError, WireLost: As they say.
        """
        return self.pipeline([words], timeout_s=timeout_s)[0]

    def pipeline(self, commands: Sequence[tuple[Any, ...]], *, timeout_s: float | None = None) -> list[Any]:
        """Several commands in one write, and their replies.

        Raises:
            ReplyError: The first error among the replies; the other commands were performed all the same.
            WireLost: As it says.
        """
        self.write(b"".join(map(pack, commands)), timeout_s)
        replies = self.read(len(commands), timeout_s)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        return replies

    def wait(self, timeout_s: float) -> bool:
        """Whether something can be read within `timeout_s`."""
        pending = getattr(self.sock, "pending", None)
        if pending is not None and pending():
            return True
        return bool(self._poll.poll(max(0.0, timeout_s) * 1000))

    def is_silent(self, seconds: float) -> bool:
        """From any thread: nothing was heard for so long, and nothing lies there unread, as when we have slept."""
        if time.monotonic() - self.last_heard <= seconds:
            return False
        poll = select.poll()  # one of its own: the owner may be waiting on the other
        try:
            poll.register(self.sock.fileno(), select.POLLIN)
        except ValueError:
            return False  # it is closed
        return not poll.poll(0)

    def is_stale(self, *, ignore_news: bool = False) -> bool:
        """Whether an idle connection must not be used again: it is closed, or says something nobody asked for.

        Args:
            ignore_news: It had subscriptions, whose late news are read and dropped.
        """
        if not self._poll.poll(0):
            return False
        try:
            return bool(self.replies()) and not ignore_news
        except WireLost:
            return True

    def _wait(self, event: int, deadline: float) -> None:
        left = deadline - time.monotonic()
        if event == select.POLLIN:
            ready = self.wait(left)
        else:
            poll = select.poll()
            poll.register(self.sock.fileno(), event)
            ready = bool(poll.poll(max(0.0, left) * 1000))
        if not ready:
            raise WireLost(f"{self.address} did not answer in time")

    def shutdown(self) -> None:
        """From any thread: make the connection look closed to whoever waits on it."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already, which was the wish

    def close(self) -> None:
        """Let go, without a word to the server. Idempotent."""
        self.sock.close()


def connect(address: Address, *, protocol: int = 2, timeout_s: float | None = None, name: str = "") -> Wire:
    """Connect and log in.

    Args:
        protocol: 3 for a connection that both subscribes and asks.
        timeout_s: For all of it; the address's own by default.
        name: What `CLIENT LIST` shows, if the address has no name for it.
    Raises:
        WireUnreachable: It cannot be reached, refuses us, or is not what the URL takes it for.
    """
    timeout_s = address.connect_timeout_s if timeout_s is None else timeout_s
    if address.sentinels:
        return _connect_to_master(address, protocol, timeout_s, name)
    if address.nodes:
        return _connect_to_slot(address, protocol, timeout_s, name)
    wire = _connect(address, protocol, timeout_s, name)
    if wire.mode not in ("cluster", "sentinel"):
        return wire
    wire.close()
    place = f"{address.host}:{address.port}"
    if wire.mode == "sentinel":
        raise WireUnreachable(
            f"{address}: that is a Sentinel, which keeps no data but knows who does.",
            f"Write sentinel://{place}/0, and the name of the master as transport option master_name.",
        )
    if not address.slot_key:
        raise WireUnreachable(
            f"{address}: that is a node of a Redis Cluster, over which the keys would be spread.",
            f"Write redis+cluster://{place}, with more nodes behind a semicolon each, which keeps all keys in one "
            "slot; or use a server that is not in cluster mode.",
        )
    return _connect_to_slot(replace(address, nodes=((address.host, address.port),)), protocol, timeout_s, name)


def _connect(address: Address, protocol: int, timeout_s: float, name: str) -> Wire:
    """To the very server at `host` and `port`, whatever it is."""
    options = {} if address.tls is None else address.tls
    try:
        context = None if address.tls is None or address.path else _tls_context(options)
    except (OSError, ValueError) as exc:
        shown = ", ".join(f"{name}={options[name]!r}" for name in _TLS_SHOWN if name in options)
        raise WireUnreachable(
            f"cannot connect to {address}: {exc}, with these options of TLS: {shown}.", "Check names and files."
        ) from exc
    try:
        sock = _open_socket(address, timeout_s, context)
    except OSError as exc:
        raise WireUnreachable(f"cannot connect to {address}: {_reason(exc)}.", _network_hint(address, exc)) from exc
    wire = Wire(sock, address)
    try:
        _log_in(wire, protocol, timeout_s, address.client_name or name)
    except ReplyError as exc:
        wire.close()
        raise WireUnreachable(f"{address} refuses us: {exc}.", _refusal_hint(address, exc)) from exc
    except WireLost as exc:
        wire.close()
        raise WireUnreachable(
            f"{exc}, while logging in.", "Is it a Redis server, and are TLS and port what the server expects?"
        ) from exc
    return wire


def _connect_to_master(address: Address, protocol: int, timeout_s: float, name: str) -> Wire:
    """Ask the Sentinels in their order. One may be out of date, so the server itself must say that it is the master."""
    heard: list[str] = []
    for host, port in _in_order(address.sentinels):
        try:
            asked = _connect(_sentinel(address, host, port), 2, timeout_s, name)
            try:
                found = asked.call("SENTINEL", "get-master-addr-by-name", address.master_name, timeout_s=timeout_s)
            finally:
                asked.close()
            if not found:
                heard.append(f"{host}:{port} knows no master {address.master_name!r}")
                continue
            there = replace(address, sentinels=(), host=found[0].decode(), port=int(found[1]))
            wire = _connect(there, protocol, timeout_s, name)
            role = role_of(wire, timeout_s)
            if role == "master":
                _answered[address.sentinels] = (host, port)
                return wire
            wire.close()
            heard.append(f"{there.host}:{there.port} is a {role} now")
        except (WireLost, ReplyError) as exc:
            heard.append(str(exc).rstrip("."))
    raise WireUnreachable(
        f"cannot connect to {address}: {'; '.join(heard)}.",
        "Do the Sentinels run, is master_name right, and is a failover under way?",
    )


def _in_order(hosts: Hosts) -> list[tuple[str, int]]:
    """The one that led to the master last, then the others: a host that is off costs a whole timeout, which each
    connection of a consumer would spend anew."""
    first = _answered.get(hosts)
    return list(hosts) if first is None else [first, *(host for host in hosts if host != first)]


def role_of(wire: Wire, timeout_s: float) -> str:
    """What the server says that it is: `master`, `slave` …; a master where we may not ask (it is a dangerous command to
    Redis), for a replica says so with the first write that it refuses.

    Raises:
        WireLost: As it says; the connection is closed.
    """
    try:
        role: str = wire.call("ROLE", timeout_s=timeout_s)[0].decode()
    except ReplyError:
        return "master"
    except WireLost:
        wire.close()
        raise
    return role


def _sentinel(address: Address, host: str, port: int) -> Address:
    """Where a Sentinel is, and how to log in there, which need not be how one logs in to the server."""
    options = address.sentinel_options
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return Address(
        host,
        port,
        username=str(options.get("username") or ""),
        password=str(options.get("password") or ""),
        tls=tls if tls or options.get("ssl") else None,
    )


def _connect_to_slot(address: Address, protocol: int, timeout_s: float, name: str) -> Wire:
    """Ask the nodes in their order for a key of ours: one that does not have its slot says who does."""
    heard: list[str] = []
    for host, port in _in_order(address.nodes):
        there = replace(address, nodes=(), host=host, port=port)
        try:
            for _ in range(MOST_MOVES):
                wire = _connect(there, protocol, timeout_s, name)
                try:
                    wire.call("EXISTS", address.slot_key, timeout_s=timeout_s)
                    _answered[address.nodes] = (host, port)
                    return wire
                except ReplyError as exc:
                    wire.close()
                    if exc.code != "MOVED":
                        raise
                    there = _moved(there, exc)
                except WireLost:
                    wire.close()
                    raise
            heard.append(f"{host}:{port} and others send us round in circles")
        except (WireLost, ReplyError) as exc:
            heard.append(str(exc).rstrip("."))
    raise WireUnreachable(
        f"cannot connect to {address}: {'; '.join(heard)}.",
        "Do the nodes run, and can they be reached by the addresses that they give each other?",
    )


def _moved(address: Address, error: ReplyError) -> Address:
    """Where `MOVED 3999 host:port` leads; without a host it is another port of the same."""
    host, _, port = str(error).split()[2].rpartition(":")
    return replace(address, host=address.host if host in ("", "?") else host, port=int(port))


def _open_socket(address: Address, timeout_s: float, context: ssl.SSLContext | None) -> socket.socket:
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        return sock
    sock = socket.create_connection((address.host, address.port), timeout_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(sock, address.keepalive)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=address.host)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_alive(sock: socket.socket, options: Mapping[int, int]) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not options and hasattr(socket, "TCP_KEEPIDLE"):
        options = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 3}
    for option, value in options.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    wanted = options.get("ssl_cert_reqs", "required")
    if isinstance(wanted, str) and wanted.lower() not in _CERT_REQS:
        raise ValueError(f"ssl_cert_reqs is not one of {', '.join(_CERT_REQS)}")
    reqs = _CERT_REQS[wanted.lower()] if isinstance(wanted, str) else ssl.CERT_NONE if wanted is None else wanted
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    hostname = str(options.get("ssl_check_hostname", reqs != ssl.CERT_NONE)).lower() in ("true", "1", "yes")
    context.check_hostname = hostname and reqs != ssl.CERT_NONE
    context.verify_mode = reqs
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
    if options.get("ssl_ciphers"):
        context.set_ciphers(options["ssl_ciphers"])
    return context


def _log_in(wire: Wire, protocol: int, timeout_s: float, name: str) -> None:
    address = wire.address
    commands: list[tuple[Any, ...]] = []
    credentials = _credentials(address)
    if credentials:
        commands.append(("AUTH", *credentials))
    hello = len(commands)
    commands.append(("HELLO", protocol))
    if address.db:
        commands.append(("SELECT", address.db))
    if name:
        commands.append(("CLIENT", "SETNAME", name))
    commands.append(("CLIENT", "ID"))
    replies: list[Any] = []
    try:
        wire.write(b"".join(map(pack, commands)), timeout_s)
        deadline = time.monotonic() + timeout_s
        while len(replies) < len(commands):
            replies += wire.read(1, deadline - time.monotonic())
    except WireLost:
        error = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if error is None:
            raise
        raise error from None  # one that is full, or in protected mode, says so unasked, and hangs up
    for position, reply in enumerate(replies):
        # Protocol 2 needs no HELLO: whoever does not know it, or forbids it, only leaves open what it is.
        if isinstance(reply, ReplyError) and not (position == hello and protocol == 2):
            raise reply
    wire.mode = _mode(replies[hello])
    wire.client_id = int(replies[-1])


def _mode(hello: Any) -> str:
    facts = dict(zip(hello[::2], hello[1::2], strict=False)) if isinstance(hello, list) else hello
    return facts.get(b"mode", b"").decode() if isinstance(facts, dict) else ""


def _credentials(address: Address) -> tuple[str, ...]:
    if address.credential_provider is not None:
        return tuple(address.credential_provider.get_credentials())
    if address.username:
        return (address.username, address.password)
    return (address.password,) if address.password else ()


def _join_hosts(hosts: Sequence[tuple[str, int]]) -> str:
    return ",".join(sorted(f"{_plain_host(host)}:{port}" for host, port in hosts))


def _plain_host(host: str) -> str:
    return "127.0.0.1" if host.lower() in ("localhost", "::1") else host.lower()


def _reason(exc: OSError) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if exc.errno is not None and exc.errno > 0 and not isinstance(exc, (socket.gaierror, ssl.SSLError)):
        return os.strerror(exc.errno)
    return str(exc)


def _network_hint(address: Address, exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return f"Check the host name {address.host!r} in the URL."
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "Check the server's certificate, or name the authority by ssl_ca_certs."
    if isinstance(exc, ssl.SSLError):
        return "Does the server speak TLS on this port? Without TLS the URL begins with redis://."
    if isinstance(exc, TimeoutError):
        tls = "" if address.tls is None else " Does the server speak TLS on this port?"
        return f"Check host, port and firewall.{tls}"
    return "Is the server running there? Start one with: redis-server"


def _refusal_hint(address: Address, exc: ReplyError) -> str:
    if exc.code in ("WRONGPASS", "NOAUTH", "NOPERM") or "AUTH" in str(exc):
        return "Check user and password in the URL: redis://user:password@host:port/0"
    if "DB index" in str(exc):
        return "Choose a lower database number, or raise `databases` in the server's configuration."
    if exc.code == "ERR" and "cluster mode" in str(exc):
        return "A Redis Cluster has database 0 only."
    if exc.code == "DENIED":
        return "Give it a password (requirepass) and write it into the URL, or bind it to a network that is trusted."
    if "max number of clients" in str(exc):
        return "Raise maxclients there, or lower broker_pool_limit and the number of workers."
    if exc.code == "LOADING":
        return "It is reading its data from disk; wait until it has."
    return "Is the server's version 6.2 or newer?"
