"""The app that worker tests run: one task for each way in which a run can go."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from celeriac import Celery
from celeriac.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celeriac.result import allow_join_result

app = Celery("suite_app", broker=os.environ["SUITE_BROKER"], backend=os.environ.get("SUITE_BACKEND"))
app.conf.update(
    result_extended=bool(os.environ.get("SUITE_EXTENDED")),
    task_unknown_patience=float(os.environ.get("SUITE_PATIENCE", "600")),
    task_max_crashes=int(os.environ.get("SUITE_CRASHES", "3")),
    task_max_returns=int(os.environ.get("SUITE_RETURNS", "20")),
)
PLACE = Path(os.environ.get("SUITE_PLACE", "."))


class OddError(Exception):
    """Wants two arguments, as people's exceptions do."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, code)
        self.code = code


def note(line: str) -> None:
    """Add a line to the file of what ran; one write, so that lines of several processes do not mix."""
    fd = os.open(PLACE / "ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def wait_for_release(name: str) -> None:
    while not (PLACE / f"release-{name}").exists():
        time.sleep(0.02)


@app.task
def add(x: Any, y: Any) -> Any:
    return x + y


@app.task
def echo(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


@app.task
def fail(code: int = 1) -> None:
    raise OddError("bad", code)


@app.task(bind=True)
def give_back(self: Any) -> None:
    note(f"give_back {self.request.delivery_info['redelivered']}")
    raise Reject("not mine", requeue=True)


@app.task(throws=(KeyError,))
def fail_expectedly() -> None:
    raise KeyError("expected")


@app.task
def unserializable() -> Any:
    return object()


@app.task(bind=True, max_retries=3)
def succeed_on_try(self: Any, wanted: int, countdown: float = 0.05) -> Any:
    note(f"try {self.request.id} {self.request.retries}")
    if self.request.retries < wanted:
        raise self.retry(exc=ValueError("not yet"), countdown=countdown)
    return self.request.retries


@app.task(autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)
def autoretried() -> None:
    note("autoretried")
    raise OSError("still down")


@app.task(bind=True)
def progress(self: Any, steps: int) -> str:
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step})
        time.sleep(0.15)
    wait_for_release("progress")
    return "all"


@app.task(bind=True)
def about_me(self: Any, *args: Any, **kwargs: Any) -> Any:
    request = self.request
    names = [
        "id",
        "task",
        "args",
        "kwargs",
        "retries",
        "eta",
        "expires",
        "is_eager",
        "called_directly",
        "hostname",
        "origin",
        "root_id",
        "parent_id",
        "group",
        "correlation_id",
        "reply_to",
        "delivery_info",
        "headers",
        "timelimit",
        "utc",
        "argsrepr",
        "kwargsrepr",
        "attempt",
    ]
    return {name: getattr(request, name) for name in names}


@app.task(track_started=True)
def tracked() -> None:
    wait_for_release("tracked")


@app.task
def sleep(seconds: float, name: str = "") -> str:
    note(f"start {name} {os.getpid()}")
    time.sleep(seconds)
    note(f"end {name} {os.getpid()}")
    return name


@app.task
def hold(name: str) -> str:
    """As `sleep`, until the test says so."""
    note(f"start {name} {os.getpid()}")
    wait_for_release(name)
    note(f"end {name} {os.getpid()}")
    return name


@app.task
def spin(seconds: float, name: str = "") -> str:
    """As `sleep`, but with a processor to itself."""
    note(f"start {name} {os.getpid()}")
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass
    note(f"end {name} {os.getpid()}")
    return name


@app.task
def hold_interpreter(seconds: int, name: str = "") -> str:
    """As `sleep`, in C code that keeps Python's interpreter lock: no other thread of the process runs."""
    note(f"start {name} {os.getpid()}")
    ctypes.PyDLL(None).sleep(seconds)
    note(f"end {name} {os.getpid()}")
    return name


@app.task
def swallow_soft_limit(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "in time"


@app.task
def die(how: str, name: str = "") -> None:
    note(f"die {name}")
    if how == "exit":
        os._exit(7)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "system_exit":
        raise SystemExit(3)
    os.kill(os.getpid(), 9)


@app.task
def die_once(name: str) -> str:
    """Kills its process the first time only."""
    marker = PLACE / f"died-{name}"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    return "survived"


@app.task
def ignore_me() -> None:
    raise Ignore


@app.task
def reject_me() -> None:
    raise Reject("no good", requeue=False)


@app.task(ignore_result=True)
def silent(name: str) -> None:
    note(f"silent {name}")


@app.task(acks_late=False)
def early(seconds: float, name: str) -> None:
    note(f"early {name}")
    time.sleep(seconds)


@app.task
def call_another(x: int) -> Any:
    return add.delay(x, 1).id


@app.task
def wait_in_task(x: int) -> Any:
    return add.delay(x, 1).get(timeout=5)


@app.task
def join_in_task(x: int) -> Any:
    """As `wait_in_task`, knowing what it does."""
    with allow_join_result():
        return add.delay(x, 1).get(timeout=30)


@app.task(rate_limit="5/s")
def limited(name: str) -> None:
    note(f"limited {name} {time.time()}")


@app.task
def pid() -> int:
    return os.getpid()


@app.task
def shell(command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


@app.task
def pid_after(seconds: float) -> int:
    """Its process, after a while."""
    note(f"pid {os.getpid()}")
    time.sleep(seconds)
    return os.getpid()


@app.task
async def anap(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        note("soft limit in a coroutine")
        raise
    return "slept"


@app.task(bind=True, max_retries=3)
async def aretry(self: Any, times: int) -> int:
    await asyncio.sleep(0.01)
    if self.request.retries < times:
        raise self.retry(countdown=0.05)
    return int(self.request.retries)
