"""Node names of workers, at Celery's path."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celeriac.utils.ids import anon_nodename, default_nodename, hostname

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "anon_nodename", "default_nodename", "gethostname", "host_format", "node_format", "nodename", "nodesplit",
    "worker_direct",
]  # fmt: skip

gethostname = hostname

WORKER_DIRECT_EXCHANGE = "C.dq2"
WORKER_DIRECT_QUEUE_FORMAT = "{hostname}.dq2"


def nodename(name: str, hostname: str) -> str:
    """`name@hostname`."""
    return f"{name}@{hostname}"


def nodesplit(name: str) -> tuple[str | None, str]:
    """`w1@host` → `("w1", "host")`; without an @ the whole is the host."""
    first, at, rest = name.partition("@")
    return (first, rest) if at else (None, first)


def node_format(text: str, name: str, **extra: Any) -> str:
    """Expand `%n`, `%h`, `%d` … for the node `name` (`w1@host`)."""
    node, host = nodesplit(name)
    return host_format(text, host, node or "celery", **extra)


def host_format(text: str, host: str | None = None, name: str | None = None, **extra: Any) -> str:
    """Expand `%h` (node@host, as Celery's files have it), `%n` (its name), `%d` (its domain), `%i`, `%I` and `%%`."""
    host = host or hostname()
    short, _, domain = host.partition(".")
    values: Mapping[str, Any] = {
        "h": nodename(name, host) if name else host, "n": name or short, "d": domain, "i": "%i", "I": "%I", "%": "%",
        **extra,
    }  # fmt: skip
    parts = text.split("%")
    found, index = [parts[0]], 1
    while index < len(parts):
        part = parts[index]
        if not part:  # two signs in a row
            found.append("%" + (parts[index + 1] if index + 1 < len(parts) else ""))
            index += 2
            continue
        value = values.get(part[0], f"%{part[0]}")
        found.append(f"{value() if callable(value) else value}{part[1:]}")
        index += 1
    return "".join(found)


@lru_cache(maxsize=64)
def worker_direct_names(node: str) -> tuple[str, str, str]:
    """Queue, exchange and routing key by which one worker is reached."""
    return WORKER_DIRECT_QUEUE_FORMAT.format(hostname=node), WORKER_DIRECT_EXCHANGE, node


def worker_direct(node: Any) -> Any:
    """The `kombu.Queue` of one worker, for `queue=`, if it runs with `worker_direct`."""
    kombu: Any = import_module("kombu")
    if isinstance(node, kombu.Queue):
        return node
    queue, exchange, key = worker_direct_names(node)
    return kombu.Queue(queue, kombu.Exchange(exchange), key)
