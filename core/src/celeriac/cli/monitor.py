"""The table of `celeriac events`: tasks as they come, in a terminal. `render` is pure; the rest is curses."""

from __future__ import annotations

import curses
import time
from typing import Any, Final, NamedTuple

from celeriac import states
from celeriac.events.state import State, Task

REFRESH_MS: Final = 500
HELP: Final = "j/k: move  i: details  r: result  t: traceback  c: revoke  x: terminate  q: quit"
_MARKS: Final = {states.SUCCESS: 2, states.FAILURE: 1, states.REVOKED: 5, states.STARTED: 6, states.RETRY: 3}


class Line(NamedTuple):
    """One line of the screen."""

    text: str
    state: str = ""
    chosen: bool = False


def render(cluster: State, chosen: str | None, width: int, height: int, detail: str = "") -> list[Line]:
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
        Line("  ".join(f"{state}:{count}" for state, count in sorted(counts.items()))),
        Line(f"{'UUID':36} {'TASK':30.30} {'WORKER':24.24} {'TIME':8} STATE"),
    ]
    foot = [Line(line) for line in detail.splitlines()[-8:]] + [Line(HELP)]
    room = max(1, height - len(head) - len(foot))
    rows = [_row(task, task.uuid == chosen) for _, task in cluster.tasks_by_time(room)]
    blank = [Line("")] * (room - len(rows))
    return [Line(line.text[: width - 1], line.state, line.chosen) for line in [*head, *rows, *blank, *foot]]


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


def run_monitor(app: Any, cluster: State) -> None:
    """Show the table until `q`."""
    curses.wrapper(lambda screen: _show(screen, app, cluster))


def _show(screen: Any, app: Any, cluster: State) -> None:
    curses.curs_set(0)
    curses.use_default_colors()
    for number in range(1, 8):
        curses.init_pair(number, number, -1)
    screen.timeout(REFRESH_MS)
    chosen: str | None = None
    detail = ""
    while True:
        height, width = screen.getmaxyx()
        chosen = chosen or neighbour(cluster, None, 0)
        screen.erase()
        for number, line in enumerate(render(cluster, chosen, width, height, detail)[:height]):
            look = curses.color_pair(_MARKS.get(line.state, 0)) | (curses.A_REVERSE if line.chosen else 0)
            screen.addnstr(number, 0, line.text, width - 1, look)
        screen.refresh()
        key = screen.getch()
        if key in (ord("q"), ord("Q")):
            return
        if key in (ord("j"), curses.KEY_DOWN, ord("k"), curses.KEY_UP):
            chosen = neighbour(cluster, chosen, 1 if key in (ord("j"), curses.KEY_DOWN) else -1)
            detail = ""
        elif key in (ord("i"), ord("r"), ord("t")) and chosen:
            detail = describe(cluster.tasks.get(chosen), chr(key))
        elif key in (ord("c"), ord("x")) and chosen:
            replies = app.control.revoke(chosen, terminate=key == ord("x"), reply=True) or []
            detail = "\n".join(f"{node}: {value}" for reply in replies for node, value in reply.items()) or "no reply"
