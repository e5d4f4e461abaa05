"""The app of `test_limits.py`: tasks with limits of their own, and tasks that end their process or try to."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from typing import Any

from suite_app import note, wait_for_release

from celeriac import Celery
from celeriac.exceptions import SoftTimeLimitExceeded

app = Celery("limits_app", broker=os.environ["SUITE_BROKER"], backend=os.environ.get("SUITE_BACKEND"))
app.conf.update(task_max_crashes=1, task_default_queue=os.environ.get("LIMITS_QUEUE", "celery"))


def until_interrupted(seconds: float) -> float:
    """How long it lasted."""
    began = time.monotonic()
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        note("soft limit")
    return time.monotonic() - began


def stubborn(seconds: float) -> str:
    """Whatever is raised in it, it goes on."""
    ends = time.monotonic() + seconds
    while True:
        try:
            while time.monotonic() < ends:
                time.sleep(0.05)
            return "had its time"
        except SoftTimeLimitExceeded:
            continue


app.task(name="limits.nap")(until_interrupted)
app.task(name="limits.nap_own", soft_time_limit=1.8)(until_interrupted)
app.task(name="limits.nap_free", soft_time_limit=0)(until_interrupted)
app.task(name="limits.work")(stubborn)
app.task(name="limits.work_own", time_limit=1.5)(stubborn)
app.task(name="limits.work_free", time_limit=0)(stubborn)


@app.task(name="limits.own_limits", bind=True)
def own_limits(self: Any) -> Any:
    """What a run is told of its limits."""
    return self.request.timelimit


@app.task(name="limits.pid")
def pid(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.task(name="limits.hold")
def hold(name: str) -> str:
    """Runs until the test says so."""
    note(f"hold {name} {os.getpid()}")
    wait_for_release(name)
    note(f"held {name} {os.getpid()}")
    return name


@app.task(name="limits.fall")
def fall(how: str) -> None:
    """Ends its process."""
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(7)
    elif how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="limits.devour")
def devour(mebibytes: int, spare_mebibytes: int) -> int:
    """Take more memory than there is: its process may have so much more than it has."""
    with open("/proc/self/statm", encoding="ascii") as sizes:
        has = int(sizes.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + (spare_mebibytes << 20), hard))
    try:
        return len(bytearray(mebibytes << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


@app.task(name="limits.run_out")
def run_out() -> None:
    """As `devour`, in code that does not ask whether there was any memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    with open("/proc/self/statm", encoding="ascii") as sizes:
        has = int(sizes.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + (64 << 20), hard))
    block = libc.malloc(1 << 30)
    ctypes.memset(block or 0, 1, 1 << 30)


@app.task(name="limits.grow")
def grow(mebibytes: int) -> int:
    """Keep so much memory, touched, and go on for a while."""
    kept.append(b"x" * (mebibytes << 20))
    time.sleep(0.5)
    return os.getpid()


kept: list[bytes] = []
