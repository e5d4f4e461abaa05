"""What a pool has to do to a process before anything is imported that may run on it: patch the standard library, say.

Called by the command line first of all, and by start scripts of programs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from celeriac.exceptions import PluginError
from celeriac.kernel.kernel import Kernel

#: Where the pool is named that is not on the command line; the option's own variables.
VARIABLES = ("CELERIAC_WORKER_POOL", "CELERY_WORKER_POOL")


def prepare_worker(words: Sequence[str]) -> None:
    """If these are the words of a worker, let its pool prepare this process.

    Args:
        words: Of the command line, without the program's name.
    """
    if "worker" in words:
        named = _pool_in(words, ("-P",), ("--pool",))
        prepare_process(named or next(filter(None, map(os.environ.get, VARIABLES)), ""))


def prepare_process(pool: str) -> None:
    """Let the pool plugin of this name prepare this process, if there is one that wants to."""
    if not pool:
        return
    kernel = Kernel({})
    try:
        kernel.load(kernel.find("pool", pool))
    except PluginError:
        return  # the worker will say so when it makes the pool, and better: it has settings
    kernel.notify("celeriac_prepare_process", name=pool.partition("@")[0])


def maybe_patch_concurrency(
    argv: Sequence[str] | None = None,
    short_opts: Sequence[str] | None = None,
    long_opts: Sequence[str] | None = None,
    patches: object = None,
) -> None:
    """For start scripts of a program's own: let the pool that these words ask for (`-P NAME`) prepare this process.

    Args:
        argv: Default: this process's.
        short_opts, long_opts: Names of the option, instead of `-P` and `--pool`.
    """
    words = list(sys.argv if argv is None else argv)
    prepare_process(_pool_in(words, tuple(short_opts or ("-P",)), tuple(long_opts or ("--pool",))))


def _pool_in(words: Sequence[str], short: tuple[str, ...], long: tuple[str, ...]) -> str:
    for index, word in enumerate(words):
        if word in (*short, *long):
            return words[index + 1] if index + 1 < len(words) else ""
        for name in long:
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        for name in short:
            if word.startswith(name) and len(word) > len(name):
                return word[len(name) :]
    return ""
