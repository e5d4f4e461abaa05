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


#: Runs a module as a program where pytest is not installed.
WITHOUT_PYTEST = """
import runpy, sys

class Missing:
    def find_spec(self, name, *_):
        if name == "pytest":
            raise ModuleNotFoundError("No module named 'pytest'", name=name)

sys.meta_path.insert(0, Missing())
runpy.run_module("celeriac.testing.conformance", run_name="__main__")
"""


def test_the_suites_say_what_they_lack_where_pytest_is_not_installed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYTEST], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'celeriac[testing]'" in done.stderr
    assert "Traceback" not in done.stderr
