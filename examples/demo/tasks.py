"""Five kinds of tasks, as programs have them: quick ones, one that fails, one that is tried again, one that reports
how far it is, and slow ones.

`demo.py` tells the application by environment variables where its broker is; without it, it is a file of its own.
"""

from __future__ import annotations

import time
from typing import Any

from celeriac import Celery

app = Celery("tasks")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def divide(x: int, y: int) -> float:
    return x / y


@app.task(bind=True, max_retries=5)
def fetch(self: Any, page: int) -> str:
    """The first two tries find the server busy."""
    if self.request.retries < 2:
        raise self.retry(exc=ConnectionError(f"server busy, page {page}"), countdown=0.3)
    return f"page {page} after {self.request.retries + 1} tries"


@app.task(bind=True)
def convert(self: Any, frames: int) -> int:
    """Tells whoever looks how far it is."""
    for frame in range(frames):
        self.update_state(state="PROGRESS", meta={"done": frame, "of": frames})
        time.sleep(0.05)
    return frames


@app.task
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
