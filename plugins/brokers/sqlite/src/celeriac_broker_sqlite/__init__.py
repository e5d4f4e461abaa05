"""The embedded broker: `sqlite:///file.db`, several processes on one machine and no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.exceptions import ImproperlyConfigured
from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Transport

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_transport(url: str, settings: Mapping[str, Any]) -> Transport | None:
    """The transport of a `sqlite:` URL; None for another scheme."""
    if url.partition(":")[0] != "sqlite":
        return None
    if "://" in url.partition(";")[2]:
        raise ImproperlyConfigured(f"{url!r}: an SQLite broker is one file; there is no other to fail over to.")
    from celeriac_broker_sqlite.transport import SqliteTransport

    return SqliteTransport(url, settings.get("broker_transport_options") or {})
