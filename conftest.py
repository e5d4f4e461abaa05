"""What holds for every test of the repository, core's and the plugins'."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["celeriac.testing.fixtures"]

FORBID_SKIPS = "CELERIAC_FORBID_SKIPS"


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
