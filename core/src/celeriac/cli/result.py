"""`celeriac result`: what became of a call."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from celeriac.cli.errors import FAILED, say
from celeriac.cli.find_app import has_task
from celeriac.cli.group import Command, State, option
from celeriac.cli.progress import show
from celeriac.exceptions import TimeoutError
from celeriac.log.lines import clean
from celeriac.result import GroupResult

NOTHING_KNOWN: Final = " Nothing is known of it: it waits, was never sent, or its result is kept elsewhere."


@click.command(cls=Command)
@click.argument("task_id", metavar="ID")
@option("-t", "--task", metavar="NAME", help="The task's name, if it keeps its results in a place of its own.")
@option("--traceback", "show_traceback", is_flag=True, help="Print the traceback instead of the value.")
@option("--timeout", type=float, metavar="SECONDS", help="Wait no longer than this (0: do not wait).")
@option("--wait/--no-wait", default=True, help="Wait for it to end (the default), or tell how it stands.")
@option("--json", "as_json", is_flag=True, help="Print state, result and traceback as a JSON object.")
@option("--group", "as_group", is_flag=True, help="ID is that of a saved group: wait for all its calls, with a bar.")
@click.pass_context
def result(
    ctx: click.Context,
    /,
    task_id: str,
    task: str | None,
    show_traceback: bool,
    timeout: float | None,
    wait: bool,
    as_json: bool,
    as_group: bool,
) -> None:
    """Wait for the call ID to end and print its value.

    Ends with 0 if the task succeeded, with 1 if it failed or did not end in time.
    """
    state: State = ctx.obj
    app = state.app()
    if task:
        has_task(app, task)  # if not, the error says so
    found = app.tasks[task].AsyncResult(task_id) if task else app.AsyncResult(task_id)
    timeout = timeout if wait else 0
    if as_group:
        ctx.exit(_group(app, task_id, timeout, as_json))
    if timeout is None and not found.exists():
        say(f"Nothing is known of {task_id} yet; waiting for it. Ctrl-C or --timeout ends that.")
    try:
        if timeout != 0:
            with _sign_of_life(task_id, state.given.quiet):
                found.get(timeout=timeout, propagate=False)
    except TimeoutError:
        if not as_json:
            raise
    if as_json:
        click.echo(json.dumps(_document(found), default=repr))
    elif show_traceback:
        click.echo(found.traceback or "")
    elif found.successful():
        click.echo(found.result)
    elif found.ready():  # failed, or revoked
        say(f"{found.state}: {type(found.result).__name__}: {found.result}")
    else:
        say(f"{task_id} has not ended; its state is {found.state}.{'' if found.exists() else NOTHING_KNOWN}")
    ctx.exit(0 if found.successful() else FAILED)


@contextmanager
def _sign_of_life(task_id: str, quiet: bool) -> Iterator[None]:
    """On a terminal, show for how long this has been waiting."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(f"Waiting for {clean(task_id)}", total=None)
        yield


def _document(found: Any) -> dict[str, Any]:
    value = found.result
    return {
        "task_id": found.id,
        "state": found.state,
        "result": repr(value) if isinstance(value, BaseException) else value,
        "traceback": found.traceback,
        "date_done": str(found.date_done) if found.date_done else None,
    }


def _group(app: Any, group_id: str, timeout: float | None, as_json: bool) -> int:
    """Wait for a group that was saved, and print its values; returns the exit code."""
    found = GroupResult.restore(group_id, app=app)
    if found is None:
        say(f"No group was saved under {group_id}: GroupResult.save() does that.")
        return FAILED
    if timeout != 0:
        show(found, timeout)
    values = [(each.id, each.state, each.result) for each in found.leaves()]
    if as_json:
        click.echo(json.dumps([{"task_id": i, "state": s, "result": v} for i, s, v in values], default=repr))
    else:
        for task_id, state, value in values:
            click.echo(f"{task_id}  {state}  {value!r}")
    return 0 if found.successful() else FAILED
