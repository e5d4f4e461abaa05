"""The plugin's front: found by its entry point, imported when a URL begins with dbm://."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """The backend of a dbm:///path URL; None for another scheme."""
    if url.partition(":")[0] != "dbm":
        return None
    from celeriac_backend_dbm.backend import DbmBackend

    return DbmBackend(url, settings, host)
