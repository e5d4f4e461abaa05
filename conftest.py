"""What holds for every test of the repository, core's and the plugins'."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import celeriac.app.builtin  # noqa: F401 - its tasks are every app's, whichever test is the first to make one
from celeriac import _state

pytest_plugins = ["celeriac.testing.fixtures"]

FORBID_SKIPS = "CELERIAC_FORBID_SKIPS"
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LONGEST_ID = 60

# The suite starts hundreds of interpreters. Where the environment says so (images of containers often do), each of them
# would compile all of celeriac anew, which takes longer than the rest of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes says more of the other processes on the machine than of the test.
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Give a long parameter a short id: nobody reads it, and random bytes differ between processes (see below)."""
    if isinstance(val, (bytes, str)) and len(val) > LONGEST_ID:
        return f"{argname}-of-{len(val)}"
    return None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say which tests belong into one process, where they share something that takes long to make.

    Those of one slow server do (see `celeriac.testing.fixtures`), and those of a module-wide fixture, most often a
    worker: else each process would make one, and another whenever tests of other modules came between. RabbitMQ's tests
    are too many for one process: there are two nodes, one for those of the plugins and one for the rest.
    """
    if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
        return
    from celeriac.testing.fixtures import SLOW_SERVICE_FIXTURES  # not above: pytest wants to be the first to import it

    servers = SLOW_SERVICE_FIXTURES.keys() & set(item.fixturenames)
    if "rabbitmq_service" in servers and item.nodeid.startswith("plugins/"):
        item.add_marker(pytest.mark.xdist_group("rabbitmq-plugins"))
    elif not servers and any(made[-1].scope == "module" for made in item._fixtureinfo.name2fixturedefs.values()):
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the address out of ids like `test_it[<object object at 0x7f…>]`.

    It differs from process to process, and pytest-xdist runs nothing at all unless every process has the same tests.
    """
    for item in items:
        if ADDRESS.search(item.nodeid):
            item._nodeid = ADDRESS.sub("", item.nodeid)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Tests do not meet each other's apps and shared tasks: those of all that live enter every app, as in Celery."""
    _state._apps.clear()
    shared = list(_state._on_finalize)
    yield
    _state._on_finalize[:] = shared


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped a test, where skips are forbidden: what CI did not run, nobody knows."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(FORBID_SKIPS, "0") in ("", "0") or reporter is None:
        return
    skipped = len(reporter.stats.get("skipped", []))
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"\n{FORBID_SKIPS} is set, and {skipped} skipped (listed below): the run fails.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
