"""Reports on their way from the threads in which jobs run to the worker, which sleeps on a descriptor.

A byte in a pipe wakes the worker, one for all the reports that it has not yet collected.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TypeVar

from celeriac.spec import JobReport, Poller

T = TypeVar("T")


class Outbox:
    """`put` is for any thread, the rest for the worker's."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._reports: deque[JobReport] = deque()
        self._woken = False
        self._read_fd = self._write_fd = -1

    def open(self) -> None:
        """Before the first `put`."""
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._poller.watch(self._read_fd)

    def put(self, report: JobReport) -> None:
        """Send a report."""
        self._reports.append(report)
        if not self._woken:
            self._woken = True
            try:
                os.write(self._write_fd, b"!")
            except BlockingIOError:
                pass  # full of wakes

    def take(self) -> list[JobReport]:
        """The reports that have arrived, in order."""
        reports = self._reports
        if self._woken or not reports:
            self._hush()
        return [reports.popleft() for _ in range(len(reports))]

    def close(self, *, is_quiet: bool) -> None:
        """Wake nobody any more. After the last `take`.

        Args:
            is_quiet: Nobody puts anything in any more; else the pipe stays, for they may yet write to it.
        """
        self._poller.unwatch(self._read_fd)
        if is_quiet:
            os.close(self._read_fd)
            os.close(self._write_fd)

    def _hush(self) -> None:
        """Empty the pipe. First the pipe, then the flag, then (by the caller) the reports: none is overlooked."""
        try:
            os.read(self._read_fd, 4096)
        except BlockingIOError:
            return  # if the flag is set, the byte is still to come: leave it set
        self._woken = False


def take_all(waiting: deque[T]) -> list[T]:
    """Everything in a deque from which others may be taking at the same time, in order."""
    taken: list[T] = []
    while True:
        try:
            taken.append(waiting.popleft())
        except IndexError:
            return taken
