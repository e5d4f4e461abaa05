"""An app that listens to its own life: signals, steps, a loader, broadcasts. A line for each thing that happens."""

from __future__ import annotations

import os
import time
from typing import Any

from kombu.common import Broadcast
from suite_app import note

from celeriac import Celery, bootsteps, signals
from celeriac.contrib.abortable import AbortableTask
from celeriac.loaders.app import AppLoader

MAIN = os.getpid()


def where() -> str:
    return "worker" if os.getpid() == MAIN else "child"


class Loader(AppLoader):
    def on_worker_init(self) -> None:
        note("loader on_worker_init")

    def on_worker_process_init(self) -> None:
        note(f"loader on_worker_process_init {where()}")

    def on_task_init(self, task_id: str, task: Any) -> None:
        note(f"loader on_task_init {task.name}")

    def on_process_cleanup(self) -> None:
        note("loader on_process_cleanup")

    def on_worker_shutdown(self) -> None:
        note("loader on_worker_shutdown")


class First(bootsteps.StartStopStep):
    def __init__(self, parent: Any, **options: Any) -> None:
        note(f"step First made with queues={list(options['queues'])}")

    def start(self, parent: Any) -> None:
        note(f"step First starts for {parent.hostname.partition('@')[0]}")

    def stop(self, parent: Any) -> None:
        note("step First stops")


class ASecond(bootsteps.StartStopStep):
    requires = (First, "celeriac.worker.components:Pool")

    def start(self, parent: Any) -> None:
        note("step ASecond starts")

    def stop(self, parent: Any) -> None:
        note("step ASecond stops")


class OfConsumer(bootsteps.StartStopStep):
    def start(self, parent: Any) -> None:
        note(f"step OfConsumer starts for {parent.controller.hostname.partition('@')[0]}")

    def stop(self, parent: Any) -> None:
        note("step OfConsumer stops")


app = Celery("calling_app", broker=os.environ["SUITE_BROKER"], backend=os.environ["SUITE_BACKEND"], loader=Loader)
app.conf.update(
    task_queues=[Broadcast("news"), "celery"],
    task_routes={"calling_app.hear": "news"},
    task_default_queue="celery",
    message_seal_key=os.environ.get("SUITE_SEAL"),
    worker_direct=True,
    task_unknown_patience=2,
)
app.steps["worker"].update({First, ASecond})
app.steps["consumer"].add(OfConsumer)

QUIET = {"import_modules", "setup_logging", "before_task_publish", "after_task_publish", "task_sent"}


def listen(name: str, signal: signals.Signal) -> None:
    def heard(sender: Any = None, signal: Any = None, **named: Any) -> None:
        expected = signal.providing_args
        missing = expected - named.keys()
        note(f"signal {name} in {where()}{f' lacks {sorted(missing)}' if missing else ''}")

    signal.connect(heard, weak=False)


for name, signal in vars(signals).items():
    if isinstance(signal, signals.Signal) and name not in QUIET:
        listen(name, signal)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def fail() -> None:
    raise KeyError("no")


@app.task(bind=True)
def again(self: Any) -> str:
    if self.request.retries == 0:
        self.retry(countdown=0)
    return "twice"


@app.task
def hear(text: str) -> None:
    note(f"heard {text} pid={os.getppid()}")


@app.task(bind=True, base=AbortableTask)
def patient(self: Any) -> str:
    note("patient runs")
    for _ in range(600):
        if self.is_aborted():
            return "stopped"
        time.sleep(0.05)
    return "never asked"


@app.task(time_limit=0.5)
def slow() -> None:
    time.sleep(60)


@signals.celeryd_init.connect
def configure(sender: Any, instance: Any, conf: Any, options: Any, **_: Any) -> None:
    conf.task_track_started = True


@signals.celeryd_after_setup.connect
def one_more_queue(sender: Any, instance: Any, **_: Any) -> None:
    instance.app.amqp.queues.select_add("late")
