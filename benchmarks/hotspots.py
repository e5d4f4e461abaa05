"""Where a drain's CPU goes: samples a worker with py-spy and says, process by process, what costs how many µs a task.

    python -m benchmarks.hotspots --broker redis --setup celeriac:prefork --tasks 60000

Sampled are threads that hold the interpreter's lock, 500 times a second; their shares are multiplied by the user CPU
time of their process. System calls release the lock and are not in the rows, but in the process's system time; SQLite
releases it too: on sqlite read shares only. Other C code (json, hiredis) counts for the line that calls it.
The sampler costs the worker some speed: for rates see the table of `run.py`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import venvs
from benchmarks.catalog import BROKERS, OURS, SETUPS, Setup
from benchmarks.cells import BOOT_TIMEOUT_S, STALL_TIMEOUT_S, Bench, wait_until_executed
from benchmarks.machine import find_tree, split_cpu
from benchmarks.servers import Place, Servers

RATE_PER_S = 500
TOP = 28

Cpu = dict[int, tuple[float, float]]
"""Process → seconds of user and of system time."""

_FRAME = re.compile(r"^(?P<name>.*) \((?P<file>[^()]*?)(?::(?P<line>\d+))?\)$")


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile one drain and print the tables; the raw stacks stay beside them in `out/`."""
    options = _parse(arguments)
    setup = next(one for one in SETUPS if one.label == options.setup)
    for peer in {setup.peer, "tools"}:
        venvs.make(peer)
    servers = Servers()
    try:
        with servers.place(options.broker, setup.peer) as place, tempfile.TemporaryDirectory(dir="/tmp") as folder:
            options.out.mkdir(parents=True, exist_ok=True)
            raw = options.out / f"profile-{setup.peer}-{setup.name}-{options.broker}.raw"
            tasks, cpu = _sample(setup, place, Path(folder), options.tasks, raw)
    finally:
        servers.close()
    page = "\n".join(_render(raw, tasks, cpu))
    raw.with_suffix(".txt").write_text(page + "\n")
    print(page)
    return 0


def _sample(setup: Setup, place: Place, folder: Path, n: int, raw: Path) -> tuple[int, Cpu]:
    """Run the drain under py-spy; returns tasks in the window and the CPU of each process."""
    bench = Bench(setup, place, folder, results=False)
    print(f"sending {n} no-ops …", flush=True)
    sent = bench.client("fill", n)["sent"]
    with bench.worker() as pids:
        opened = wait_until_executed(bench, max(1, sent // 50), stall_s=BOOT_TIMEOUT_S).count
        before = {pid: split_cpu(pid) for pid in find_tree(pids)}
        spies = []
        for pid in before:
            out = raw.with_suffix(f".{pid}")
            command = [venvs.program_of("tools", "py-spy"), "record", "-p", str(pid), "-f", "raw", "-o", str(out)]
            command += ["-r", str(RATE_PER_S), "-d", "120", "--nonblocking", "--gil"]
            spies.append((pid, out, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)))
        wait_until_executed(bench, int(sent * 0.98), stall_s=STALL_TIMEOUT_S)
        ran = bench.executed().count - opened
        after = {pid: split_cpu(pid) for pid in before}
        cpu = {pid: (after[pid][0] - user, after[pid][1] - system) for pid, (user, system) in before.items()}
        for _, _, spy in spies:
            spy.send_signal(2)
        for _, _, spy in spies:
            spy.wait(20)
    with raw.open("w") as merged:
        for pid, out, _ in spies:
            if out.exists():
                for line in out.read_text().splitlines():
                    merged.write(f"process {pid};{line}\n")
                out.unlink()
    return ran, cpu


def _render(raw: Path, tasks: int, cpu: Cpu) -> Iterable[str]:
    """Tables of own and inclusive time; processes that look alike (children of one pool) are added up."""
    stacks = _read(raw)
    whole_s = sum(user + system for user, system in cpu.values())
    yield f"{tasks:,} tasks in the window; CPU of the worker's tree {1e6 * whole_s / tasks:.1f} µs a task"
    for role, pids in _roles(stacks, cpu).items():
        user_us = 1e6 * sum(cpu[pid][0] for pid in pids) / tasks
        system_us = 1e6 * sum(cpu[pid][1] for pid in pids) / tasks
        own: Counter[str] = Counter()
        whole: Counter[str] = Counter()
        rooms: Counter[str] = Counter()
        total = 0
        for pid in pids:
            for frames, count in stacks.get(pid, ()):
                total += count
                own[frames[-1]] += count
                rooms[_room(frames[-1])] += count
                for frame in set(frames):
                    whole[frame] += count
        if not total:
            continue
        share = user_us / total
        yield ""
        split = f"user {user_us:.1f} + system {system_us:.1f} µs a task"
        yield f"== {role}: {len(pids)} process(es), {split}, {total} samples"
        yield "  by file:  " + ", ".join(f"{room} {count * share:.1f}" for room, count in rooms.most_common(14))
        yield f"  {'own µs':>8} {'all µs':>8}  function"
        for frame, count in own.most_common(TOP):
            yield f"  {count * share:8.2f} {whole[frame] * share:8.2f}  {frame}"
        yield "  the largest by inclusive time:"
        for frame, count in whole.most_common(TOP):
            yield f"  {own[frame] * share:8.2f} {count * share:8.2f}  {frame}"


def _read(raw: Path) -> dict[int, list[tuple[list[str], int]]]:
    stacks: dict[int, list[tuple[list[str], int]]] = defaultdict(list)
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        process, *frames = stack.split(";")
        if frames:
            stacks[int(process.split()[1])].append(([_short(frame) for frame in frames], int(count)))
    return stacks


def _roles(stacks: dict[int, list[tuple[list[str], int]]], cpu: Cpu) -> dict[str, list[int]]:
    """Parent first (the smallest pid), then the rest together."""
    pids = sorted(pid for pid in cpu if pid in stacks)
    roles = {"parent": pids[:1], "children": pids[1:]}
    return {role: members for role, members in roles.items() if members}


def _short(frame: str) -> str:
    """`function (room/file.py)`; lines of one function are added up."""
    found = _FRAME.match(frame)
    if not found:
        return frame
    file = re.sub(r"^.*(?:site-packages|/src|lib/python3\.\d+)/", "", found["file"])
    return f"{found['name']} ({file})"


def _room(frame: str) -> str:
    return frame.rpartition("(")[2].rstrip(")")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.hotspots", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=BROKERS, default="redis")
    parser.add_argument("--setup", choices=[setup.label for setup in SETUPS], default=f"{OURS}:prefork")
    parser.add_argument("--tasks", type=int, default=60000)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
