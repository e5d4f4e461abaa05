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
    _open_what_is_closed()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if app is None and "worker" in words:  # first of all: with an app, everything is imported already
            from celeriac.kernel.prelude import prepare_worker

            prepare_worker(words)
        from celeriac.cli.group import run
    except KeyboardInterrupt:  # before there is anybody who could tell it better
        os.write(2, b"\nAborted.\n")
        sys.exit(130)
    code = run(words, app, prog)
    _flush_output()
    sys.exit(code)


def _open_what_is_closed() -> None:
    """Have all three standard streams, if only to nowhere. Whoever starts us may have closed some: then the next file
    or socket gets the number 2, and what is said to people goes there."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 # for good


def _flush_output() -> None:
    """Write what is left. When nobody reads it any more, drop it: Python's own try at exit would end in code 120."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
