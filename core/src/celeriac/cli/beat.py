"""`celeriac beat`: send periodic tasks when they are due."""

from __future__ import annotations

from typing import Any

import click

from celeriac.beat import Beat
from celeriac.beat.service import DEFAULT_NODE
from celeriac.cli.daemon import Detached, daemon_options, daemonized
from celeriac.cli.find_app import import_tasks
from celeriac.cli.group import Command, State, option
from celeriac.cli.logs import log_options, set_up_log
from celeriac.cli.types import LIMIT
from celeriac.exceptions import mask_url
from celeriac.utils.ids import default_nodename
from celeriac.utils.systemd import ServiceManager


@click.command(cls=Command, context_settings={"allow_extra_args": True})
@option("-s", "--schedule", metavar="FILE", help="Keep in this file what was sent last. Default: in broker or backend.")
@option("-S", "--scheduler", metavar="NAME", help="The scheduler: module:Class, or an installed name.")
@option("--max-interval", type=LIMIT, metavar="SECONDS", help="Longest sleep between looks at the schedule.")
@option(
    "--enable-remote-control/--no-enable-remote-control",
    "remote_control",
    default=None,
    help="Answer celeriac status and inspect ping. Default: the setting beat_enable_remote_control.",
)
@option("-n", "--hostname", metavar="NAME", help=f"Node name for that. Default: {DEFAULT_NODE}.")
@log_options
@daemon_options
@click.pass_context
def beat(ctx: click.Context, /, **options: Any) -> None:
    """Send periodic tasks when they are due, until told to stop.

    Several may run at once: one sends, and another takes over when it is gone. Words such as beat.sync_every=1
    after the options are settings.
    """
    state: State = ctx.obj
    node = default_nodename(options["hostname"] or DEFAULT_NODE)

    def find_app() -> Any:
        app = state.app(required=True)
        if ctx.args:
            app.conf.config_from_cmdline(ctx.args, namespace="beat")
        return app

    with daemonized(options, node, "beat", find_app) as detached:
        _run(state, options, detached)


def _run(state: State, options: dict[str, Any], detached: Detached) -> None:
    app = state.app()
    set_up_log(app, options, state.given.no_color)
    app.set_current()
    import_tasks(app)
    manager = ServiceManager()

    def say_ready(made: Beat) -> None:
        service = made.service
        scheduler = service.scheduler
        if not state.given.quiet:
            broker = mask_url(str(app.conf["broker_url"]))
            click.echo(f"celeriac beat is starting. {len(scheduler.schedule)} periodic tasks, sent to {broker}.")
            click.echo(f"scheduler -> {type(scheduler).__module__}.{type(scheduler).__qualname__}")
            if scheduler.info:
                click.echo(scheduler.info.strip(" .\n"))
            if service.remote_control:
                click.echo(f"remote control -> {service.hostname}")
        detached.ready()
        if manager.listens:
            service.on_turn, service.turn_s = manager.live, manager.pulse_s
            manager.ready(f"{len(scheduler.schedule)} periodic tasks.")

    names = ("max_interval", "schedule", "scheduler", "hostname", "remote_control")
    Beat(app, **{name: options[name] for name in names}, on_ready=say_ready).run()
    manager.stopping("Stopping.")
