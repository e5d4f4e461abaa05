"""`celeriac report`: versions and settings, to be put into a bug report."""

from __future__ import annotations

import click

from celeriac.cli.group import Command, State


@click.command(cls=Command)
@click.pass_obj
def report(state: State) -> None:
    """Print versions, plugins and settings. Passwords and keys are masked."""
    click.echo(state.app().bugreport())
