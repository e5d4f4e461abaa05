"""`celeriac beat`: send periodic tasks when they are due."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

import click

from celeriac import beat as beats
from celeriac.cli.daemon import Detached, daemon_options, daemonized
from celeriac.cli.group import Command, State, option
from celeriac.cli.types import Level
from celeriac.cli.worker import import_tasks, set_up_log
from celeriac.exceptions import mask_url
from celeriac.utils.ids import hostname


@click.command(cls=Command, context_settings={"allow_extra_args": True})
@option("-s", "--schedule", metavar="FILE", help="Keep in this file what was sent last. Default: in broker or backend.")
@option("-S", "--scheduler", metavar="NAME", help="The scheduler: module:Class, or an installed name.")
@option("--max-interval", type=float, metavar="SECONDS", help="Longest sleep between looks at the schedule.")
@option(
    "-l",
    "--loglevel",
    type=Level(),
    metavar="LEVEL",
    default="warning",
    show_default=True,
    help="Write lines of this level (debug, info …) and above.",
)
@option("--log-format", type=click.Choice(["console", "json"]), help="For people, or a JSON object per line.")
@option("-f", "--logfile", metavar="FILE", help="Append to this file instead of standard error.")
@daemon_options
@click.pass_context
def beat(ctx: click.Context, /, **options: Any) -> None:
    """Send periodic tasks when they are due, until told to stop.

    Several may run at once: one sends, and another takes over when it is gone. Words such as beat.sync_every=1
    after the options are settings.
    """
    with daemonized(options, f"celerybeat@{hostname()}") as detached:
        _run(ctx, options, detached)


def _run(ctx: click.Context, options: dict[str, Any], detached: Detached) -> None:
    state: State = ctx.obj
    app = state.app(required=True)
    if ctx.args:
        app.conf.config_from_cmdline(ctx.args, namespace="beat")
    set_up_log(app, options, state.given.no_color)
    app.set_current()
    import_tasks(app)
    service = beats.Service(
        app,
        max_interval=options["max_interval"],
        schedule_filename=options["schedule"],
        scheduler_cls=options["scheduler"],
    )
    scheduler = service.scheduler
    if not state.given.quiet:
        click.echo(f"celeriac beat is starting. {len(scheduler.schedule)} periodic tasks, sent to {_broker(app)}.")
        click.echo(f"scheduler -> {type(scheduler).__module__}.{type(scheduler).__qualname__}")
        if scheduler.info:
            click.echo(scheduler.info.strip(" .\n"))
    detached.ready()
    with _stopping(service):
        service.start()


def _broker(app: Any) -> str:
    return mask_url(str(app.conf["broker_url"]))


@contextlib.contextmanager
def _stopping(service: beats.Service) -> Any:
    """INT and TERM end it after the turn that it is in."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda signum, frame: service.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
