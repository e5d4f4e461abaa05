"""A task keeps its function's types for whoever calls it: checked as a user's type checker would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def check(name: str, cache: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), "--config-file=", str(HERE / name)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cache).stdout


def test_good_calls_are_accepted(tmp_path: Path) -> None:
    assert "Success: no issues found" in check("good_calls.py", tmp_path)


def test_bad_calls_are_refused_each_on_its_line(tmp_path: Path) -> None:
    found = {int(line) for line in re.findall(r"bad_calls\.py:(\d+): error", check("bad_calls.py", tmp_path))}
    lines = (HERE / "bad_calls.py").read_text().splitlines()
    assert found == {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}
