"""What a bug report needs: versions, plugins and settings, without secrets."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from celeriac.exceptions import mask_url
from celeriac.kernel.discovery import catalog

if TYPE_CHECKING:
    from celeriac.app.base import Celery

#: What we stand on, and the client libraries that our plugins use.
DISTS = ("celeriac", "kombu", "amqp", "redis", "hiredis", "msgspec", "pluggy", "structlog", "click", "celery")


def bugreport(app: Celery) -> str:
    """Versions, plugins and settings, a line each. Passwords and keys are masked."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    lines = [
        f"python -> {platform.python_implementation()} {platform.python_version()} on {system}",
        "software -> " + " ".join(f"{name}:{found}" for name in DISTS if (found := _version(name))),
        "plugins -> " + " ".join(sorted({f"{info.dist_name}:{info.dist_version}" for info in catalog().all()})),
        *(f"trouble -> {trouble}" for trouble in catalog().troubles),
        f"app -> {app.main or 'default'} ({len(app.tasks)} tasks)",
        "settings ->",
        # What differs when there is no result, given or not.
        *(f"  {name}: {mask_url(str(app.conf[name]))!r}" for name in ("broker_url", "result_backend")),
        *(f"  {line}" for line in app.conf.humanize(with_defaults=False, censored=True).splitlines()),
    ]
    return "\n".join(lines)


def _version(dist: str) -> str:
    try:
        return version(dist)
    except PackageNotFoundError:
        return ""
