"""`celeriac migrate`: send what waits on one broker to another."""

from __future__ import annotations

import json
import sys

import click

from celeriac.cli.group import Command, State, option
from celeriac.cli.types import Words


@click.command(cls=Command)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@option("-n", "--limit", type=click.IntRange(1), metavar="N", help="Stop after N messages.")
@option("-t", "--timeout", type=float, default=1.0, show_default=True, help="Stop when so many seconds bring nothing.")
@option("-a", "--ack-messages", is_flag=True, help="Remove them at the source. Otherwise they are copied.")
@option("-T", "--tasks", type=Words(), default="", help="Only calls of these tasks (a,b).")
@option("-Q", "--queues", type=Words(), default="", help="Only these queues; old:new gives another name there.")
@option("-F", "--forever", is_flag=True, help="Go on until stopped.")
@option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.pass_obj
def migrate(
    state: State,
    /,
    source: str,
    destination: str,
    limit: int | None,
    timeout: float,
    ack_messages: bool,
    tasks: list[str],
    queues: list[str],
    forever: bool,
    as_json: bool,
) -> None:
    """Send the messages that wait on the broker SRC to the broker DST. Both are URLs.

    Each is acknowledged at the source, if at all, after the other broker has taken it: cut short, a message is in one
    place or in both.
    """
    from celeriac.contrib import migrate as contrib

    app = state.app()
    names = {old: new or old for old, _, new in (word.partition(":") for word in queues)}
    done = contrib.State()
    with click.progressbar(length=1, label="Migrating", file=sys.stderr) as bar:

        def show(done: contrib.State, message: contrib.Movable) -> None:
            bar.length = max(done.count, min(done.total_apx, limit or done.total_apx))
            bar.update(1)

        contrib.migrate_tasks(
            source,
            destination,
            app=app,
            queues=names or None,
            tasks=tasks or None,
            limit=limit,
            timeout=timeout,
            ack_messages=ack_messages,
            forever=forever,
            on_message=show,
            state=done,
        )
    if as_json:
        click.echo(json.dumps({"sent": done.count, "left": done.filtered, "removed": ack_messages}))
        return
    verb = "Moved" if ack_messages else "Copied"
    left = f"; {done.filtered} of other tasks stay" if done.filtered else ""
    click.echo(f"{verb} {done.count} message{'' if done.count == 1 else 's'}{left}.")
