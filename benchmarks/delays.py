"""What tasks for later cost a worker, and how punctual they are, over a restart of everything.

    python -m benchmarks.delays --broker redis --far 1000000 --near 20000

First `--far` tasks due in an hour are sent while a worker runs: how much memory does it take more than when idle? Then
`--near` tasks are sent that fall due in a span of time soon after; meanwhile server and worker are restarted. Each says
when it started: was one early, how late were they, is one missing?
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.chaos.campaign import quantile
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.places import Place
from benchmarks.soak import _figures
from celeriac import Celery

ROOT = Path(__file__).resolve().parent.parent
BATCH = 1000
FAR_S = 3600.0
SETTLE_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print what was found; 1 if a task was early or missing."""
    options = _parse(arguments)
    found = measure(options.broker, options.far, options.near, options.soon, options.span)
    print(_line(found))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"delays-{options.broker}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["early"] or found["missing"] else 0


def measure(broker: str, far: int, near: int, soon_s: float, span_s: float) -> dict[str, Any]:
    """What was found, as data for JSON.

    Args:
        soon_s: When the first of the near tasks is due, from when all are sent.
        span_s: Over how long they are spread.
    """
    with Place(broker) as place:
        ledger = Ledger(place.folder / "ledger")
        environment = {
            "CHAOS_BROKER": place.broker, "CHAOS_BACKEND": place.backend, "CHAOS_LEDGER": str(ledger.path),
        }  # fmt: skip
        fleet = Fleet(place.folder, 1, ("-c", "2"), environment)
        client = Celery("client", broker=place.direct, backend=place.backend)
        rng = random.Random(1)
        try:
            fleet.fill()
            _send(client, [("warm", time.time())] * 200)
            time.sleep(SETTLE_S)
            idle = _memory(fleet)
            begun = time.monotonic()
            due = time.time() + FAR_S
            _send(client, ((str(uuid.uuid4()), due + rng.uniform(0, 60)) for _ in range(far)))
            sent_s = time.monotonic() - begun
            time.sleep(SETTLE_S)
            loaded = _memory(fleet)
            first = time.time() + near / 10_000 + soon_s
            wanted = {str(uuid.UUID(int=rng.getrandbits(128))): first + rng.uniform(0, span_s) for _ in range(near)}
            _send(client, wanted.items())
            fleet.stop()
            if place.server is not None:
                place.server.restart()
            fleet.fill()
            restarted_s = first - time.time()
            deadline = first + span_s + 60
            while wanted.keys() - ledger.starts.keys() and time.time() < deadline:
                time.sleep(0.2)
                ledger.read()
        finally:
            fleet.stop()
            client.close()
        late = sorted(ledger.starts[id][0].at - due for id, due in wanted.items() if id in ledger.starts)
    return {
        "commit": machine.commit_of(ROOT), "machine": machine.describe(), "broker": broker, "far": far, "near": near,
        "sent_a_second": round(far / sent_s) if far else 0, "idle_kib": idle, "loaded_kib": loaded,
        "more_kib": loaded - idle, "ready_before_due_s": round(restarted_s, 1),
        "early": sum(seconds < 0 for seconds in late), "missing": near - len(late),
        "again": sum(len(ledger.starts.get(id, ())) - 1 for id in wanted if id in ledger.starts),
        "late_median_s": quantile(late, 0.5), "late_p99_s": quantile(late, 0.99), "late_max_s": quantile(late, 1.0),
    }  # fmt: skip


def _send(client: Any, tasks: Iterable[tuple[str, float]]) -> None:
    """Send tasks (id, due at) in batches."""
    transport = client.make_transport(client.conf["broker_write_url"] or client.conf["broker_url"])
    batch: list[Any] = []
    for id, due in tasks:
        eta = datetime.fromtimestamp(due, timezone.utc) if due > time.time() else None
        batch.append(client.make_payload("chaos.work", (0.0,), {}, id, {"eta": eta} if eta else {}))
        if len(batch) >= BATCH:
            transport.send(batch)
            batch = []
    if batch:
        transport.send(batch)
    transport.close()


def _memory(fleet: Fleet) -> int:
    """KiB of their own that the worker and its children have."""
    worker = fleet.all[-1]
    return sum(_figures(pid)["own_kib"] for pid in (worker.pid, *worker.children()))


def _line(found: dict[str, Any]) -> str:
    one = found
    words = (
        f"{one['broker']}, {one['commit']}: {one['far']} tasks due in {timedelta(seconds=FAR_S)} cost the worker",
        f"{one['more_kib'] / 1024:.1f} MiB ({one['idle_kib']} → {one['loaded_kib']} KiB; {one['sent_a_second']} sent a",
        f"second); {one['near']} tasks due soon, everything restarted before: {one['missing']} missing,",
        f"{one['early']} early, {one['again']} run again, late: median {one['late_median_s']} s,",
        f"p99 {one['late_p99_s']} s, max {one['late_max_s']} s",
    )
    return " ".join(words)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.delays", description="What tasks for later cost a worker.")
    parser.add_argument("--broker", choices=("redis", "amqp", "sqlite"), default="redis")
    parser.add_argument("--far", type=int, default=100_000, help="tasks due in an hour")
    parser.add_argument("--near", type=int, default=5_000, help="tasks due soon")
    parser.add_argument("--soon", type=float, default=20.0, help="seconds until the first of them")
    parser.add_argument("--span", type=float, default=30.0, help="seconds over which they are spread")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
