"""Make .venv and install core and every plugin into it, editable, with the developers' tools.

Run by `make` whenever a pyproject.toml or constraints.txt is newer than .venv/.stamp. Needs nothing but a Python of
3.10 or newer with venv. uv does the installing because it is several times faster; where uv cannot work (no wheel for
this machine, an index that only pip is told of), plain pip does the same. `BOOTSTRAP=pip` asks for pip at once.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST_PYTHON = (3, 10)
BUILD_BACKEND = "flit_core>=3.11,<5"

UV_ENVIRONMENT = {
    "UV_SYSTEM_CERTS": "1",  # uv's own certificate roots know nothing of a company's proxy
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_PROJECT_ENVIRONMENT": ".venv",
    "UV_LINK_MODE": "copy",  # cache and project may lie on different file systems
}


class BootstrapError(Exception):
    """Something a person has to mend; the text says how."""


def main() -> int:
    """Bring .venv up to date; returns the exit status."""
    began = time.monotonic()
    try:
        make_venv()
        install(members(ROOT), how=os.environ.get("BOOTSTRAP") or "uv")
    except BootstrapError as exc:
        print(f"bootstrap: {exc}", file=sys.stderr)
        return 1
    (VENV / ".stamp").touch()
    say(f".venv is ready ({time.monotonic() - began:.0f} s)")
    return 0


def members(root: Path) -> list[Path]:
    """The folders of all distributions, core first."""
    others = sorted(path.parent for path in root.glob("plugins/*/*/pyproject.toml"))
    return [root / "core", *others]


def make_venv() -> None:
    """Create .venv unless a working one of a supported Python is there."""
    if sys.version_info < OLDEST_PYTHON:
        raise BootstrapError(
            f"celeriac needs Python {version_text(OLDEST_PYTHON)} or newer, and {sys.executable} is "
            f"{version_text(sys.version_info[:2])}. Name another one: make demo PY=python3.12"
        )
    if is_working_venv():
        return
    if importlib.util.find_spec("ensurepip") is None:
        raise BootstrapError(
            "this Python cannot make virtual environments with pip in them. On Debian and Ubuntu: "
            "apt-get install -y python3-venv"
        )
    say(f"making .venv with Python {version_text(sys.version_info[:3])}")
    try:
        venv.create(VENV, clear=VENV.exists(), with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise BootstrapError(
            f"no virtual environment could be made in {VENV}: {exc}\n"
            "On Debian and Ubuntu: apt-get install -y python3-venv"
        ) from exc


def is_working_venv() -> bool:
    """Whether .venv has a Python that starts, is new enough, and has pip."""
    if not PYTHON.exists():
        return False
    check = f"import sys, pip; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    return run([str(PYTHON), "-c", check], quiet=True)


def install(folders: list[Path], *, how: str) -> None:
    """Install these distributions, editable, and the tools; uv first unless `how` is pip."""
    if how not in ("uv", "pip"):
        raise BootstrapError(f"BOOTSTRAP={how}: only uv and pip are known")
    say(f"installing {len(folders)} distributions, their dependencies and the tools")
    if how == "uv":
        if install_with_uv(folders):
            return
        say("uv did not get through (above); trying again with pip, which takes longer")
    if not install_with_pip(folders):
        raise BootstrapError(
            "pip could not install everything (its own words are above). Most often the package index was out of "
            "reach: see that `python3 -m pip download six` works here, then run make again."
        )


def install_with_uv(folders: list[Path]) -> bool:
    """Whether uv could be had and installed everything."""
    if not pip_install("uv>=0.9"):
        return False
    uv = [str(PYTHON), "-m", "uv", "pip", "install", "--quiet", "--python", str(PYTHON)]
    return run([*uv, *constraint_options(), *editable_options(folders), *tools()], env=UV_ENVIRONMENT)


def install_with_pip(folders: list[Path]) -> bool:
    """Whether pip installed everything; without build isolation, which costs more than the builds."""
    if not pip_install(BUILD_BACKEND, *constraint_options()):
        return False
    return pip_install("--no-build-isolation", *constraint_options(), *editable_options(folders), *tools())


def pip_install(*arguments: str) -> bool:
    """Whether `pip install` in .venv took these arguments."""
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    return run([*pip, *arguments])


def constraint_options() -> list[str]:
    """The option that holds dependencies at the versions this commit was tested with."""
    return ["-c", CONSTRAINTS.name] if CONSTRAINTS.exists() else []


def editable_options(folders: list[Path]) -> list[str]:
    """`-e ./core -e ./plugins/…`: one installer run sees all, so that they satisfy each other's requirements."""
    return [word for folder in folders for word in ("-e", f"./{folder.relative_to(ROOT)}")]


def tools() -> list[str]:
    """The requirements of the root's dependency group `dev`."""
    group: list[str] = read_toml(ROOT / "pyproject.toml")["dependency-groups"]["dev"]
    return group


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file, on 3.10 too, which has no tomllib: there pip brings a parser along."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    return tomllib.loads(path.read_text(encoding="utf-8"))


def run(command: list[str], *, env: dict[str, str] | None = None, quiet: bool = False) -> bool:
    """Whether the command, started in the root folder, ended well."""
    environment = {**os.environ, **(env or {})}
    environment.pop("VIRTUAL_ENV", None)  # another environment that happens to be active
    output = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output).returncode == 0
    except OSError:
        return False


def version_text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def say(text: str) -> None:
    print(f"bootstrap: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
