"""What a library's schedules answer; run with Celery's Python it reads questions as JSON and prints its answers."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any


def answer(app_class: Any, schedules: Any, question: dict[str, Any]) -> dict[str, Any]:
    """`is_due` and `remaining_estimate` of one schedule at one moment."""
    app = app_class("answers", set_as_current=False, timezone=question["zone"])
    now, last = datetime.fromisoformat(question["now"]), datetime.fromisoformat(question["last"])
    clock = {"nowfun": lambda: now.astimezone(app.timezone), "app": app}
    try:
        if "crontab" in question:
            schedule = schedules.crontab(**question["crontab"], **clock)
        else:
            schedule = schedules.schedule(question["every"], question["relative"], **clock)
    except ValueError:
        return {"refused": True}
    due, following = schedule.is_due(last.astimezone(app.timezone))
    left = schedule.remaining_estimate(last.astimezone(app.timezone)).total_seconds()
    return {"due": due, "next": following, "left": left, "repr": repr(schedule)}


if __name__ == "__main__":
    import celery
    import celery.schedules

    json.dump([answer(celery.Celery, celery.schedules, one) for one in json.load(sys.stdin)], sys.stdout)
