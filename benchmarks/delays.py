"""What tasks for later cost a worker, and how punctual they are, over a restart of everything.

    python -m benchmarks.delays --broker redis --tasks 1000000 --span 1200

All are sent while a worker runs: how much memory does it take more than when idle? Then server and worker are
restarted, and the tasks fall due, spread over a span. Each says when it started: was one early, how late were they, is
one missing, did one run again?
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
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
SETTLE_S = 2.0
PATIENCE_S = 120.0
#: Where tasks note that they ran: on a busy disk a line in a file takes longer than they do.
IN_MEMORY = Path("/dev/shm")
#: What the tasks' file on sqlite may grow to.
ROOM_MB = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print what was found; 1 if a task was early, missing or run again."""
    options = _parse(arguments)
    soon = options.soon or 30 + options.tasks / 3000
    found = measure(options.broker, options.tasks, soon, options.span)
    print(_line(found))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"delays-{options.broker}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["early"] or found["missing"] or found["again"] else 0


def measure(broker: str, tasks: int, soon_s: float, span_s: float, server: Any = None) -> dict[str, Any]:
    """What was found, as data for JSON.

    Args:
        soon_s: When the first is due, from when sending begins: all must be sent and everything restarted by then, or
            what is late is late by that (`ready_before_due_s` is negative).
        span_s: Over how long they are spread.
        server: A RabbitMQ that runs already; it is not restarted.
    """
    with (
        Place(broker, room_mb=ROOM_MB, server=server) as place,
        tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as notes,
    ):
        ledger = Ledger(Path(notes) / "ledger")
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
            begun = time.time()
            first = begun + soon_s
            wanted = {str(uuid.UUID(int=rng.getrandbits(128))): first + rng.uniform(0, span_s) for _ in range(tasks)}
            _send(client, wanted.items())
            sent_s = time.time() - begun
            time.sleep(SETTLE_S)
            loaded = _memory(fleet)
            fleet.stop()
            if place.server is not server:
                place.server.restart()
            fleet.fill()
            ready_s = first - time.time()
            deadline = first + span_s + PATIENCE_S
            while time.time() < deadline and len(ledger.starts.keys() - {"warm"}) < tasks:
                time.sleep(1.0)
                ledger.read()
            busy = _memory(fleet)
        finally:
            fleet.stop()
            client.close()
        ledger.read()
        begun_at = {id: runs[0].at for id, runs in ledger.starts.items()}
        late = sorted(begun_at[id] - due for id, due in wanted.items() if id in begun_at)
        tenths: list[list[float]] = [[] for _ in range(10)]
        for id, due in wanted.items():
            if id in begun_at:
                tenths[int((due - first) / span_s * 9.999)].append(begun_at[id] - due)
    return {
        "commit": machine.commit_of(ROOT), "machine": machine.describe(), "broker": broker, "tasks": tasks,
        "span_s": span_s, "sent_a_second": round(tasks / sent_s), "idle_kib": idle, "loaded_kib": loaded,
        "more_kib": loaded - idle, "at_the_end_kib": busy, "ready_before_due_s": round(ready_s, 1),
        "early": sum(seconds < 0 for seconds in late), "missing": tasks - len(late),
        "again": sum(len(ledger.starts.get(id, ())) > 1 for id in wanted), "late_median_s": quantile(late, 0.5),
        "late_p99_s": quantile(late, 0.99), "late_max_s": quantile(late, 1.0),
        "late_p99_s_by_tenths": [quantile(sorted(tenth), 0.99) for tenth in tenths],
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
        f"{one['broker']}, {one['commit']}: {one['tasks']} tasks for later ({one['sent_a_second']} sent a second) cost",
        f"the worker {one['more_kib'] / 1024:.1f} MiB ({one['idle_kib']} → {one['loaded_kib']} KiB,",
        f"{one['at_the_end_kib']} at the end); everything restarted {one['ready_before_due_s']} s before the first",
        f"was due, spread over {one['span_s']:g} s: {one['missing']} missing, {one['early']} early,",
        f"{one['again']} run again, late: median {one['late_median_s']} s, p99 {one['late_p99_s']} s,",
        f"max {one['late_max_s']} s; p99 of each tenth: {', '.join(map(str, one['late_p99_s_by_tenths']))}",
    )
    return " ".join(words)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.delays", description="What tasks for later cost a worker.")
    parser.add_argument("--broker", choices=("redis", "amqp", "sqlite"), default="redis")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--soon", type=float, help="seconds until the first is due; default: time enough to send all")
    parser.add_argument("--span", type=float, default=60.0, help="seconds over which they are spread")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
