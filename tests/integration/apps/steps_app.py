"""The app of `test_steps_and_requests.py`: steps as in Celery's guide, requests of its own, and a task to debug."""

from __future__ import annotations

import os
import time
from typing import Any

from kombu import Consumer, Exchange, Queue
from suite_app import note

from celeriac import Celery, Task, bootsteps
from celeriac.contrib import rdb
from celeriac.worker.request import Request

app = Celery("steps_app", broker=os.environ["SUITE_BROKER"], backend=os.environ.get("SUITE_BACKEND"))
app.conf.task_max_crashes = 1
orders = Queue("orders", Exchange("orders"), "routing_key")


class Orders(bootsteps.ConsumerStep):
    """Consumes a queue of its own, beside tasks."""

    def get_consumers(self, channel: Any) -> list[Consumer]:
        return [Consumer(channel, queues=[orders], callbacks=[self.handle], accept=["json"])]

    def handle(self, body: Any, message: Any) -> None:
        note(f"order {body['number']}")
        add.delay(body["number"], 1)
        message.ack()


class Watch(bootsteps.StartStopStep):
    """Looks at what runs, now and then."""

    requires = ("celeriac.worker.components:Timer",)

    def __init__(self, parent: Any, **options: Any) -> None:
        self.tref: Any = None

    def start(self, worker: Any) -> None:
        self.tref = worker.timer.call_repeatedly(0.1, self.look, (worker,), priority=10)

    def stop(self, worker: Any) -> None:
        self.tref.cancel()
        note("watch stopped")

    def look(self, worker: Any) -> None:
        for request in worker.active_requests:
            if request.name == "steps.nap" and request.time_start:
                note(f"saw {request.id} of {request.args} in {request.worker_pid}")


class Told(Request):
    """Notes what it hears."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        note(f"accepted {self.id}")

    def on_timeout(self, soft: bool, timeout: Any) -> None:
        super().on_timeout(soft, timeout)
        note(f"timeout {self.id} {'soft' if soft else 'hard'} {timeout:g}")

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> None:
        note(f"success {self.id} {failed__retval__runtime[1]}")

    def on_retry(self, exc_info: Any) -> None:
        note(f"retry {self.id} {exc_info.exception!r}")

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        note(f"failure {self.id} {type(exc_info.exception).__name__} {self.args}")


class Custom(Task):
    Request = Told


app.steps["consumer"].add(Orders)
app.steps["worker"].add(Watch)


@app.task(name="steps.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="steps.nap")
def nap(count: int) -> None:
    """Lasts for so many twentieths of a second, or until a debugger empties the list."""
    left = list(range(count))
    while left:
        time.sleep(0.05)
        left.pop()


@app.task(name="steps.told", base=Custom, bind=True, max_retries=1)
def told(self: Any, how: str) -> str:
    if how == "fail":
        raise ValueError("as asked")
    if how == "die":
        os._exit(3)
    if how == "retry" and not self.request.retries:
        raise self.retry(exc=KeyError("again"), countdown=0)
    if how == "sleep":
        time.sleep(60)
    return how


@app.task(name="steps.debug")
def debug(x: int) -> int:
    y = x * 2
    rdb.set_trace()
    return y
