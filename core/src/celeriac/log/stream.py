"""Where log lines go: standard error, or a file that may be rotated away under our feet."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO, Any, Protocol


class Stream(Protocol):
    """What lines are written to: `sys.stderr`, an open file, a `LogFile`."""

    def write(self, text: str, /) -> Any:
        """Write."""

    def flush(self) -> Any:
        """Hand what was written to the system."""


class LogFile:
    """Appends to a file, and opens it anew when something (logrotate) has moved it away."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._open()

    def write(self, text: str, /) -> None:
        """Append `text`."""
        if self._was_moved():
            before = self._file
            with suppress(OSError):  # there can be no new one (yet): the old one still takes lines
                self._open()
                before.close()
        self._file.write(text)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def _open(self) -> None:
        self._file: IO[str] = open(self.path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._inode = os.fstat(self._file.fileno()).st_ino

    def _was_moved(self) -> bool:
        try:
            return os.stat(self.path).st_ino != self._inode
        except OSError:
            return True


def open_stream(path: str | None = None) -> Stream:
    """The stream for a log file's path; standard error for None or `-`.

    Raises:
        OSError: The file cannot be opened for writing.
    """
    return LogFile(path) if path and path != "-" else sys.stderr


def has_colors(stream: Stream) -> bool:
    """Whether lines to this stream should be coloured: it is a terminal, and `NO_COLOR` is not set."""
    return bool(getattr(stream, "isatty", bool)()) and not os.environ.get("NO_COLOR")
