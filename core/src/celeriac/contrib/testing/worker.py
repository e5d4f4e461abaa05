"""See `celeriac.testing.threaded`."""

from celeriac.testing.threaded import (
    ThreadedWorker,
    start_worker,
    test_worker_started,
    test_worker_starting,
    test_worker_stopped,
)

__all__ = [
    "TestWorkController",
    "ThreadedWorker",
    "start_worker",
    "test_worker_started",
    "test_worker_starting",
    "test_worker_stopped",
]

#: As Celery calls it.
TestWorkController = ThreadedWorker
