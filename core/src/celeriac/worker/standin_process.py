"""The stand-in's own program: keeps the lease of a worker that cannot renew it itself, and ends with that worker.

Run by path (`standin` starts it), in an interpreter that has imported nothing of ours and little of Python's: it costs
little while it only listens. What knows how to renew a lease is a plugin's, and is imported when it is first needed.

It reads lines from standard input: `keep SECONDS JSON` says which lease to keep from now on and how often it is
renewed, `none` that there is none; `renewed`, that the worker has just done it itself. As long as the worker does,
nothing else happens here. When the worker is silent, the kernel is asked why: one that is stopped or traced must lose
its lease, for nobody knows when it goes on; one that runs or sleeps has an interpreter that is held up by somebody's C
code, and is stood in for.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # `typing` would double what this process imports
if TYPE_CHECKING:
    from typing import Any

#: States of a process (the third field of /proc/PID/stat) in which it does nothing: stopped, traced, dead.
IDLE_STATES = frozenset(b"TtZXx")
#: Its own renewing may be late by half its interval.
PATIENCE = 1.5
#: How soon to try again what went wrong, and to look again at a stopped worker.
AGAIN_S = 1.0


class Post:
    """What is known of one worker and its lease.

    Args:
        limit_s: A worker is stood in for at most so long.
    """

    def __init__(self, worker: int, limit_s: float) -> None:
        self.worker = worker
        self.limit_s = limit_s
        self.every_s = 0.0
        self.heard_at = self.due_at = time.monotonic()
        self._lease = b""
        self._keeper: Any = None

    def hear(self, line: bytes) -> None:
        """One line from the worker."""
        word, _, rest = line.partition(b" ")
        if word != b"renewed":
            every_s, _, self._lease = rest.partition(b" ")
            self.every_s = float(every_s or 0)
        self._keeper = None  # its connection is not needed while the worker renews by itself
        self.heard_at = time.monotonic()
        self.due_at = self.heard_at + PATIENCE * self.every_s

    def wait_s(self) -> float | None:
        """Until something is to be done here; None: only when the worker speaks."""
        return max(0.0, self.due_at - time.monotonic()) if self._lease else None

    def look(self) -> None:
        """Renew, if it is time to and the worker is one to stand in for."""
        now = time.monotonic()
        if not self._lease or now < self.due_at:
            return
        if now - self.heard_at > self.limit_s:
            self._lease = b""  # whoever is silent for so long is as good as dead
        elif state_of(self.worker) in IDLE_STATES:
            self.due_at = now + min(self.every_s, AGAIN_S)
        else:
            self.due_at = now + (self.every_s if self._renew() else min(self.every_s, AGAIN_S))

    def _renew(self) -> bool:
        try:
            if self._keeper is None:
                self._keeper = make_keeper(self._lease)
            self._keeper.renew()
        except Exception:  # the store is away, or this process is starved: the worker will hear of it when it looks
            self._keeper = None
            return False
        return True


def make_keeper(lease: bytes) -> Any:
    """What a plugin has for renewing this lease from here."""
    import json

    said = json.loads(lease)
    sys.path[:] = said["path"]
    module, _, name = said["where"].partition(":")
    __import__(module)
    return getattr(sys.modules[module], name)(**said["words"])


def state_of(pid: int) -> int:
    """The letter that the kernel has for what a process does, as a byte; that of a dead one if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][0]
    except (OSError, IndexError):
        return ord("X")


def main(worker: int, limit_s: float) -> None:
    """Until the worker ends, or closes its end of the pipe."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)  # meant for the worker, which may go on for a while
    poller = select.poll()
    poller.register(0, select.POLLIN)
    try:
        poller.register(os.pidfd_open(worker), select.POLLIN)  # readable once it has ended
    except (AttributeError, OSError):
        pass  # then the pipe tells, and the look below
    post, rest = Post(worker, limit_s), b""
    while os.getppid() == worker:
        wait_s = post.wait_s()
        events = poller.poll(None if wait_s is None else wait_s * 1000)
        if any(fd != 0 for fd, _ in events):
            return
        if events:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                post.hear(line)
        post.look()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
