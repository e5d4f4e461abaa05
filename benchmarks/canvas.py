"""Joins and bulk sends at size: how long a chord of thousands takes from its call to its body's result, and what a
group of a hundred thousand calls costs the client in time and memory.

    python -m benchmarks.canvas --broker redis --chord 10000 --group 100000
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe
from celeriac import Celery, chord, group
from celeriac.testing.services import RedisService

WAIT_S = 300.0
APP = """
import os
from celeriac import Celery

app = Celery("canvas_bench", broker=os.environ["URL"], backend=os.environ["URL"])


@app.task(name="bench.ident")
def ident(x):
    return x


@app.task(name="bench.total")
def total(numbers):
    return sum(numbers)


@app.task(name="bench.nothing", ignore_result=True)
def nothing(x):
    pass
"""


def peak_kib() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def join(app: Celery, parts: int) -> tuple[float, float]:
    """Seconds until the header is sent, and until the body's result is here."""
    ident, total = app.signature("bench.ident"), app.signature("bench.total")
    started = time.perf_counter()
    result = chord((ident.clone((n,)) for n in range(parts)), total).apply_async()
    sent_s = time.perf_counter() - started
    value = result.get(timeout=WAIT_S, follow_parents=False)
    assert value == parts * (parts - 1) // 2, value
    return sent_s, time.perf_counter() - started


def bulk(app: Celery, calls: int) -> tuple[float, int]:
    """Seconds until a group is sent, and by how many KiB the client has grown with it."""
    nothing = app.signature("bench.nothing")
    before = peak_kib()
    started = time.perf_counter()
    results = group(nothing.clone((n,)) for n in range(calls)).apply_async()
    spent_s = time.perf_counter() - started
    assert len(results) == calls
    return spent_s, peak_kib() - before


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", choices=["redis", "sqlite"], default="redis")
    parser.add_argument("--chord", type=int, default=10_000)
    parser.add_argument("--group", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=2)
    options = parser.parse_args()
    print(describe())
    service = RedisService() if options.broker == "redis" else None
    with tempfile.TemporaryDirectory() as folder:
        if service is not None:
            service.start()
        url = service.fresh_url() if service is not None else f"sqlite:///{folder}/bench.db"
        Path(folder, "bench_app.py").write_text(APP)
        worker = subprocess.Popen(
            [Path(sys.executable).with_name("celeriac"), "-A", "bench_app", "worker", "-c", str(options.concurrency)],
            cwd=folder, env={**os.environ, "URL": url}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            app = Celery("bench", broker=url, backend=url)
            app.send_task("bench.ident", (1,)).get(timeout=60)
            join(app, 100)
            for parts in sorted({1000, options.chord}):
                sent_s, spent_s = join(app, parts)
                print(f"chord of {parts:6}: header sent in {sent_s:.2f} s, body's result after {spent_s:.2f} s")
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
            for calls in sorted({options.group // 10, options.group}):
                spent_s, grown = bulk(app, calls)
                print(f"group of {calls:6}: sent in {spent_s:.2f} s, client grew by {grown / 1024:.0f} MiB "
                      f"({grown * 1024 / calls:.0f} bytes a call)")  # fmt: skip
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            if service is not None:
                service.stop()


if __name__ == "__main__":
    main()
