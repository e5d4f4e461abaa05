"""Results sent back over the broker, read once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celeriac.spec import Host, ResultBackend, hookimpl

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    if url.partition(":")[0] != "rpc":
        return None
    from celeriac_backend_rpc.backend import RpcBackend

    return RpcBackend(url, settings, host)
