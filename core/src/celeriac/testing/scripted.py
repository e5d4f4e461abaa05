"""The program that the conformance suite of pools gives to the pool under test: its jobs say what they do.

A module of its own, for processes that do not inherit it import it: it must cost little, and so cannot need pytest.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

from celeriac.exceptions import SoftTimeLimitExceeded
from celeriac.spec import Job, JobReport, Recipe, StoredResult

__all__ = ["SECRET", "ScriptedProgram", "append", "descriptors"]

#: What a test puts in here, processes that share nothing with it do not see.
SECRET: Final[list[str]] = []
LONGEST_WAIT_S: Final = 60.0


class ScriptedProgram:
    """A slot program whose jobs say themselves, in `raw`, what they do.

    ============================  ==========================================================================
    `pass`                        nothing
    `sleep S`                     takes S seconds
    `spin S`                      the same, without ever waiting
    `until PATH`                  takes until this file is there, or the test has long failed
    `stubborn S`                  sleeps on, whatever is raised in it
    `note PATH TEXT`              appends a line to a file: proof that it ran, and how often
    `raise`                       fails
    `emit N`                      sends N progress reports first
    `echo N`                      answers with N bytes
    `padded …`                    what follows is ignored: a job of any size
    `exit N` `kill N`             ends its process, or sends it a signal
    `leave`                       raises SystemExit past the program, which the contract forbids
    `fork S`                      forks a process that comes back out of the job at once, and waits S seconds for it
    `vandal`                      closes files, moves to another folder, takes over the signal handlers
    `grow MIB`                    keeps so much memory
    `inherits TEXT`               answers with what of the worker is here: a descriptor that leads to TEXT, its `SECRET`
    ============================  ==========================================================================

    Steps are separated by `;`.
    """

    def __init__(self, notes: Path | None = None, *, broken: str = "") -> None:
        """Make a program that notes in `notes` when it begins and ends, and cannot begin because of `broken`."""
        self._notes = notes
        self._broken = broken
        self._kept: list[bytes] = []

    def recipe(self) -> Recipe:
        """How another process makes the same program; a subclass has to be importable there."""
        return Recipe("pickle:loads", pickle.dumps(self))

    def begin(self) -> None:
        if self._broken:
            raise RuntimeError(self._broken)
        if self._notes:
            append(self._notes, "begin")

    def end(self) -> None:
        if self._notes:
            append(self._notes, "end")

    def run(self, job: Job, emit: Callable[[JobReport], None]) -> JobReport:
        started = time.monotonic()
        report = JobReport(job.token, "succeeded")
        try:
            if job.announce:
                emit(JobReport(job.token, "accepted"))
            for step in job.raw[:1000].decode().split(";"):
                self._step(step.split(), job, emit, report)
        except SoftTimeLimitExceeded:
            report = JobReport(job.token, "failed", detail="soft limit", timed_out=True)
        except Exception as exc:
            report = JobReport(job.token, "failed", detail=repr(exc))
        report.runtime_s = time.monotonic() - started
        return report

    def _step(self, words: list[str], job: Job, emit: Callable[[JobReport], None], report: JobReport) -> None:
        verb, rest = words[0], words[1:]
        if verb == "sleep":
            time.sleep(float(rest[0]))
        elif verb == "until":
            _wait_for(Path(rest[0]))
        elif verb in ("spin", "stubborn"):
            self._take_time(verb, time.monotonic() + float(rest[0]))
        elif verb == "note":
            append(Path(rest[0]), rest[1])
        elif verb == "raise":
            raise ValueError("as asked")
        elif verb == "emit":
            for number in range(int(rest[0])):
                emit(JobReport(job.token, "progress", detail=str(number)))
        elif verb == "echo":
            report.stored = [StoredResult("id", "SUCCESS", b"x" * int(rest[0]))]
        elif verb == "exit":
            os._exit(int(rest[0]))
        elif verb == "kill":
            faulthandler.disable()  # pytest's would print a page for a death that is meant
            os.kill(os.getpid(), int(rest[0]))
        elif verb == "leave":
            raise SystemExit(3)
        elif verb == "grow":
            self._kept.append(b"x" * (int(rest[0]) << 20))
        elif verb == "inherits":
            report.detail = f"descriptor: {rest[0] in descriptors().values()}, memory: {bool(SECRET)}"
        elif verb == "fork":
            _fork(float(rest[0]))
        elif verb == "vandal":
            _vandalize()
        elif verb not in ("pass", "padded"):
            raise AssertionError(f"no such step: {verb}")

    @staticmethod
    def _take_time(how: str, until: float) -> None:
        while time.monotonic() < until:
            if how == "stubborn":
                try:
                    time.sleep(0.01)
                except Exception:  # being stubborn is its purpose
                    continue


def append(path: Path, text: str) -> None:
    """Add a line to a file, in one write, so that it stays whole beside other processes' lines."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, text.encode() + b"\n")
    finally:
        os.close(fd)


def _wait_for(path: Path) -> None:
    """Until the test makes this file. What a failed test has left behind ends by itself."""
    gives_up = time.monotonic() + LONGEST_WAIT_S
    while not path.exists() and time.monotonic() < gives_up:
        time.sleep(0.005)


def descriptors() -> dict[str, str]:
    """The open descriptors and, where the system says so, what they are."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(folder):
        try:
            found[name] = os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # the descriptor of the listing itself, or no link on this system
    return found


def _fork(seconds: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the copy does not have
        pid = os.fork()
    if not pid:
        signal.alarm(60)  # of a pool that lets it come back it would otherwise outlive the tests
    else:
        time.sleep(seconds)
        os.waitpid(pid, 0)


def _vandalize() -> None:
    os.chdir("/")
    os.umask(0)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(0, 256)
