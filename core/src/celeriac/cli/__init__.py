"""The command line, `celeriac`: one module per command, imported when it is used. The only room that prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None, app: Any = None, *, prog: str = "celeriac") -> None:
    """Run a command and end the process with its exit code.

    Args:
        argv: Words after the program's name; default: those of this process.
        app: Use this app instead of the one that `-A` names.
        prog: The program's name, as help and usage write it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if app is None and "worker" in words:  # first of all: with an app, everything is imported already
        from celeriac.kernel.prelude import prepare_worker

        prepare_worker(words)
    from celeriac.cli.group import run

    code = run(words, app, prog)
    _flush_output()
    sys.exit(code)


def _flush_output() -> None:
    """Write what is left. When nobody reads it any more, drop it: Python's own try at exit would end in code 120."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
