"""Install the servers that the tests run on, where this user may; otherwise say in a sentence what will be skipped.

Run by `make services` and before `make test`. Only root on a Debian-like system installs anything, only what is
missing, and never with CELERIAC_INSTALL_SERVICES=0. The tests never use a running server: each starts its own.
Always exits with 0: whether a missing server matters is the test run's to say.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Debian package → a program of it, by name or by full path (a pattern), as the tests look for it
PACKAGES = {
    "redis-server": "redis-server",
    "memcached": "memcached",
    "mariadb-server": "mariadbd",
    "postgresql": "/usr/lib/postgresql/*/bin/postgres",
    "rabbitmq-server": "/usr/lib/rabbitmq/bin/rabbitmq-server",
}


def main() -> int:
    """Install what is missing, or say why not."""
    missing = missing_packages()
    if not missing:
        return 0
    obstacle = why_not_install() or apt_install(missing)
    still_missing = missing_packages()
    if still_missing:
        print(
            f"services: {', '.join(still_missing)} not installed ({obstacle or 'apt-get did not bring the program'}); "
            "tests that need them are skipped.",
            flush=True,
        )
    return 0


def missing_packages() -> list[str]:
    """The packages whose program is not here."""
    return [package for package, program in PACKAGES.items() if not is_installed(program)]


def is_installed(program: str) -> bool:
    """Whether a program is on PATH, at its full path, or in sbin, which an ordinary user's PATH leaves out."""
    if program.startswith("/"):
        return bool(glob.glob(program))
    return shutil.which(program) is not None or Path("/usr/sbin", program).exists()


def why_not_install() -> str | None:
    """What speaks against installing here, if anything."""
    if os.environ.get("CELERIAC_INSTALL_SERVICES", "1") == "0":
        return "CELERIAC_INSTALL_SERVICES=0 forbids it"
    if shutil.which("apt-get") is None:
        return "this system has no apt-get"
    if os.geteuid() != 0:
        return "only root may; as root: make services"
    return None


def apt_install(packages: list[str]) -> str | None:
    """Install Debian packages; returns what went wrong, if anything."""
    print(f"services: installing {', '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        finished = subprocess.run(
            ["apt-get", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if finished.returncode:
            print(finished.stdout[-2000:], file=sys.stderr)
            return f"`apt-get {arguments[0]}` failed"
    return None


if __name__ == "__main__":
    sys.exit(main())
