"""Renews the lease of a worker that is held up, from the small process beside it (`StandsIn` in the contract).

Named by `RedisConsumer.stand_in`, and imports no more than the connection: that process should stay small.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import Any

from celeriac_support_redis.wire import Address, Wire, connect

BATCH = 500


def address_words(address: Address) -> dict[str, Any]:
    """An address as JSON has it. Credentials that change are those of this moment."""
    provider = address.credential_provider
    if provider is not None:
        name, password = ("", *provider.get_credentials())[-2:]
        address = replace(address, credential_provider=None, username=name, password=password)
    words = asdict(address)
    for options in (words["tls"] or {}, words["sentinel_options"]):
        options.update({name: str(value) for name, value in options.items() if isinstance(value, PurePath)})
    return {**words, "keepalive": list(address.keepalive.items())}


class StandIn:
    """Renews what is held under one token, as `scripts.RENEW` of the broker does, but nothing that it has lost.

    Args:
        address: As `address_words` has it.
        owners, index: The keys of leases, and of what is held and since when.
        lease_s: How long a lease lasts.
        look_s: How often the times of what is held are renewed too, for Celery's workers go by those.
    """

    def __init__(
        self, address: Mapping[str, Any], token: str, owners: str, index: str, lease_s: float, look_s: float
    ) -> None:
        words = {**address, "keepalive": dict(address["keepalive"])}
        for hosts in ("sentinels", "nodes"):
            words[hosts] = tuple((host, port) for host, port in words[hosts])
        self._address = Address(**words)
        self._token = token
        self._owners = owners
        self._index = index
        self._lease_s = lease_s
        self._look_s = look_s
        self._looked_at = float("-inf")
        self._wire: Wire | None = None

    def renew(self) -> None:
        """Once.

        Raises:
            WireLost, ReplyError: As they say; the next call connects anew.
        """
        wire, self._wire = self._wire, None
        if wire is None:
            wire = connect(self._address, name=f"celeriac:{self._token}:stand-in")
        now = int(wire.call("TIME")[0])
        wire.call("ZADD", self._owners, "XX", now + self._lease_s, self._token)
        if time.monotonic() - self._looked_at >= self._look_s:
            self._looked_at = time.monotonic()
            self._renew_times(wire, now)
        self._wire = wire

    def _renew_times(self, wire: Wire, now: int) -> None:
        cursor: bytes = b"0"
        while True:
            cursor, found = wire.call("ZSCAN", self._index, cursor, "MATCH", f"{self._token}:*", "COUNT", BATCH)
            words = [word for tag in found[::2] for word in (now, tag)]
            if words:
                wire.call("ZADD", self._index, "XX", *words)
            if cursor == b"0":
                return
