"""The app of `test_cluster_rates.py`: tasks whose rates hold for all workers together, and one that is free."""

from __future__ import annotations

import os
import time

from suite_app import note

from celeriac import Celery

app = Celery("rates_app", broker=os.environ["SUITE_BROKER"], backend=os.environ.get("SUITE_BACKEND"))
app.conf.task_default_rate_limit_scope = "cluster"


@app.task(name="rates.limited", rate_limit="10/s", ignore_result=True)
def limited(name: str) -> None:
    note(f"limited {name} {os.getppid()} {time.time()}")


@app.task(name="rates.of_tenant", rate_limit="5/s", rate_limit_key="{tenant}", ignore_result=True)
def of_tenant(tenant: str) -> None:
    note(f"tenant-{tenant} x {os.getppid()} {time.time()}")


@app.task(name="rates.crawl", rate_limit="1/m", ignore_result=True)
def crawl() -> None:
    note(f"crawl x {os.getppid()} {time.time()}")


@app.task(name="rates.free")
def free(x: int) -> int:
    return x
