"""Each of our entry points loads, answers one kind, and costs nothing before it is asked to make something."""

from __future__ import annotations

import subprocess
import sys

import pytest

from celeriac.kernel.discovery import PluginInfo, catalog
from celeriac.kernel.loader import Loader
from celeriac.spec import API_VERSION
from celeriac.spec.hooks import KINDS, PROJECT

OURS = [info for info in catalog().all() if info.module.startswith("celeriac_")]
CLIENT_LIBRARIES = [
    "amqp",
    "hiredis",
    "kombu",
    "msgpack",
    "multiprocessing",
    "opentelemetry",
    "prometheus_client",
    "redis",
    "sqlalchemy",
    "sqlite3",
    "yaml",
]


def hooks_of(module: object) -> set[str]:
    """The names of the functions that are marked as hook implementations."""
    return {name for name, value in vars(module).items() if hasattr(value, f"{PROJECT}_impl")}


@pytest.mark.parametrize("info", OURS, ids=lambda info: f"{info.kind}:{info.name}")
def test_an_entry_point_loads_and_answers_one_kind(info: PluginInfo) -> None:
    plugin = Loader().load(info).plugin
    _, hooks, hook = KINDS[info.kind]
    if hook:
        assert hooks_of(plugin) - {"celeriac_prepare_process"} == {hook}  # which pools may have besides
    else:  # an extension has as many of its kind's as it likes
        assert hooks_of(plugin)
        assert hooks_of(plugin) <= vars(hooks).keys()
    assert plugin.CELERIAC_API == API_VERSION


def test_a_loaded_plugin_has_not_imported_its_client_library() -> None:
    modules = sorted({info.module for info in OURS})
    program = (
        "import sys, importlib, celeriac.spec\n"
        f"clients = [name for name in {CLIENT_LIBRARIES} if name not in sys.modules]\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        "    early = [name for name in clients if name in sys.modules]\n"
        "    if early: sys.exit(f'{module} imports {early}')\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stderr == ""
