"""What every loader has: hooks to override, and the imports of a worker."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from celeriac.utils.names import import_from_cwd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from types import ModuleType

__all__ = ["BaseLoader"]


class BaseLoader:
    """Belongs to one app; `Celery(loader=MyLoader)` takes another class.

    The hooks `on_…` do nothing here. They are called around each task (only if a loader overrides them), when a
    worker starts and stops, and in each pool process that begins.
    """

    override_backends: Mapping[str, Any] = {}

    def __init__(self, app: Any, **options: Any) -> None:
        self.app = app
        self.task_modules: set[str] = set()

    def now(self, utc: bool = True) -> datetime:
        """The time now, naive as in Celery."""
        from datetime import datetime, timezone

        return datetime.now(timezone.utc).replace(tzinfo=None) if utc else datetime.now()

    def on_task_init(self, task_id: str, task: Any) -> None:
        """Called before a task runs."""

    def on_process_cleanup(self) -> None:
        """Called after a task has run."""

    def on_worker_init(self) -> None:
        """Called when a worker starts."""

    def on_worker_shutdown(self) -> None:
        """Called when a worker stops."""

    def on_worker_process_init(self) -> None:
        """Called when a process of the pool begins."""

    @property
    def has_task_hooks(self) -> bool:
        """Whether `on_task_init` or `on_process_cleanup` is overridden; if not, tasks pay nothing for them."""
        kind = type(self)
        return (kind.on_task_init, kind.on_process_cleanup) != (BaseLoader.on_task_init, BaseLoader.on_process_cleanup)

    def init_worker(self) -> None:
        """A worker starts: its modules are imported."""
        self.import_default_modules()
        self.on_worker_init()

    def init_worker_process(self) -> None:
        """A process of the pool begins."""
        self.on_worker_process_init()

    def shutdown_worker(self) -> None:
        """The worker stops."""
        self.on_worker_shutdown()

    def import_default_modules(self) -> None:
        """Import what registers tasks; see `Celery.import_default_modules`."""
        self.app.import_default_modules()

    @property
    def default_modules(self) -> tuple[str, ...]:
        """The settings `imports` and `include`."""
        conf = self.app.conf
        return (*(conf["imports"] or ()), *(conf["include"] or ()))

    def import_task_module(self, module: str) -> ModuleType:
        """Import a module with tasks."""
        self.task_modules.add(module)
        return self.import_module(module)

    def import_module(self, module: str, package: str | None = None) -> ModuleType:
        """Import a module."""
        return import_module(module, package)

    def import_from_cwd(self, module: str) -> ModuleType:
        """Import a module that may lie in the current folder."""
        return import_from_cwd(module)  # type: ignore[no-any-return]

    def autodiscover_tasks(self, packages: Iterable[str], related_name: str | None = "tasks") -> None:
        """Import `package.tasks` of these packages now."""
        self.app.autodiscover_tasks(list(packages), related_name, force=True)

    def cmdline_config_parser(self, args: Iterable[str], namespace: str = "celery") -> dict[str, Any]:
        """Settings from words such as `worker.prefetch_multiplier=1`."""
        from celeriac.app.settings_source import read_arguments

        return read_arguments(args, namespace)

    def read_configuration(self, env: str = "CELERIAC_CONFIG_MODULE") -> dict[str, Any]:
        """Settings that this loader knows by itself; none here."""
        return {}

    @property
    def conf(self) -> Any:
        """The app's settings."""
        return self.app.conf
