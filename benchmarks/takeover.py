"""How long until what a dead or silent worker ran is begun again elsewhere (B11).

    python -m benchmarks.takeover --broker redis --how killed --times 12

Two workers; one runs a task when it and its children are killed (`killed`), or stopped as if their machine were gone
(`silent`). Measured is the time from then until the other one begins the task.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.chaos.campaign import quantile
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.places import Place
from celeriac import Celery

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 150.0
SIGNALS = {"killed": signal.SIGKILL, "silent": signal.SIGSTOP}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the times; 1 if a task was not begun again."""
    options = _parse(arguments)
    if options.how == "silent":  # each in a place of its own: a task that was taken over runs on, and takes a slot
        times = sorted(second for _ in range(options.times) for second in measure(options.broker, "silent", 1))
    else:
        times = sorted(measure(options.broker, options.how, options.times))
    shares = ", ".join(
        f"{name} {quantile(times, share)} s" for name, share in (("median", 0.5), ("p95", 0.95), ("max", 1))
    )
    print(f"{options.broker}, {options.how}, {machine.commit_of(ROOT)}: begun again {len(times)} times; {shares}")
    return 0 if times[-1] < PATIENCE_S else 1


def measure(broker: str, how: str, times: int) -> list[float]:
    """The seconds it took, for each time."""
    took = []
    with Place(broker) as place:
        ledger = Ledger(place.folder / "ledger")
        environment = {
            "CHAOS_BROKER": place.broker, "CHAOS_BACKEND": place.backend, "CHAOS_LEDGER": str(ledger.path),
        }  # fmt: skip
        fleet = Fleet(place.folder, 2, ("-c", "2"), environment)
        client = Celery("client", broker=place.broker, backend=place.backend)
        try:
            for _ in range(times):
                fleet.fill()
                id = str(uuid.uuid4())
                client.send_task("chaos.work", (2.0 if how == "killed" else PATIENCE_S,), task_id=id)
                _wait_for_runs(ledger, id, 1)
                run = ledger.starts[id][0]
                victim = next(worker for worker in fleet.running if run.parent == worker.pid)
                time.sleep(random.uniform(0.0, 0.5))
                struck_at = time.time()
                victim.wanted = False
                victim.send_group(SIGNALS[how])
                _wait_for_runs(ledger, id, 2)
                runs = ledger.starts[id]
                took.append(runs[1].at - struck_at if len(runs) > 1 else PATIENCE_S)
                for worker in (victim, *(fleet.running if how == "silent" else ())):
                    worker.wanted = False
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.process.wait()
        finally:
            fleet.stop()
            client.close()
    return took


def _wait_for_runs(ledger: Ledger, id: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(ledger.starts.get(id, ())) < count and time.monotonic() < deadline:
        time.sleep(0.01)
        ledger.read()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.takeover", description="When a dead worker's task begins again.")
    parser.add_argument("--broker", choices=("redis", "amqp", "sqlite"), default="redis")
    parser.add_argument("--how", choices=sorted(SIGNALS), default="killed")
    parser.add_argument("--times", type=int, default=10)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
