"""What a bug report needs: versions, plugins and settings, without secrets."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from celeriac.exceptions import mask_url
from celeriac.kernel.discovery import catalog
from celeriac.kernel.kernel import first_url

if TYPE_CHECKING:
    from celeriac.app.base import Celery

#: What we stand on, and the client libraries that our plugins use.
DISTS = ("celeriac", "kombu", "amqp", "redis", "hiredis", "msgspec", "pluggy", "structlog", "click", "rich", "celery")
#: Variables that change what we do. Only their names are shown.
VARIABLES = ("CELERIAC_", "CELERY_", "DJANGO_SETTINGS_MODULE", "NO_COLOR", "C_FORCE_ROOT")


def bugreport(app: Celery) -> str:
    """Versions, plugins and settings, a line each. Passwords and keys are masked."""
    found = facts(app)
    lines = [
        f"python -> {found['python']}",
        "software -> " + " ".join(f"{name}:{number}" for name, number in found["software"].items()),
        "plugins -> " + " ".join(f"{name}:{number}" for name, number in found["plugins"].items()),
        *(f"trouble -> {trouble}" for trouble in found["troubles"]),
        f"environment -> {' '.join(found['environment']) or 'nothing of ours'}",
        f"app -> {found['app']} ({found['tasks']} tasks)",
        "settings ->",
        *(f"  {name}: {value!r}" for name, value in found["settings"].items()),
    ]
    return "\n".join(lines)


def facts(app: Celery) -> dict[str, Any]:
    """All that the report has, as plain data."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    # What differs when there is no result comes first, given or not.
    settings = {name: mask_url(first_url(app.conf[name])) or None for name in ("broker_url", "result_backend")}
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()} on {system}",
        "software": {name: found for name in DISTS if (found := _version(name))},
        "plugins": dict(sorted((info.dist_name, info.dist_version) for info in catalog().all())),
        "troubles": list(catalog().troubles),
        "environment": sorted(name for name in os.environ if name.startswith(VARIABLES)),
        "app": app.main or "default",
        "tasks": len(app.tasks.regular()),
        "settings": {**settings, **app.conf.table(with_defaults=False, censored=True)},
    }


def _version(dist: str) -> str:
    try:
        return version(dist)
    except PackageNotFoundError:
        return ""
