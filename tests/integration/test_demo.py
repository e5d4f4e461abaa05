"""`make demo` shows a few hundred tasks, judges every result, and ends in good time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo" / "demo.py"
LONGEST_S = 60.0  # three to five where the machine has time

pytestmark = pytest.mark.timeout(120)


def run_demo(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LANG": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, DEMO, *options],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )


def test_the_demo_runs_everything_as_expected_and_cleans_up(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run_demo(tmp_path)
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stdout
    assert "Everything was as expected" in done.stdout
    assert "336 tasks ended" in done.stdout
    assert took_s < LONGEST_S, f"{took_s:.1f} s\n{done.stdout}"
    assert not list(tmp_path.iterdir()), "the demo left something in the home or the current folder"
    assert "\x1b" not in done.stdout, "colours for a file"


def test_the_demo_runs_on_threads_too(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--pool", "threads")
    assert done.returncode == 0, done.stdout


def test_the_demo_runs_on_a_broker_that_is_named(tmp_path: Path, redis_url: str) -> None:
    done = run_demo(tmp_path, "--broker", redis_url, "--backend", redis_url)
    assert done.returncode == 0, done.stdout


def test_a_worker_that_does_not_start_fails_the_demo_with_its_words(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--pool", "nonsense")
    assert done.returncode == 1, done.stdout
    assert "no pool plugin is named 'nonsense'" in done.stdout.replace("No pool", "no pool")
