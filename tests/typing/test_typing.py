"""A task keeps its function's types for whoever calls it: checked as a user's mypy and pyright would."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def mypy(name: str, place: Path) -> set[int]:
    """The lines of which mypy complains."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(place), "--config-file=", str(HERE / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=place, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(line) for line in re.findall(rf"{re.escape(name)}:(\d+): error", done.stdout)}


def pyright(name: str, place: Path) -> set[int]:
    """The lines of which pyright complains. basedpyright brings its node in a wheel; the engine is the same."""
    shutil.copy(HERE / name, place / name)
    settings = {"typeCheckingMode": "strict", "include": [name], "reportUnknownMemberType": False}
    (place / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=place, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, done.stdout + done.stderr
    found = [entry for entry in report["generalDiagnostics"] if entry["severity"] == "error"]
    return {entry["range"]["start"]["line"] + 1 for entry in found}


@pytest.mark.parametrize("check", [mypy, pyright], ids=["mypy", "pyright"])
def test_good_calls_are_accepted(check: Callable[[str, Path], set[int]], tmp_path: Path) -> None:
    assert check("good_calls.py", tmp_path) == set()


@pytest.mark.parametrize("check", [mypy, pyright], ids=["mypy", "pyright"])
def test_bad_calls_are_refused_each_on_its_line(check: Callable[[str, Path], set[int]], tmp_path: Path) -> None:
    lines = (HERE / "bad_calls.py").read_text().splitlines()
    refused = {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}
    assert check("bad_calls.py", tmp_path) == refused
