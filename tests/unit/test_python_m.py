"""`python -m celeriac` is the command line."""

from __future__ import annotations

import subprocess
import sys

import celeriac


def test_python_m_celeriac_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celeriac", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert celeriac.__version__ in done.stdout
