"""Which pools there are, at Celery's path. Pools are plugins: `celeriac plugins list pool` shows them."""

from __future__ import annotations

import os
from typing import Any

from celeriac.kernel.discovery import catalog
from celeriac.kernel.kernel import Kernel

__all__ = ["get_available_pool_names", "get_implementation"]

#: Celery's other names → ours.
ALIASES = {"processes": "prefork"}


def get_available_pool_names() -> tuple[str, ...]:
    """The names of the pool plugins that are installed, `custom` if the environment names one."""
    custom = ("custom",) if os.environ.get("CELERY_CUSTOM_WORKER_POOL") else ()
    return (*catalog().names("pool"), *custom)


def get_implementation(name: str) -> Any:
    """The pool plugin of this name: its module.

    Raises:
        PluginNotFound: There is none.
    """
    kernel = Kernel({})
    return kernel.load(kernel.find("pool", ALIASES.get(name, name))).plugin
