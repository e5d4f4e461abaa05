"""Sends what is due: schedulers, their entries, and the service that runs one.

`celeriac beat` and `celeriac worker -B` run it. The names here are Celery's, so that schedulers written for it
(subclasses of `Scheduler` and `ScheduleEntry`) find what they look for.
"""

from celeriac.beat.entry import BeatLazyFunc, ScheduleEntry
from celeriac.beat.persistent import PersistentScheduler
from celeriac.beat.program import Beat
from celeriac.beat.scheduler import DEFAULT_MAX_INTERVAL, Scheduler, SchedulingError, event_t
from celeriac.beat.service import EmbeddedService, Service

__all__ = [
    "DEFAULT_MAX_INTERVAL",
    "Beat",
    "BeatLazyFunc",
    "EmbeddedService",
    "PersistentScheduler",
    "ScheduleEntry",
    "Scheduler",
    "SchedulingError",
    "Service",
    "event_t",
]
