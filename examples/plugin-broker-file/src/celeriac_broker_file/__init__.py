"""The door of the plugin: imported only when it was chosen, so it imports nothing itself until it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Transport

#: The version of the contract that this was written for.
CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_transport(url: str) -> Transport | None:
    """A transport for `file:///folder`; None for any other scheme."""
    if not url.startswith("file://"):
        return None
    from celeriac_broker_file.transport import FileTransport

    return FileTransport(url)
