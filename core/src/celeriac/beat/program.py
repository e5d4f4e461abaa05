"""Beat as a program: what `app.Beat(…).run()` and `celeriac beat` do, without a word on the terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from celeriac.beat import service as services


class Beat:
    """Sends periodic tasks until told to stop.

    Args:
        app: Whose schedule.
        max_interval: Longest sleep in seconds; default: the scheduler's own.
        schedule: The file that notes what was sent; default: broker or backend, see `beat_schedule_filename`.
        scheduler, scheduler_cls: The scheduler: a class, its path, or the name of an entry point.
        hostname: Node name for remote control; default: `celerybeat@` and this machine's name.
        remote_control: Answer `ping`; default: the setting `beat_enable_remote_control`.
        loglevel: Set logging up, at this level (`info`, or its number); None: leave it alone.
        logfile: With `loglevel`: append to this file instead of standard error.
        on_ready: Called with this object before the first turn.
        options: Celery's other words; taken, and not used.
    Attributes:
        service: Runs the scheduler; made by `run`, or at first use.
    """

    Service: type[services.Service] = services.Service

    def __init__(
        self,
        app: Any,
        max_interval: float | None = None,
        *,
        schedule: str | None = None,
        scheduler: Any = None,
        scheduler_cls: Any = None,
        hostname: str | None = None,
        remote_control: bool | None = None,
        loglevel: int | str | None = None,
        logfile: str | None = None,
        on_ready: Callable[[Beat], Any] | None = None,
        **options: Any,
    ) -> None:
        self.app = app
        self.loglevel = loglevel
        self.logfile = logfile
        self.options = options
        self._on_ready = on_ready
        self._words: dict[str, Any] = {
            "max_interval": max_interval, "schedule_filename": schedule, "hostname": hostname,
            "scheduler_cls": scheduler or scheduler_cls, "remote_control": remote_control,
        }  # fmt: skip
        self._service: services.Service | None = None

    @property
    def service(self) -> services.Service:
        """The service."""
        if self._service is None:
            self._service = self.Service(self.app, **self._words)
        return self._service

    def run(self) -> None:
        """Send what is due until `stop`, INT or TERM; in a thread other than the main one, until `stop`.

        Raises:
            ImproperlyConfigured, Unsupported: It cannot start so.
        """
        self.app.set_current()
        if self.loglevel is not None:
            self.app.log.setup(self.loglevel, self.logfile)
        self.app.loader.import_default_modules()
        self.app.codec.check_chosen(self.app.conf)
        service = self.service
        _ = service.scheduler  # what is wrong with it is said before anybody is told that it runs
        if self._on_ready is not None:
            self._on_ready(self)
        with self._ended_by_signals():
            service.start()

    def stop(self) -> None:
        """From any thread: end after the turn that it is in."""
        self.service.stop()

    @contextlib.contextmanager
    def _ended_by_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda signum, frame: self.stop()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
