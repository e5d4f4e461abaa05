import os

import celery.signals
from celery import Celery, bootsteps
from celery.signals import (
    before_task_publish,
    celeryd_init,
    setup_logging,
    task_failure,
    task_postrun,
    task_prerun,
    task_success,
    worker_process_init,
    worker_ready,
    worker_shutdown,
)
from celery.worker.control import control_command, inspect_command

app = Celery("proj", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")


def note(*words):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


@celeryd_init.connect
def configure(sender=None, conf=None, **kwargs):
    conf.worker_send_task_events = True
    note("init")


@worker_process_init.connect
def in_a_child(**kwargs):
    note("child")


@worker_ready.connect
def ready(sender, **kwargs):
    note("ready")


@worker_shutdown.connect
def stopped(sender, **kwargs):
    note("shutdown")


@before_task_publish.connect(sender="proj.greet")
def mark(sender=None, headers=None, body=None, **kwargs):
    headers["marked"] = "by the client"


@task_prerun.connect
def before(sender=None, task_id=None, task=None, args=None, kwargs=None, **more):
    note("before", sender.name)


@task_postrun.connect
def after(sender=None, state=None, retval=None, **kwargs):
    note("after", sender.name, state)


@task_success.connect
def succeeded(sender=None, result=None, **kwargs):
    note("success", result)


@celery.signals.task_failure.connect
def failed(sender=None, exception=None, einfo=None, **kwargs):
    note("failure", type(exception).__name__)


class Lamp(bootsteps.StartStopStep):
    """A step of the program's own in the worker."""

    requires = {"celery.worker.components:Pool"}

    def start(self, worker):
        note("lamp on")

    def stop(self, worker):
        note("lamp off")


app.steps["worker"].add(Lamp)


@inspect_command()
def lamp(state):
    return {"lamp": "is on"}


@control_command(args=[("level", int)], signature="[LEVEL=1]")
def dim(state, level=1):
    return {"ok": f"dimmed to {level}"}


@app.task(bind=True)
def greet(self, name):
    return f"hello {name}, marked {self.request.get('marked') or (self.request.headers or {}).get('marked')}"


@app.task
def fail():
    raise KeyError("no key")


assert task_failure is celery.signals.task_failure
assert setup_logging.name == "setup_logging"
