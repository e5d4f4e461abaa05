"""What a user can say about this broker: the URL, `broker_transport_options`, and a few settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from celeriac.exceptions import CeleriacWarning, ImproperlyConfigured, mask_url
from celeriac.spec.servers import split_urls
from celeriac_broker_redis.keys import DEFAULT_SEP, DEFAULT_STEPS, Keys
from celeriac_support_redis.wire import (
    CLUSTER_PREFIX,
    MANY_HOSTS,
    Address,
    in_one_slot,
    load_provider,
    parse_url,
    read_flag,
    read_keepalive,
    through_sentinels,
    unknown_tls,
)

#: Understood by kombu, without a meaning here: what they tune does not exist or cannot be switched off.
IGNORED: Final = frozenset(
    {
        "ack_emulation",
        "brpop_timeout",
        "fanout_patterns",
        "health_check_interval",
        "max_connections",
        "min_other_sentinels",
        "polling_interval",
        "reauth_check_interval",
        "retry_on_timeout",
        "retry_policy",
        "unacked_mutex_expire",
        "unacked_mutex_key",
        "unacked_restore_interval",
        "unacked_restore_limit",
        "unacked_restore_throttle",
        # Celery reads these itself
        "confirm_publish",
        "interval_max",
        "interval_start",
        "interval_step",
        "max_retries",
    }
)
SETTING: Final = "broker_transport_options"
ORDERS: Final = ("round_robin", "priority", "sorted")


@dataclass(frozen=True)
class Options:
    """All that is not a key name or an address.

    Attributes:
        lease_s: How long a consumer that says nothing keeps what it holds.
        visibility_timeout_s: After so long without a sign of life, what Celery's workers hold is given back.
        order: How several queues share a consumer: equal turns, in the order given, or alphabetically.
        delay: Messages may wait in the broker until they are due; only celeriac's workers move those on, and do so
            whatever this says, for others may have sent them.
        fanout_prefix: Before the exchange in a channel's name; `{db}` is the database.
        max_waits: How many lists an idle consumer waits on at once, a connection each; others are asked by turns.
    """

    lease_s: float = 15.0
    visibility_timeout_s: float = 3600.0
    order: str = "round_robin"
    delay: bool = True
    fanout_prefix: str = "/{db}."
    max_waits: int = 8


@dataclass(frozen=True)
class Configuration:
    """Everything the transport needs to know.

    Attributes:
        address: Of the server, or of the first of several.
        addresses: Of all that the URL names; of these one is used at a time.
        pool_limit: So many connections for sending at once; 0: any number, and none is kept.
        pool_patience_s: How long to wait for one of them; None: as long as the call may take.
        settings: The app's, for `Servers`.
    """

    url: str = field(repr=False)
    address: Address
    keys: Keys
    options: Options
    addresses: tuple[Address, ...] = ()
    pool_limit: int = 10
    pool_patience_s: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def urls(self) -> list[str]:
        """One for each address."""
        return _alternates(self.url)


def configure(url: str, settings: Mapping[str, Any]) -> Configuration:
    """Read URL and settings.

    Raises:
        ImproperlyConfigured: A value makes no sense.
    """
    parsed = [parse_url(each) for each in _alternates(url)]
    if len({address.db for address, _ in parsed}) > 1:
        raise ImproperlyConfigured(f"{mask_url(url)!r}: name the same database number in each of several Redis URLs.")
    query = {name: value for _, words in reversed(parsed) for name, value in words.items()}
    words: dict[str, Any] = {**query, **(settings.get(SETTING) or {})}
    take = _Taker(words)
    take.taken |= {"master_name", "sentinel_kwargs"}
    common: dict[str, Any] = {
        "credential_provider": load_provider(take("credential_provider", _as_is, None)),
        "client_name": take("client_name", str, ""),
        "timeout_s": take("socket_timeout", _seconds, 10.0),
        "connect_timeout_s": take("socket_connect_timeout", _seconds, settings.get("broker_connection_timeout") or 4.0),
        "keepalive": take("socket_keepalive_options", read_keepalive, {}),
    }
    addresses = [
        replace(
            through_sentinels(address, words, SETTING),
            tls=_tls(address, settings.get("broker_use_ssl")),
            **common,
        )
        for address, _ in parsed
    ]
    take("socket_keepalive", _as_is, True)  # always on: without it a peer that vanished is never noticed
    steps = take("priority_steps", _steps, DEFAULT_STEPS)
    keys = Keys(
        prefix=take("global_keyprefix", str, CLUSTER_PREFIX if addresses[0].nodes else ""),
        sep=take("sep", str, DEFAULT_SEP),
        steps=steps,
        unacked=take("unacked_key", str, "unacked"),
        unacked_index=take("unacked_index_key", str, "unacked_index"),
    )
    fanout = take("fanout_prefix", _as_is, True)
    options = Options(
        lease_s=take("lease", _seconds, 15.0),
        visibility_timeout_s=take("visibility_timeout", _seconds, 3600.0),
        order=take("queue_order_strategy", _order, "round_robin"),
        delay=take("delay", read_flag, True),
        fanout_prefix=fanout if isinstance(fanout, str) else "/{db}." if fanout else "",
        max_waits=take("max_waits", int, 8),
    )
    unknown = sorted((set(words) - take.taken - IGNORED).union(*map(unknown_tls, addresses)))
    if unknown:
        warnings.warn(
            f"the redis broker does not know {', '.join(unknown)} (in {SETTING}, broker_use_ssl or the URL); ignored",
            CeleriacWarning,
            2,
        )
    addresses = [in_one_slot(address, keys.prefix, SETTING) for address in addresses]
    return Configuration(
        url,
        addresses[0],
        keys,
        options,
        tuple(addresses),
        int(settings.get("broker_pool_limit", 10) or 0),
        settings.get("broker_pool_acquire_timeout"),
        settings,
    )


def _alternates(url: str) -> list[str]:
    """Several servers of which each is all of a broker; those of Sentinels and nodes are one address together. A
    semicolon that no URL follows is part of a password."""
    urls = split_urls(url)
    return [url] if url.partition(":")[0] in MANY_HOSTS or not all("://" in each for each in urls) else urls


class _Taker:
    """Reads options, and remembers which."""

    def __init__(self, words: Mapping[str, Any]) -> None:
        self.words = words
        self.taken: set[str] = set()

    def __call__(self, name: str, read: Any, default: Any) -> Any:
        self.taken.add(name)
        value = self.words.get(name)
        if value is None:
            return default
        try:
            return read(value)
        except (TypeError, ValueError, KeyError) as exc:
            raise ImproperlyConfigured(f"broker_transport_options[{name!r}] = {value!r}: {exc}") from None


def _as_is(value: Any) -> Any:
    return value


def _seconds(value: Any) -> float:
    seconds = float(value)
    if seconds <= 0:
        raise ValueError("must be a number of seconds above 0")
    return seconds


def _steps(value: Any) -> tuple[int, ...]:
    steps = tuple(sorted({int(step) for step in value}))
    if not steps or steps[0] < 0 or steps[-1] > 9:
        raise ValueError("must be some of the numbers 0 to 9")
    return steps


def _order(value: Any) -> str:
    if value not in ORDERS:
        raise ValueError(f"must be one of {', '.join(ORDERS)}")
    return str(value)


def _tls(address: Address, use_ssl: Any) -> Mapping[str, Any] | None:
    """`broker_use_ssl`: False, True, or a dict of `ssl_*` options (`keyfile`, `ca_certs` … are taken as well)."""
    if not use_ssl:
        return address.tls
    given = dict(use_ssl) if isinstance(use_ssl, Mapping) else {}
    return {**(address.tls or {}), **{k if k.startswith("ssl_") else f"ssl_{k}": v for k, v in given.items()}}
