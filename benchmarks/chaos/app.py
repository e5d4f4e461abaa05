"""The app that the campaign's workers run; where everything is stands in the environment."""

from __future__ import annotations

import os
import time
from typing import Any

from celeriac import Celery

app = Celery("chaos", broker=os.environ["CHAOS_BROKER"], backend=os.environ["CHAOS_BACKEND"])
app.conf.update(task_ignore_result=False, worker_shutdown_grace=10.0)

_PLACE = os.environ["CHAOS_LEDGER"]


def note(what: str, request: Any) -> None:
    """One line, in one write: those of several processes do not mix."""
    flagged = int(request.delivery_info["redelivered"])
    words = (what, request.id, flagged, os.getpid(), os.getppid(), f"{time.time():.6f}")
    fd = os.open(_PLACE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


@app.task(bind=True, name="chaos.work")
def work(self: Any, seconds: float) -> str:
    """Take so long."""
    note("start", self.request)
    time.sleep(seconds)
    note("end", self.request)
    return str(self.request.id)


_counts: dict[int, int] = {}


@app.task(name="chaos.count", ignore_result=True)
def count() -> None:
    """A no-op that counts: one byte more in this process's own file."""
    fd = _counts.get(os.getpid())
    if fd is None:
        path = f"{os.environ['CHAOS_COUNTS']}/{os.getpid()}"
        fd = _counts[os.getpid()] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, b".")


@app.task(bind=True, name="chaos.follow")
def follow(self: Any, before: str) -> str:
    """What follows a task."""
    note("start", self.request)
    note("end", self.request)
    return before
