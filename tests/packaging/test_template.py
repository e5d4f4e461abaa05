"""The plugin that others copy is a working one: it installs, is found, is chosen, and keeps its contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).resolve().parents[2] / "plugins" / "_template"
pytestmark = [pytest.mark.xdist_group("template")]

CHOOSE = """
from celeriac.kernel.kernel import Kernel

kernel = Kernel({})
print(kernel.maker_of(kernel.make_serializer("literal")))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the template, outside of the repository."""
    copy = tmp_path_factory.mktemp("elsewhere") / "literal"
    shutil.copytree(TEMPLATE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def environment(copy: Path) -> dict[str, str]:
    """In which the copy is installed, beside the repository's own dists."""
    site = copy / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(copy)], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


def test_a_copy_of_the_template_is_found_and_chosen(environment: dict[str, str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", CHOOSE], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    assert found.stdout.strip() == "serializer:literal (celeriac-serializer-literal 0.1.0)"


def test_its_own_tests_pass(copy: Path, environment: dict[str, str]) -> None:
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(copy)]
    finished = subprocess.run([*pytest_command, "tests"], cwd=copy, env=environment, stdout=subprocess.PIPE, text=True)
    assert finished.returncode == 0, finished.stdout
