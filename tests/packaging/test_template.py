"""The plugin that others copy is a working one: it installs, is found, is chosen, and keeps its contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parents[2] / "plugins" / "_template"
PROGRAM = """
from celeriac.kernel.kernel import Kernel

kernel = Kernel({})
literal = kernel.make_serializer("literal")
assert literal.loads(literal.dumps({"a": (1, b"2", None)})) == {"a": (1, b"2", None)}
print(kernel.maker_of(literal))
"""


def test_a_copy_of_the_template_is_a_plugin(tmp_path: Path) -> None:
    copy, site = tmp_path / "copy", tmp_path / "site"
    shutil.copytree(TEMPLATE, copy, ignore=shutil.ignore_patterns("__pycache__"))
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
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    assert found.stdout.strip() == "serializer:literal (celeriac-serializer-literal 0.1.0)"
