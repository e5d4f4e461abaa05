"""The app of `test_systemd.py`: a worker that can be told to hang."""

from __future__ import annotations

import time
from typing import Any

from suite_app import app, note

from celeriac.worker.control import WorkerState, control_command

__all__ = ["app"]


@control_command(args=[("seconds", float)])
def hang(state: WorkerState, seconds: float, **_: Any) -> Any:
    """Keep the worker's loop from turning for so long."""
    note(f"hang {time.time()}")
    time.sleep(seconds)
    note(f"goes on {time.time()}")
    return {"ok": "done"}
