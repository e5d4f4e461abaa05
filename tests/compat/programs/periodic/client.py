import json
import os
import time
from datetime import datetime, timedelta, timezone

from celery.beat import ScheduleEntry
from celery.schedules import crontab, crontab_parser, schedule
from clock import app

deadline = time.monotonic() + 60
seen = set()
while not {"often", "from code"} <= seen and time.monotonic() < deadline:
    time.sleep(0.05)
    if os.path.exists(os.environ["NOTES"]):
        with open(os.environ["NOTES"]) as notes:
            seen = {line.strip() for line in notes}

answers = {"ticks": sorted(seen & {"often", "from code"})}
morning = app.conf.beat_schedule["mornings"]["schedule"]
answers["kind"] = isinstance(morning, crontab)
answers["days"] = sorted(morning.day_of_week)
answers["every third"] = sorted(crontab_parser(12).parse("*/3"))
friday = datetime(2024, 1, 5, 7, 30, tzinfo=timezone.utc)
workdays = crontab(hour=7, minute=30, day_of_week="mon-fri", nowfun=lambda: friday + timedelta(minutes=30), app=app)
answers["until monday"] = workdays.remaining_estimate(friday).total_seconds()
answers["same"] = crontab(minute=5) == crontab(minute=5)
answers["half a minute"] = schedule(run_every=30).run_every.total_seconds()
answers["entry"] = ScheduleEntry(name="one", task="clock.tick", schedule=schedule(30), app=app).task

print(json.dumps(answers))
