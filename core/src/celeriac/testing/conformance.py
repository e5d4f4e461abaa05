"""The conformance kit's front: the suites of all kinds, and a command that tries an installed plugin.

    python -m celeriac.testing.conformance --broker redis://localhost:6379/9
    python -m celeriac.testing.conformance --backend sqlite:///results.db
    python -m celeriac.testing.conformance --pool threads
    python -m celeriac.testing.conformance --serializer msgpack

It runs the suite of the plugin's kind against a real store that is yours to give (tests use queues and ids of their
own, and purge nothing else) and prints the delivery contract clause by clause: kept, broken, or left out since the
plugin does not declare the ability that the clause hangs on. The exit code is 0 if no clause was broken. A plugin's own
tests subclass the suites instead (see `docs/plugins/`), and have the same table at the end of their run with

    pytest -p celeriac.testing.conformance
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

try:
    import pytest
except ModuleNotFoundError as exc:
    if __name__ != "__main__" or exc.name != "pytest":
        raise
    sys.exit("The suites run by pytest, which is not installed here. It comes with: pip install 'celeriac[testing]'")

from celeriac.app.base import Celery
from celeriac.exceptions import BackendUnreachable, CeleriacError, TransportUnreachable, mask_url
from celeriac.kernel.prelude import prepare_process
from celeriac.testing import SUITE_MODULES
from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.kit import KitHost, KitSerializers, make_transport, needs, needs_no
from celeriac.testing.pool_suite import PoolConformance
from celeriac.testing.serializer_suite import SerializerConformance
from celeriac.testing.state_suite import StateConformance

__all__ = [
    "BackendConformance",
    "BrokerConformance",
    "KitHost",
    "KitSerializers",
    "PoolConformance",
    "SerializerConformance",
    "StateConformance",
    "make_transport",
    "needs",
    "needs_no",
    "report",
    "suite_for",
]

KINDS: Final = ("broker", "backend", "pool", "serializer")
#: Tests whose names begin with no clause are about the verbs themselves.
VERBS: Final = "verbs"
#: How long the store may take to answer before anything is tried.
PING_S: Final = 10.0
SUITES: Final = (BackendConformance, BrokerConformance, PoolConformance, SerializerConformance, StateConformance)
#: By this property a test's report says, perhaps from another process, of which suite it is and what is left out.
PROPERTY: Final = "celeriac_suite"


class Row(NamedTuple):
    """What became of one clause.

    Attributes:
        passed, failed, skipped: Names of tests.
        left_out: Names of tests → the abilities that they call for, or that must not be there.
    """

    passed: list[str]
    failed: list[str]
    skipped: list[str]
    left_out: dict[str, str]

    @property
    def verdict(self) -> str:
        """In one word or two."""
        if self.failed:
            return "BROKEN"
        if self.passed:
            return "kept"
        return "skipped" if self.skipped else "not declared"


def clauses_of(test: str) -> list[str]:
    """The clauses that a test's name begins with: `test_B11_B13_a_killed…` → `["B11", "B13"]`."""
    found = re.match(r"test_((?:[A-Z]\d+_)+)", test)
    return [f"{word[0]}{int(word[1:])}" for word in found[1].rstrip("_").split("_")] if found else [VERBS]


def suite_for(kind: str, name: str) -> type:
    """The suite of an installed plugin, ready for pytest to collect.

    Args:
        kind: `broker`, `backend`, `pool` or `serializer`.
        name: A URL for the first two, whose scheme says the plugin; else the plugin's name.
    Raises:
        PluginNotFound, PluginBroken: As the kernel says.
    """
    if kind in ("broker", "backend"):
        return _suite_of_store(kind, name)
    app = Celery("conformance", broker="memory://conformance", set_as_current=False)
    if kind == "pool":
        return _suite_of_pool(app, name)
    made = app.kernel.make_serializer(name)
    facts = {key: getattr(made, key) for key in ("name", "content_type", "content_encoding", "unsafe")}
    module = app.kernel.find("serializer", name).module
    return type("TestSerializer", (SerializerConformance,), {"plugin": module, **facts})


def _suite_of_store(kind: str, url: str) -> type:
    app, made = _make_store(kind, url)
    module = app.kernel.find(kind, urlsplit(url).scheme.split("+")[0]).module
    suite: Any = BrokerConformance if kind == "broker" else BackendConformance

    class TestStore(suite):  # type: ignore[misc]
        plugin = module
        abilities = made.abilities
        keeps_place = False  # it is left to the store, and nobody has said

        @pytest.fixture
        def url(self) -> str:
            return url

    return TestStore


def _make_store(kind: str, url: str) -> tuple[Celery, Any]:
    broker, backend = (url, None) if kind == "broker" else ("memory://conformance", url)
    app = Celery("conformance", broker=broker, backend=backend, set_as_current=False)
    return app, app.transport if kind == "broker" else app.backend.plugin


def _reach(kind: str, url: str) -> None:
    """Make sure that the store is there: of one that is not, a plugin keeps no clause and breaks none.

    Raises:
        TransportUnreachable, BackendUnreachable: It is not.
    """
    app, made = _make_store(kind, url)
    try:
        made.ping(PING_S)
    except (TransportUnreachable, BackendUnreachable):
        raise
    except Exception:  # a fault of the plugin's, which is for the suite to find
        return
    finally:
        app.close()


def _suite_of_pool(app: Celery, name: str) -> type:
    kernel = app.kernel
    kernel.load(kernel.find("pool", name))

    class TestPool(PoolConformance):
        slots = 1 if name == "solo" else 2
        runs_beside = name != "solo"

        def make_pool(self, program: Any, options: Any) -> Any:
            return kernel.make_pool(name, program, options)

    return TestPool


class Recorder:
    """A pytest plugin that notes what became of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_configure(self) -> None:
        """Called by pytest before it collects: have it import the suites anew, so that a failure shows its values."""
        for name in (*SUITE_MODULES, "celeriac.testing.conformance"):
            sys.modules.pop(name, None)
        pytest.register_assert_rewrite(*SUITE_MODULES)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for each phase of each test; the worst counts."""
        test = report.nodeid.rpartition("::")[2].partition("[")[0]
        worse = {"passed": 0, "skipped": 1, "failed": 2}
        if report.when == "call" or report.outcome != "passed":
            before = self.outcomes.get(test, "passed")
            self.outcomes[test] = max(before, report.outcome, key=lambda outcome: worse[outcome])


def report(suite: type, outcomes: dict[str, str]) -> dict[str, Row]:
    """The table of clauses, in their order."""
    return _report(outcomes, _left_out(suite))


def _report(outcomes: dict[str, str], left_out: dict[str, str]) -> dict[str, Row]:
    rows: dict[str, Row] = defaultdict(lambda: Row([], [], [], {}))
    for test, outcome in outcomes.items():
        for clause in clauses_of(test):
            getattr(rows[clause], outcome).append(test)
    for test, why in left_out.items():
        for clause in clauses_of(test):
            rows[clause].left_out[test] = why
    return dict(sorted(rows.items(), key=lambda item: _place(item[0])))


def _left_out(suite: type) -> dict[str, str]:
    return {test: _why_left_out(suite, test) for test in sorted(getattr(suite, "left_out", ()))}


def _why_left_out(suite: type, test: str) -> str:
    original = next(vars(base)[test] for base in suite.__mro__ if vars(base).get(test) is not None)
    wanted: frozenset[str] = getattr(original, "needed_abilities", frozenset())
    missing = wanted - getattr(suite, "abilities", frozenset())
    return ", ".join(sorted(missing)) or f"no {getattr(original, 'unneeded_ability', '')}"


def _place(clause: str) -> tuple[str, int]:
    return ("~", 0) if clause == VERBS else (clause[0], int(clause[1:]))


def table(rows: dict[str, Row]) -> str:
    """For people."""
    lines = [f"{'clause':8}{'verdict':14}tests"]
    for clause, row in rows.items():
        tests = f"{len(row.passed) + len(row.failed) + len(row.skipped)} run"
        if row.left_out:
            tests += f", {len(row.left_out)} left out (needs {'; '.join(sorted(set(row.left_out.values())))})"
        lines.append(f"{clause:8}{row.verdict:14}{tests}")
        lines += [f"{'':22}broken: {test}" for test in row.failed]
    return "\n".join(lines)


class Summary:
    """Prints the table of each suite that ran, at the end of a pytest run; with pytest-xdist too."""

    def __init__(self) -> None:
        self._recorders: dict[str, Recorder] = {}
        self._left_out: dict[str, dict[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called by pytest where the tests run."""
        for item in items:
            suite = getattr(item, "cls", None)
            if suite is not None and issubclass(suite, SUITES):
                item.user_properties.append((PROPERTY, json.dumps([suite.__name__, _left_out(suite)])))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest where the results are gathered."""
        said = dict(report.user_properties).get(PROPERTY)
        if said is not None:
            name, left_out = json.loads(str(said))
            self._left_out[name] = left_out
            self._recorders.setdefault(name, Recorder()).pytest_runtest_logreport(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Called by pytest at the end."""
        for name, recorder in sorted(self._recorders.items()):
            terminalreporter.section(f"{name}: the delivery contract, clause by clause")
            terminalreporter.write_line(table(_report(recorder.outcomes, self._left_out[name])))


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest if this module is one of its plugins (`-p`)."""
    config.pluginmanager.register(Summary(), "celeriac-conformance-summary")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try one plugin and print the table; 0 if nothing was broken, 2 if it could not be tried."""
    parser = argparse.ArgumentParser(
        prog="python -m celeriac.testing.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    for kind in KINDS:
        choice.add_argument(f"--{kind}", metavar="URL" if kind in ("broker", "backend") else "NAME")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    options = parser.parse_args(arguments)
    kind = next(kind for kind in KINDS if getattr(options, kind) is not None)
    name = getattr(options, kind)
    if kind == "pool":
        prepare_process(name)
    try:
        suite = suite_for(kind, name)
        if kind in ("broker", "backend"):
            _reach(kind, name)
    except CeleriacError as exc:
        sys.stderr.write(f"cannot try {kind} {mask_url(name)}: {exc}\n")
        return 2
    recorder = Recorder()
    with tempfile.TemporaryDirectory(prefix="celeriac-conformance-") as folder:
        path = Path(folder) / "test_conformance.py"
        path.write_text(
            f"from celeriac.testing.conformance import suite_for\n\nTestPlugin = suite_for({kind!r}, {name!r})\n"
        )
        words = ["-q", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={folder}", str(path), *options.pytest]
        code = pytest.main(words, plugins=[recorder])
    rows = report(suite, recorder.outcomes)
    sys.stdout.write(f"\n{kind} {mask_url(name)}: the delivery contract, clause by clause\n\n{table(rows)}\n")
    return 1 if code != pytest.ExitCode.OK or any(row.failed for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
