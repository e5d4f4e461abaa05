"""What a worker makes of its options and of the settings behind them, and whom it tells that it begins."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from celeriac import Celery, signals
from celeriac.exceptions import SettingError
from celeriac.worker.worker import Worker


def make_app(name: str) -> Celery:
    return Celery(broker=f"memory://{name}", set_as_current=False)


def test_zero_is_as_many_slots_as_processors_and_children_that_live_for_ever() -> None:
    app = make_app("zeros")
    app.conf.update(worker_concurrency=0, worker_max_tasks_per_child=0, worker_max_memory_per_child=0)
    worker = Worker(app)
    assert worker.concurrency == len(os.sched_getaffinity(0))
    assert worker.max_tasks_per_child is None
    assert worker._max_memory is None


def test_less_than_no_task_per_child_is_refused() -> None:
    with pytest.raises(SettingError, match="worker_max_tasks_per_child cannot be -1"):
        make_app("negative").conf.worker_max_tasks_per_child = -1


@pytest.mark.parametrize(("pool", "told"), [("solo", 1), ("threads", 0)])
def test_solo_tells_that_its_process_runs_tasks_as_in_celery(pool: str, told: int) -> None:
    heard: list[int] = []

    def hear(**_: Any) -> None:
        heard.append(os.getpid())

    signals.worker_process_init.connect(hear)
    try:
        Worker(make_app(f"tells-{pool}"), pool=pool, concurrency=1, on_ready=lambda worker: worker.stop()).run()
    finally:
        signals.worker_process_init.disconnect(hear)
    assert heard == [os.getpid()] * told


def test_a_process_that_is_to_end_at_once_does_not_wait_for_threads_that_tasks_have_left() -> None:
    program = """
import time
from concurrent.futures import ThreadPoolExecutor
from celeriac import Celery
from celeriac.worker.worker import Worker

def end(worker):
    ThreadPoolExecutor(1).submit(time.sleep, 600)
    worker.stop()
    worker.stop()

app = Celery(broker="memory://left")
raise SystemExit(Worker(app, pool="solo", on_ready=end, ends_process=True).run())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "the process ends without them" in done.stderr
