"""A real Celery from PyPI in a venv of its own, for the tests that exchange messages with it.

Made once, inside `.venv` (so that `make clean` removes it), and again when the requirements change.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".venv" / "peers" / "celery"
REQUIREMENTS = (
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


def celery_python() -> Path:
    """The Python that has Celery. Safe to call from several test processes at once.

    Raises:
        subprocess.CalledProcessError: It could not be installed; the output says why.
    """
    HOME.parent.mkdir(parents=True, exist_ok=True)
    with (HOME.parent / "celery.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python, stamp = HOME / "bin" / "python", HOME / "requirements.txt"
        wanted = "\n".join((*REQUIREMENTS, sys.version))
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(HOME, ignore_errors=True)
            _make(python)
            stamp.write_text(wanted)
        return python


def _make(python: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        environment = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "copy"}
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, HOME], check=True, env=environment)
        command = [uv, "pip", "install", "--quiet", "--python", python, *REQUIREMENTS]
        if subprocess.run(command, env=environment).returncode == 0:
            return
        shutil.rmtree(HOME)
    subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
