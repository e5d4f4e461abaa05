"""`celeriac report`: versions and settings, to be put into a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from celeriac.cli.group import Command, State
from celeriac.exceptions import mask_url
from celeriac.kernel.discovery import catalog

#: What we stand on, and the client libraries that our plugins use.
DISTS = ("celeriac", "kombu", "amqp", "redis", "hiredis", "msgspec", "pluggy", "structlog", "click", "celery")


@click.command(cls=Command)
@click.pass_obj
def report(state: State) -> None:
    """Print versions, plugins and settings. Passwords and keys are masked."""
    app = state.app()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    click.echo(f"python -> {platform.python_implementation()} {platform.python_version()} on {system}")
    click.echo("software -> " + " ".join(f"{name}:{found}" for name in DISTS if (found := _version(name))))
    plugins = {f"{info.dist_name}:{info.dist_version}" for info in catalog().all()}
    click.echo("plugins -> " + " ".join(sorted(plugins)))
    for trouble in catalog().troubles:
        click.echo(f"trouble -> {trouble}")
    click.echo(f"app -> {app.main or 'default'} ({len(app.tasks)} tasks)")
    click.echo("settings ->")
    for name in ("broker_url", "result_backend"):  # what differs when there is no result, given or not
        click.echo(f"  {name}: {mask_url(str(app.conf[name]))!r}")
    for line in app.conf.humanize(with_defaults=False, censored=True).splitlines():
        click.echo(f"  {line}")


def _version(dist: str) -> str:
    try:
        return version(dist)
    except PackageNotFoundError:
        return ""
