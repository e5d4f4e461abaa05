"""Is this Redis fit to keep messages or results? Judged from `INFO` and, where the server lets us, `CONFIG GET`.

The judgement is a pure function of what was read, so that every case of it has a test. Called by the `diagnose` of the
broker and of the result store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from celeriac.spec.diagnosis import Finding
from celeriac_support_redis.wire import Address, ReplyError, Wire

Role = Literal["broker", "backend"]

OLDEST: Final = (6, 2)
LOCAL: Final = ("127.", "localhost", "::1")
FULL: Final = 0.8
#: What `CONFIG GET` is asked for; managed servers refuse it.
WANTED: Final = ("save", "protected-mode", "maxclients")


def examine(wire: Wire, role: Role, timeout_s: float) -> list[Finding]:
    """Read what the server says of itself, and judge it."""
    try:
        info = parse_info(wire.call("INFO", timeout_s=timeout_s).decode("utf-8", "replace"))
    except ReplyError as exc:
        if exc.code != "NOPERM":
            raise
        hint = "Allow the user INFO (`+info`) to have version, memory and disk looked at."
        return [Finding("note", "permission", f"{wire.address} does not let us ask what state it is in: {exc}.", hint)]
    config: dict[str, str] = {}
    for name in WANTED:
        try:
            reply = wire.call("CONFIG", "GET", name, timeout_s=timeout_s)
        except ReplyError:
            break  # not allowed, or renamed: judged without
        if len(reply) == 2:
            config[name] = reply[1].decode("utf-8", "replace")
    return list(judge(info, config, wire.address, role))


def parse_info(text: str) -> dict[str, str]:
    """The reply to `INFO` as a dict."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


def ask_name(wire: Wire, timeout_s: float) -> str:
    """A sign of life: `Redis 7.0.15`, or `Redis` where we may not ask for more.

    Raises:
        ReplyError, WireLost: As they say.
    """
    try:
        info = parse_info(wire.call("INFO", "server", timeout_s=timeout_s).decode("utf-8", "replace"))
    except ReplyError as exc:
        if exc.code != "NOPERM":
            raise
        wire.call("PING", timeout_s=timeout_s)
        return "Redis"
    for name in ("valkey", "redis"):
        if version := info.get(f"{name}_version"):
            return f"{name.capitalize()} {version}"
    return "Redis"


def judge(info: Mapping[str, str], config: Mapping[str, str], address: Address, role: Role) -> Iterator[Finding]:
    """What is unsafe about a server with these facts."""
    what = "messages" if role == "broker" else "results"
    yield from _version(info)
    yield from _memory(info, role, what)
    yield from _disk(info, config, role, what)
    yield from _access(config, address)
    if info.get("role") == "slave":
        yield Finding(
            "error", "replica", f"{address} is a replica and takes no writes.", "Give the URL of the primary."
        )
    if info.get("cluster_enabled") == "1" and not address.slot_key:
        yield Finding(
            "error",
            "cluster",
            f"{address} is a node of a Redis Cluster, over which the keys of a queue would be spread.",
            "Write the URL as redis+cluster://, or use a server that is not in cluster mode.",
        )
    clients, limit = _number(info, "connected_clients"), _number(info, "maxclients") or _number(config, "maxclients")
    if limit and clients > FULL * limit:
        yield Finding(
            "warning",
            "connections",
            f"{clients:.0f} of at most {limit:.0f} connections are open.",
            "Raise maxclients, or lower broker_pool_limit and the number of workers.",
        )


def _version(info: Mapping[str, str]) -> Iterator[Finding]:
    version = info.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers < OLDEST and "valkey_version" not in info:
        yield Finding(
            "error", "version", f"The server is Redis {version}.", f"Upgrade to {OLDEST[0]}.{OLDEST[1]} or newer."
        )


def _memory(info: Mapping[str, str], role: Role, what: str) -> Iterator[Finding]:
    policy, limit = info.get("maxmemory_policy", "noeviction"), _number(info, "maxmemory")
    used = _number(info, "used_memory")
    evicts = policy.startswith("allkeys") or (policy != "noeviction" and role == "backend")
    if evicts:
        yield Finding(
            ("error" if role == "broker" else "warning") if limit else "note",
            "eviction policy",
            f"maxmemory-policy is {policy}: when memory is full{'' if limit else ' (no maxmemory is set)'}, {what} "
            f"vanish without a word.",
            "Set maxmemory-policy noeviction.",
        )
    if not limit:
        yield Finding(
            "note",
            "memory limit",
            f"No maxmemory is set: when {what} pile up, the system ends the server instead of it refusing them.",
            "Set maxmemory to what the machine can spare.",
        )
    elif used > FULL * limit:
        yield Finding(
            "warning",
            "memory",
            f"{used / limit:.0%} of maxmemory ({limit / 2**20:.0f} MiB) are used.",
            "See which queues grow (celeriac top), and raise maxmemory.",
        )


def _disk(info: Mapping[str, str], config: Mapping[str, str], role: Role, what: str) -> Iterator[Finding]:
    if info.get("aof_enabled") == "1" and info.get("aof_last_write_status") == "err":
        yield Finding("error", "disk", "The server could not write its append-only file.", "Is its disk full?")
    if info.get("rdb_last_bgsave_status") == "err":
        yield Finding(
            "error",
            "disk",
            "The server could not save its last snapshot; by default it refuses every write until one succeeds.",
            "Look into its log: a full disk, or no memory to fork.",
        )
    if role != "broker" or info.get("aof_enabled") != "0":
        return
    if config.get("save") == "":
        yield Finding(
            "warning",
            "persistence",
            f"Neither an append-only file nor snapshots: a restart of the server loses all {what}.",
            "Set appendonly yes.",
        )
    else:
        yield Finding(
            "note",
            "persistence",
            f"There is no append-only file: a crash of the server loses {what} since its last snapshot.",
            "Set appendonly yes.",
        )


def _access(config: Mapping[str, str], address: Address) -> Iterator[Finding]:
    is_local = bool(address.path) or address.host.lower().startswith(LOCAL)
    has_login = bool(address.password) or address.credential_provider is not None
    if not is_local and not has_login:
        opened = " and protected-mode is off" if config.get("protected-mode") == "no" else ""
        yield Finding(
            "warning",
            "access",
            f"{address} asks for no password{opened}: whoever reaches it can send calls to your workers.",
            "Set requirepass (or ACL users) and put the password into the URL.",
        )
    elif not is_local and address.tls is None:
        yield Finding(
            "note", "access", f"What goes to {address} is not encrypted.", "Use rediss:// where the network is shared."
        )


def _number(facts: Mapping[str, Any], name: str) -> float:
    try:
        return float(facts.get(name) or 0)
    except ValueError:
        return 0.0
