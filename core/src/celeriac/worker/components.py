"""Names of Celery's own steps of a worker, for `requires` of a program's steps.

celeriac's parts are no steps (`worker/worker.py` is a page of plain lines), and all of these are done before the
program's steps start; so to require one of them is to require nothing.
"""

from __future__ import annotations

from celeriac.bootsteps import Step

__all__ = ["Beat", "Consumer", "Hub", "Pool", "StateDB", "Timer"]


class Hub(Step):
    """The loop."""


class Timer(Step):
    """`worker.timer`."""


class Pool(Step):
    """The pool."""


class Beat(Step):
    """The scheduler within a worker."""


class StateDB(Step):
    """What is revoked, in a file."""


class Consumer(Step):
    """What receives."""
