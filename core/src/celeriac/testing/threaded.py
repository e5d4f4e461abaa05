"""A whole worker in a thread of this process, for the time of a `with` block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from celeriac.signals import Signal
from celeriac.worker.worker import Worker

#: Of the task that shows a worker to be there: Celery's name, so that its test programs find it.
PING: Final = "celery.ping"
START_S: Final = 30.0

test_worker_starting = Signal("test_worker_starting")
test_worker_started = Signal("test_worker_started", {"worker", "consumer"})
test_worker_stopped = Signal("test_worker_stopped", {"worker"})


def ping() -> str:
    """Answer."""
    return "pong"


class ThreadedWorker(Worker):
    """A worker that runs in a thread of its own between `begin` and `end`; arguments as `Worker`."""

    def __init__(self, app: Any, **options: Any) -> None:
        self._has_begun = threading.Event()
        self._error: BaseException | None = None
        super().__init__(app, on_ready=lambda worker: self._has_begun.set(), **options)
        self._thread = threading.Thread(target=self._run, name=f"celeriac-test-worker {self.hostname}", daemon=True)

    def begin(self) -> None:
        """Start it, and return when it consumes.

        Raises:
            CeleriacError: It could not start; its own error.
        """
        self._thread.start()
        self.ensure_started()

    def ensure_started(self) -> None:
        """Wait until it consumes; raises what kept it from that."""
        if not self._has_begun.wait(START_S):
            raise RuntimeError(f"the worker {self.hostname} has not begun within {START_S:g} s")
        if self._error is not None:
            raise self._error

    def reload(self) -> None:
        """Does nothing: tasks that are made while it runs are known to it at once. Programs for Celery call it."""

    def end(self, timeout_s: float) -> None:
        """Stop it and wait for its end.

        Raises:
            RuntimeError: It still runs after this time.
            Exception: It had ended by an error of its own.
        """
        self.stop()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            running = ", ".join(sorted({flight.plan.name for flight in self.loop.flights})) or "none"
            self.stop()  # coldly, so that it is not in the way of the next test for longer than must be
            raise RuntimeError(
                f"the worker {self.hostname} has not ended within {timeout_s:g} s (shutdown_timeout). "
                f"Tasks that still run: {running}."
            )
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self.run()
        except BaseException as exc:  # whoever waits in the test raises it
            self._error = exc
        finally:
            self._has_begun.set()


@contextmanager
def start_worker(
    app: Any,
    concurrency: int = 1,
    pool: str = "solo",
    loglevel: int | str | None = None,
    logfile: str | None = None,
    perform_ping_check: bool = True,
    ping_task_timeout: float = 10.0,
    shutdown_timeout: float = 10.0,
    **options: Any,
) -> Iterator[ThreadedWorker]:
    """Run a worker of `app` in a thread of this process.

    Args:
        loglevel: Of its lines about tasks; default: none, or `info` for a test app with `enable_logging`.
        perform_ping_check: Call a task and wait for its result first, if the app keeps results.
        ping_task_timeout, shutdown_timeout: Seconds.
        options: As `celeriac.worker.Worker` takes them: `queues`, `hostname`, `time_limit` …
    Yields:
        The worker, which consumes.
    Raises:
        RuntimeError: It did not end in time.
    """
    test_worker_starting.send(sender=app)
    if loglevel is None and getattr(app, "enable_logging", False):
        loglevel = "info"
    worker = ThreadedWorker(app, concurrency=concurrency, pool=pool, loglevel=loglevel, logfile=logfile, **options)
    try:
        worker.begin()
        try:
            if perform_ping_check and app.backend.plugin is not None:
                _check_answer(app, worker, ping_task_timeout)
            test_worker_started.send(sender=app, worker=worker, consumer=worker.loop)
            yield worker
        finally:
            worker.end(shutdown_timeout)
    finally:
        test_worker_stopped.send(sender=app, worker=worker)


def _check_answer(app: Any, worker: ThreadedWorker, timeout_s: float) -> None:
    if PING not in app.tasks:
        app.task(name=PING, shared=False)(ping)
    app.send_task(PING, queue=worker.queue_names[0]).get(timeout=timeout_s)
