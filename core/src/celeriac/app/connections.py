"""kombu's connections and producers for an app's broker, for programs that publish by themselves.

celeriac's own messages go through the broker plugin and need none of these.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celeriac.exceptions import Unsupported, mask_url

if TYPE_CHECKING:
    from celeriac.app.base import Celery

#: The apps that have used kombu's pools, and the connection by which kombu knows theirs.
_users: weakref.WeakKeyDictionary[Celery, Any] = weakref.WeakKeyDictionary()


def make_connection(app: Celery, url: str | list[str] | None, setting: str, **options: Any) -> Any:
    """A `kombu.Connection`, not yet connected.

    Args:
        setting: The URL's setting, when `url` is None.
        options: For `kombu.Connection`, instead of what the settings say.
    Raises:
        Unsupported: kombu has no transport for this broker, or another one of the same name.
    """
    kombu: Any = import_module("kombu")
    conf = app.conf
    wanted = url or conf[setting]
    first = (wanted if isinstance(wanted, str) else wanted[0]).partition(";")[0]
    scheme = first.partition("://")[0]
    # A broker inside this process is ours alone: kombu's of the same name would be another one.
    aliases = import_module("kombu.transport").TRANSPORT_ALIASES  # kombu itself imports it when it is used
    if scheme not in aliases or "shared" not in app.transport.abilities:
        raise Unsupported(
            f"kombu cannot speak to the broker {mask_url(first)!r}, so there is no kombu connection to it. "
            f"Use app.send_task and celeriac's own verbs, or a broker that kombu knows too (redis://, amqp://)."
        )
    known: dict[str, Any] = {
        "connect_timeout": conf["broker_connection_timeout"],
        "transport_options": dict(conf["broker_transport_options"] or {}),
        "ssl": conf["broker_use_ssl"],
        "login_method": conf["broker_login_method"],
        "heartbeat": conf["broker_heartbeat"],
        "failover_strategy": conf["broker_failover_strategy"],
    }
    return kombu.Connection(wanted, **{**known, **options})


def connection_pool(app: Celery) -> Any:
    """The pool of kombu connections for sending; kombu keeps one for each broker."""
    pools: Any = import_module("kombu.pools")
    if app.conf["broker_pool_limit"]:
        pools.set_limit(int(app.conf["broker_pool_limit"]))
    return pools.connections[_key(app)]


def producer_pool(app: Celery) -> Any:
    """The pool of kombu producers."""
    pools: Any = import_module("kombu.pools")
    return pools.producers[_key(app)]


def _key(app: Celery) -> Any:
    _users[app] = made = make_connection(app, None, "broker_write_url")
    return made


def close_pools(app: Celery) -> None:
    """Close the kombu connections to this app's broker that it, or another app of this broker, has used and put back.

    Whoever wants one later gets a new one.
    """
    key = _users.pop(app, None)
    if key is None:
        return
    pools: Any = import_module("kombu.pools")
    for group in (pools.producers, pools.connections):
        pool = group.pop(import_module("kombu.utils.collections").eqhash(key), None)
        if pool is not None:
            pool.force_close_all()


def forget_pools() -> None:
    """In a forked child: let go of kombu's pools without speaking on their sockets, which are the parent's."""
    pools: Any = sys.modules.get("kombu.pools")
    if pools is not None:
        pools.producers.clear()
        pools.connections.clear()


@contextmanager
def acquired(pool: Any, given: Any) -> Iterator[Any]:
    """What the caller has already, or one of the pool for the while."""
    if given is not None:
        yield given
        return
    with pool().acquire(block=True) as found:
        yield found
