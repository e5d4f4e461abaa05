"""For start scripts of a program's own: patch the standard library before anything is imported that must be patched."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module


def maybe_patch_concurrency(
    argv: Sequence[str] | None = None,
    short_opts: Sequence[str] | None = None,
    long_opts: Sequence[str] | None = None,
    patches: object = None,
) -> None:
    """Let gevent patch the standard library if these words ask for its pool (`-P gevent`, `--pool=gevent`).

    Args:
        argv: Default: this process's.
        short_opts, long_opts: Names of the option, instead of `-P` and `--pool`.
    Raises:
        ModuleNotFoundError: gevent is wanted and not installed.
    """
    words = list(sys.argv if argv is None else argv)
    if _pool_in(words, tuple(short_opts or ("-P",)), tuple(long_opts or ("--pool",))) == "gevent":
        import_module("gevent.monkey").patch_all()


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
