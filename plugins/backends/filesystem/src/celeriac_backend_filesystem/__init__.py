"""Results as files of a folder, named and written as Celery does: the plugin's front. Its backend is in `backend`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """The backend of a `file:///folder` URL; None for another scheme."""
    if url.partition(":")[0].strip().lower() not in ("file", "filesystem"):
        return None
    from celeriac_backend_filesystem.backend import FilesystemBackend

    return FilesystemBackend(url, settings, host)
