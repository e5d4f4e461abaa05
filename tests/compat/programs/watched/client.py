import json
import os
import time

from proj import app, fail, greet


def notes():
    with open(os.environ["NOTES"]) as lines:
        return [line.strip() for line in lines]


answers = {"greeting": greet.delay("ann").get(timeout=60)}
failed = fail.delay()
try:
    failed.get(timeout=60)
except KeyError as exc:
    answers["failure"] = str(exc)

wanted = [
    "init",
    "child",
    "ready",
    "lamp on",
    "before proj.greet",
    "after proj.greet SUCCESS",
    "success hello ann, marked by the client",
    "failure KeyError",
    "after proj.fail FAILURE",
]
deadline = time.monotonic() + 60
while not set(wanted) <= set(notes()) and time.monotonic() < deadline:
    time.sleep(0.05)
answers["notes"] = [line for line in wanted if line in notes()]

pongs, deadline = [], time.monotonic() + 60
while not pongs and time.monotonic() < deadline:
    pongs = app.control.ping(timeout=5)  # all that answer in this time; the others wait for one
(pong,) = pongs
answers["ping"] = list(pong.values())
answers["lamp"] = list(app.control.inspect(timeout=60, limit=1)._request("lamp").values())
dimmed = app.control.broadcast("dim", {"level": 3}, reply=True, timeout=60, limit=1)
answers["dim"] = [list(reply.values()) for reply in dimmed]
answers["registered"] = app.control.inspect(["w1@here"], timeout=60).registered()["w1@here"]

print(json.dumps(answers))
