"""How long until a worker consumes again after a fault of its connections, many times over.

    python -m benchmarks.reconnect --broker redis --pool prefork --times 1000

One worker, behind a wire that fails on demand. Each time some tasks are under way, a fault strikes, and a probe is sent
past the wire as soon as the medium is back; measured is the time from then until the probe has run. The promise is five
seconds, every time (B27). A fault that was not seen to meet the worker is brought about again until it was. At the end
every task must have run to its end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.chaos.campaign import quantile
from benchmarks.chaos.faults import CONNECTION, REGISTER, Scene
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.places import Place
from celeriac import Celery

ROOT = Path(__file__).resolve().parent.parent
PROMISED_S = 5.0
PATIENCE_S = 60.0
UNDER_WAY = 3
#: How often a fault is brought about until it was seen to meet the worker.
TRIES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loop and print what it found; 1 if the worker was late once, or something was lost."""
    options = _parse(arguments)
    kinds = options.kinds.split(",") if options.kinds else CONNECTION[options.broker]
    found = repeat(options.broker, options.pool, kinds, options.times, options.seed)
    print("\n".join(_table(found)))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"reconnect-{options.broker}-{options.pool}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["late"] or found["lost"] or found["ended"] else 0


def repeat(broker: str, pool: str, kinds: Sequence[str], times: int, seed: int) -> dict[str, Any]:
    """Strike so often, in turns; what was found, as data for JSON."""
    rng = random.Random(seed)
    took: dict[str, list[float]] = defaultdict(list)
    struck: dict[str, int] = defaultdict(int)
    unconfirmed: dict[str, int] = defaultdict(int)
    begun = time.monotonic()
    with Place(broker) as place:
        ledger = Ledger(place.folder / "ledger")
        environment = {
            "CHAOS_BROKER": place.broker, "CHAOS_BACKEND": place.backend, "CHAOS_LEDGER": str(ledger.path),
        }  # fmt: skip
        fleet = Fleet(place.folder, 1, ("-P", pool, "-c", "2"), environment)
        client = Celery("client", broker=place.direct)  # past the wire, so that all connections on it are the worker's
        sent: set[str] = set()

        def send(seconds: float) -> str:
            id = str(uuid.UUID(int=rng.getrandbits(128)))
            client.send_task("chaos.work", (seconds,), task_id=id)
            sent.add(id)
            return id

        scene = Scene(place, fleet, rng, feed=lambda: send(0.0))
        try:
            fleet.fill()
            first = send(0.0)
            _await(ledger, first)
            for n in range(times):
                kind = kinds[n % len(kinds)]
                for _ in range(TRIES):
                    for _ in range(rng.randrange(UNDER_WAY + 1)):
                        send(rng.uniform(0.0, 0.3))
                    proof = _strike(scene, kind)
                    struck[kind] += 1
                    if proof:
                        break
                back = time.time()
                probe = send(0.0)
                unconfirmed[kind] += not proof
                took[kind].append(_await(ledger, probe) - back)
                if took[kind][-1] > PROMISED_S:
                    print(f"{n} {kind}: {took[kind][-1]:.2f} s\n{fleet.all[0].log[-1500:]}", flush=True)
                if not fleet.running:
                    break
            deadline = time.monotonic() + PATIENCE_S
            while sent - ledger.ends.keys() and time.monotonic() < deadline:
                time.sleep(0.1)
                ledger.read()
            lost = sorted(sent - ledger.ends.keys())
            ended = [worker.log[-2000:] for worker in fleet.deserters()]
        finally:
            fleet.stop()
            client.close()
    whole = sorted(seconds for times_of_one in took.values() for seconds in times_of_one)
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": machine.commit_of(ROOT),
        "machine": machine.describe(), "broker": broker, "pool": pool, "times": len(whole), "tasks": len(sent),
        "confirmed": len(whole) - sum(unconfirmed.values()),
        "in_time": sum(seconds <= PROMISED_S for seconds in whole), "late": sum(s > PROMISED_S for s in whole),
        "median_s": quantile(whole, 0.5), "p99_s": quantile(whole, 0.99), "max_s": quantile(whole, 1.0),
        "lost": lost, "ended": ended, "seconds": round(time.monotonic() - begun, 1),
        "kinds": {
            kind: {
                "times": len(times_of_one), "struck": struck[kind], "unconfirmed": unconfirmed[kind],
                "median_s": quantile(sorted(times_of_one), 0.5), "max_s": quantile(sorted(times_of_one), 1.0),
            }
            for kind, times_of_one in took.items()
        },
    }  # fmt: skip


def _strike(scene: Scene, kind: str) -> str:
    steps = REGISTER[scene.place.kind][kind](scene)
    while True:
        try:
            time.sleep(next(steps))
        except StopIteration as stop:
            return str(stop.value)


def _await(ledger: Ledger, id: str) -> float:
    """When this task ended; infinity if it did not in a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ledger.read()
        if id in ledger.ends:
            return ledger.ends[id][0]
        time.sleep(0.005)
    return float("inf")


def _table(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['broker']}, {found['pool']}, {found['commit']}: consuming again within {PROMISED_S:g} s "
        f"{found['in_time']} times of {found['times']}, of which {found['confirmed']} confirmed; "
        f"median {found['median_s']} s, p99 {found['p99_s']} s, longest {found['max_s']} s; "
        f"{found['tasks']} tasks, {len(found['lost'])} lost; {found['seconds']} s",
        "",
        "| fault | times | struck | unconfirmed | median s | max s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, words in found["kinds"].items():
        lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(map(str, words.values())) + " |")
    return lines + found["ended"]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.reconnect", description="Faults of connections, many times over.")
    parser.add_argument("--broker", choices=sorted(CONNECTION), default="redis")
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--kinds", default="", help="names of faults, separated by commas; default: all of connections")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
