"""Fits an app into a Django project: where the environment variable DJANGO_SETTINGS_MODULE names one.

In every process the app's tasks become `DjangoTask`s, and `autodiscover_tasks()` looks into INSTALLED_APPS. A worker
sets Django up before it imports tasks, runs the system checks, and closes database connections around tasks as Django
does around requests. Why this is no plugin:
`docs/decisions/0008-django-is-a-fix-up.md`.
"""

from __future__ import annotations

import logging
import os
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from celeriac import signals
from celeriac.app.task import Task
from celeriac.exceptions import FixupWarning, ImproperlyConfigured

if TYPE_CHECKING:
    from celeriac.app.base import Celery

DJANGO_TASK = "celeriac.contrib.django.task:DjangoTask"

_log = logging.getLogger("celeriac.django")

#: Connections that a forked child got from its parent: kept, for letting go of one would speak on the parent's socket.
_left_to_parents: list[Any] = []


def fixup(app: Celery) -> DjangoFixup | None:
    """Install the fix-up if this process belongs to a Django project."""
    module = os.environ.get("DJANGO_SETTINGS_MODULE")
    if not module:
        return None
    if find_spec("django") is None:
        warnings.warn(
            FixupWarning(
                f"DJANGO_SETTINGS_MODULE is {module!r}, but Django is not installed here, so it has no effect. "
                "Try: pip install django, or unset the variable."
            ),
            stacklevel=3,
        )
        return None
    return DjangoFixup(app)


class DjangoFixup:
    """The fix-up of one app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._reuse_max: int | None = None
        self._uses = 0
        self._checked = False
        self._worker_pid = 0
        if app.task_cls is Task:  # neither a subclass nor the caller wants another
            app.task_cls = DJANGO_TASK
        signals.worker_init.connect(self._on_worker_init)

    def autodiscovered_packages(self) -> list[str]:
        """The packages of INSTALLED_APPS."""
        from django.apps import apps

        self.set_up()
        return [config.name for config in apps.get_app_configs()]

    def set_up(self) -> None:
        """`django.setup()`, unless it was done.

        Raises:
            ImproperlyConfigured: The settings module cannot be used; the text says which and why.
        """
        import django
        from django.apps import apps
        from django.core.exceptions import ImproperlyConfigured as DjangoMisconfigured

        if apps.ready:
            return
        try:
            django.setup()
        except (DjangoMisconfigured, ModuleNotFoundError) as exc:
            raise ImproperlyConfigured(
                f"Django cannot be set up with DJANGO_SETTINGS_MODULE={os.environ.get('DJANGO_SETTINGS_MODULE')}: "
                f"{exc}. Start the worker where manage.py is, or unset the variable."
            ) from exc

    # -- in a worker ----------------------------------------------------------------------------------------

    def before_imports(self) -> None:
        """Set up Django and, once, check the project.

        Raises:
            ImproperlyConfigured: As `set_up` and `check_project`.
        """
        self.set_up()
        if not self._checked and not skips_checks():
            check_project()
        self._checked = True

    def begin_process(self) -> None:
        """Set up Django in a process of the pool that was not forked from the worker, which has checked the project."""
        self.set_up()
        self._checked = True
        self._surround_tasks()

    def _on_worker_init(self, sender: Any, **_: Any) -> None:
        if getattr(sender, "app", None) is self._app:
            self._surround_tasks()
            self._worker_pid = os.getpid()
            signals.worker_process_init.connect(self._on_child)

    def _surround_tasks(self) -> None:
        from django.conf import settings

        # With another namespace, or none, it still has Celery's name in the project's settings.
        self._reuse_max = self._app.conf["db_reuse_max"] or getattr(settings, "CELERY_DB_REUSE_MAX", None)
        self._close_connections()
        self._close_caches()
        signals.task_prerun.connect(self._before_task)
        signals.task_postrun.connect(self._after_task)

    def _on_child(self, **_: Any) -> None:
        if os.getpid() != self._worker_pid:  # else it is solo, whose connections are its own
            forget_connections()

    def _before_task(self, sender: Any = None, **_: Any) -> None:
        if not _is_eager(sender):
            self._close_old()

    def _after_task(self, sender: Any = None, **_: Any) -> None:
        if not _is_eager(sender):
            self._close_old()
            self._close_caches()

    def _close_old(self) -> None:
        """Close what Django would close after a request, and with CELERY_DB_REUSE_MAX all of them now and then."""
        if self._reuse_max:
            self._uses += 1
            if self._uses <= 2 * self._reuse_max:  # once before a task and once after it
                return
            self._uses = 0
            self._close_connections()
            return
        from django.db import connections

        for connection in connections.all(initialized_only=True):
            connection.close_if_unusable_or_obsolete()

    @staticmethod
    def _close_connections() -> None:
        from django.db import connections

        connections.close_all()

    @staticmethod
    def _close_caches() -> None:
        from django.core.cache import close_caches

        close_caches()


def skips_checks() -> bool:
    """Whether `--skip-checks`, or its environment variable, asks for no system checks."""
    words = (os.environ.get(name, "") for name in ("CELERIAC_SKIP_CHECKS", "CELERY_SKIP_CHECKS", "SKIP_CHECKS"))
    return any(word.lower() not in ("", "0", "false", "no") for word in words)


def check_project() -> None:
    """Django's system checks, as `manage.py check`: warnings are logged, errors stop the worker.

    Raises:
        ImproperlyConfigured: With every error's text.
    """
    from django.core import checks

    messages = [message for message in checks.run_checks() if not message.is_silenced()]
    errors = [message for message in messages if message.is_serious(checks.ERROR)]
    for message in messages:
        if message not in errors and message.is_serious(checks.WARNING):
            _log.warning("Django's system check: %s", message)
    if errors:
        text = "; ".join(str(message) for message in errors)
        raise ImproperlyConfigured(
            f"Django's system checks found errors: {text}. --skip-checks starts the worker anyway."
        )


def forget_connections() -> None:
    """In a forked child: have Django connect anew, without a word on the connections (and pools) of the parent."""
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        _left_to_parents.append(connection)
        pools = getattr(type(connection), "_connection_pools", None)
        if pools:
            _left_to_parents.append(pools.pop(connection.alias, None))
        del connections[connection.alias]


def _is_eager(task: Any) -> bool:
    request = getattr(task, "request", None)
    return bool(getattr(request, "is_eager", False))
