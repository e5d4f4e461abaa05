"""The scheduler that keeps nothing, and what all others inherit: entries, sending, and when to look again.

Written so that subclasses made for Celery (in a database, in Redis) work: they replace `setup_schedule`, `schedule`,
`reserve`, `sync` or `tick`.
"""

from __future__ import annotations

import copy
import heapq
import time
from calendar import timegm
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

from celeriac.beat.entry import ScheduleEntry, call_arguments
from celeriac.exceptions import CeleriacError, ImproperlyConfigured
from celeriac.log import get_logger
from celeriac.schedules import crontab

#: Longest sleep between looks at the schedule.
DEFAULT_MAX_INTERVAL: Final = 300
SYNC_EVERY_S: Final = 180
CLEANUP: Final = "celery.backend_cleanup"
#: Header of what a scheduler sent.
BEAT_HEADER: Final = "celery_beat_task"


class SchedulingError(CeleriacError):
    """A call of an entry could not be sent; the cause is `__cause__`."""


class event_t(NamedTuple):
    """A place in the heap: when, how important, which entry."""

    time: float
    priority: int
    entry: Any


class Scheduler:
    """Sends what is due, and remembers it only while it runs.

    Args:
        app: Whose schedule, and whose broker.
        schedule: Instead of an empty one; `setup_schedule` fills it.
        max_interval: Longest sleep in seconds; default: `beat_max_loop_interval`, else the class's.
        lazy: Do not read the schedule yet.
        sync_every_tasks: `sync` after so many sends; default: `beat_sync_every`, 0: by time only.
    """

    Entry: type[ScheduleEntry] = ScheduleEntry
    max_interval: float = DEFAULT_MAX_INTERVAL
    sync_every: float = SYNC_EVERY_S
    sync_every_tasks: int | None = None
    logger: ClassVar[Any] = get_logger("celeriac.beat")

    _last_sync: float | None = None
    _tasks_since_sync = 0

    def __init__(
        self,
        app: Any,
        schedule: Any = None,
        max_interval: float | None = None,
        Producer: Any = None,
        lazy: bool = False,
        sync_every_tasks: int | None = None,
        **_: Any,
    ) -> None:
        self.app = app
        self.data: Any = {} if schedule is None else schedule
        self.max_interval = max_interval or app.conf["beat_max_loop_interval"] or self.max_interval
        self.sync_every_tasks = app.conf["beat_sync_every"] if sync_every_tasks is None else sync_every_tasks
        self.Producer = Producer
        self._heap: list[event_t] | None = None
        self.old_schedulers: Any = None
        if not lazy:
            self.setup_schedule()

    # -- the schedule ---------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        """Read the schedule; called once, before the first tick."""
        self.install_default_entries(self.data)
        self.merge_inplace(self.app.conf["beat_schedule"])

    def install_default_entries(self, data: Any) -> None:
        """Add what every app needs: the removal of old results, where the store does not do it by itself."""
        entries = {}
        backend = self.app.backend.plugin
        if self.app.conf["result_expires"] and backend is not None and not {"expire", "replies"} & backend.abilities:
            entries[CLEANUP] = {
                "task": CLEANUP,
                "schedule": crontab("0", "4", "*"),
                "options": {"expires": 12 * 3600},
            }
        self.update_from_dict(entries)

    def add(self, **kwargs: Any) -> Any:
        """Add an entry; the arguments are those of its class."""
        entry = self.Entry(app=self.app, **kwargs)
        self.schedule[entry.name] = entry
        return entry

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Add entries, or replace them: name → an entry, or its arguments."""
        self.schedule.update({name: self._maybe_entry(name, entry) for name, entry in dict_.items()})

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Make the schedule that of `b`: others go, and known ones keep what was counted."""
        schedule = self.schedule
        for name in set(schedule) - set(b) - {CLEANUP}:
            schedule.pop(name, None)
        for name, value in b.items():
            entry = self._maybe_entry(name, value)
            if name in schedule:
                schedule[name].update(entry)
            else:
                schedule[name] = entry

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        if isinstance(entry, self.Entry):
            entry.app = self.app
            return entry
        try:
            made = self.Entry(**{**entry, "name": name, "app": self.app})
        except (TypeError, ValueError) as exc:
            raise _no_entry(name, str(exc)) from exc
        for word in ("task", "schedule"):
            if getattr(made, word, None) is None:
                raise _no_entry(name, f"it has no {word!r}")
        return made

    def get_schedule(self) -> Any:
        """The entries by name."""
        return self.data

    def set_schedule(self, schedule: Any) -> None:
        """Replace the entries."""
        self.data = schedule

    schedule = property(get_schedule, set_schedule)

    # -- time -----------------------------------------------------------------------------------------------

    def tick(self, **_: Any) -> float:
        """Send the next entry if it is due; return in how many seconds to call again (0: at once)."""
        if self._heap is None or not self.schedules_equal(self.old_schedulers, self.schedule):
            self.old_schedulers = copy.copy(self.schedule)
            self.populate_heap()
        heap: list[event_t] = self._heap or []
        if not heap:
            return self.max_interval
        event = heap[0]
        due, next_s = self.is_due(event.entry)
        if due:
            heapq.heappop(heap)
            following = self.reserve(event.entry)
            self.apply_entry(event.entry)
            heapq.heappush(heap, event_t(self._when(following, next_s), event.priority, following))
            return 0
        wait_s: float | None = self.adjust(next_s)
        # Its place in the heap may be older than its answer; another one may be first now.
        heapq.heapreplace(heap, event_t(self._when(event.entry, next_s), event.priority, event.entry))
        if heap[0].entry is not event.entry:
            return 0
        return self.max_interval if wait_s is None else min(wait_s, self.max_interval)

    def populate_heap(self, **_: Any) -> None:
        """Put all entries into the heap anew."""
        self._heap = [event_t(self._when(entry, self.is_due(entry)[1]), 5, entry) for entry in self.schedule.values()]
        # What is due already stands first.
        self._heap = [event_t(0.0, 5, event.entry) if self.is_due(event.entry)[0] else event for event in self._heap]
        heapq.heapify(self._heap)

    def _when(self, entry: Any, next_time_to_run: float | None) -> float:
        """The unix time at which an entry is due."""
        wait_s = self.adjust(next_time_to_run)
        moment = entry.default_now() if hasattr(entry, "default_now") else entry._default_now()
        now: float = timegm(moment.utctimetuple()) + moment.microsecond / 1e6
        return now + (1e9 if wait_s is None else wait_s)

    def adjust(self, n: Any, drift: float = -0.010) -> Any:
        """Seconds, a little less, so as not to sleep too long."""
        return n + drift if n and n > 0 else n

    def is_due(self, entry: Any) -> Any:
        """`(is_due, seconds)` of an entry; one that is paused never is. One whose schedule fails is asked again later,
        and stops nobody else."""
        if getattr(entry, "paused", False):
            return False, self.max_interval
        try:
            return entry.is_due()
        except Exception as exc:
            self.logger.exception("schedule.failed", entry=getattr(entry, "name", entry), error=str(exc))
            return False, self.max_interval

    def reserve(self, entry: Any) -> Any:
        """Note that an entry is sent now; returns it as it will be."""
        following = self.schedule[entry.name] = next(entry)
        return following

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> bool:
        """Whether two schedules have the same entries."""
        if old_schedules is None or new_schedules is None:
            return old_schedules is new_schedules
        if set(old_schedules) != set(new_schedules):
            return False
        return all(new_schedules[name] == entry for name, entry in old_schedules.items())

    # -- sending --------------------------------------------------------------------------------------------

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send the call of an entry; an error is logged."""
        self.logger.info("entry.due", entry=entry.name, task=entry.task)
        try:
            result = self.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:
            self.logger.error("entry.not_sent", entry=entry.name, error=str(exc), exc_info=True)
        else:
            if result is not None and hasattr(result, "id"):
                self.logger.debug("entry.sent", entry=entry.name, task=entry.task, task_id=result.id)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the call of an entry and return its result.

        Args:
            advance: `reserve` it first.
            kwargs: More options of the call.
        Raises:
            SchedulingError: It could not be sent.
        """
        entry = self.reserve(entry) if advance else entry
        try:
            args, call_kwargs = call_arguments(entry)
            headers = {**(entry.options.get("headers") or {}), BEAT_HEADER: True}
            options = {**entry.options, **kwargs, "headers": headers}
            if producer is not None:
                options["producer"] = producer
            task = self.app.tasks.get(entry.task)
            if task is not None:
                return task.apply_async(args, call_kwargs, **options)
            return self.send_task(entry.task, args, call_kwargs, **options)
        except Exception as exc:
            raise SchedulingError(f"Could not send entry {entry.name!r} (task {entry.task}): {exc}") from exc
        finally:
            self._tasks_since_sync += 1
            if self.should_sync():
                self._do_sync()

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        """As `app.send_task`."""
        return self.app.send_task(*args, **kwargs)

    # -- keeping --------------------------------------------------------------------------------------------

    def should_sync(self) -> bool:
        """Whether it is time to `sync`."""
        late = not self._last_sync or time.monotonic() - self._last_sync > self.sync_every
        return bool(late or (self.sync_every_tasks and self._tasks_since_sync >= self.sync_every_tasks))

    def _do_sync(self) -> None:
        try:
            self.sync()
        finally:
            self._last_sync = time.monotonic()
            self._tasks_since_sync = 0

    def sync(self) -> None:
        """Write down what must outlive this process; here nothing."""

    def close(self) -> None:
        """Called at the end."""
        self.sync()

    @property
    def producer(self) -> Any:
        """The app's producer."""
        return self.app.producer

    @property
    def info(self) -> str:
        """A few words for the start-up page."""
        return ""


def _no_entry(name: str, reason: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"The entry {name!r} of the schedule (beat_schedule) cannot be read: {reason}. An entry has task and schedule, "
        f"and may have args, kwargs, options, relative, catch_up and paused."
    )
