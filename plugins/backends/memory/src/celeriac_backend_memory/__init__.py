"""Results inside one process: `memory://` and `memory://name` (or Celery's `cache+memory://`), for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """The backend of a `memory://` or `cache+memory://` URL; None for another scheme."""
    if url.partition(":")[0] not in ("memory", "cache+memory"):
        return None
    from celeriac_backend_memory.backend import MemoryBackend

    return MemoryBackend(url, settings, host)
