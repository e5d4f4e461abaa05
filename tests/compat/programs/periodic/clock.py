import os
from datetime import timedelta

from celery import Celery
from celery.schedules import crontab

app = Celery("clock", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.timezone = "UTC"
app.conf.beat_schedule = {
    "tick-often": {
        "task": "clock.tick",
        "schedule": timedelta(seconds=0.5),
        "args": ("often",),
        "options": {"expires": 30},
    },
    "mornings": {
        "task": "clock.tick",
        "schedule": crontab(hour=7, minute=30, day_of_week="mon-fri"),
        "args": ("morning",),
    },
}


@app.on_after_configure.connect
def setup_periodic_tasks(sender, **kwargs):
    sender.add_periodic_task(0.5, tick.s("from code"), name="tick from code")
    sender.add_periodic_task(crontab(minute="*/15"), tick.s("quarter"))


@app.task
def tick(what):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{what}\n")
