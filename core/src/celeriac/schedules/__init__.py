"""When things are due: intervals, crontabs and the sun. Pure: no I/O, and the clock can be handed in.

Used by `celeriac.beat`, and by whoever writes a `beat_schedule`. All of Celery's `schedules` is here under its names.
"""

from celeriac.schedules.base import BaseSchedule, maybe_schedule, schedstate, schedule
from celeriac.schedules.cron import crontab
from celeriac.schedules.fields import ParseException, crontab_parser
from celeriac.schedules.sun import solar

__all__ = [
    "BaseSchedule",
    "ParseException",
    "crontab",
    "crontab_parser",
    "maybe_schedule",
    "schedstate",
    "schedule",
    "solar",
]
