import json
import os
import time

from celery import states
from crawler import Flaky, app, counting, fetch, fetch_by_itself, give_up, long_one, own_state, unwanted


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def notes():
    if not os.path.exists(os.environ["NOTES"]):
        return []
    with open(os.environ["NOTES"]) as lines:
        return [line.strip() for line in lines]


answers = {}
answers["fetch"] = fetch.delay("http://a", good_at=2).get(timeout=60)
wait_until(lambda: "crawler.fetch is over SUCCESS" in notes())
answers["its notes"] = [line for line in notes() if line.startswith("crawler.fetch ")]

exhausted = fetch_by_itself.delay("http://b")
try:
    exhausted.get(timeout=60)
except Flaky as exc:
    answers["error"] = str(exc)
answers["state"] = exhausted.state == states.FAILURE
wait_until(lambda: "crawler.fetch_by_itself is over FAILURE" in notes())
answers["its hooks"] = [line for line in notes() if line.startswith("crawler.fetch_by_itself ")]

answers["give up"] = give_up.delay().get(timeout=60)
answers["soft limit"] = long_one.delay().get(timeout=60)
progress = own_state.delay()
wait_until(lambda: progress.state == "PROGRESS")
answers["own state"] = (progress.state, progress.info)
unwanted.delay()
answers["rejected"] = wait_until(lambda: "unwanted is rejected" in notes())
answers["class"] = counting.delay(3).get(timeout=60)
answers["registered"] = type(app.tasks["crawler.counting"]).__name__
answers["called"] = give_up.name, fetch.max_retries
answers["not over"] = [line for line in notes() if "own_state" in line or "unwanted" in line]

print(json.dumps(answers))
