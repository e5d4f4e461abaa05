"""What users install: wheels of core and a few plugins, in a bare environment, which list themselves and run a task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))]
BUILD_ALL = """
import os, sys
from flit_core.buildapi import build_wheel

dist, *folders = sys.argv[1:]
for folder in folders:
    os.chdir(folder)
    build_wheel(dist)
"""
INSTALLED = {
    "celeriac",
    "celeriac_backend_sqlite",
    "celeriac_broker_redis",
    "celeriac_broker_sqlite",
    "celeriac_pool_prefork",
    "celeriac_pool_solo",
    "celeriac_serializer_json",
    "celeriac_support_pools",
    "celeriac_support_redis",
    "celeriac_support_sqlite",
}
PLUGINS = {
    ("backend", "sqlite", "celeriac-backend-sqlite"),
    ("broker", "redis", "celeriac-broker-redis"),
    ("broker", "rediss", "celeriac-broker-redis"),
    ("broker", "sentinel", "celeriac-broker-redis"),
    ("broker", "sqlite", "celeriac-broker-sqlite"),
    ("pool", "prefork", "celeriac-pool-prefork"),
    ("pool", "processes", "celeriac-pool-prefork"),
    ("pool", "solo", "celeriac-pool-solo"),
    ("serializer", "json", "celeriac-serializer-json"),
}
StartWorker = Callable[[Path, dict[str, str]], subprocess.Popen[bytes]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("wheels")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wheel of each distribution, made by the back end which their pyproject.toml names."""
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-c", BUILD_ALL, str(dist), *map(str, MEMBERS)], check=True)
    return sorted(dist.iterdir())


@pytest.fixture(scope="module")
def bin_folder(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with a few of the wheels, what they need, and nothing else."""
    chosen = [wheel for wheel in wheels if wheel.name.partition("-")[0] in INSTALLED]
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *map(str, chosen)], check=True)
    return folder / "bin"


def environment() -> dict[str, str]:
    """Ours, without what would let the checkout shine through."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def run(project: Path, *command: str | Path, timeout_s: float = 100) -> str:
    """Run a command as a user in the project's folder; returns what it printed."""
    return subprocess.run(
        command, cwd=project, env=environment(), check=True, stdout=subprocess.PIPE, text=True, timeout=timeout_s
    ).stdout


def test_a_wheel_has_the_package_its_types_and_its_entry_points(wheels: list[Path]) -> None:
    assert len(wheels) == len(MEMBERS)
    for wheel in wheels:
        dist, version, *_ = wheel.name.split("-")
        package = dist.removeprefix("celeriac_compat_")
        names = zipfile.ZipFile(wheel).namelist()
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
        has_entry_points = f"{dist}-{version}.dist-info/entry_points.txt" in names
        assert has_entry_points == (not dist.startswith("celeriac_support_"))
        assert not [name for name in names if not name.startswith((f"{package}/", f"{dist}-{version}.dist-info/"))]


def test_exactly_the_installed_plugins_are_listed(bin_folder: Path, project: Path) -> None:
    listed = json.loads(run(project, bin_folder / "celeriac", "plugins", "list", "--json"))
    assert {(one["kind"], one["name"], one["dist"]) for one in listed} == PLUGINS
    assert len(listed) == len(PLUGINS)
    assert {one["version"] for one in listed} == {"0.1.0"}


def test_the_list_for_people_names_every_plugin(bin_folder: Path, project: Path) -> None:
    table = run(project, bin_folder / "celeriac", "plugins", "list")
    assert [name for _, name, dist in PLUGINS if name not in table or dist not in table] == []


def test_a_task_runs(bin_folder: Path, project: Path, start_worker: StartWorker) -> None:
    worker = start_worker(bin_folder / "celeriac", environment())
    call = "from tasks import add; print(add.delay(4, 4).get(timeout=60))"
    assert run(project, bin_folder / "python", "-c", call).strip() == "8"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=90) == 0, (project / "worker.log").read_text()


def test_a_plugin_that_is_not_installed_is_named(bin_folder: Path, project: Path) -> None:
    call = "from celeriac import Celery; Celery('t', broker='amqp://localhost//').send_task('t.add')"
    failed = subprocess.run(
        [bin_folder / "python", "-c", call], cwd=project, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert failed.returncode != 0
    assert "pip install celeriac-broker-amqp" in failed.stderr
