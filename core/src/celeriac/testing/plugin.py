"""pytest fixtures for programs that use celeriac, under Celery's names; in a conftest.py:

    pytest_plugins = ["celeriac.testing.plugin"]

It is no entry point of the distribution on purpose: then every run of pytest would import it wherever celeriac is
installed, and it would fight with Celery's own plugin over the names of fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import pytest

from celeriac.app.base import Celery
from celeriac.testing.apps import TestApp, setup_default_app
from celeriac.testing.rehearsal import Rehearsal
from celeriac.testing.threaded import ThreadedWorker, start_worker

__all__ = [
    "celery_app",
    "celery_class_tasks",
    "celery_config",
    "celery_enable_logging",
    "celery_includes",
    "celery_parameters",
    "celery_rehearsal",
    "celery_session_app",
    "celery_session_worker",
    "celery_worker",
    "celery_worker_parameters",
    "celery_worker_pool",
    "depends_on_current_app",
    "use_celery_app_trap",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "celery(**settings): settings of this test's celery_app")


# -- to be overridden ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def celery_config() -> Mapping[str, Any]:
    """Settings of the apps."""
    return {}


@pytest.fixture(scope="session")
def celery_parameters() -> Mapping[str, Any]:
    """Arguments of the apps' constructor."""
    return {}


@pytest.fixture(scope="session")
def celery_worker_parameters() -> Mapping[str, Any]:
    """Arguments of `start_worker`: `queues`, `concurrency`, `shutdown_timeout` …"""
    return {}


@pytest.fixture(scope="session")
def celery_worker_pool() -> str:
    """The pool of the workers."""
    return "solo"


@pytest.fixture(scope="session")
def celery_includes() -> Sequence[str]:
    """Modules with tasks, imported before a worker starts."""
    return ()


@pytest.fixture(scope="session")
def celery_class_tasks() -> Sequence[Any]:
    """Task classes for the session's app."""
    return ()


@pytest.fixture(scope="session")
def celery_enable_logging() -> bool:
    """Whether workers write a line about each task."""
    return False


@pytest.fixture(scope="session")
def use_celery_app_trap() -> bool:
    """Whether it is an error to ask for the current app."""
    return False


# -- to be used ---------------------------------------------------------------------------------------------


@pytest.fixture
def celery_app(
    request: pytest.FixtureRequest,
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[Celery]:
    """An app for this test; settings also by the marker `celery`."""
    marker = request.node.get_closest_marker("celery")
    settings = {**celery_config, **(marker.kwargs if marker is not None else {})}
    app = TestApp(config=settings, enable_logging=celery_enable_logging, **celery_parameters)
    with setup_default_app(app, use_celery_app_trap):
        yield app
    app.close()


@pytest.fixture(scope="session")
def celery_session_app(
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[Celery]:
    """One app for all tests."""
    app = TestApp(config=celery_config, enable_logging=celery_enable_logging, **celery_parameters)
    with setup_default_app(app, use_celery_app_trap):
        yield app
    app.close()


@pytest.fixture
def celery_worker(
    celery_app: Celery,
    celery_includes: Sequence[str],
    celery_worker_pool: str,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[ThreadedWorker]:
    """A worker of `celery_app`, in a thread, for this test."""
    with _worker(celery_app, celery_includes, celery_worker_pool, celery_worker_parameters) as worker:
        yield worker


@pytest.fixture(scope="session")
def celery_session_worker(
    celery_session_app: Celery,
    celery_includes: Sequence[str],
    celery_class_tasks: Sequence[Any],
    celery_worker_pool: str,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[ThreadedWorker]:
    """A worker of `celery_session_app`, in a thread, for all tests."""
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    with _worker(celery_session_app, celery_includes, celery_worker_pool, celery_worker_parameters) as worker:
        yield worker


@pytest.fixture
def celery_rehearsal(celery_app: Celery) -> Iterator[Rehearsal]:
    """What `celery_app` sends is kept, to be looked at, and run in this thread by `run_until_idle()`."""
    with Rehearsal(celery_app) as rehearsal:
        yield rehearsal


@pytest.fixture
def depends_on_current_app(celery_app: Celery) -> None:
    """Make `celery_app` the current app."""
    celery_app.set_current()


def _worker(
    app: Celery, includes: Sequence[str], pool: str, parameters: Mapping[str, Any]
) -> AbstractContextManager[ThreadedWorker]:
    for module in includes:
        import_module(module)
    return start_worker(app, **{"pool": pool, **parameters})
