"""`celeriac check`: settings and plugins, without a server. For CI, before anything is deployed."""

from __future__ import annotations

import click

from celeriac.cli.checkup import GRAVITY, look_at_plugins, look_at_settings, read_app, show
from celeriac.cli.group import Command, State, option
from celeriac.cli.types import Words
from celeriac.spec.diagnosis import Finding

as_json = option("--json", "as_json", is_flag=True, help="Print JSON.")
of_rules = option("--ignore", "ignored", type=Words(), default="", help="Leave these rules out (a,b,c).")
to_fail = option(
    "--fail-on",
    type=click.Choice(GRAVITY),
    default="error",
    show_default=True,
    help="End with 1 if something of this level or a worse one was found.",
)


@click.command(cls=Command)
@of_rules
@to_fail
@as_json
@click.pass_context
def check(ctx: click.Context, /, ignored: list[str], fail_on: str, as_json: bool) -> None:
    """Check the app's settings, tasks and plugins; no server is asked.

    Ends with 0 if all is well, with 1 if something of the level --fail-on was found.
    """
    state: State = ctx.obj
    app, warned = read_app(state, required=True)
    settings, facts = look_at_settings(app, ignored)
    settings.findings += [("warned", Finding("warning", "warning", text)) for text in warned]
    sections = [settings] if facts is None else [settings, look_at_plugins(app, facts)]
    ctx.exit(show(sections, as_json, state.given.quiet, fail_on))
