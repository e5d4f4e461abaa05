"""The command: chooses what to run, makes the venvs, runs the cells interleaved, writes the table."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import catalog, machine, report, venvs
from benchmarks.catalog import BROKERS, OURS, WORKLOADS, Setup
from benchmarks.cells import Cell, CellFailed, run_cold, run_warm
from benchmarks.servers import Servers
from celeriac.testing.services import ServiceError

HERE = Path(__file__).resolve().parent
QUICK_PART = 0.5
COLD = frozenset({"enqueue", "bulk", "drain"})
WARM = frozenset({"results", "latency", "paced"})
QUICK_WORKLOADS = ("enqueue", "bulk", "drain", "results", "latency")
LIMIT_COUNTS = {"redis": 20000, "rabbitmq": 5000, "sqlite": 10000, "none": 50000}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when a cell of ours failed, 2 when nothing could be run."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _stop)  # so that servers and workers are ended on the way out
    try:
        setups = catalog.choose(options.peers, quick=options.quick)
    except LookupError as exc:
        print(exc, file=sys.stderr)
        return 2
    peers = sorted({setup.peer for setup in setups} | {"raw"})
    for peer in peers:
        _say(f"venv of {peer} …", end="")
        began = time.monotonic()
        _say(f" made in {time.monotonic() - began:.0f} s" if venvs.make(peer) else " there")

    results, head = _run(options, setups, peers)
    notes = {setup.label: setup.note for setup in setups}
    page = report.render(results, head, notes)
    stem = options.name or datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    written = report.write(options.out, stem, page, results, head)
    print()
    print(page)
    _say(f"written: {', '.join(str(path) for path in written)}")
    return int(any(found.failures for (_, label), found in results.items() if label.startswith(OURS)))


def _run(
    options: argparse.Namespace, setups: Sequence[Setup], peers: Sequence[str]
) -> tuple[report.Results, dict[str, Any]]:
    """All repetitions of all cells, A B C A B C."""
    head: dict[str, Any] = {
        **machine.describe(),
        "commit": machine.commit_of(HERE.parent),
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": machine.load_average(),
        "repetitions": options.reps,
        "quick": options.quick,
        "versions": {name: text for peer in peers for name, text in venvs.versions_of(peer).items()},
    }
    results: report.Results = {}
    workloads = frozenset(options.workload)
    steps = _steps(setups, options.broker, workloads)
    total, number, began = len(steps) * options.reps, 0, time.monotonic()
    servers = Servers()
    try:
        missing = _start_servers(servers, options.broker)
        for repetition in range(options.reps):
            for broker, kind, setup in steps:
                number += 1
                if broker in missing:
                    continue
                label = setup.label if setup else report.LIMIT
                found = results.setdefault((broker, label), report.Found())
                elapsed_s = time.monotonic() - began
                _say(f"[{number}/{total}] {elapsed_s:4.0f} s  rep {repetition + 1}  {broker:8} {label:16} ", end="")
                try:
                    figures, counts = _step(servers, broker, kind, setup, workloads, options)
                except (CellFailed, subprocess.SubprocessError) as exc:
                    found.failures.append(str(exc))
                    _say(f"{kind}: FAILED: " + "\n    ".join(str(exc).strip().splitlines()))
                    continue
                found.add(figures, counts)
                _say(_brief(figures))
    finally:
        servers.close()
    head["load_after"] = machine.load_average()
    head["seconds"] = round(time.monotonic() - began)
    return results, head


def _steps(
    setups: Sequence[Setup], brokers: Sequence[str], workloads: frozenset[str]
) -> list[tuple[str, str, Setup | None]]:
    """(broker, cold or warm or limit, setup) in the order of one repetition."""
    steps: list[tuple[str, str, Setup | None]] = []
    for broker in brokers:
        here = [setup for setup in setups if broker in setup.counts]
        for kind, members in (("cold", COLD), ("warm", WARM)):
            for setup in here:
                if any(setup.can(broker, workload) for workload in workloads & members):
                    steps.append((broker, kind, setup))
        steps.append((broker, "limit", None))
    return [*steps, ("none", "limit", None)]


def _step(
    servers: Servers,
    broker: str,
    kind: str,
    setup: Setup | None,
    workloads: frozenset[str],
    options: argparse.Namespace,
) -> tuple[dict[str, float], dict[str, int]]:
    """Run one step in a place of its own."""
    if setup is None:
        return _limit(servers, broker), {}
    counts = setup.counts[broker]
    if options.quick:
        counts = counts.scaled(QUICK_PART)
    with servers.place(broker, setup.peer) as place, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        run = run_cold if kind == "cold" else run_warm
        cell: Cell = run(setup, place, Path(folder), workloads, counts)
    return cell.figures, cell.counts


def _limit(servers: Servers, broker: str) -> dict[str, float]:
    """The raw limits, by the script that runs in their venv."""
    script = [str(venvs.python_of("raw")), str(HERE / "limits.py")]
    if broker == "none":
        words = ["loop", "-"]
        done = subprocess.run([*script, *words, str(LIMIT_COUNTS[broker])], capture_output=True, text=True, check=True)
    else:
        with servers.place(broker, "raw") as place:
            words = [broker, place.broker_url, str(LIMIT_COUNTS[broker])]
            done = subprocess.run([*script, *words], capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))


def _start_servers(servers: Servers, brokers: Sequence[str]) -> set[str]:
    """Start what is needed; a broker whose server cannot be had is left out, and said so."""
    missing = set()
    for broker in brokers:
        _say(f"server for {broker} …", end="")
        try:
            servers.start(broker)
            _say(" ready")
        except ServiceError as exc:
            missing.add(broker)
            _say(f" left out: {exc}")
    return missing


def _brief(figures: dict[str, float]) -> str:
    """One line of progress."""
    parts = []
    for column in report.COLUMNS:
        if column.figure in figures:
            parts.append(f"{column.heading.strip()} {figures[column.figure]:,.{column.digits}f}")
    return ", ".join(parts)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description="celeriac beside other task queues, on this machine."
    )
    parser.add_argument(
        "--broker", type=_names(BROKERS), default=list(BROKERS), help="comma-separated: redis,rabbitmq,sqlite"
    )
    parser.add_argument("--workload", type=_names(WORKLOADS), help=f"comma-separated: {','.join(WORKLOADS)}")
    parser.add_argument(
        "--peers", type=lambda text: text.split(","), help="peers or setups: celery,dramatiq:lean (ours is always in)"
    )
    parser.add_argument("--reps", type=int, help="repetitions (quick: 1; full: 3)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="half of the tasks, the main setups, a few minutes: the default"
    )
    size.add_argument("--full", action="store_true", help="all tasks, all setups, all workloads, three times over")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for the table and the JSON")
    parser.add_argument("--name", help="the files' name; the time of day if not given")
    options = parser.parse_args(arguments)
    options.quick = not options.full
    options.reps = options.reps or (1 if options.quick else 3)
    options.workload = options.workload or (list(QUICK_WORKLOADS) if options.quick else list(WORKLOADS))
    return options


def _names(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
