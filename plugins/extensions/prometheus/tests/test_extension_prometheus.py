"""A real worker is scraped: what it ran, and what waits."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac import Celery, signals
from celeriac.testing.services import free_ports

APP = """
import time
from celeriac import Celery

app = Celery("metered", broker="sqlite:///{place}/b.db", backend="sqlite:///{place}/b.db")
app.conf.task_default_queue = "metered"
app.conf.extension_options = {{"prometheus": {{"port": {port}}}}}

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="fail")
def fail():
    raise ValueError("no")

@app.task(name="again", bind=True)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0)

@app.task(name="wait")
def wait(path):
    import pathlib
    while not pathlib.Path(path).exists():
        time.sleep(0.01)
"""


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def scrape_until(port: int, *lines: str) -> str:
    text, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            text = scrape(port)
        except OSError:  # refused, or cut, or too late
            text = "no answer"
        if all(line in text.splitlines() for line in lines):
            return text
        time.sleep(0.05)
    pytest.fail(f"{[line for line in lines if line not in text.splitlines()]} not in {text}")


def start_worker(place: Path) -> subprocess.Popen[bytes]:
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "celeriac", "-A", "metered", "worker", "-c", "2", "-l", "info", "-n", "w1@here"],
            cwd=place,
            stdout=log,
            stderr=log,
        )


@pytest.fixture
def no_stamps() -> Iterator[None]:
    before = signals.before_task_publish.receivers
    yield
    signals.before_task_publish.receivers = before


def test_a_worker_is_scraped(tmp_path: Path, no_stamps: None) -> None:
    from celeriac_extension_prometheus.waits import stamp_sends

    (port,) = free_ports(1)
    (tmp_path / "metered.py").write_text(APP.format(place=tmp_path, port=port))
    url = f"sqlite:///{tmp_path}/b.db"
    app = Celery("client", broker=url, backend=url, task_default_queue="metered", set_as_current=False)
    unstamped = app.send_task("add", (0, 0))
    stamp_sends()
    results = [app.send_task("add", (n, n)) for n in range(5)]
    bad, retried = app.send_task("fail"), app.send_task("again")
    worker = second = None
    try:
        worker = start_worker(tmp_path)
        assert [result.get(timeout=60) for result in [unstamped, *results]] == [0, 0, 2, 4, 6, 8]
        assert bad.get(timeout=60, propagate=False).args == ("no",)
        retried.get(timeout=60)
        for name in ("go", "go", "go"):
            app.send_task("wait", (str(tmp_path / name),))
        text = scrape_until(
            port,
            'celeriac_worker_up{pool="prefork",worker="w1@here"} 1.0',
            'celeriac_runs_total{outcome="succeeded",queue="metered",task="add"} 6.0',
            'celeriac_runs_total{outcome="failed",queue="metered",task="fail"} 1.0',
            'celeriac_failures_total{queue="metered",task="fail"} 1.0',
            'celeriac_retries_total{queue="metered",task="again"} 1.0',
            'celeriac_run_seconds_count{task="add"} 6.0',
            'celeriac_wait_seconds_count{queue="metered"} 8.0',  # all but the unstamped one
            "celeriac_slots 2.0",
            "celeriac_in_flight 2.0",
            'celeriac_queue_depth{queue="metered"} 1.0',
        )
        lag = re.search(r'celeriac_lag_seconds\{queue="metered"\} (\S+)', text)
        assert lag is not None
        assert 0 <= float(lag[1]) < 120
        second = start_worker(tmp_path)
        deadline = time.monotonic() + 60
        while "No metrics of the worker" not in (log := (tmp_path / "log").read_text()) or log.count(" ready.") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (tmp_path / "go").touch()
        scrape_until(port, 'celeriac_queue_depth{queue="metered"} 0.0', "celeriac_in_flight 0.0")
    finally:
        for process in (second, worker):
            if process is not None:
                process.terminate()
                assert process.wait(60) == 0
        app.close()


def test_a_listener_that_raises_is_not_asked_again() -> None:
    from celeriac.testing.apps import TestApp
    from celeriac.testing.threaded import start_worker as start

    app = TestApp()
    app.task(name="one")(lambda: 1)
    heard = []

    class Listener:
        def ended(self, runs: list[object]) -> None:
            heard.append(runs)
            raise ValueError("no ear")

    with start(app) as worker:
        worker.listen(Listener())
        assert [app.send_task("one").get(timeout=60) for _ in range(3)] == [1, 1, 1]
    assert len(heard) == 1
