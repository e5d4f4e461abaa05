"""Results in a Django project's database or cache: the plugin's front, and a Django app for INSTALLED_APPS.

Nothing of Django is imported here: the front is loaded before `django.setup()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Host, ResultBackend

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_backend(url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
    """The backend of `django-db` or `django-cache`; None for another name."""
    name = url.partition(":")[0].strip().lower()
    if name in ("django-db", "django"):
        from celeriac_backend_django.database import DjangoDatabaseBackend

        return DjangoDatabaseBackend(settings, host)
    if name == "django-cache":
        from celeriac_backend_django.cache import DjangoCacheBackend

        return DjangoCacheBackend(settings, host)
    return None
