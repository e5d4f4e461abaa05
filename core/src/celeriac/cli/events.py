"""`celeriac events`: watch what happens, as lines (`--dump`), as a table in the terminal, or through a camera."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from celeriac.cli.daemon import Detached, daemon_options, daemonized
from celeriac.cli.errors import say
from celeriac.cli.group import Command, State, option
from celeriac.cli.logs import log_options, set_up_log
from celeriac.cli.types import PAUSE
from celeriac.events import State as Cluster
from celeriac.events.snapshot import find_camera
from celeriac.exceptions import OperationalError
from celeriac.log.lines import clean
from celeriac.utils.ids import default_nodename

#: Fields that every event has, or that are of no interest to people.
_COMMON = frozenset({"type", "hostname", "pid", "clock", "utcoffset", "timestamp", "local_received", "uuid", "name"})
RETRY_S = 1.0


@click.command(cls=Command)
@option("-d", "--dump", is_flag=True, help="Print events as lines.")
@option("-c", "--camera", metavar="CLASS", help="Take snapshots with this class (module.Class).")
@option("-F", "--frequency", "--freq", type=PAUSE, default=1.0, metavar="SECONDS", help="Between two snapshots.")
@option("-r", "--maxrate", metavar="RATE", help="At most so many snapshots: 10/m.")
@option("-j", "--json", "as_json", is_flag=True, help="With --dump: a JSON object per line.")
@option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N messages.")
@log_options
@daemon_options
@click.pass_context
def events(ctx: click.Context, /, **options: Any) -> None:
    """Watch workers and tasks.

    Without options a table in the terminal. Workers tell about tasks when they run with -E, or after celeriac control
    enable_events. With --camera or --dump it can be a daemon (-D); what a dump prints then goes to the log file.
    """
    state: State = ctx.obj
    if options["detach"] and not (options["camera"] or options["dump"] or options["as_json"]):
        raise click.UsageError("--detach: the table needs a terminal; give --camera or --dump.")
    node = default_nodename("celeryev@%h")
    with daemonized(options, node, "events", state.app) as detached:
        _run(state, options, detached)


def _run(state: State, options: dict[str, Any], detached: Detached) -> None:
    app = state.app()
    limit = options["limit"]
    if options["dump"] or options["as_json"] or options["camera"]:
        set_up_log(app, options, state.given.no_color)
    if options["dump"] or options["as_json"]:
        _until_told(app, {"*": _print_json if options["as_json"] else _print_event}, limit, detached)
    elif options["camera"]:
        cluster = Cluster()
        take = _find_camera(options["camera"])
        try:
            camera = take(cluster, freq=options["frequency"], maxrate=options["maxrate"], app=app)
        except ValueError as exc:
            raise click.UsageError(f"--maxrate: {exc}.") from exc
        with camera:
            _until_told(app, {"*": cluster.event}, limit, detached)
    else:
        if not sys.stdout.isatty():
            raise click.UsageError("The table needs a terminal; --dump prints events as lines.")
        from celeriac.cli.monitor import run_monitor  # curses is not everywhere

        cluster = Cluster()
        ears = Ears(app, {"*": cluster.event}, limit)
        ears.start()
        run_monitor(app, cluster, ears.news)
        if ears.error is not None:
            raise ears.error


class Ears(threading.Thread):
    """Hears events beside the table, and has a word for it when there are none to hear."""

    def __init__(self, app: Any, handlers: dict[str, Any], limit: int | None) -> None:
        super().__init__(name="celeriac-events", daemon=True)
        self._words = (app, handlers, limit, Detached())
        self._trouble = ""
        self._ended = False
        self.error: Exception | None = None

    def run(self) -> None:
        """Until the limit is reached, or the broker could not be reached at all."""
        try:
            _watch(*self._words, tell=self._take_note)
        except Exception as exc:  # told when the terminal is a terminal again
            self.error = exc
        self._ended = True

    def news(self) -> str | None:
        """What is wrong, empty if nothing is; None when it has ended."""
        return None if self._ended else self._trouble

    def _take_note(self, text: str) -> None:
        self._trouble = text


def _find_camera(path: str) -> Any:
    try:
        return find_camera(path)
    except (ImportError, AttributeError, ValueError) as exc:
        raise click.UsageError(f"--camera: there is no class {path!r} ({exc}). Give one as module.Class.") from exc


class _Told(BaseException):
    """TERM came."""


def _until_told(app: Any, handlers: dict[str, Any], limit: int | None, detached: Detached) -> None:
    """As `_watch`; TERM ends it in good order."""

    def end(signum: int, frame: Any) -> None:
        raise _Told

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)  # for good: the process ends with it
    try:
        _watch(app, handlers, limit, detached)
    except _Told:
        return


def _watch(
    app: Any,
    handlers: dict[str, Any],
    limit: int | None,
    detached: Detached,
    tell: Callable[[str], None] = lambda text: say(text) if text else None,
) -> None:
    """Hand events to the handlers until interrupted; a lost broker is connected to again."""
    first = True
    while True:
        receiver = app.events.Receiver(handlers=handlers)
        try:
            with receiver:
                receiver.open()
                if first:
                    detached.ready()
                tell("")
                first = False
                receiver.capture(limit=limit, wakeup=True)
            return
        except OperationalError as exc:
            if first:
                raise
            tell(f"Lost the broker: {exc} Trying again.")
            time.sleep(RETRY_S)


def _print_json(event: dict[str, Any]) -> None:
    click.echo(json.dumps(event, default=str))


def _print_event(event: dict[str, Any]) -> None:
    """`worker [time] type: name(uuid) key=value …`"""
    kind, when = event["type"], datetime.fromtimestamp(float(event.get("timestamp") or 0))
    if kind.startswith("task-"):
        named = f"{event.get('name') or ''}({event.get('uuid')})"
        fields = ", ".join(f"{key}={value!r}" for key, value in sorted(event.items()) if key not in _COMMON)
        text = f"{named} {fields}".rstrip()
    else:
        text = ", ".join(f"{key}={event[key]!r}" for key in sorted(event) if key not in _COMMON)
    line = f"{event.get('hostname')} [{when:%Y-%m-%d %H:%M:%S.%f}] {kind.replace('-', ' ')}: {text}"
    click.echo(clean(line).rstrip(": "))  # anybody may send events
