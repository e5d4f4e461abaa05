"""Counts executed tasks, the same cheap way for every peer: a shared file with one slot per thread.

A slot is four 64-bit integers `[pid, count, first_ns, last_ns]`, written by its owner alone, so that no lock and no
system call stands between a task and its count (about 0.4 µs a task, paid by everyone alike). Clocks are
CLOCK_MONOTONIC, which all processes of a machine share. The benchmark reads the file while the worker runs.

`stamp` is for the paced workload only: it appends one latency to a second file.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from time import monotonic_ns

SLOTS = 1024
SLOT_CELLS = 4
SIZE_BYTES = 8 * SLOT_CELLS * (SLOTS + 1)  # slot 0 is the header: its first cell counts the slots taken

_PATH = os.environ.get("BENCH_METER", "")
_local = threading.local()
_cells: memoryview | None = None


def tick() -> None:
    """Count one executed task."""
    try:
        base = _local.base
    except AttributeError:
        base = _take_slot()
    cells = _cells
    if cells is None:
        return
    now = monotonic_ns()
    count = cells[base + 1]
    if not count:
        cells[base + 2] = now
    cells[base + 1] = count + 1
    cells[base + 3] = now


def stamp(sent_ns: int) -> None:
    """Record how long ago this task was sent; one append of eight bytes, which is atomic."""
    latency_ns = monotonic_ns() - sent_ns
    with open(_PATH + ".stamps", "ab", buffering=0) as file:
        file.write(struct.pack("=q", latency_ns))


def _take_slot() -> int:
    """Open the file if this process has not yet, and take the next free slot for this thread."""
    global _cells
    if not _PATH:
        _local.base = 0
        return 0
    with open(_PATH, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if _cells is None:
                _cells = memoryview(mmap.mmap(file.fileno(), SIZE_BYTES)).cast("q")
            slot = _cells[0] + 1
            if slot > SLOTS:
                raise RuntimeError(f"the meter has {SLOTS} slots and all are taken")
            _cells[0] = slot
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # the mapping keeps the file open, and would keep it locked
    base = slot * SLOT_CELLS
    _cells[base] = os.getpid()
    _local.base = base
    return base


def _forget_slot() -> None:
    """A forked child counts in a slot of its own."""
    global _local
    _local = threading.local()


os.register_at_fork(after_in_child=_forget_slot)
