"""Results in Redis: the plugin's front. Its backend is in `backend`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """Make the backend for a URL whose scheme is one of `SCHEMES`."""
    from celeriac_backend_redis.backend import make_backend

    return make_backend(url, settings, host)
