"""The app of `test_heeded_settings.py`: one worker with the settings of Celery's that few programs set."""

from __future__ import annotations

import os
import signal
from typing import Any

from suite_app import note

from celeriac import Celery

app = Celery("heeded_app", broker=os.environ["SUITE_BROKER"], backend=os.environ.get("SUITE_BACKEND"))
app.conf.update(
    task_retry_on_worker_lost=True,
    worker_deduplicate_successful_tasks=True,
    worker_enable_soft_shutdown_on_idle=True,
    worker_soft_shutdown_timeout=1.0,
)


def die(self: Any, times: int) -> int:
    """Kills its process in so many tries."""
    note(f"{self.name} {self.request.retries} {self.request.delivery_info['redelivered']}")
    if self.request.retries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(self.request.retries)


options: dict[str, Any] = {"bind": True, "default_retry_delay": 0.1}
app.task(name="late", max_retries=1, **options)(die)
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
