"""The app of the tests of remote control, made of Celery or of celeriac as CONTROL_LIB says."""

import importlib
import os
import time

library = importlib.import_module(os.environ["CONTROL_LIB"])
commands = importlib.import_module(os.environ["CONTROL_LIB"] + ".worker.control")

app = library.Celery("control_app", broker=os.environ["CONTROL_BROKER"], backend=os.environ["CONTROL_BACKEND"])
app.conf.update(
    task_default_queue=os.environ.get("CONTROL_QUEUE", "controlled"),
    task_send_sent_event=bool(os.environ.get("CONTROL_SENT")),
    worker_pool_restarts=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    result_expires=600,
)


@app.task(name="control.add")
def add(x, y):
    return x + y


@app.task(name="control.nap")
def nap(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)
    return seconds


@app.task(name="control.hold")
def hold(go_on):
    while not os.path.exists(go_on):
        time.sleep(0.05)
    return "held"


@app.task(name="control.boom", bind=True)
def boom(self, text):
    raise ValueError(text)


@app.task(name="control.again", bind=True, max_retries=1)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return "done"


@app.task(name="control.telling", bind=True)
def telling(self):
    self.send_event("task-progress", percent=50)


@commands.control_command(args=[("n", int)], signature="[N=1]")
def count_up(state, n=1):
    "Count up."
    return {"ok": n + 1}


@commands.inspect_command()
def whoami(state):
    "Say who is asked."
    return {"hostname": state.hostname, "tasks": "control.add" in state.app.tasks}


if os.environ.get("CONTROL_SIBLINGS"):
    steps = importlib.import_module(os.environ["CONTROL_LIB"] + ".bootsteps")

    class Siblings(steps.StartStopStep):
        """Prints who comes and goes."""

        def start(self, parent):
            for what in ("join", "leave", "lost"):
                getattr(parent.gossip.on, f"node_{what}").add(
                    lambda worker, what=what: print(f"SIBLING {what} {worker.hostname}", flush=True)
                )

    app.steps["consumer"].add(Siblings)
