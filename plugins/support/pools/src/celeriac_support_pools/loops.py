"""An event loop that outlives what jobs do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def serve(loop: asyncio.AbstractEventLoop, is_over: Callable[[], bool]) -> None:
    """Run a loop until it is stopped and `is_over`.

    What a job leaves in the loop (a task of its own, a callback) may stop it, and `SystemExit` and `KeyboardInterrupt`
    come out of there, and out of the loop: these end nobody else's jobs.
    """
    while not is_over():
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as exc:
            loop.call_exception_handler({"message": f"{exc!r} came out of the event loop, which goes on"})
