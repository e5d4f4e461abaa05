"""Runs a scheduler until told to stop: in a process of its own (`celeriac beat`) or in a thread of a worker (`-B`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from celeriac import signals
from celeriac.beat.remote import Bell
from celeriac.beat.scheduler import DEFAULT_MAX_INTERVAL
from celeriac.exceptions import ImproperlyConfigured
from celeriac.kernel.discovery import named_objects
from celeriac.log import get_logger
from celeriac.utils.ids import default_nodename

#: Entry-point groups in which schedulers are found by name: ours, and Celery's.
GROUPS: Final = ("celeriac.beat_schedulers", "celery.beat_schedulers")
DEFAULT_NODE: Final = "celerybeat@%h"
#: A scheduler whose last turn is older than twice its longest sleep, and than this, is stuck.
LEAST_TICK_AGE_S: Final = 60.0
_log = get_logger("celeriac.beat")


class Service:
    """A scheduler and its loop.

    Args:
        app: Whose schedule.
        max_interval: Longest sleep in seconds; default: the scheduler's own.
        schedule_filename: For schedulers that keep a file.
        scheduler_cls: The scheduler: a class, its path, or the name of an entry point; default: `beat_scheduler`.
        remote_control: Answer `ping` of remote control; default: `beat_enable_remote_control`.
        hostname: The node name for that (`%h` is the host); default: `celerybeat@%h`.

    Attributes:
        on_turn: Called after each turn, and every `turn_s` seconds while nothing is due, from its thread.
    """

    def __init__(
        self,
        app: Any,
        max_interval: float | None = None,
        schedule_filename: str | None = None,
        scheduler_cls: Any = None,
        remote_control: bool | None = None,
        hostname: str | None = None,
    ) -> None:
        self.app = app
        self.max_interval = max_interval or app.conf["beat_max_loop_interval"] or None
        self.schedule_filename = schedule_filename
        self.scheduler_cls = scheduler_cls or app.conf["beat_scheduler"]
        self.remote_control = bool(app.conf["beat_enable_remote_control"] if remote_control is None else remote_control)
        self.hostname = default_nodename(hostname or DEFAULT_NODE)
        self.last_tick = time.monotonic()
        self.on_turn: Callable[[], None] | None = None
        self.turn_s = 60.0
        self._asked = threading.Event()
        self._ended = threading.Event()
        self._scheduler: Any = None

    def start(self, embedded_process: bool = False) -> None:
        """Send what is due, until `stop`. What goes wrong in a turn is logged, and the next one follows."""
        scheduler = self.scheduler
        bell = Bell(self.app, self.hostname, self.is_well) if self.remote_control else None
        _log.info("beat.starting", scheduler=type(scheduler).__name__)
        signals.beat_init.send(sender=self)
        if embedded_process:
            signals.beat_embedded_init.send(sender=self)
        self.last_tick = time.monotonic()
        if bell is not None:
            bell.start()
        try:
            while not self._asked.is_set():
                try:
                    wait_s = scheduler.tick()
                except Exception as exc:
                    _log.exception("beat.turn_failed", error=str(exc))
                    wait_s = 1.0
                self.last_tick = time.monotonic()
                self._rest(wait_s or 0.0)
                if scheduler.should_sync():
                    scheduler._do_sync()
        finally:
            if bell is not None:
                bell.stop()
            self.sync()
            self._ended.set()
            _log.info("beat.stopped")

    def is_well(self) -> bool:
        """Whether the scheduler has had a turn lately, as `beat_remote_control_max_tick_age` has it."""
        longest_s = self.app.conf["beat_remote_control_max_tick_age"]
        if longest_s is None:
            longest_s = max(LEAST_TICK_AGE_S, 2 * float(getattr(self.scheduler, "max_interval", 0) or 0))
        return time.monotonic() - self.last_tick <= float(longest_s)

    def _rest(self, seconds: float) -> None:
        """Until something is due, or it is told to stop."""
        if self.on_turn is None:
            self._asked.wait(seconds)
            return
        self.on_turn()
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._asked.wait(min(left, self.turn_s)):
            self.on_turn()

    def stop(self, wait: bool = False) -> None:
        """From any thread: stop after this turn.

        Args:
            wait: Return when it has.
        """
        self._asked.set()
        if wait:
            self._ended.wait()

    def sync(self) -> None:
        """Have the scheduler write down what it knows."""
        if self._scheduler is not None:
            self._scheduler.close()

    def get_scheduler(self, lazy: bool = False, extension_namespace: str = "celery.beat_schedulers") -> Any:
        """Make the scheduler."""
        kind = find_scheduler(self.scheduler_cls, (*GROUPS, extension_namespace))
        return kind(app=self.app, schedule_filename=self.schedule_filename, max_interval=self.max_interval, lazy=lazy)

    @property
    def scheduler(self) -> Any:
        """The scheduler, made at first use."""
        if self._scheduler is None:
            self._scheduler = self.get_scheduler()
        return self._scheduler


class EmbeddedService(threading.Thread):
    """A service in a thread of this process; the worker answers for it."""

    def __init__(self, app: Any, max_interval: float | None = None, **kwargs: Any) -> None:
        super().__init__(name="Beat", daemon=True)
        kwargs.pop("thread", None)
        self.app = app
        self.service = Service(app, max_interval=max_interval, **{"remote_control": False, **kwargs})

    def run(self) -> None:
        """The thread's body."""
        self.app.set_current()
        try:
            self.service.start(embedded_process=True)
        except ImproperlyConfigured as exc:
            _log.error("beat.failed", error=str(exc))
        except Exception as exc:
            _log.exception("beat.failed", error=str(exc))

    def stop(self) -> None:
        """Stop it, and wait a while for its turn to end."""
        self.service.stop()
        if self.is_alive():
            self.join(5.0)


def find_scheduler(value: Any, groups: tuple[str, ...] = GROUPS) -> Any:
    """The class of a scheduler: itself, `module:Class` or `module.Class`, or the name of an entry point.

    Raises:
        ImproperlyConfigured: There is none of that name.
    """
    if not isinstance(value, str):
        return value
    known = named_objects(groups)
    if value in known:
        return known[value].load()
    path = value.replace("celery.beat:", "celeriac.beat:") if value.startswith("celery.beat:") else value
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ImproperlyConfigured(
            f"beat_scheduler: there is no scheduler {value!r} ({exc}). Give a class as module:Class, or an installed "
            f"name: {', '.join(sorted(known)) or 'there is none'}."
        ) from exc


__all__ = ["DEFAULT_MAX_INTERVAL", "EmbeddedService", "Service", "find_scheduler"]
