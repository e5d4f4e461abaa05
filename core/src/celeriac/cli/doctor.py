"""`celeriac doctor`: all that `check` looks at, then the servers, then every live worker beside this app."""

from __future__ import annotations

import click

from celeriac.cli.check import as_json, of_rules, to_fail
from celeriac.cli.checkup import look_at_plugins, look_at_servers, look_at_settings, read_app, show
from celeriac.cli.fleet import look_at_workers
from celeriac.cli.group import Command, State, option
from celeriac.spec.diagnosis import Finding


@click.command(cls=Command)
@of_rules
@to_fail
@option("--timeout", type=float, default=4.0, show_default=True, metavar="SECONDS", help="For each server.")
@option("--wait", type=float, default=1.0, show_default=True, metavar="SECONDS", help="For answers of workers.")
@as_json
@click.pass_context
def doctor(ctx: click.Context, /, ignored: list[str], fail_on: str, timeout: float, wait: float, as_json: bool) -> None:
    """Find out why it does not work: settings, plugins, broker, result store and workers.

    Changes nothing. Ends with 0 if all is well, with 1 if something of the level --fail-on was found, with 69 if a
    server cannot be reached.
    """
    state: State = ctx.obj
    app, warned = read_app(state)
    settings, facts = look_at_settings(app, ignored)
    settings.findings += [("warned", Finding("warning", "warning", text)) for text in warned]
    sections = [settings]
    if facts is not None:
        sections.append(look_at_plugins(app, facts))
        servers = look_at_servers(app, facts, timeout)
        sections += servers
        if servers[0].reached:
            sections.append(look_at_workers(app, facts, wait))
        app.close()
    ctx.exit(show(sections, as_json, state.given.quiet, fail_on))
