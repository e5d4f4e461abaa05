"""The client's half of a cell: `driver.py APP VERB N` sends tasks with one peer and prints one line of JSON.

Verbs, the same for everyone:

    enqueue N     send N no-ops one by one; time per call
    fill N        send N no-ops the fastest way the peer offers (untimed preparation of a drain)
    bulk N        the same, timed; only for peers that have a bulk call
    results N     send N echoes, then read all N results back and check them; time for the whole
    roundtrip N   send one echo, wait for its result, N times; each latency
    paced N       send N stamped tasks at 200 a second; the worker notes how old each was when it started

An APP is a module beside this one that has `open_client`, `enqueue`, `results`, `roundtrip`, `close_client` and, if
the peer can, `fill`, `bulk` and `paced`. Each is written the way that peer's documentation writes it.
Runs inside the peer's venv: standard library only.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from typing import Any

WARM_UP = {"enqueue": 50, "bulk": 200, "results": 40, "roundtrip": 40}
PACE_PER_S = 200


def main(app_name: str, verb: str, n: int) -> None:
    """Run one verb and print what it took."""
    app = importlib.import_module(app_name)
    app.open_client()
    try:
        report = {
            "enqueue": enqueue,
            "fill": fill,
            "bulk": bulk,
            "results": results,
            "roundtrip": roundtrip,
            "paced": paced,
        }[verb](app, n)
    finally:
        app.close_client()
    print(json.dumps({"verb": verb, "n": n, **report}), flush=True)


def enqueue(app: Any, n: int) -> dict[str, Any]:
    """Send `n` no-ops one by one, after a short warm-up that is not timed."""
    app.enqueue(WARM_UP["enqueue"])
    return {"sent": n + WARM_UP["enqueue"], **_timed(app.enqueue, n)}


def fill(app: Any, n: int) -> dict[str, Any]:
    """Send `n` no-ops, each as a single call would be, the fastest way the peer has."""
    return {"sent": n, **_timed(getattr(app, "fill", app.enqueue), n)}


def bulk(app: Any, n: int) -> dict[str, Any]:
    """Send `n` no-ops with the peer's bulk call."""
    app.bulk(WARM_UP["bulk"])
    return {"sent": n + WARM_UP["bulk"], **_timed(app.bulk, n)}


def results(app: Any, n: int) -> dict[str, Any]:
    """Send `n` echoes, read their results back, and refuse to report a time for wrong ones."""
    app.roundtrip(WARM_UP["results"])
    values: list[Any] = []
    taken = _timed(lambda count: values.extend(app.results(count)), n)
    if sorted(values) != list(range(n)):
        raise SystemExit(f"wrong results: {len(values)} of {n}, first {values[:5]!r}")
    return taken


def roundtrip(app: Any, n: int) -> dict[str, Any]:
    """Call and wait `n` times; the latencies in milliseconds."""
    app.roundtrip(WARM_UP["roundtrip"])
    latencies: list[float] = []
    taken = _timed(lambda count: latencies.extend(app.roundtrip(count)), n)
    return {"latencies_ms": [round(latency * 1000, 4) for latency in latencies], **taken}


def paced(app: Any, n: int) -> dict[str, Any]:
    """Send `n` stamped tasks at an even pace; a sender that falls behind catches up and says by how much."""
    app.paced(time.monotonic_ns())
    time.sleep(0.3)
    gc.collect()
    began = time.monotonic()
    late = 0.0
    for index in range(n):
        due = began + index / PACE_PER_S
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        late = max(late, time.monotonic() - due)
        app.paced(time.monotonic_ns())
    return {"sent": n + 1, "seconds": time.monotonic() - began, "late_s": late}


def _timed(work: Any, n: int) -> dict[str, float]:
    gc.collect()
    cpu = time.process_time()
    began = time.perf_counter()
    work(n)
    return {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
