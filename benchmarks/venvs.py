"""One venv per peer, made once and kept under `.venvs/` beside this file; made again when its requirements change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.catalog import OURS, REQUIREMENTS

HERE = Path(__file__).resolve().parent
VENVS = HERE / ".venvs"


def python_of(peer: str) -> Path:
    """The interpreter that runs this peer; ours is the project's own environment."""
    if peer == OURS:
        project = HERE.parent / ".venv" / "bin" / "python"
        return project if project.exists() else Path(sys.executable)
    return VENVS / peer / "bin" / "python"


def program_of(peer: str, program: str) -> str:
    """The path of a console script in the peer's venv."""
    return str(python_of(peer).parent / program)


def make(peer: str) -> bool:
    """Make the peer's venv if it is missing or out of date; say whether anything was done."""
    if peer == OURS:
        return False
    folder = VENVS / peer
    wanted = "\n".join(REQUIREMENTS[peer]) + f"\npython {sys.version.split()[0]}\n"
    stamp = folder / "benchmark-requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    VENVS.mkdir(exist_ok=True)
    uv = _find_uv()
    if uv:
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        _run([uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *REQUIREMENTS[peer]])
    else:
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(folder / "bin" / "pip"), "install", "--quiet", *REQUIREMENTS[peer]])
    stamp.write_text(wanted)
    return True


def versions_of(peer: str) -> dict[str, str]:
    """Name and version of what the peer's interpreter has of its own requirements."""
    names = [OURS] if peer == OURS else [_bare(requirement) for requirement in REQUIREMENTS[peer]]
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:] if any(True for _ in m.distributions(name=n))}))"
    )
    done = subprocess.run([str(python_of(peer)), "-c", code, *names], capture_output=True, text=True, check=False)
    if done.returncode:
        return {}
    return dict(json.loads(done.stdout))


def _bare(requirement: str) -> str:
    for mark in ("[", "=", ">", "<"):
        requirement = requirement.split(mark)[0]
    return requirement


def _find_uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
