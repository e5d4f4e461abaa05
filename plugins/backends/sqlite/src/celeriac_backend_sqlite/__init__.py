"""Results in one SQLite file: `sqlite:///file.db`, for several processes on one machine and no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """The backend of a `sqlite:` URL; None for another scheme."""
    if url.partition(":")[0] != "sqlite":
        return None
    from celeriac_backend_sqlite.backend import SqliteBackend

    return SqliteBackend(url, settings, host)
