"""Tests of one pytest-xdist group run in one process: that is how they share a server which takes long to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import os
import pytest

@pytest.mark.xdist_group("slow-server")
@pytest.mark.parametrize("number", range(8))
def test_one(number):
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
"""


def test_a_group_stays_together(tmp_path: Path) -> None:
    (tmp_path / "test_group.py").write_text(TESTS)
    run = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", "."]
    subprocess.run(run, cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 8
    assert len(set(pids)) == 1, "this pytest and this pytest-xdist do not group (see the root's pyproject.toml)"
