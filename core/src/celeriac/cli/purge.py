"""`celeriac purge`: remove the messages that wait in queues."""

from __future__ import annotations

import json
import sys

import click

from celeriac.cli.errors import FAILED, say
from celeriac.cli.group import Command, State, option
from celeriac.cli.types import Words


@click.command(cls=Command)
@option("-f", "--force", is_flag=True, help="Do not ask.")
@option("-Q", "--queues", type=Words(), default="", help="Only these queues (a,b,c) instead of all the app knows.")
@option("-X", "--exclude-queues", type=Words(), default="", help="Not these.")
@option("--json", "as_json", is_flag=True, help="Print how many were removed, by queue, as a JSON object.")
@click.pass_context
def purge(ctx: click.Context, /, force: bool, queues: list[str], exclude_queues: list[str], as_json: bool) -> None:
    """Remove all waiting messages from queues. They cannot be had back.

    Messages that workers hold already are not touched.
    """
    state: State = ctx.obj
    app = state.app()
    names = [name for name in queues or list(app.router.queues) if name not in exclude_queues]
    if not names:
        raise click.UsageError("No queue is left to purge.")
    app.kernel.require(app.transport, {"purge"}, because="celeriac purge was called")
    if not force and not _confirm(names):
        say("Nothing was removed.")
        ctx.exit(FAILED)
    with click.progressbar(names, label="Purging", file=sys.stderr) as bar:  # shows itself on a terminal only
        counts = {name: app.transport.purge(name) for name in bar}
    if as_json:
        click.echo(json.dumps(counts))
        return
    removed = sum(counts.values())
    noun = "message" if removed == 1 else "messages"
    where = f"queue {names[0]}" if len(names) == 1 else f"{len(names)} queues: {', '.join(names)}"
    click.echo(f"Purged {removed} {noun} from {where}." if removed else f"No messages purged from {where}.")


def _confirm(names: list[str]) -> bool:
    say(f"This will remove all messages from: {', '.join(names)}. There is no undo. (-f to skip this question.)")
    return click.confirm("Are you sure?", default=False, err=True)
