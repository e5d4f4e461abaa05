"""The backend: keeps results under Celery's keys, and tells those who wait. Called by core, from any thread."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from celeriac.exceptions import BackendError, BackendLost, BackendUnreachable, CeleriacWarning, SettingError
from celeriac.spec.backend import CLAIM_S, Document, Host
from celeriac.spec.data import Chord, ChordClaim, ChordPart, StoredResult
from celeriac.spec.diagnosis import Finding
from celeriac.spec.results import ResultCompression
from celeriac.spec.serializer import Serializer
from celeriac.states import FAILURE, READY_STATES, SUCCESS
from celeriac_backend_redis.chords import RedisChords
from celeriac_backend_redis.scripts import STORE, STORE_ALONE, Script
from celeriac_backend_redis.watch import RedisWatch
from celeriac_support_redis import health
from celeriac_support_redis.state import RedisState
from celeriac_support_redis.wire import (
    CLUSTER_PREFIX,
    Address,
    ReplyError,
    Wire,
    WireLost,
    WireUnreachable,
    connect,
    in_one_slot,
    load_provider,
    pack,
    parse_url,
    read_flag,
    read_keepalive,
    through_sentinels,
    unknown_tls,
)

OPTIONS: Final = "result_backend_transport_options"
#: Its names, which may also stand behind the `?` of the URL.
KNOWN: Final = frozenset(
    {
        "client_name",
        "credential_provider",
        "global_keyprefix",
        "master_name",
        "result_chord_ordered",
        "retry_policy",
        "sentinel_kwargs",
        "socket_connect_timeout",
        "socket_keepalive_options",
        "socket_timeout",
    }
)
#: Understood by Celery or redis-py, without a meaning here: what they tune does not exist or cannot be switched off.
IGNORED: Final = frozenset(
    {
        "decode_responses",
        "encoding",
        "encoding_errors",
        "lib_name",
        "lib_version",
        "protocol",
        "retry_on_error",
        "retry_on_timeout",
        "socket_keepalive",
        "socket_type",
        "visibility_timeout",
    }
)
SCHEMES: Final = ("redis", "rediss", "redis+socket", "unix", "sentinel", "redis+cluster", "rediss+cluster")
ABILITIES: Final = frozenset(
    {"push", "expire", "persistent", "joint", "shared", "state", "count", "groups", "fence", "diagnose"}
)
#: The version of what `commands` returns: Lua and its words, which the redis broker runs in its own script.
JOINT: Final = "redis-lua-1"
TASK_KEY: Final = "celery-task-meta-"
STORE_CHUNK: Final = 500
#: What a `retry_policy` without a bound is held to.
MOST_RETRIES: Final = 100
FETCH_CHUNK: Final = 1000
#: Idle connections that are kept, unless `redis_max_connections` says otherwise.
IDLE_WIRES: Final = 16
#: After an attempt that a broken connection ended: pause in seconds, None after the last.
PAUSES: Final[tuple[float | None, ...]] = (0.0, None)
DEFAULT_EXPIRES_S: Final = 86400
#: Longer than this no store or fetch waits for the server, whatever `redis_socket_timeout` says.
LONGEST_TIMEOUT_S: Final = 10.0


def make_backend(url: str, settings: Mapping[str, Any], host: Host) -> RedisBackend | None:
    """The backend for a URL of ours; None for another's."""
    return RedisBackend(url, settings, host) if url.partition(":")[0] in SCHEMES else None


class RedisBackend:
    """See `celeriac.spec.ResultBackend`. Connects when first needed; connections are shared among threads."""

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        url = url if "://" in url else f"{url.rstrip(':')}://"
        address, query = parse_url(url)
        options = {**query, **(settings.get(OPTIONS) or {})}
        self.abilities = ABILITIES
        self._url = url
        self._host = host
        self._key_prefix = _key_prefix(options.get("global_keyprefix") or (CLUSTER_PREFIX if address.nodes else ""))
        self._address = in_one_slot(_address(address, url, settings, options), self._key_prefix, OPTIONS)
        _warn_of(set(options) - KNOWN - IGNORED | unknown_tls(self._address))
        #: So that a node of a cluster that does not have the slot says so before a script begins.
        self._slot_keys = (self._address.slot_key,) if self._address.slot_key else ()
        self._prefix = (self._key_prefix + TASK_KEY).encode()
        self._expires = _lifetime_s(settings, "result_expires", DEFAULT_EXPIRES_S)
        self._chords = RedisChords(
            lambda command: self._ask([command])[0],
            self._run_script,
            self._key_prefix,
            _lifetime_s(settings, "result_chord_expires", self._expires) or self._expires,
            self._expires,
            _option(options, "result_chord_ordered", read_flag, True),
        )
        self._failure_expires = _lifetime_s(settings, "result_failure_expires", self._expires)
        self._serializer_name = settings.get("result_serializer") or "json"
        self._compression = ResultCompression(settings)
        self.joint: str | None = f"{JOINT}:{self._address.store}"
        self._most_idle = int(settings.get("redis_max_connections") or IDLE_WIRES)
        health_s = settings.get("redis_backend_health_check_interval")
        self._health_s = float(health_s) if health_s else None
        policy = options.get("retry_policy")
        self._pauses = PAUSES if policy is None else _pauses(policy)
        #: With a policy of the user's, a server that cannot be reached is tried again too.
        self._is_patient = policy is not None
        self._pid = os.getpid()
        self._idle: deque[Wire] = deque()
        self._idle_watching: deque[Wire] = deque()
        self._leftovers: dict[int, list[bytes]] = {}

    # documents

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        """See `ResultBackend.encode`. `status` comes first, where the store's script looks for it."""
        state = document.get("status")
        return self._compression.pack(serializer.dumps({"status": state, **document}), state)

    def decode(self, data: bytes) -> Document:
        """See `ResultBackend.decode`.

        Raises:
            ValueError: Not a document of the serializer named by `result_serializer`.
        """
        document = self._host.serializer(self._serializer_name).loads(self._compression.unpack(data))
        if not isinstance(document, dict):
            raise ValueError(f"a stored result is {type(document).__name__}, not a document")
        return document

    # the store

    def store(self, batch: Sequence[StoredResult]) -> None:
        """See `ResultBackend.store`."""
        for at in range(0, len(batch), STORE_CHUNK):
            words = self._words(batch[at : at + STORE_CHUNK], fenced=True)
            self._run_script(STORE_ALONE, [len(self._key_prefix), *words])

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """See `ResultBackend.commands`: Lua, and the words that it reads from ARGV."""
        return STORE, self._words(batch)

    def _words(self, batch: Sequence[StoredResult], *, fenced: bool = False) -> list[Any]:
        words: list[Any] = []
        state, rank, count_at, prefix = "", 0, 0, self._prefix
        for result in batch:
            if result.state != state:
                state, count_at = result.state, len(words) + 2
                rank = 2 if state == SUCCESS else 1 if state in READY_STATES else 0
                words += (rank, self._failure_expires if state == FAILURE else self._expires, 0)
            words[count_at] += 1
            words += (prefix + result.task_id.encode(), result.data)
            if fenced:
                received = "" if result.received is None else repr(result.received)
                words += (received, received if result.redelivered and rank == 1 else "")
        return words

    def _key(self, task_id: str) -> bytes:
        return self._prefix + task_id.encode("utf-8", "surrogatepass")

    def _fence_key(self, task_id: str) -> bytes:
        """As the script makes it of the task's key."""
        return f"{self._key_prefix}celeriac-fence-{TASK_KEY}{task_id}".encode("utf-8", "surrogatepass")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """See `ResultBackend.fetch`."""
        found: dict[str, bytes] = {}
        for at in range(0, len(task_ids), FETCH_CHUNK):
            chunk = task_ids[at : at + FETCH_CHUNK]
            values = self._ask([("MGET", *map(self._key, chunk))])[0]
            found.update((task_id, data) for task_id, data in zip(chunk, values, strict=True) if data is not None)
        return found

    def watch(self, task_ids: Sequence[str]) -> RedisWatch:
        """See `ResultBackend.watch`."""
        watch = RedisWatch(
            self._prefix, self._acquire_watching, self._release_watching, self._translated, self._leftovers, self.fetch
        )
        watch.add(task_ids)
        return watch

    def forget(self, task_ids: Sequence[str]) -> None:
        """See `ResultBackend.forget`."""
        for at in range(0, len(task_ids), FETCH_CHUNK):
            keys = [self._key(task_id) for task_id in task_ids[at : at + FETCH_CHUNK]]
            self._ask([("DEL", *keys, *map(self._fence_key, task_ids[at : at + FETCH_CHUNK]))])

    def cleanup(self) -> int:
        """Nothing to do: the server removes what has expired."""
        return 0

    def state(self) -> RedisState:
        """See `KeepsState`."""
        return RedisState(self._ask_once, self._translated, self._key_prefix)

    # chords and groups

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """See `ChordBackend.open_chords`."""
        self._chords.open(chords)

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.join`. Of two arrivals of a part the first is kept, as Celery's workers do."""
        return self._chords.join(parts, claim_s)

    def grow_chord(self, group: str, task_id: str) -> None:
        """See `ChordBackend.grow_chord`."""
        self._chords.grow(group, task_id)

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        """See `ChordBackend.close_chords`."""
        self._chords.close_chords(claims)

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.overdue_chords`."""
        return self._chords.overdue(limit, claim_s)

    def save_group(self, group_id: str, members: Any) -> None:
        """See `GroupBackend.save_group`."""
        serializer = self._host.serializer(self._serializer_name)
        self._chords.save_group(group_id, serializer.dumps({"result": members}))

    def load_group(self, group_id: str) -> Any:
        """See `GroupBackend.load_group`."""
        data = self._chords.load_group(group_id)
        return None if data is None else self.decode(data).get("result")

    def delete_group(self, group_id: str) -> None:
        """See `GroupBackend.delete_group`."""
        self._chords.delete_group(group_id)

    def _run_script(self, script: Script, words: Sequence[Any]) -> Any:
        try:
            return self._ask([("EVALSHA", script.sha, len(self._slot_keys), *self._slot_keys, *words)])[0]
        except _NoScript:
            return self._ask([("EVAL", script.text, len(self._slot_keys), *self._slot_keys, *words)])[0]

    # life

    def ping(self, timeout_s: float) -> str:
        """See `ResultBackend.ping`."""
        try:
            wire = connect(self._address, timeout_s=timeout_s)
        except WireUnreachable as exc:
            raise self._translated(exc) from exc
        try:
            return health.ask_name(wire, timeout_s)
        except (WireLost, ReplyError) as exc:
            raise BackendUnreachable(f"{exc}.", url=self._url, hint="Is it a Redis server?") from exc
        finally:
            wire.close()

    def diagnose(self, *, longest_task_s: float | None, timeout_s: float) -> list[Finding]:
        """See `Diagnoses.diagnose`."""
        try:
            wire = connect(self._address, timeout_s=timeout_s)
        except WireUnreachable as exc:
            raise self._translated(exc) from exc
        try:
            return health.examine(wire, "backend", timeout_s)
        except (WireLost, ReplyError) as exc:
            raise self._translated(exc) from exc
        finally:
            wire.close()

    def after_fork(self) -> None:
        """See `ResultBackend.after_fork`."""
        self._pid = os.getpid()
        idle = [*self._idle, *self._idle_watching]
        self._idle, self._idle_watching, self._leftovers = deque(), deque(), {}
        for wire in idle:
            wire.close()

    def close(self) -> None:
        """See `ResultBackend.close`."""
        for idle in (self._idle, self._idle_watching):
            while idle:
                idle.pop().close()
        self._leftovers.clear()

    # connections

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Commands that may be performed twice, as all of ours: a connection that broke is replaced, once or as often
        as `retry_policy` says.

        Raises:
            BackendLost, BackendUnreachable: As they say.
            BackendError: The server refuses the command.
        """
        data = b"".join(map(pack, commands))
        for pause_s in self._pauses:
            try:
                return self._attempt(data, len(commands))
            except _TryAgain as exc:
                if pause_s is None or not (self._is_patient or exc.at_once):
                    raise exc.error from exc.__cause__
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _attempt(self, data: bytes, count: int) -> list[Any]:
        try:
            wire = self._acquire(self._idle, 2)
        except BackendUnreachable as exc:
            raise _TryAgain(exc, at_once=False) from exc.__cause__
        try:
            wire.write(data)
            replies = wire.read(count)
        except WireLost as exc:
            wire.close()
            raise _TryAgain(self._translated(exc)) from exc
        error = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if error is None:
            self._release(self._idle, wire)
            return replies
        if error.is_elsewhere:
            wire.close()
            raise _TryAgain(self._translated(error)) from error
        self._release(self._idle, wire)
        raise _NoScript if error.code == "NOSCRIPT" else self._translated(error) from error

    def _ask_once(self, command: tuple[Any, ...]) -> Any:
        """One command that may not be performed twice, and its reply; an error of the server's is one too."""
        wire = self._acquire(self._idle, 2)
        try:
            wire.write(pack(command))
            reply = wire.read(1)[0]
        except WireLost as exc:
            wire.close()
            raise self._translated(exc) from exc
        if isinstance(reply, ReplyError) and reply.is_elsewhere:
            wire.close()
        else:
            self._release(self._idle, wire)
        return reply

    def _acquire(self, idle: deque[Wire], protocol: int) -> Wire:
        if os.getpid() != self._pid:
            self.after_fork()
            idle = self._idle if protocol == 2 else self._idle_watching
        while True:
            try:
                wire = idle.pop()
            except IndexError:
                break
            if not wire.is_stale(ignore_news=protocol == 3) and self._is_healthy(wire, protocol):
                return wire
            self._leftovers.pop(wire.client_id, None)
            wire.close()
        try:
            return connect(self._address, protocol=protocol)
        except WireUnreachable as exc:
            raise self._translated(exc) from exc

    def _is_healthy(self, wire: Wire, protocol: int) -> bool:
        """An idle connection of which nothing was heard for long is asked for a sign of life, if a setting says so; one
        that had subscriptions is given up instead, for their news could be taken for the answer."""
        if self._health_s is None or time.monotonic() - wire.last_heard < self._health_s:
            return True
        try:
            return protocol == 2 and bool(wire.call("PING", timeout_s=self._address.connect_timeout_s) == b"PONG")
        except (WireLost, ReplyError):
            return False

    def _release(self, idle: deque[Wire], wire: Wire) -> None:
        if len(idle) < self._most_idle:
            idle.append(wire)
        else:
            self._leftovers.pop(wire.client_id, None)
            wire.close()

    def _acquire_watching(self) -> Wire:
        return self._acquire(self._idle_watching, 3)

    def _release_watching(self, wire: Wire) -> None:
        self._release(self._idle_watching, wire)

    def _translated(self, exc: Exception) -> BackendError:
        if isinstance(exc, WireUnreachable):
            return BackendUnreachable(str(exc), url=self._url, hint=exc.hint)
        if isinstance(exc, ReplyError):
            return BackendLost(f"{self._address} answered: {exc}")
        return BackendLost(f"{exc}.")


class _NoScript(Exception):
    """The server has forgotten our script."""


class _TryAgain(Exception):
    """The same may be tried once more.

    Attributes:
        error: What to raise when it is not.
        at_once: Another connection may do; else the server cannot be reached at all.
    """

    def __init__(self, error: BackendError, *, at_once: bool = True) -> None:
        self.error = error
        self.at_once = at_once
        super().__init__(str(error))


def _pauses(policy: Any) -> tuple[float | None, ...]:
    """The pauses of a `retry_policy` by kombu's names, with Celery's defaults for a Redis backend.

    Raises:
        SettingError: It is no such dict.
    """
    try:
        rules = {"max_retries": 20, "interval_start": 0, "interval_step": 1, "interval_max": 1, **policy}
        count = MOST_RETRIES if rules["max_retries"] is None else int(rules["max_retries"])
        start, step, most = (float(rules[f"interval_{word}"]) for word in ("start", "step", "max"))
    except (TypeError, ValueError) as exc:
        raise SettingError(
            f"{OPTIONS}['retry_policy'] is {policy!r}; give a dict of max_retries, interval_start, interval_step and "
            f"interval_max, in seconds",
            setting=OPTIONS,
        ) from exc
    return (*(min(start + step * index, most) for index in range(count)), None)


def _warn_of(unknown: Collection[str]) -> None:
    if unknown:
        warnings.warn(
            f"the redis result backend does not know {', '.join(sorted(unknown))} (in {OPTIONS}, "
            f"redis_backend_use_ssl or the URL); ignored. "
            f"It knows {', '.join(sorted(KNOWN))}.",
            CeleriacWarning,
            3,
        )


def _option(words: Mapping[str, Any], name: str, read: Callable[[Any], Any], default: Any) -> Any:
    """One of the options, read.

    Raises:
        SettingError: It makes no sense.
    """
    value = words.get(name)
    if value is None:
        return default
    try:
        return read(value)
    except (TypeError, ValueError) as exc:
        raise SettingError(f"{OPTIONS}[{name!r}] is {value!r}: {exc}", setting=OPTIONS) from None


def _address(address: Address, url: str, settings: Mapping[str, Any], words: Mapping[str, Any]) -> Address:
    address = through_sentinels(_filled_in(address, url, settings), words, OPTIONS)
    tls = settings.get("redis_backend_use_ssl")
    if tls:
        given = dict(tls) if isinstance(tls, Mapping) else {}
        address = replace(address, tls={**(address.tls or {}), **given})
    timeout_s = _option(words, "socket_timeout", float, None) or settings.get("redis_socket_timeout")
    connect_s = _option(words, "socket_connect_timeout", float, None) or settings.get("redis_socket_connect_timeout")
    return replace(
        address,
        timeout_s=min(float(timeout_s or LONGEST_TIMEOUT_S), LONGEST_TIMEOUT_S),
        connect_timeout_s=float(connect_s or 4.0),
        client_name=str(words.get("client_name") or settings.get("redis_client_name") or ""),
        credential_provider=load_provider(
            words.get("credential_provider") or settings.get("redis_backend_credential_provider")
        ),
        keepalive=_option(words, "socket_keepalive_options", read_keepalive, {}),
    )


def _filled_in(address: Address, url: str, settings: Mapping[str, Any]) -> Address:
    """The address with what the URL leaves open from `redis_host` and its kin."""
    parts = urlsplit(url.partition(";")[0])
    given: dict[str, Any] = {}
    if not (address.path or address.sentinels or address.nodes):
        given["host"] = "" if parts.hostname else settings.get("redis_host")
        given["port"] = None if parts.port else settings.get("redis_port")
    if not address.path:
        given["db"] = None if parts.path.strip("/") or address.db else settings.get("redis_db")
    given["username"] = "" if address.username else settings.get("redis_username")
    given["password"] = "" if address.password else _text(settings.get("redis_password"))
    return replace(address, **{name: value for name, value in given.items() if value})


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _key_prefix(prefix: str | None) -> str:
    """Celery's rule: an underscore, unless the prefix ends in a separator already."""
    if not prefix:
        return ""
    return prefix if prefix[-1] in ":_-." else f"{prefix}_"


def _lifetime_s(settings: Mapping[str, Any], name: str, default: int) -> int:
    """A setting in whole seconds; 0 for ever.

    Raises:
        SettingError: Neither a number nor a timedelta.
    """
    if name not in settings:
        return default
    value = settings[name]
    if value is None:
        return default if name == "result_failure_expires" else 0
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError):
        raise SettingError(f"{name} is {value!r}; give seconds or a timedelta", setting=name) from None
    return max(1, int(seconds)) if seconds > 0 else 0
