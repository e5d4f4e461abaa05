"""The broker inside one process: `memory://` and `memory://name`, for tests and experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Transport

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_transport(url: str) -> Transport | None:
    """The transport of a `memory://` URL; None for another scheme."""
    if url.partition(":")[0] != "memory":
        return None
    from celeriac_broker_memory.transport import MemoryTransport

    return MemoryTransport(url)
