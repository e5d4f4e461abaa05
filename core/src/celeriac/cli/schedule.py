"""`celeriac schedule`: look at periodic tasks and change them while beats run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import click

from celeriac.beat import PersistentScheduler, ScheduleEntry, Scheduler
from celeriac.beat.due import find_due, read_catch_up
from celeriac.beat.ledger import Edit, Ledger, read_schedule, write_schedule
from celeriac.beat.persistent import merge_edits, open_ledger
from celeriac.beat.service import find_scheduler
from celeriac.cli.find_app import import_tasks
from celeriac.cli.group import Command, State, option
from celeriac.exceptions import ImproperlyConfigured
from celeriac.utils.times import UTC

#: The longest period of an entry: a hundred years, so that its next time is a date.
LONGEST_S: Final = 100 * 365.25 * 86400

_json = option("--json", "as_json", is_flag=True, help="Print JSON.")
_file = option("-s", "--schedule", "file", metavar="FILE", help="The file, if beat is given one with --schedule.")


class Subgroup(click.Group):
    """A group whose commands take the common options too."""

    command_class = Command


@click.group(cls=Subgroup)
def schedule() -> None:
    """Look at periodic tasks, and change them while beats run; these obey within seconds."""


class View:
    """The schedule as running beats see it: the app's entries, and what people changed."""

    def __init__(self, state: State, file: str | None) -> None:
        self.app = state.app(required=True)
        import_tasks(self.app)
        kind = find_scheduler(self.app.conf["beat_scheduler"])
        if not issubclass(kind, PersistentScheduler):
            raise ImproperlyConfigured(
                f"celeriac schedule works with the default scheduler; this app has beat_scheduler="
                f"{self.app.conf['beat_scheduler']!r}, which keeps its own schedule."
            )
        self.configured = dict(Scheduler(self.app).schedule)
        self.ledger: Ledger = open_ledger(self.app, file)
        _, self.edits = self.ledger.read_edits()
        self.entries = merge_edits(self.configured, self.edits, self._make)

    def _make(self, edit: Edit) -> ScheduleEntry | None:
        try:
            return ScheduleEntry(name=edit.name, app=self.app, **edit.entry_words())
        except ValueError:
            return None

    def require(self, name: str) -> ScheduleEntry:
        """The entry of this name, or an error that names those there are."""
        if name not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none"
            raise click.UsageError(f"There is no periodic task {name!r}. There are: {known}.")
        return self.entries[name]  # type: ignore[no-any-return]


@schedule.command("list")
@_json
@_file
@click.pass_obj
def list_entries(state: State, as_json: bool, file: str | None) -> None:
    """List all entries: when each is due, and when it was sent last."""
    view = View(state, file)
    marks, snapshot = view.ledger.read_marks(), view.ledger.look()
    now = datetime.fromtimestamp(snapshot.now, UTC)
    rows = []
    for name, entry in sorted(view.entries.items()):
        mark = marks[name][0] if name in marks else None
        sent = mark is not None and mark.count > 0
        last = mark.last_run_at if mark is not None else now
        wait_s, trouble = None, None
        if not entry.paused:
            try:
                wait_s = find_due(entry.schedule, last, now).next_s
            except Exception as exc:  # a schedule of the user's own, say; the others are to be seen
                trouble = f"{type(exc).__name__}: {exc}"
        rows.append(
            {
                "name": name,
                "task": entry.task,
                "schedule": repr(entry.schedule).strip("<>"),
                "last": last.isoformat() if sent else None,
                "sent": mark.count if mark is not None else 0,
                "next_s": None if wait_s is None else round(wait_s, 3),
                "trouble": trouble,
                "paused": entry.paused,
                "live": name in view.edits.entries and view.edits.entries[name].task is not None,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("There are no periodic tasks.")
    for row in rows:
        due = "paused" if row["paused"] else "never" if row["next_s"] is None else f"in {row['next_s']:.0f} s"
        due = f"unknown ({row['trouble']})" if row["trouble"] else due
        origin = ", added by hand" if row["live"] else ""
        when = f"{row['schedule']}, next {due}, last {row['last'] or 'never'}"
        click.echo(f"{row['name']}: {row['task']}, {when}{origin}")


@schedule.command()
@click.argument("name")
@click.argument("task")
@option("--every", type=float, metavar="SECONDS", help="Due every so many seconds.")
@option("--crontab", metavar="'M H DOM MON DOW'", help="Due when these match the clock.")
@option("-a", "--args", "args", default="[]", metavar="JSON", help="Positional arguments, a JSON list.")
@option("-k", "--kwargs", "kwargs", default="{}", metavar="JSON", help="Keyword arguments, a JSON object.")
@option("--options", default="{}", metavar="JSON", help="Options of the call (queue, expires …), a JSON object.")
@option("--catch-up", metavar="RULE", help="What is made up for after an outage: last (default), skip, all, all:N.")
@_file
@click.pass_obj
def add(state: State, /, name: str, task: str, file: str | None, **given: Any) -> None:
    """Add an entry called NAME that calls TASK, or replace the one of that name."""
    if (given["every"] is None) == (given["crontab"] is None):
        raise click.UsageError("Say when: either --every SECONDS or --crontab 'M H DOM MON DOW'.")
    if not name.strip() or not name.isprintable():
        raise click.UsageError(f"{name!r} is no name that one could see in a list.")
    when = {"every": given["every"]} if given["every"] is not None else {"crontab": given["crontab"]}
    try:
        if given["every"] is not None and not timedelta.resolution.total_seconds() <= given["every"] <= LONGEST_S:
            raise ValueError(f"--every must be more than 0 and at most {LONGEST_S:g} seconds, not {given['every']:g}")
        read_catch_up(given["catch_up"])
        written = write_schedule(read_schedule(when))
    except (ValueError, OverflowError) as exc:
        raise click.UsageError(f"{exc}.") from exc
    view = View(state, file)
    if task not in view.app.tasks:
        click.echo(f"Note: this app has no task {task!r}; a worker must.", err=True)
    view.ledger.edit(
        Edit(
            name,
            task=task,
            schedule=written,
            args=_read_json(given["args"], list, "--args"),
            kwargs=_read_json(given["kwargs"], dict, "--kwargs"),
            options=_read_json(given["options"], dict, "--options"),
            catch_up=given["catch_up"],
            since=_begin_of(view, name),
        )
    )
    click.echo(f"Added {name}.")


def _of_one_entry(act: Callable[[View, str], str]) -> click.Command:
    """A command NAME that does something about one entry, and prints a line about that."""

    @schedule.command(act.__name__, help=act.__doc__)
    @click.argument("name")
    @_file
    @click.pass_obj
    def command(state: State, name: str, file: str | None) -> None:
        view = View(state, file)
        view.require(name)
        click.echo(act(view, name))

    return command


@_of_one_entry
def pause(view: View, name: str) -> str:
    """Do not send NAME until it is resumed."""
    _set_paused(view, name, True)
    return f"Paused {name}."


@_of_one_entry
def resume(view: View, name: str) -> str:
    """Send NAME again, from its next time on; what was missed is not made up for."""
    _set_paused(view, name, False)
    return f"Resumed {name}."


@_of_one_entry
def remove(view: View, name: str) -> str:
    """Remove an entry that was added by hand; one of the app's own can be paused."""
    edit = view.edits.entries.get(name)
    if edit is None or edit.task is None:
        raise click.UsageError(
            f"{name!r} stands in the app's own beat_schedule, where it must be removed. To stop it: "
            f"celeriac schedule pause {shlex.quote(name)}"
        )
    view.ledger.remove(name)
    return f"Removed {name}."


@_of_one_entry
def trigger(view: View, name: str) -> str:
    """Have a running beat send NAME once, now, besides its schedule; prints the id of the task."""
    return view.ledger.trigger(name)


def _begin_of(view: View, name: str) -> float | None:
    """From when on it is made up for what was missed of an entry: a new one begins now, as does one that was paused."""
    entry, edit = view.entries.get(name), view.edits.entries.get(name)
    if entry is None or entry.paused:
        return view.ledger.now()
    return edit.since if edit is not None else None


def _set_paused(view: View, name: str, paused: bool) -> None:
    edit = view.edits.entries.get(name) or Edit(name)
    edit.paused, edit.since = paused, None if paused else view.ledger.now()
    view.ledger.edit(edit)


def _read_json(text: str, kind: type, who: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise click.UsageError(f"{who} is no JSON: {exc}.") from exc
    if not isinstance(value, kind):
        raise click.UsageError(f"{who} must be a JSON {'list' if kind is list else 'object'}, not {text}.")
    return value
