"""Redis as broker: the plugin's front. Its transport is in `transport`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Transport

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_transport(url: str, settings: Mapping[str, Any]) -> Transport | None:
    """Make the transport for a URL whose scheme is one of `SCHEMES`."""
    from celeriac_broker_redis.transport import make_transport

    return make_transport(url, settings)
