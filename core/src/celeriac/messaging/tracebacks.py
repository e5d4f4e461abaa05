"""A worker's traceback, from its text back to frames that an exception can carry (`task_remote_tracebacks`).

The frames have no variables: they say which lines of which files the error went through, where the worker ran. What
shows tracebacks (the interpreter, pytest, Sentry, debuggers) shows them as if the error had come from there.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from types import TracebackType
from typing import Any, Final

from celeriac.exceptions import CeleriacWarning

_HEAD: Final = "Traceback (most recent call last):"


def frames_of(text: str) -> TracebackType | None:
    """The frames in a traceback's text: of the error itself, where it has causes. None if there are none to be read
    (as of a group of exceptions), or tblib is not installed."""
    tblib = _tblib()
    if tblib is None:
        return None
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if line == _HEAD and (n == 0 or not lines[n - 1])]
    if not starts:
        return None
    try:
        found = tblib.Traceback.from_string("\n".join(lines[starts[-1] :])).as_traceback()
    except tblib.TracebackParseError:
        return None
    return found if isinstance(found, TracebackType) else None


@cache
def _tblib() -> Any:
    try:
        return import_module("tblib")
    except ImportError:
        warnings.warn(
            "task_remote_tracebacks is on, but tblib is not installed, so errors of tasks carry the worker's traceback "
            "as a text only. pip install 'celeriac[tblib]'",
            CeleriacWarning,
            stacklevel=5,
        )
        return None
