"""Strangers from PyPI, a real Celery and a real Flower, each in a venv of its own, for the tests that meet them.

Made once, inside `.venv` (so that `make clean` removes them), and again when the requirements change.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv" / "peers"
CELERY = (
    "celery[redis,msgpack,yaml]==5.7.*",
    "cryptography>=42",
    "hiredis>=3",
    # for its result backends
    "django-celery-results==2.6.*",
    "psycopg[binary]>=3.1",
    "pymemcache>=4",
    "pymysql>=1.1",
    "sqlalchemy>=2",
)
FLOWER = ("celery[redis]==5.7.*", "hiredis>=3", "flower==2.2.*")


def celery_python() -> Path:
    """The Python that has Celery. Safe to call from several test processes at once.

    Raises:
        subprocess.CalledProcessError: It could not be installed; the output says why.
    """
    return _python("celery", CELERY)


def flower_python() -> Path:
    """The Python that has Flower; likewise."""
    return _python("flower", FLOWER)


def _python(name: str, requirements: tuple[str, ...]) -> Path:
    home = PEERS / name
    PEERS.mkdir(parents=True, exist_ok=True)
    with (PEERS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python, stamp = home / "bin" / "python", home / "requirements.txt"
        wanted = "\n".join((*requirements, sys.version))
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            _make(home, python, requirements)
            stamp.write_text(wanted)
        return python


def _make(home: Path, python: Path, requirements: tuple[str, ...]) -> None:
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        environment = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "copy"}
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, home], check=True, env=environment)
        command = [uv, "pip", "install", "--quiet", "--python", python, *requirements]
        if subprocess.run(command, env=environment).returncode == 0:
            return
        shutil.rmtree(home)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
