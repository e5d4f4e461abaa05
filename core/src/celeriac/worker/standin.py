"""Keeps the lease of a worker whose interpreter is held up: the worker's half of the stand-in.

Where tasks run inside the worker's own process (`threads`, `solo`, `asyncio`), one call into C code that does not let
go of the interpreter's lock stops every thread, the one that renews leases too. So a small process stands beside the
worker (`standin_process`; docs/decisions/0010-leases-have-a-stand-in.md). It
is told of each renewal, and renews in the worker's place when it hears of none. Used by `link`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from celeriac.spec.transport import Consumer

PROGRAM: Final = Path(__file__).with_name("standin_process.py")
#: It ends by itself when the pipe is closed; after so long it is helped.
END_S: Final = 1.0
_RENEWED: Final = b"renewed\n"
_NO_LEASE: Final = b"none\n"

_log = logging.getLogger("celeriac.worker")


class StandIn:
    """The worker's line to its stand-in, which is started with the first lease that it can keep. Safe for threads.

    A stand-in that has died is replaced; one that cannot be started costs no more than what it would have kept.

    Args:
        limit_s: A silent worker is stood in for at most so long.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lease = b""

    def keep(self, consumer: Consumer, every_s: float) -> None:
        """From now on keep the lease of this consumer, which the worker renews every so many seconds; none, if it does
        not say how."""
        stand_in = getattr(consumer, "stand_in", None)
        if stand_in is None:
            self.drop()
            return
        try:
            where, words = stand_in()
            lease = json.dumps({"where": where, "words": words, "path": [*map(str, sys.path)]})
        except Exception:  # of the plugin's own; the worker itself renews as ever
            _log.exception("This worker's lease cannot be kept by another process.")
            self.drop()
            return
        with self._lock:
            self._lease = f"keep {every_s:g} {lease}\n".encode()
            self._say(self._lease)

    def renewed(self) -> None:
        """The worker has renewed the lease itself."""
        with self._lock:
            if self._lease:
                self._say(_RENEWED)

    def drop(self) -> None:
        """There is no lease any more."""
        with self._lock:
            if self._lease and self._process is not None:
                self._say(_NO_LEASE)
            self._lease = b""

    def stop(self) -> None:
        """End it. Idempotent."""
        with self._lock:
            self._lease = b""
            self._end()

    @property
    def pid(self) -> int | None:
        """Of its process; None if there is none."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def memory_kib(self) -> int | None:
        """Its resident memory, of which the greater part is the interpreter that the worker has in memory too."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024

    def _say(self, line: bytes) -> None:
        """Never waits: a line that the pipe does not take whole means that nobody reads, and there will be another."""
        if self._process is None or self._process.poll() is not None or not self._write(line):
            self._end()
            self._begin()
            if self._process is not None:
                self._write(self._lease)

    def _write(self, line: bytes) -> bool:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            return os.write(self._process.stdin.fileno(), line) == len(line)
        except OSError:
            return False

    def _begin(self) -> None:
        words = [sys.executable, "-I", "-S", str(PROGRAM), str(os.getpid()), f"{self._limit_s:g}"]
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, bufsize=0
            )
        except OSError:
            return  # no memory or no processes left: the next renewal tries again
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        _log.debug("Process %d keeps this worker's lease while a task holds the interpreter up.", process.pid)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_stand_in(abilities: frozenset[str], limit_s: float) -> StandIn | None:
    """A stand-in for a worker whose pool has these abilities; None where none is needed, wanted or possible.

    Without a /proc a stopped worker could not be told from one that is held up, and would keep its lease for ever.
    """
    if "processes" in abilities or not limit_s or not sys.executable or not Path("/proc/self/stat").exists():
        return None
    return StandIn(limit_s)


def describe(stand_in: StandIn | None) -> dict[str, Any]:
    """For `inspect stats`."""
    if stand_in is None or stand_in.pid is None:
        return {}
    return {"stand_in": {"pid": stand_in.pid, "rss_kib": stand_in.memory_kib()}}
