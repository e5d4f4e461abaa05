"""Results in an SQL database, in Celery's tables: the plugin's front. Its backend is in `backend`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """The backend of `db+postgresql://…` and the like, or of the setting `database_url`; None for another scheme."""
    if url.partition("://")[0].partition("+")[0].strip().lower() not in ("db", "database"):
        return None
    from celeriac_backend_database.backend import DatabaseBackend

    return DatabaseBackend(url, settings, host)
