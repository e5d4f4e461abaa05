"""The table of `celeriac events`: tasks as they come, in a terminal. `render` is pure; the rest is curses."""

from __future__ import annotations

import contextlib
import curses
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from celeriac import states
from celeriac.events.state import State, Task
from celeriac.exceptions import CeleriacError
from celeriac.log.lines import clean

REFRESH_MS: Final = 500
KEYS: Final = "j/k: move  i: details  r: result  t: traceback  c: revoke  l: rate limit  ?: all keys  q: quit"
HELP: Final = """j, k, down, up: the next task, the one before
i: all that is known of it      r: its result or error      t: its traceback
c: revoke it: it does not run, if it has not begun
x: revoke it, and end it where it runs
l: how many of its kind a worker may run: 10/s, 100/m, 0 for no limit
Ctrl-L: draw all anew          q: quit"""
DOWN: Final = (ord("j"), ord("J"), curses.KEY_DOWN)
UP: Final = (ord("k"), ord("K"), curses.KEY_UP)
REDRAW: Final = 12
#: Lines for what is known of one task.
DETAILS: Final = 10
_MARKS: Final = {states.SUCCESS: 2, states.FAILURE: 1, states.REVOKED: 5, states.STARTED: 6, states.RETRY: 3}


class Line(NamedTuple):
    """One line of the screen."""

    text: str
    state: str = ""
    chosen: bool = False


def render(
    cluster: State, chosen: str | None, width: int, height: int, detail: str = "", trouble: str = ""
) -> list[Line]:
    """The screen: a head, the newest tasks, what is known of the chosen one, and the keys."""
    alive = list(cluster.alive_workers())
    counts: dict[str, int] = {}
    for task in list(cluster.tasks.values()):
        counts[task.state] = counts.get(task.state, 0) + 1
    head = [
        Line(f"celeriac events   {len(alive)} workers   {cluster.event_count} events   {cluster.task_count} tasks"),
        Line(
            "  ".join(f"{worker.hostname} {worker.active or 0} running" for worker in alive) or "no worker has spoken"
        ),
        Line(trouble or "  ".join(f"{state}:{count}" for state, count in sorted(counts.items()))),
        Line(f"{'UUID':36} {'TASK':30.30} {'WORKER':24.24} {'TIME':8} STATE"),
    ]
    foot = [Line(line) for line in detail.splitlines()[-DETAILS:]] + [Line(KEYS)]
    room = max(1, height - len(head) - len(foot))
    rows = [_row(task, task.uuid == chosen) for _, task in cluster.tasks_by_time(room)]
    blank = [Line("")] * (room - len(rows))
    return [Line(clean(line.text)[: width - 1], line.state, line.chosen) for line in [*head, *rows, *blank, *foot]]


def _row(task: Task, chosen: bool) -> Line:
    worker = task.worker.hostname if task.worker else task.client
    moment = time.strftime("%H:%M:%S", time.localtime(task.timestamp or 0))
    text = f"{task.uuid:36} {task.name or '':30.30} {worker or '':24.24} {moment} {task.state}"
    return Line(text, task.state, chosen)


def neighbour(cluster: State, chosen: str | None, step: int) -> str | None:
    """The task above or below the chosen one."""
    ids = [uuid for uuid, _ in cluster.tasks_by_time(1000)]
    if not ids:
        return None
    if chosen not in ids:
        return ids[0]
    return ids[max(0, min(len(ids) - 1, ids.index(chosen) + step))]


def describe(task: Task | None, key: str) -> str:
    """What a key shows of a task."""
    if task is None:
        return ""
    if key == "r":
        return f"result: {task.result if task.exception is None else task.exception}"
    if key == "t":
        return task.traceback or "no traceback"
    return "\n".join(f"{name}: {value}" for name, value in task.info(extra=("uuid", "name", "state")).items())


def run_monitor(app: Any, cluster: State, news: Callable[[], str | None]) -> None:
    """Show the table until `q`.

    Args:
        news: What is wrong with hearing events, for a line of the page; None: there will be no more.
    """
    curses.wrapper(lambda screen: _Page(screen, app, cluster).show(news))


class _Page:
    """The table on a screen, and what keys do."""

    def __init__(self, screen: Any, app: Any, cluster: State) -> None:
        self._screen = screen
        self._app = app
        self._cluster = cluster
        self._chosen: str | None = None
        self._detail = ""
        self._has_colors = False

    def show(self, news: Callable[[], str | None]) -> None:
        """Until `q`, or until there is no more to hear."""
        with contextlib.suppress(curses.error):  # it cannot be hidden
            curses.curs_set(0)
        self._has_colors = curses.has_colors()
        if self._has_colors:
            curses.use_default_colors()
            for number in range(1, 8):
                curses.init_pair(number, number, -1)
        self._screen.timeout(REFRESH_MS)
        while (trouble := news()) is not None:
            self._chosen = self._chosen or neighbour(self._cluster, None, 0)
            self._draw(trouble)
            key = self._screen.getch()
            if key in (ord("q"), ord("Q")):
                return
            self._obey(key)

    def _draw(self, trouble: str) -> None:
        height, width = self._screen.getmaxyx()
        self._screen.erase()
        lines = render(self._cluster, self._chosen, width, height, self._detail, trouble)
        for number, line in enumerate(lines[:height]):
            look = curses.A_REVERSE if line.chosen else 0
            if self._has_colors:
                look |= curses.color_pair(_MARKS.get(line.state, 0))
            self._screen.addnstr(number, 0, line.text, width - 1, look)
        self._screen.refresh()

    def _obey(self, key: int) -> None:
        if key in DOWN or key in UP:
            self._chosen = neighbour(self._cluster, self._chosen, 1 if key in DOWN else -1)
            self._detail = ""
        elif key == ord("?"):
            self._detail = "" if self._detail == HELP else HELP
        elif key == REDRAW:
            self._screen.redrawwin()
        elif self._chosen and key in map(ord, "irt"):
            self._detail = describe(self._cluster.tasks.get(self._chosen), chr(key))
        elif self._chosen and key in map(ord, "cxl"):
            try:
                self._detail = self._command(chr(key), self._chosen)
            except (CeleriacError, ValueError) as exc:
                self._detail = str(exc)

    def _command(self, key: str, uuid: str) -> str:
        """Tell all workers something about a task; their answers, a line each."""
        control = self._app.control
        if key == "l":
            task = self._cluster.tasks.get(uuid)
            if task is None or not task.name:
                return "The name of this task is not known (yet)."
            rate = self._ask(f"Rate limit of {task.name}, such as 10/m: ")
            replies = control.rate_limit(task.name, rate, reply=True) if rate else None
        else:
            replies = control.revoke(uuid, terminate=key == "x", reply=True)
        return "\n".join(f"{node}: {value}" for reply in replies or () for node, value in reply.items()) or "no reply"

    def _ask(self, question: str) -> str:
        height, width = self._screen.getmaxyx()
        self._screen.move(height - 1, 0)
        self._screen.clrtoeol()
        self._screen.addnstr(height - 1, 0, question, width - 1)
        self._screen.timeout(-1)
        curses.echo()
        try:
            return bytes(self._screen.getstr(20)).decode("utf-8", "replace").strip()
        finally:
            curses.noecho()
            self._screen.timeout(REFRESH_MS)
