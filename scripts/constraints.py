"""Write constraints.txt: the versions of all dependencies and tools, for every supported Python.

Run by `make constraints`, from .venv. Names, versions and markers only: where a machine downloads from is its own
affair, so no address may stand in the file. Our own distributions are left out: they come from this repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bootstrap import CONSTRAINTS, ROOT, UV_ENVIRONMENT, members, read_toml, tools


def main() -> int:
    """Resolve everything anew; returns the exit status."""
    requirements = "\n".join([*third_party_requirements(members(ROOT)), *tools()])
    compile_command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--universal"]
    options = ["--python-version", "3.10", "--no-header", "--no-annotate", "--upgrade"]
    compiled = subprocess.run(
        [*compile_command, *options, "-"],
        input=requirements,
        capture_output=True,
        text=True,
        env={**os.environ, **UV_ENVIRONMENT},
    )
    if compiled.returncode:
        print(compiled.stderr, file=sys.stderr)
        return compiled.returncode
    CONSTRAINTS.write_text(compiled.stdout, encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(compiled.stdout.splitlines())} packages")
    return 0


def third_party_requirements(folders: list[Path]) -> Iterator[str]:
    """What our distributions require and do not themselves provide, extras included."""
    for folder in folders:
        project = read_toml(folder / "pyproject.toml")["project"]
        extras = project.get("optional-dependencies", {}).values()
        for requirement in [*project.get("dependencies", []), *(entry for extra in extras for entry in extra)]:
            if not requirement.startswith("celeriac"):
                yield requirement


if __name__ == "__main__":
    sys.exit(main())
