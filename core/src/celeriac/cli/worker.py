"""`celeriac worker`: run tasks until told to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from celeriac import log
from celeriac.cli.daemon import Detached, begin_anew, daemon_options, daemonized, run_anew
from celeriac.cli.find_app import import_tasks
from celeriac.cli.group import Command, F, State, option
from celeriac.cli.logs import log_options, set_up_log
from celeriac.cli.startup_page import startup_page
from celeriac.cli.types import LIMIT, PAUSE, Slots, Words
from celeriac.utils.ids import default_nodename
from celeriac.worker.worker import Worker

NO_EFFECT = "No effect in this version; taken so that Celery's scripts run."


def _without_effect(*names: str, **attributes: Any) -> Callable[[F], F]:
    return option(*names, expose_value=False, help=NO_EFFECT, **attributes)


@click.command(cls=Command, context_settings={"allow_extra_args": True})
@option("-n", "--hostname", metavar="NAME", help="Node name: w1@%h. %h is the host, %n its name, %d its domain.")
@option(
    "-P", "--pool", metavar="NAME", help="Pool plugin: prefork, threads, gevent … Default: the setting worker_pool."
)
@option("-c", "--concurrency", type=Slots(), help="How many tasks run at once. Default: one per processor.")
@option("--autoscale", metavar="MAX,MIN", help="Grow the pool when it is busy and shrink it when idle: 10,2.")
@option("-Q", "--queues", type=Words(), default="", help="Consume from these queues. Default: all the app declares.")
@option("-X", "--exclude-queues", type=Words(), default="", help="Do not consume from these.")
@option("-I", "--include", type=Words(), default="", help="Import these modules, too.")
@log_options
@option("--time-limit", type=LIMIT, metavar="SECONDS", help="Kill a task that runs longer.")
@option("--soft-time-limit", type=LIMIT, metavar="SECONDS", help="Raise SoftTimeLimitExceeded in one that runs longer.")
@option("--max-tasks-per-child", type=click.IntRange(1), metavar="N", help="Replace a pool process after N tasks.")
@option("--max-memory-per-child", type=click.IntRange(1), metavar="KIB", help="Replace one that uses more memory.")
@option(
    "--prefetch-multiplier", type=click.IntRange(0), metavar="N", help="Hold N messages per slot. Default: as fits."
)
@option("--disable-prefetch", is_flag=True, help="Hold no more messages than can run at once.")
@option("--pool-start-method", type=click.Choice(["fork", "spawn"]), help="The setting worker_pool_start_method.")
@option("-B", "--beat", is_flag=True, help="Send periodic tasks too. Any number of workers may be told so.")
@option("-s", "--schedule-filename", "--schedule", metavar="FILE", help="With -B: as --schedule of celeriac beat.")
@option("--scheduler", metavar="NAME", help="With -B: as --scheduler of celeriac beat.")
@option("--ready-file", metavar="FILE", help="Keep this file, touched every second, while the worker consumes.")
@option("--health-port", type=click.IntRange(0, 65535), metavar="PORT", help="Answer GET /ready and /live there.")
@option("--purge", "--discard", is_flag=True, help="First remove all messages from its queues. No way back!")
@option("-S", "--statedb", metavar="FILE", help="Keep revocations in this file, where no broker or backend can.")
@option("-E", "--task-events", "--events", is_flag=True, default=None, help="Tell monitors about every task.")
@option("--without-heartbeat", is_flag=True, help="Do not tell monitors that the worker lives.")
@option("--heartbeat-interval", type=PAUSE, metavar="SECONDS", help="How often to tell them. Default: 2.")
@option("--mingle/--without-mingle", default=None, help="Ask other workers at the start what is revoked. Default: no.")
@option("--gossip/--without-gossip", default=None, help="Hear of other workers' coming and going. Default: no.")
@_without_effect("-O", "--optimization")
@_without_effect("--pool-putlocks/--no-pool-putlocks")
@daemon_options
@click.pass_context
def worker(ctx: click.Context, /, **options: Any) -> None:
    """Run the app's tasks until told to stop.

    Ctrl-C or TERM ends it warmly: running tasks finish, the rest is given back. A second one ends it at once.
    Words such as worker.prefetch_multiplier=1 after the options are settings.
    """
    state: State = ctx.obj
    node = default_nodename(options["hostname"])

    def find_app() -> Any:
        app = state.app(required=not options["include"])
        if ctx.args:
            app.conf.config_from_cmdline(ctx.args, namespace="worker")
        return app

    with daemonized(options, node, "worker", find_app) as detached:
        ctx.exit(_run(state, options, detached))


def _run(state: State, options: dict[str, Any], detached: Detached) -> int:
    app = state.app()
    if options["pool_start_method"]:
        app.conf.config_from_cmdline([f"worker.pool_start_method={options['pool_start_method']}"], namespace="worker")
    if options["include"]:
        app.conf.override({"include": [*app.conf.include, *options["include"]]})
    ours = set_up_log(app, options, state.given.no_color)
    import_tasks(app)
    kernel = app.kernel
    kernel.load(kernel.find("pool", options["pool"] or app.conf.worker_pool))  # a bad one is told of first
    given = {("logformat" if name == "log_format" else name): value for name, value in options.items()}
    given |= {"quiet": state.given.quiet, "no_color": state.given.no_color}

    printed = sys.stdout  # for the page, when all else that is printed goes to the log

    def say_ready(worker: Worker) -> None:
        plugins = {info.kind: info for info in kernel.loaded()}
        if not state.given.quiet:
            with_tasks = options["loglevel"] <= logging.INFO
            page = startup_page(worker, plugins, with_tasks=with_tasks)
            with contextlib.suppress(OSError):  # nobody reads it: no reason not to work
                click.echo(page, file=printed)
        names = {kind: info.name for kind, info in plugins.items()}
        log.get_logger("celeriac.worker").info("worker.ready", node=worker.hostname, **names)
        detached.ready()

    made = Worker(app, **given, on_ready=say_ready, app_name=state.app_name, ends_process=True)
    with _redirected(app) if ours else contextlib.nullcontext():
        code = made.run()
    if made.restarts:
        sys.stdout.flush()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, signal.SIG_DFL)  # ignored by now, which the new program would inherit
        begin_anew() if options["detach"] else run_anew()
    return code


@contextlib.contextmanager
def _redirected(app: Any) -> Iterator[None]:
    """While the worker runs, what is printed becomes lines of the log, if the settings say so."""
    before = sys.stdout, sys.stderr
    if app.conf.worker_redirect_stdouts:
        app.log.redirect_stdouts(app.conf.worker_redirect_stdouts_level)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
