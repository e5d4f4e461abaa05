"""Whether a worker stays as it is: memory, descriptors and threads over a million no-ops and a hundred cut connections.

    python -m benchmarks.soak --broker redis --tasks 1000000 --cuts 100

The queue is kept filled while one worker drains it; its connections are cut at even distances. Every few seconds the
parent and its children are looked at in /proc. Printed are their figures after a tenth of the tasks, when all that is
allocated once has been, and at the end; and how many tasks were lost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.places import Place
from celeriac import Celery
from celeriac.exceptions import OperationalError, PublishUncertain

ROOT = Path(__file__).resolve().parent.parent
BATCH = 500
BACKLOG = 5000
LOOK_S = 2.0
STALL_S = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, print the table; 1 if something was lost."""
    options = _parse(arguments)
    found = soak(options.broker, options.pool, options.tasks, options.cuts)
    print("\n".join(_table(found)))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"soak-{options.broker}-{options.pool}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["left"] else 0


def soak(broker: str, pool: str, tasks: int, cuts: int) -> dict[str, Any]:
    """What was seen, as data for JSON."""
    begun = time.monotonic()
    with Place(broker, durable=False) as place:
        counts = place.folder / "counts"
        counts.mkdir()
        environment = {
            "CHAOS_BROKER": place.broker, "CHAOS_BACKEND": place.backend, "CHAOS_LEDGER": str(place.folder / "ledger"),
            "CHAOS_COUNTS": str(counts),
        }  # fmt: skip
        fleet = Fleet(place.folder, 1, ("-P", pool, "-c", "2", "-l", "warning"), environment)
        client = Celery("client", broker=place.direct, backend=place.backend)
        sent = uncertain = 0
        end = threading.Event()

        def send() -> None:
            nonlocal sent, uncertain
            while sent < tasks and not end.is_set():
                if sent - _count(counts) > BACKLOG:
                    time.sleep(0.01)
                    continue
                try:
                    for _ in range(min(BATCH, tasks - sent)):
                        client.send_task("chaos.count", ignore_result=True)
                        sent += 1
                except PublishUncertain:
                    uncertain += 1
                except OperationalError:
                    time.sleep(0.1)

        sender = threading.Thread(target=send, daemon=True)
        looks: list[dict[str, Any]] = []
        try:
            fleet.fill()
            sender.start()
            made, moved_at, last = 0, time.monotonic(), 0
            while True:
                time.sleep(LOOK_S / 10)
                ran = _count(counts)
                if ran != last:
                    last, moved_at = ran, time.monotonic()
                if (ran >= tasks and not sender.is_alive()) or time.monotonic() - moved_at > STALL_S:
                    break
                if made < cuts and ran >= tasks * (made + 1) // (cuts + 1):
                    made += bool(place.wire.cut()) if place.wire is not None else 1
                if not looks or time.monotonic() - looks[-1]["at"] > LOOK_S:
                    looks.append(_look(fleet, ran))
            looks.append(_look(fleet, last))
            left = tasks - last
        finally:
            end.set()
            fleet.stop()
            client.close()
        early = next((look for look in looks if look["ran"] >= tasks / 10), looks[0])
        seconds = time.monotonic() - begun
        return {
            "commit": machine.commit_of(ROOT), "machine": machine.describe(), "broker": broker, "pool": pool,
            "tasks": tasks, "ran": last, "left": max(0, left), "again": max(0, -left), "cuts": made,
            "uncertain": uncertain, "seconds": round(seconds, 1), "a_second": round(last / seconds),
            "early": early, "late": looks[-1], "looks": looks[:: max(1, len(looks) // 50)],
        }  # fmt: skip


def _count(folder: Path) -> int:
    """How many tasks have run: each process appends a byte for each."""
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def _look(fleet: Fleet, ran: int) -> dict[str, Any]:
    worker = fleet.all[0]
    children = worker.children()
    return {
        "at": time.monotonic(), "ran": ran, "parent": _figures(worker.pid),
        "children": [_figures(pid) for pid in children],
    }  # fmt: skip


def _figures(pid: int) -> dict[str, int]:
    """Kilobytes that are this process's own, descriptors, threads."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        own = sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
        return {
            "own_kib": own, "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task")),
        }  # fmt: skip
    except OSError:
        return {"own_kib": 0, "descriptors": 0, "threads": 0}


def _table(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['broker']}, {found['pool']}, {found['commit']}: {found['ran']} tasks run of {found['tasks']} sent, "
        f"{found['left']} lost, {found['again']} run again, {found['cuts']} times all connections cut; "
        f"{found['seconds']} s, {found['a_second']} a second",
        "",
        f"| process | after {found['early']['ran']}: KiB of its own, descriptors, threads | at the end |",
        "| --- | --- | --- |",
    ]
    names = ["parent", *(f"child {n + 1}" for n in range(len(found["late"]["children"])))]
    early = [found["early"]["parent"], *found["early"]["children"]]
    late = [found["late"]["parent"], *found["late"]["children"]]
    for name, before, after in zip(names, early, late, strict=False):
        words = (", ".join(map(str, figures.values())) for figures in (before, after))
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    return lines


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description="A million no-ops and a hundred cuts.")
    parser.add_argument("--broker", choices=("redis", "amqp", "sqlite"), default="redis")
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
