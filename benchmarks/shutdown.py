"""Stops a worker under load, again and again, and counts what was lost, what ran twice, and how long it took.

    python -m benchmarks.shutdown --broker redis --rounds 500

Each round starts a worker on a queue that is never empty, waits until it has run some tasks, sends TERM at a random
moment and waits for the end. At last a worker drains the queue. Every task writes a line when it starts and when it
ends, so a lost one is one without an end, and one that ran twice has two. `--storm` sends TERM, INT, QUIT and HUP in
random order, a hundred a second, until the worker is gone: then tasks may be given up and start again, but one that has
ended and whose end the worker has settled may not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.servers import Place, Servers
from celeriac import Celery

SLOTS = 4
LONGEST_TASK_S = 0.1
TASKS_A_ROUND = 60
#: The last worker is given up if no task ends for so long.
STALL_S = 60.0
#: Beyond the longest task: D2 and D4 of the delivery contract.
WARM_S, COLD_S = 1.0, 5.0
APP = f"""
import os, random, time
from celeriac import Celery

app = Celery("shutdown_app", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
NOTES = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(bind=True)
def work(self):
    os.write(NOTES, f"start {{self.request.id}}\\n".encode())
    time.sleep(random.uniform(0, {LONGEST_TASK_S}))
    os.write(NOTES, f"end {{self.request.id}}\\n".encode())
"""


@dataclass
class Tally:
    """What was seen."""

    exits_s: list[float] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    sent: set[str] = field(default_factory=set)
    set_aside: Counter[str] = field(default_factory=Counter)  # reason → messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds and print the table; 1 if something was lost, ran twice or took too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=["sqlite", "redis", "rabbitmq"], default="sqlite")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--storm", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    servers = Servers()
    try:
        with servers.place(options.broker, "celeriac") as place, tempfile.TemporaryDirectory(dir="/tmp") as folder:
            return run(place, Path(folder), options.rounds, storm=options.storm)
    finally:
        servers.close()


def run(place: Place, folder: Path, rounds: int, *, storm: bool) -> int:
    """All rounds on one broker."""
    (folder / "shutdown_app.py").write_text(APP)
    notes = folder / "notes"
    env = {**os.environ, "BROKER": place.broker_url, "RESULTS": place.result_url, "NOTES": str(notes)}
    client = Celery("client", broker=place.broker_url, backend=place.result_url, set_as_current=False)
    tally = Tally()
    for number in range(1, rounds + 1):
        for _ in range(TASKS_A_ROUND):
            tally.sent.add(client.send_task("shutdown_app.work").id)
        play(folder, env, notes, tally, storm)
        if number % 50 == 0:
            print(f"{number} rounds", file=sys.stderr, flush=True)
    worker = start(folder, env)
    before, moved_at = -1, time.monotonic()
    while before < len(tally.sent) and time.monotonic() < moved_at + STALL_S:
        time.sleep(0.5)
        ended = len(ids(notes, "end"))
        if ended != before:
            before, moved_at = ended, time.monotonic()
    worker.terminate()
    worker.wait(30)
    tally.set_aside = set_aside(client)
    client.close()
    return report(place, tally, notes, rounds, storm)


def set_aside(client: Celery) -> Counter[str]:
    """Why messages were set aside, and how many."""
    letters = client.transport.browse_dead("celery", limit=1000)
    return Counter(letter.reason for letter in letters)


def play(folder: Path, env: dict[str, str], notes: Path, tally: Tally, storm: bool) -> None:
    """One life of a worker."""
    before = size(notes)
    worker = start(folder, env)
    try:
        deadline = time.monotonic() + 30
        while size(notes) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        begun = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        while storm and worker.poll() is None and time.monotonic() < begun + 30:
            worker.send_signal(random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP]))
            time.sleep(0.01)
        tally.codes[worker.wait(60)] += 1
        tally.exits_s.append(time.monotonic() - begun)
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)


def start(folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A worker, as a user starts one."""
    command = [sys.executable, "-m", "celeriac", "-q", "-A", "shutdown_app", "worker", "-c", str(SLOTS)]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def size(path: Path) -> int:
    """Bytes of a file that may not be there."""
    return path.stat().st_size if path.exists() else 0


def ids(notes: Path, word: str) -> Counter[str]:
    """How often each task wrote this word."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith(word))


def report(place: Place, tally: Tally, notes: Path, rounds: int, storm: bool) -> int:
    """Print the table; the exit code."""
    starts, ends = ids(notes, "start"), ids(notes, "end")
    lost = tally.sent - set(ends)
    again = sum(count - 1 for count in ends.values())
    cut = sum(starts.values()) - sum(ends.values())
    bound_s = LONGEST_TASK_S + (COLD_S if storm else WARM_S)
    late = sum(one > bound_s for one in tally.exits_s)
    exits = sorted(tally.exits_s)
    row: dict[str, object] = {
        "broker": place.broker,
        "signals": "storm" if storm else "TERM",
        "rounds": rounds,
        "tasks": len(tally.sent),
        "lost": len(lost),
        "set aside": dict(tally.set_aside),
        "ended twice": again,
        "cut short": cut,
        "exit p50": f"{exits[len(exits) // 2]:.2f} s",
        "exit max": f"{exits[-1]:.2f} s",
        f"later than {bound_s:g} s": late,
        "exit codes": dict(tally.codes),
    }
    print(", ".join(f"{key}: {value}" for key, value in describe().items()))
    for line in (row.keys(), ("---" for _ in row), row.values()):
        print(f"| {' | '.join(map(str, line))} |")
    failed = lost or late or (not storm and (again or cut or set(tally.codes) != {0}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
