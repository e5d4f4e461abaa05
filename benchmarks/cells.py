"""One cell: one configuration, one broker, one repetition; what it took, in numbers.

There are two kinds. A *cold* cell has no worker while the client sends (enqueue, bulk); then the worker starts and the
backlog is drained. A *warm* cell has a worker that waits while the client sends, waits and reads back (results,
latency, paced).

How a drain is timed, the same way for everyone: each executed task counts itself in shared memory (`peers/meter.py`),
and we look every 3 ms. The clock starts when a tenth of the backlog has been executed, so that neither boot nor a
second process that comes up later than the first is in it, and stops at the last task's own time stamp. CPU is read
from /proc at the start of that window and again when the worker has had a quarter of a second to acknowledge what it
had finished. Boot, from starting the command to the first executed task, is a figure of its own.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.catalog import Setup
from benchmarks.machine import cpu_of_tree
from benchmarks.peers import meter
from benchmarks.servers import Place
from benchmarks.venvs import program_of, python_of
from celeriac.testing.services import end_process, tie_to_parent

QUEUE = "bench"
ASIDE = "bench-aside"
"""A queue without a worker: what is sent in bulk may look different from single calls, and the drain is of those."""

PEERS = Path(__file__).resolve().parent / "peers"
LOOK_EVERY_S = 0.003
SETTLE_S = 0.25
CLIENT_TIMEOUT_S = 90.0
BOOT_TIMEOUT_S = 30.0
STALL_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 8.0


class CellFailed(Exception):
    """A cell has no figures; the message says what happened and ends with what the worker wrote."""


@dataclass(slots=True)
class Cell:
    """What a cell found. `figures` by name: rates a second, milliseconds, microseconds of CPU a task, seconds."""

    setup: Setup
    broker: str
    figures: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class Bench:
    """One cell's surroundings: the environment of its processes, its meter, its worker's log."""

    def __init__(self, setup: Setup, place: Place, folder: Path, *, results: bool) -> None:
        self.setup, self.place = setup, place
        self.meter_path = folder / "meter"
        self.meter_path.write_bytes(bytes(meter.SIZE_BYTES))
        self.log_path = folder / "worker.log"
        self.environment = {
            **os.environ,
            **setup.env,
            "PYTHONPATH": str(PEERS),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_BROKER": place.broker,
            "BENCH_BROKER_URL": place.broker_url,
            "BENCH_RESULT_URL": place.result_url if results else "",
            "BENCH_QUEUE": QUEUE,
            "BENCH_SETUP": setup.name,
            "BENCH_METER": str(self.meter_path),
        }

    def client(self, verb: str, n: int, queue: str = QUEUE) -> dict[str, Any]:
        """Run the client to its end and return what it reports.

        Raises:
            CellFailed: It did not end well, or not in time.
        """
        command = [str(python_of(self.setup.peer)), str(PEERS / "driver.py"), self.setup.app, verb, str(n)]
        try:
            done = subprocess.run(
                command,
                env={**self.environment, "BENCH_QUEUE": queue},
                cwd=self.meter_path.parent,
                capture_output=True,
                text=True,
                timeout=CLIENT_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CellFailed(f"{verb} {n} took more than {CLIENT_TIMEOUT_S:g} s\n{self.log()}") from None
        if done.returncode:
            raise CellFailed(f"{verb} {n} ended with {done.returncode}\n{done.stderr[-1500:]}\n{self.log()}")
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    @contextmanager
    def worker(self) -> Iterator[list[int]]:
        """Start the worker's processes, in groups of their own; end all of them afterwards, the hard way if need be."""
        started: list[subprocess.Popen[bytes]] = []
        try:
            with self.log_path.open("ab") as log:
                for line in self.setup.workers:
                    program, *words = line.split()
                    started.append(
                        subprocess.Popen(
                            [*tie_to_parent(), program_of(self.setup.peer, program), *words],
                            env=self.environment,
                            cwd=self.meter_path.parent,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            yield [process.pid for process in started]
            for process in started:
                if process.poll() is not None:
                    raise CellFailed(f"a worker ended with {process.returncode}\n{self.log()}")
        finally:
            for process in started:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            for process in started:
                end_process(process, signal.SIGTERM, STOP_TIMEOUT_S)
                _end_group(process.pid)

    def executed(self) -> Executed:
        """What the meter shows now."""
        data = self.meter_path.read_bytes()
        slots = struct.unpack_from("=q", data)[0]
        count, first_ns, last_ns = 0, 0, 0
        for slot in range(1, slots + 1):
            _, ran, first, last = struct.unpack_from("=qqqq", data, slot * meter.SLOT_CELLS * 8)
            if ran:
                count += ran
                first_ns = min(first_ns or first, first)
                last_ns = max(last_ns, last)
        return Executed(count, first_ns, last_ns)

    def log(self) -> str:
        """The last of what the workers wrote."""
        return self.log_path.read_text(errors="replace")[-1500:] if self.log_path.exists() else ""


@dataclass(frozen=True, slots=True)
class Executed:
    """How many tasks ran, and when the first and the last of them did (nanoseconds of CLOCK_MONOTONIC)."""

    count: int
    first_ns: int
    last_ns: int


def run_cold(setup: Setup, place: Place, folder: Path, workloads: frozenset[str], counts: Any) -> Cell:
    """Send with no worker running, then drain.

    Raises:
        CellFailed: The client or the worker did not do its part.
    """
    cell = Cell(setup, place.broker)
    bench = Bench(setup, place, folder, results=False)
    sent = 0
    for verb, n, queue in (("bulk", counts.bulk, ASIDE), ("enqueue", counts.enqueue, QUEUE)):
        if verb in workloads and setup.can(place.broker, verb):
            before = cpu_of_tree(place.server_pids)
            report = bench.client(verb, n, queue)
            server_s = cpu_of_tree(place.server_pids) - before
            sent += report["sent"] if queue == QUEUE else 0
            cell.counts[verb] = n
            cell.figures[f"{verb}_per_s"] = n / report["seconds"]
            cell.figures[f"{verb}_client_us"] = 1e6 * report["cpu_s"] / n
            if place.server_pids:
                cell.figures[f"{verb}_server_us"] = 1e6 * server_s / report["sent"]
    if "drain" in workloads:
        if sent < counts.drain:
            sent += bench.client("fill", counts.drain - sent)["sent"]
        cell.counts["drain"] = sent
        cell.figures.update(_drain(bench, sent))
    return cell


def run_warm(setup: Setup, place: Place, folder: Path, workloads: frozenset[str], counts: Any) -> Cell:
    """Send to a worker that waits, and read back.

    Raises:
        CellFailed: The client or the worker did not do its part.
    """
    cell = Cell(setup, place.broker)
    bench = Bench(setup, place, folder, results=True)
    with bench.worker() as pids:
        if "results" in workloads and setup.can(place.broker, "results"):
            bench.client("roundtrip", 5)  # the worker is up when this returns
            worker_s, server_s = cpu_of_tree(pids), cpu_of_tree(place.server_pids)
            report = bench.client("results", counts.results)
            n = report["n"]
            cell.counts["results"] = n
            cell.figures["results_per_s"] = n / report["seconds"]
            cell.figures["results_client_us"] = 1e6 * report["cpu_s"] / n
            cell.figures["results_worker_us"] = 1e6 * (cpu_of_tree(pids) - worker_s) / n
            if place.server_pids:
                cell.figures["results_server_us"] = 1e6 * (cpu_of_tree(place.server_pids) - server_s) / n
        if "latency" in workloads and setup.can(place.broker, "latency"):
            report = bench.client("roundtrip", counts.latency)
            latencies = report["latencies_ms"]
            cell.counts["latency"] = len(latencies)
            cell.figures["roundtrip_p50_ms"] = median(latencies)
            cell.figures["roundtrip_p99_ms"] = quantiles(latencies, n=100)[98]
        if "paced" in workloads and setup.can(place.broker, "paced"):
            cell.figures.update(_paced(bench, counts.paced))
            cell.counts["paced"] = counts.paced
    return cell


def _drain(bench: Bench, sent: int) -> dict[str, float]:
    """Start the worker on `sent` waiting messages and time it; see the module's docstring for the window."""
    spawned_ns = time.monotonic_ns()
    with bench.worker() as pids:
        opened = wait_until_executed(bench, max(1, sent // 10), stall_s=BOOT_TIMEOUT_S).count
        opened_ns = time.monotonic_ns()
        worker_s, server_s = cpu_of_tree(pids), cpu_of_tree(bench.place.server_pids)
        wait_until_executed(bench, sent, stall_s=STALL_TIMEOUT_S)
        time.sleep(SETTLE_S)
        worker_s = cpu_of_tree(pids) - worker_s
        server_s = cpu_of_tree(bench.place.server_pids) - server_s
        end = bench.executed()
    timed = sent - opened
    if timed <= 0 or end.last_ns <= opened_ns:
        raise CellFailed(f"{sent} tasks were over before they could be timed; take more")
    server = {"drain_server_us": 1e6 * server_s / timed} if bench.place.server_pids else {}
    return {
        "drain_per_s": timed / ((end.last_ns - opened_ns) / 1e9),
        "drain_worker_us": 1e6 * worker_s / timed,
        **server,
        "drain_twice": float(end.count - sent),
        "boot_s": (end.first_ns - spawned_ns) / 1e9,
    }


def wait_until_executed(bench: Bench, wanted: int, *, stall_s: float) -> Executed:
    """Look until this many tasks have run; give up when for `stall_s` none did."""
    seen, moved = -1, time.monotonic()
    while (now := bench.executed()).count < wanted:
        if now.count > seen:
            seen, moved = now.count, time.monotonic()
        elif time.monotonic() > moved + stall_s:
            raise CellFailed(f"only {now.count} of {wanted} tasks ran, and none for {stall_s:g} s\n{bench.log()}")
        time.sleep(LOOK_EVERY_S)
    return now


def _paced(bench: Bench, n: int) -> dict[str, float]:
    """How old tasks are when they start, at 200 a second."""
    stamps = Path(str(bench.meter_path) + ".stamps")
    report = bench.client("paced", n)
    deadline = time.monotonic() + 20
    while not stamps.exists() or stamps.stat().st_size < 8 * report["sent"]:
        if time.monotonic() > deadline:
            raise CellFailed(f"paced: not all of {report['sent']} tasks ran\n{bench.log()}")
        time.sleep(0.02)
    ages_ms = [age / 1e6 for (age,) in struct.iter_unpack("=q", stamps.read_bytes())][1:]
    return {"paced_p50_ms": median(ages_ms), "paced_p99_ms": quantiles(ages_ms, n=100)[98]}


def _end_group(pid: int) -> None:
    """End what a worker left behind in its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing was left, which is the ordinary case
