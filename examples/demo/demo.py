"""A worker and a few hundred real tasks, with no server at all: what `make demo` runs.

Starts `celeriac -A tasks worker` with two processes in a temporary folder, sends tasks of five kinds to it, shows how
they get on, compares every result with what it should be, and ends the worker. The exit code is 0 only if all of it was
as expected.

    python examples/demo/demo.py
    python examples/demo/demo.py --pool threads
    python examples/demo/demo.py --broker redis://localhost:6379/0 --backend redis://localhost:6379/0
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent
DEADLINE_S = 60.0
POLL_INTERVAL_S = 0.05
WORKER_STOP_S = 15.0


@dataclass
class Kind:
    """One kind of task: what is sent, and what should come of it."""

    title: str
    send: Callable[[int], Any]
    count: int
    is_expected: Callable[[int, Any], bool]
    open: dict[int, Any] = field(default_factory=dict)
    done: int = 0
    wrong: list[str] = field(default_factory=list)
    began: float = 0.0
    finished_s: float = 0.0

    def look(self) -> None:
        """Take out the results that have come, and judge them."""
        for index, result in list(self.open.items()):
            if not result.ready():
                continue
            del self.open[index]
            self.done += 1
            if not self.is_expected(index, result):
                self.wrong.append(f"{self.title} {index}: {result.state}, {result.result!r}")

    def progress(self) -> float:
        """How many are done, those that report their progress in part."""
        done = float(self.done)
        for result in self.open.values():
            if result.state == "PROGRESS" and isinstance(result.info, dict):
                done += result.info["done"] / result.info["of"]
        return done


class DemoFailed(Exception):
    """The demo cannot go on; the text is for the person who watches."""


def main() -> int:
    """Run the demo; returns the exit code."""
    options = read_options()
    console = Console(highlight=False)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="celeriac-demo-") as folder:
            environment = choose_broker(Path(folder), options)
            console.print(
                f"[bold]celeriac demo[/bold]  {options.processes} slots, pool {options.pool}, {broker_name(options)}"
            )
            with running_worker(Path(folder), environment, options) as worker:
                kinds = make_kinds()
                wait_for_worker(worker, Path(folder), console)
                send_all(kinds, console)
                watch(kinds, worker, Path(folder), console)
            ended = worker.returncode
    except DemoFailed as exc:
        console.print(f"[red]{exc}[/red]", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    return judge(kinds, ended, time.monotonic() - began, console)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A worker and a few hundred real tasks.")
    parser.add_argument("--broker", help="URL of a broker; default: a SQLite file in a temporary folder")
    parser.add_argument("--backend", help="URL of a result backend; default: likewise")
    parser.add_argument("--pool", default="prefork", help="how the worker runs tasks (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="how many at once (default: %(default)s)")
    return parser.parse_args()


def broker_name(options: argparse.Namespace) -> str:
    return "the broker you named" if options.broker else "no server: queue and results are one file"


def choose_broker(folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Make this process and the worker meet: in the environment, where both look first."""
    embedded = f"sqlite:///{folder}/demo.db"
    os.environ["CELERIAC_BROKER_URL"] = options.broker or embedded
    os.environ["CELERIAC_RESULT_BACKEND"] = options.backend or embedded
    return dict(os.environ)


@contextmanager
def running_worker(
    folder: Path, environment: dict[str, str], options: argparse.Namespace
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of `tasks.py` as a process of its own; asked to end when the block is left."""
    celeriac = Path(sys.executable).with_name("celeriac")
    command = [celeriac, "-A", "tasks", "worker", "-P", options.pool, "-c", str(options.processes), "--loglevel=INFO"]
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=HERE, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield worker
        finally:
            worker.send_signal(signal.SIGTERM)
            try:
                worker.wait(WORKER_STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def make_kinds() -> list[Kind]:
    """What is sent, and what should come back. Imports the tasks, now that the broker is chosen."""
    sys.path.insert(0, str(HERE))
    import tasks

    def returns(expected: Callable[[int], Any]) -> Callable[[int, Any], bool]:
        return lambda index, result: bool(result.successful() and result.result == expected(index))

    return [
        Kind("quick sums", lambda i: tasks.add.delay(i, i), 300, returns(lambda i: 2 * i)),
        Kind(
            "divisions by zero",
            lambda i: tasks.divide.delay(i, 0),
            10,
            lambda i, result: bool(result.failed() and isinstance(result.result, ZeroDivisionError)),
        ),
        Kind("busy servers, tried again", tasks.fetch.delay, 20, returns(lambda i: f"page {i} after 3 tries")),
        Kind("conversions that report", lambda i: tasks.convert.delay(30), 2, returns(lambda i: 30)),
        Kind("slow ones", lambda i: tasks.sleep.delay(0.5), 4, returns(lambda i: 0.5)),
    ]


def wait_for_worker(worker: subprocess.Popen[bytes], folder: Path, console: Console) -> None:
    """Wait until the worker has run a first call.

    Raises:
        DemoFailed: It ended instead, or there is no result in time.
    """
    import tasks

    began = time.monotonic()
    first = tasks.add.delay(2, 2)
    with console.status("waiting for the worker"):
        while not first.ready():
            check_worker(worker, folder)
            if time.monotonic() - began > DEADLINE_S:
                raise DemoFailed(
                    f"After {DEADLINE_S:.0f} s the worker has not run the first call.\n{last_words(folder)}"
                )
            time.sleep(POLL_INTERVAL_S)
    console.print(f"the worker ran its first call after {time.monotonic() - began:.1f} s")


def check_worker(worker: subprocess.Popen[bytes], folder: Path) -> None:
    if worker.poll() is not None:
        raise DemoFailed(f"The worker ended with exit code {worker.returncode}:\n{last_words(folder)}")


def send_all(kinds: list[Kind], console: Console) -> None:
    """Send every call."""
    began = time.monotonic()
    for kind in kinds:
        kind.began = time.monotonic()
        kind.open = {index: kind.send(index) for index in range(kind.count)}
    took_s = time.monotonic() - began
    count = sum(kind.count for kind in kinds)
    console.print(f"sent {count} calls in {took_s:.2f} s ({count / took_s:,.0f} a second)")


def watch(kinds: list[Kind], worker: subprocess.Popen[bytes], folder: Path, console: Console) -> None:
    """Show how they get on until all have ended.

    Raises:
        DemoFailed: The worker ended, or not all results came in time.
    """
    began = time.monotonic()
    with show_progress(kinds, console) as show:
        while any(kind.open for kind in kinds):
            for kind in kinds:
                if kind.open:
                    kind.look()
                    kind.finished_s = time.monotonic() - kind.began
                show(kind)
            check_worker(worker, folder)
            if time.monotonic() - began > DEADLINE_S:
                missing = ", ".join(f"{len(kind.open)} {kind.title}" for kind in kinds if kind.open)
                raise DemoFailed(f"After {DEADLINE_S:.0f} s there is no result of: {missing}.\n{last_words(folder)}")
            time.sleep(POLL_INTERVAL_S)


@contextmanager
def show_progress(kinds: list[Kind], console: Console) -> Iterator[Callable[[Kind], None]]:
    """Bars on a terminal; elsewhere a line for each kind that is done."""
    if not console.is_terminal:
        told: set[str] = set()

        def tell(kind: Kind) -> None:
            if not kind.open and kind.title not in told:
                told.add(kind.title)
                console.print(f"{kind.title}: {kind.done} of {kind.count} done after {kind.finished_s:.1f} s")

        yield tell
        return
    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {kind.title: progress.add_task(kind.title, total=kind.count) for kind in kinds}

        def draw(kind: Kind) -> None:
            progress.update(bars[kind.title], completed=round(kind.progress(), 1))

        yield draw


def last_words(folder: Path) -> str:
    """The end of the worker's log."""
    lines = (folder / "worker.log").read_text(errors="replace").splitlines()
    return "\n".join(lines[-25:])


def judge(kinds: list[Kind], ended: int, took_s: float, console: Console) -> int:
    """Print what came of it; returns the exit code."""
    table = Table(title="what came of it", title_justify="left")
    table.add_column("task")
    for heading in ("sent", "as expected", "otherwise"):
        table.add_column(heading, justify="right")
    for kind in kinds:
        table.add_row(kind.title, str(kind.count), str(kind.done - len(kind.wrong)), str(len(kind.wrong) or ""))
    console.print(table)
    wrong = [text for kind in kinds for text in kind.wrong]
    for text in wrong[:10]:
        console.print(f"[red]unexpected:[/red] {text}", soft_wrap=True)
    sums = kinds[0]
    count = sum(kind.done for kind in kinds)
    console.print(
        f"{count} tasks ended in {took_s:.1f} s, from start to end. The {sums.count} quick sums, sent one by one, "
        f"run and read: {sums.finished_s:.2f} s, or {sums.count / sums.finished_s:,.0f} a second.",
        soft_wrap=True,
    )
    if ended != 0:
        console.print(f"[red]The worker ended with exit code {ended}.[/red]")
    if wrong or ended != 0:
        return 1
    console.print("[green]Everything was as expected.[/green] Next: docs/tutorial.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
