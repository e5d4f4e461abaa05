"""With a hundred plugins installed, none is imported that nobody chose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGINS_OF_A_KIND = 25
HOOKS = {
    "brokers": "celeriac_make_transport(url, settings)",
    "backends": "celeriac_make_backend(url, settings, host)",
    "serializers": "celeriac_make_serializer(name)",
    "pools": "celeriac_make_pool(name, program, options)",
}
# Each writes its name to a file as soon as it is imported; what it would make is of no use.
MODULE = """
import os
with open(os.environ["IMPORTED_PLUGINS"], "a") as file:
    file.write(__name__ + "\\n")

from celeriac.spec import hookimpl

CELERIAC_API = (1, 0)

@hookimpl
def {hook}:
    return None
"""
CHOOSE_ONE = """
from celeriac.exceptions import PluginError
from celeriac.kernel.kernel import Kernel

try:
    Kernel({}).make_serializer("fake7")
except PluginError:
    pass  # it makes nothing, which is an error of its own
"""
CELERIAC = Path(sys.executable).parent / "celeriac"

StartWorker = Callable[[Path, dict[str, str]], subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hundred installed dists in it, as pip leaves them."""
    folder = tmp_path_factory.mktemp("site")
    for kind, hook in HOOKS.items():
        for number in range(PLUGINS_OF_A_KIND):
            install(folder, kind, f"fake{number}", MODULE.format(hook=hook))
    return folder


def install(folder: Path, kind: str, name: str, module: str) -> None:
    dist = f"fake_{kind}_{name}"
    (folder / f"{dist}.py").write_text(module)
    info = folder / f"{dist}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[celeriac.{kind}]\n{name} = {dist}\n")


class Imports:
    """Runs programs with the hundred installed, and knows which of them were imported."""

    def __init__(self, site: Path, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "imported"
        self.record.touch()
        self.environment = {**os.environ, "PYTHONPATH": str(site), "IMPORTED_PLUGINS": str(self.record)}

    def run(self, *command: str | Path) -> str:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.PIPE, text=True, timeout=100
        ).stdout

    def all(self) -> list[str]:
        return self.record.read_text().split()


@pytest.fixture
def imports(site: Path, project: Path) -> Imports:
    return Imports(site, project)


def test_listing_the_hundred_imports_none(imports: Imports) -> None:
    listed = json.loads(imports.run(CELERIAC, "plugins", "list", "--json"))
    assert sum(one["name"].startswith("fake") for one in listed) == PLUGINS_OF_A_KIND * len(HOOKS)
    assert imports.all() == []


def test_the_chosen_one_alone_is_imported(imports: Imports) -> None:
    imports.run(sys.executable, "-c", CHOOSE_ONE)
    assert imports.all() == ["fake_serializers_fake7"]


def test_a_task_s_whole_way_through_other_plugins_imports_none(imports: Imports, start_worker: StartWorker) -> None:
    worker = start_worker(CELERIAC, imports.environment)
    call = "from tasks import add; print(add.delay(4, 4).get(timeout=60))"
    assert imports.run(sys.executable, "-c", call).strip() == "8"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=90) == 0
    assert imports.all() == []
