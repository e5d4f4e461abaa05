"""Results in Memcached, under Celery's keys: the plugin's front. Its backend is in `backend`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """The backend of `memcached://…`, `cache+memcached://…`, `cache+memory://` or the setting `cache_backend`."""
    if url.partition("://")[0].partition("+")[0].strip().lower() not in ("cache", "memcached"):
        return None
    from celeriac_backend_memcached.backend import MemcachedBackend

    return MemcachedBackend(url, settings, host)
