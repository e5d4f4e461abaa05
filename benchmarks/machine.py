"""What the machine says: CPU time of process trees from /proc, and the heading of the table."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def find_tree(roots: Iterable[int]) -> set[int]:
    """The processes that descend from `roots` or share their session, roots included."""
    roots = set(roots)
    parents: dict[int, int] = {}
    tree = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        fields = _stat_fields(int(entry.name))
        if fields is None:
            continue
        pid = int(entry.name)
        parents[pid] = int(fields[1])
        if pid in roots or int(fields[3]) in roots:
            tree.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    return tree


def cpu_of_tree(roots: Iterable[int]) -> float:
    """Seconds of CPU (user and system) that the living processes of a tree have used since they began."""
    return sum(_cpu_of(pid) for pid in find_tree(roots))


def split_cpu(pid: int) -> tuple[float, float]:
    """Seconds of user and of system time of one process, in steps of 10 ms; zeros when it has ended."""
    fields = _stat_fields(pid)
    return (0.0, 0.0) if fields is None else (int(fields[11]) / _TICKS_PER_S, int(fields[12]) / _TICKS_PER_S)


def describe() -> dict[str, str | int]:
    """Cores, model, kernel, Python: the heading of a table."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cores": os.cpu_count() or 0,
        "model": model,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def load_average() -> float:
    """The load of the last minute; figures taken above the number of cores say little."""
    return os.getloadavg()[0]


def commit_of(folder: Path) -> str:
    """The short name of the checked-out commit, with `+` when the tree has changes in it."""
    try:
        name = _git(folder, "rev-parse", "--short", "HEAD")
        return name + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_of(pid: int) -> float:
    """The larger of two accounts: nanoseconds of the living threads, or ticks of 10 ms with ended threads included."""
    fields = _stat_fields(pid)
    if fields is None:
        return 0.0
    ticks = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    exact = 0
    try:
        for thread in os.scandir(f"/proc/{pid}/task"):
            with open(f"{thread.path}/schedstat") as file:
                exact += int(file.read().split()[0])
    except (OSError, IndexError):
        return ticks  # the process ended while we looked, or the kernel keeps no schedstat
    return max(ticks, exact / 1e9)


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name: state, parent, group, session, …"""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None
