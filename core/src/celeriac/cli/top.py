"""`celeriac top`: a live page of workers, queues and tasks. `look` gathers, `page` draws; neither knows of the other.

Counts come from the workers themselves (`inspect stats`, `active`) and from the broker (`depth`), so it works with any
worker, ours or Celery's. Failures and run times come from events, of those workers that tell them (`-E`).
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec import Struct, to_builtins

from celeriac.cli.errors import UNREACHABLE, say
from celeriac.cli.fleet import is_error, ping_workers
from celeriac.cli.group import Command, State, option
from celeriac.cli.types import WAIT
from celeriac.events.state import State as Cluster
from celeriac.exceptions import CeleriacError, OperationalError
from celeriac.log.lines import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS: Final = 20
#: Between two attempts to hear events.
RETRY_S: Final = 1.0
QUIT: Final = ("q", "Q", "\x03", "\x1b")


class WorkerRow(Struct):
    """A worker. `done_per_s` is None until it was asked twice."""

    name: str
    pool: str
    slots: int
    running: int
    done: int
    done_per_s: float | None
    uptime_s: int


class QueueRow(Struct):
    """A queue. `waiting` is None if the broker does not count."""

    name: str
    waiting: int | None
    workers: int


class TaskRow(Struct):
    """A task. `failed` and `mean_s` are of what events told since this began; None if they told nothing."""

    name: str
    running: int
    done: int
    done_per_s: float | None
    failed: int | None
    mean_s: float | None


class Look(Struct):
    """All there is at one moment."""

    at: float
    workers: list[WorkerRow]
    queues: list[QueueRow]
    tasks: list[TaskRow]
    trouble: str = ""


class Watcher:
    """Looks again and again, and knows what it saw last.

    Args:
        timeout_s: How long to wait for workers that were not known before.
        cluster: What events tell, filled by somebody else.
    """

    def __init__(self, app: Any, queues: list[str], timeout_s: float, cluster: Cluster) -> None:
        self._app = app
        self._queues = queues
        self._timeout_s = timeout_s
        self._cluster = cluster
        self._before: dict[str, dict[str, int]] = {}
        self._before_at = 0.0

    def look(self) -> Look:
        """Ask broker and workers now.

        Raises:
            OperationalError, Unsupported: The broker cannot be reached, or cannot broadcast.
        """
        app = self._app
        names = ping_workers(app, self._timeout_s)
        answers: dict[str, dict[str, Any]] = {}
        if names:
            inspect = app.control.inspect(destination=names, timeout=self._timeout_s, limit=len(names))
            given = {what: getattr(inspect, what)() or {} for what in ("stats", "active", "active_queues")}
            names = [name for name in names if not is_error(given["stats"].get(name))]
            answers = {what: {name: all_[name] for name in names if name in all_} for what, all_ in given.items()}
        now = time.time()
        totals = {name: _counts(answers["stats"].get(name)) for name in names}
        elapsed_s = now - self._before_at if self._before else None
        look = Look(
            now,
            [self._worker(name, answers, totals, elapsed_s) for name in names],
            self._look_at_queues(answers.get("active_queues", {})),
            self._look_at_tasks(answers.get("active", {}), totals, elapsed_s),
        )
        self._before, self._before_at = totals, now
        return look

    def _worker(
        self, name: str, answers: dict[str, dict[str, Any]], totals: dict[str, dict[str, int]], elapsed_s: float | None
    ) -> WorkerRow:
        stats = answers["stats"].get(name) or {}
        pool = stats.get("pool") or {}
        slots = pool.get("max-concurrency")
        done = sum(totals[name].values())
        before = self._before.get(name)
        return WorkerRow(
            name,
            str(pool.get("implementation", "")).rpartition(":")[2].removesuffix("Pool").lower(),
            slots if isinstance(slots, int) else 0,
            len(answers["active"].get(name) or ()),
            done,
            _rate(done, sum(before.values()), elapsed_s) if before is not None else None,
            int(stats.get("uptime") or 0),
        )

    def _look_at_queues(self, served: dict[str, Any]) -> list[QueueRow]:
        consumers: dict[str, int] = dict.fromkeys(self._queues, 0)
        for queues in served.values():
            for queue in queues:
                name = str(queue.get("name", ""))
                consumers[name] = consumers.get(name, 0) + 1
        transport = self._app.transport
        counts = "depth" in transport.abilities
        return [
            QueueRow(name, transport.depth(name) if counts else None, count)
            for name, count in sorted(consumers.items())
        ]

    def _look_at_tasks(
        self, active: dict[str, Any], totals: dict[str, dict[str, int]], elapsed_s: float | None
    ) -> list[TaskRow]:
        running: dict[str, int] = {}
        for requests in active.values():
            for request in requests:
                name = str(request.get("name") or request.get("type") or "?")
                running[name] = running.get(name, 0) + 1
        done, before = _sum(totals), _sum({name: self._before.get(name, {}) for name in totals})
        told: dict[str, tuple[int, list[float]]] = {}
        for task in list(self._cluster.tasks.values()):
            failed, runtimes = told.setdefault(task.name or "?", (0, []))
            if isinstance(task.runtime, (int, float)):
                runtimes.append(task.runtime)
            told[task.name or "?"] = failed + (task.state == "FAILURE"), runtimes
        rows = []
        for name in {*running, *done, *told} - {"?"}:
            heard = told.get(name)
            runtimes = heard[1] if heard else []
            rows.append(
                TaskRow(
                    name,
                    running.get(name, 0),
                    done.get(name, 0),
                    _rate(done.get(name, 0), before.get(name, 0), elapsed_s),
                    heard[0] if heard else None,
                    round(sum(runtimes) / len(runtimes), 6) if runtimes else None,
                )
            )
        return sorted(rows, key=lambda row: (-(row.done_per_s or 0), -row.running, -row.done, row.name))


def _counts(stats: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in ((stats or {}).get("total") or {}).items()}


def _sum(totals: dict[str, dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for counts in totals.values():
        for name, count in counts.items():
            found[name] = found.get(name, 0) + count
    return found


def _rate(now: int, before: int, elapsed_s: float | None) -> float | None:
    """Per second; a worker that was started anew begins at 0."""
    return round(max(0, now - before) / elapsed_s, 2) if elapsed_s else None


# -- what a person sees -----------------------------------------------------------------------------------


def page(look: Look, rows: int = ROWS) -> RenderableType:
    """The page, for rich to draw."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, expand=True)
        for number, column in enumerate(columns):
            made.add_column(column, style="cyan" if number == 0 else "", justify="left" if number == 0 else "right")
        return made

    running = sum(worker.running for worker in look.workers)
    slots = sum(worker.slots for worker in look.workers)
    rates = [worker.done_per_s for worker in look.workers if worker.done_per_s is not None]
    waiting = sum(queue.waiting or 0 for queue in look.queues)
    plural = "" if len(look.workers) == 1 else "s"
    words = [time.strftime("%H:%M:%S", time.localtime(look.at)), f"{len(look.workers)} worker{plural}"]
    words += [f"{running}/{slots} running", f"{waiting} waiting"]
    words += [f"{sum(rates):.1f}/s"] if rates else []
    head = Text.assemble(("celeriac top", "bold"), *(f"  {word}" for word in words))
    workers = table("Workers", "NAME", "POOL", "RUNNING", "DONE", "PER S", "UP")
    for worker in look.workers[:rows]:
        busy = Text(f"{worker.running}/{worker.slots}", style="yellow" if worker.running >= worker.slots > 0 else "")
        up = f"{worker.uptime_s // 3600}:{worker.uptime_s // 60 % 60:02}:{worker.uptime_s % 60:02}"
        workers.add_row(
            Text(clean(worker.name)), Text(worker.pool), busy, str(worker.done), _number(worker.done_per_s), up
        )
    queues = table("Queues", "NAME", "WAITING", "WORKERS")
    for queue in look.queues[:rows]:
        alone = "red" if not queue.workers and queue.waiting else ""
        queues.add_row(Text(clean(queue.name)), _number(queue.waiting), Text(str(queue.workers), style=alone))
    tasks = table("Tasks", "NAME", "RUNNING", "DONE", "PER S", "FAILED", "MEAN S")
    for task in look.tasks[:rows]:
        failed = Text(_number(task.failed), style="red" if task.failed else "")
        tasks.add_row(
            Text(clean(task.name)),
            str(task.running),
            str(task.done),
            _number(task.done_per_s),
            failed,
            _number(task.mean_s),
        )
    trouble = [Text(clean(look.trouble), style="red")] if look.trouble else []
    return Group(head, *trouble, Text(""), workers, Text(""), queues, Text(""), tasks)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


@click.command(cls=Command)
@option("-Q", "--queues", default="", metavar="A,B", help="Show these queues too. Default: all the app knows.")
@option("-i", "--interval", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds between looks.")
@option("-t", "--timeout", type=WAIT, default=1.0, show_default=True, help="Seconds to wait for workers.")
@option("--once", is_flag=True, help="Look twice, --interval apart (for the rates), print the page and end.")
@option("--json", "as_json", is_flag=True, help="Print each look as a JSON object on a line.")
@click.pass_context
def top(ctx: click.Context, /, queues: str, interval: float, timeout: float, once: bool, as_json: bool) -> None:
    """Show workers, queues, tasks and rates, live. q ends it.

    Failures and run times are those of events, which workers tell when they run with -E (or after celeriac control
    enable_events). With --once it ends with 69 if no worker answered.
    """
    state: State = ctx.obj
    app = state.app()
    names = [name.strip() for name in queues.split(",") if name.strip()] or list(app.router.queues)
    cluster = Cluster()
    watcher = Watcher(app, names, timeout, cluster)
    if not once and not as_json and not sys.stdout.isatty():
        raise click.UsageError("The live page needs a terminal; --once prints one page, --json is for programs.")
    first = watcher.look()
    with _hearing(app, cluster):
        if once:
            time.sleep(interval)
            look = watcher.look()
            _print(look, as_json, state.given.no_color)
            ctx.exit(0 if look.workers else UNREACHABLE)
        elif as_json:
            while True:
                _print(first, True, True)
                time.sleep(interval)
                first = watcher.look()
        else:
            _show(watcher, first, interval, state.given.no_color)


def _print(look: Look, as_json: bool, no_color: bool) -> None:
    if as_json:
        click.echo(json.dumps(to_builtins(look)))
        sys.stdout.flush()
        return
    from rich.console import Console

    Console(no_color=no_color, highlight=False).print(page(look))


def _show(watcher: Watcher, look: Look, interval: float, no_color: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(no_color=no_color, highlight=False)
    with (
        _keys() as pressed,
        Live(page(look, console.height), console=console, screen=True, auto_refresh=False) as live,
    ):
        live.refresh()
        while pressed(interval) not in QUIT:
            try:
                look = watcher.look()
            except CeleriacError as exc:
                look.trouble = str(exc)
            live.update(page(look, console.height), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits for a key for so many seconds; "" if none was pressed."""
    if not sys.stdin.isatty():

        def nothing(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield nothing
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(sys.stdin)
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _hearing(app: Any, cluster: Cluster) -> Iterator[None]:
    """Let a thread put what events tell into `cluster`. It ends with the process."""
    receiver = app.events.Receiver(handlers={"*": cluster.event})

    def hear() -> None:
        lost = False
        while not receiver.should_stop:
            try:
                with receiver:
                    receiver.open()
                    lost = False
                    receiver.capture(wakeup=False)
            except OperationalError as exc:
                if not lost:
                    say(f"No events for now: {exc}")
                lost = True
                time.sleep(RETRY_S)
            except CeleriacError as exc:
                say(f"No more events: {exc}")
                return

    thread = threading.Thread(target=hear, name="celeriac-top-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        receiver.should_stop = True
