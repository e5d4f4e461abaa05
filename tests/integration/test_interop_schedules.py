"""`crontab` and `schedule` beside those of a real Celery: the same answers for random fields and moments."""

from __future__ import annotations

import json
import random
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python

pytestmark = [pytest.mark.slow]

SCRIPT = Path(__file__).parent / "apps" / "schedule_answers.py"
#: Without changes of the clock, at which the two differ on purpose.
ZONES = ("UTC", "Asia/Kathmandu", "America/Phoenix", "Pacific/Auckland")


def random_field(rng: random.Random, least: int, most: int) -> Any:
    def part() -> str:
        a, b, step = rng.randint(least, most), rng.randint(least, most), rng.randint(1, 12)
        return rng.choice(["*", f"*/{step}", str(a), f"{a}-{b}", f"{a}-{b}/{step}"])

    if rng.random() < 0.2:
        return rng.randint(least, most)
    return ",".join(part() for _ in range(rng.choice([1, 1, 1, 2, 3]))) if rng.random() < 0.7 else "*"


def random_questions(rng: random.Random, count: int) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        zone = rng.choice(ZONES)
        # Auckland has summer time, but not a change of it within these weeks.
        begin = datetime(2026, 5, 1, tzinfo=timezone.utc) if zone.startswith("Pacific") else datetime(
            rng.randint(2015, 2030), rng.randint(1, 12), rng.randint(1, 28), tzinfo=timezone.utc
        )  # fmt: skip
        last = begin + timedelta(seconds=rng.randint(0, 20 * 86400))
        now = last + timedelta(seconds=rng.choice([0, *(rng.randint(0, most) for most in (120, 8000, 400000))]))
        question: dict[str, Any] = {"zone": zone, "last": last.isoformat(), "now": now.isoformat()}
        if number % 4:
            question["crontab"] = {"minute": random_field(rng, 0, 59), "hour": random_field(rng, 0, 23)}
            if not zone.startswith("Pacific"):
                question["crontab"]["day_of_week"] = random_field(rng, 0, 6)
        else:
            question["every"] = rng.choice([1, 7, 60, 90, 3600, 7200, 86400, 90000, rng.randint(1, 100000)])
            question["relative"] = rng.random() < 0.4
        found.append(question)
    return found


def test_celery_and_we_answer_alike() -> None:
    from tests.integration.apps.schedule_answers import answer

    import celeriac
    from celeriac import schedules

    questions = random_questions(random.Random(20260301), 1500)
    asked = subprocess.run(
        [celery_python(), SCRIPT], input=json.dumps(questions), text=True, capture_output=True, check=True
    )
    theirs = json.loads(asked.stdout)
    ours = [answer(celeriac.Celery, schedules, question) for question in questions]
    differing = [three for three in zip(questions, theirs, ours, strict=True) if not alike(three[1], three[2])]
    assert differing[:3] == []
    assert sum(1 for one in theirs if one.get("due")) > 100
    assert sum(1 for one in theirs if one.get("due") is False) > 100


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys() or any(one[key] != other[key] for key in one if key not in ("next", "left")):
        return False
    return all(abs(one[key] - other[key]) < 0.001 for key in ("next", "left") if key in one)
