"""`celeriac report`: versions and settings, to be put into a bug report."""

from __future__ import annotations

import json

import click

from celeriac.cli.group import Command, State, option


@click.command(cls=Command)
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def report(state: State, as_json: bool) -> None:
    """Print versions, plugins and settings. Passwords and keys are masked."""
    from celeriac.app.report import facts

    app = state.app()
    click.echo(json.dumps(facts(app), indent=2, default=repr) if as_json else app.bugreport())
