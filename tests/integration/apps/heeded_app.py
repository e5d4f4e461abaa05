"""The app of `test_heeded_settings.py`: one worker with the settings of Celery's that few programs set."""

from __future__ import annotations

import os
import signal
from typing import Any, ClassVar

from suite_app import note

from celeriac import Celery, bootsteps
from celeriac.worker.consumer import Consumer
from celeriac.worker.request import Request

app = Celery("heeded_app", broker=os.environ["SUITE_BROKER"], backend=os.environ.get("SUITE_BACKEND"))
app.conf.update(
    task_protocol=1,
    task_retry_on_worker_lost=True,
    worker_agent="heeded_app:Agent",
    worker_consumer="heeded_app:Listening",
    worker_deduplicate_successful_tasks=True,
    worker_enable_soft_shutdown_on_idle=True,
    worker_soft_shutdown_timeout=1.0,
)


class Agent:
    """What a program of its own would be."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def start(self) -> None:
        note(f"agent started on {self.connection.transport.driver_type}")

    def stop(self) -> None:
        note("agent stopped")


class Own(bootsteps.StartStopStep):
    """A step of the consumer's own, after the agent."""

    requires = ("celeriac.worker.consumer:Agent",)

    def start(self, parent: Any) -> None:
        note(f"step started, agent {type(parent.agent).__name__}")

    def stop(self, parent: Any) -> None:
        note("step stopped")


class Listening(Consumer):
    """A consumer of the program's own, as one of Celery's would be."""

    class Blueprint(Consumer.Blueprint):
        default_steps: ClassVar[Any] = [*Consumer.Blueprint.default_steps, Own]

    def start(self) -> None:
        self.add_task_queue("extra")
        super().start()

    def stop(self) -> None:
        super().stop()
        note("consumer stopped")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        note(f"{type(exc).__name__} {message.headers['task']}")

    def on_unknown_message(self, body: Any, message: Any) -> None:
        note(f"no task {body.decode()} {message.content_type}")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        note("never called")


def die(self: Any, times: int) -> int:
    """Kills its process in so many tries."""
    note(f"{self.name} {self.request.retries} {self.request.delivery_info['redelivered']}")
    if self.request.retries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(self.request.retries)


class Told(Request):
    """Notes what it hears."""

    def on_retry(self, exc_info: Any) -> None:
        note(f"{self.name} retry {type(exc_info.exception).__name__}")

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        note(f"{self.name} failure {type(exc_info.exception).__name__}")


options: dict[str, Any] = {"bind": True, "default_retry_delay": 0.1}
app.task(name="late", max_retries=1, Request=Told, **options)(die)
app.task(name="early", max_retries=1, acks_late=False, **options)(die)
app.task(name="unbound", max_retries=None, **options)(die)
app.task(name="plain", max_retries=1, retry_on_worker_lost=False, **options)(die)


@app.task(bind=True, name="done_and_dead", retry_on_worker_lost=False)
def done_and_dead(self: Any, value: int) -> None:
    """Dies between its result and its acknowledgement, as a worker of Celery's might."""
    note(f"ran {value}")
    app.backend.store_result(self.request.id, value, "SUCCESS")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="follow")
def follow(value: Any) -> Any:
    note(f"followed {value}")
    return value
