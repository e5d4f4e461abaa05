"""The command line, `celeriac`: one module per command, imported when it is used. The only room that prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None, app: Any = None) -> None:
    """Run a command and end the process with its exit code.

    Args:
        argv: Words after the program's name; default: those of this process.
        app: Use this app instead of the one that `-A` names.
    """
    from celeriac.cli.group import run

    sys.exit(run(list(sys.argv[1:] if argv is None else argv), app))
