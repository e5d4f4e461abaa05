"""`celeriac events`: watch what happens, as lines (`--dump`), as a table in the terminal, or through a camera."""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import datetime
from typing import Any

import click

from celeriac.cli.errors import say
from celeriac.cli.group import Command, State, option
from celeriac.events import State as Cluster
from celeriac.events.snapshot import find_camera
from celeriac.exceptions import OperationalError

#: Fields that every event has, or that are of no interest to people.
_COMMON = frozenset({"type", "hostname", "pid", "clock", "utcoffset", "timestamp", "local_received", "uuid", "name"})
RETRY_S = 1.0


@click.command(cls=Command)
@option("-d", "--dump", is_flag=True, help="Print events as lines.")
@option("-c", "--camera", metavar="CLASS", help="Take snapshots with this class (module.Class).")
@option("-F", "--frequency", "--freq", type=float, default=1.0, metavar="SECONDS", help="Between two snapshots.")
@option("-r", "--maxrate", metavar="RATE", help="At most so many snapshots: 10/m.")
@option("-j", "--json", "as_json", is_flag=True, help="With --dump: a JSON object per line.")
@option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N messages.")
@click.pass_obj
def events(
    state: State,
    dump: bool,
    camera: str | None,
    frequency: float,
    maxrate: str | None,
    as_json: bool,
    limit: int | None,
) -> None:
    """Watch workers and tasks.

    Without options a table in the terminal. Workers tell about tasks when they run with -E, or after celeriac control
    enable_events.
    """
    app = state.app()
    if dump or as_json:
        _watch(app, {"*": _print_json if as_json else _print_event}, limit)
    elif camera:
        cluster = Cluster()
        taker = find_camera(camera)(cluster, freq=frequency, maxrate=maxrate, app=app)
        with taker:
            _watch(app, {"*": cluster.event}, limit)
    else:
        if not sys.stdout.isatty():
            raise click.UsageError("The table needs a terminal; --dump prints events as lines.")
        from celeriac.cli.monitor import run_monitor

        cluster = Cluster()
        thread = threading.Thread(target=_watch, args=(app, {"*": cluster.event}, limit), daemon=True)
        thread.start()
        run_monitor(app, cluster)


def _watch(app: Any, handlers: dict[str, Any], limit: int | None) -> None:
    """Hand events to the handlers until interrupted; a lost broker is connected to again."""
    first = True
    while True:
        receiver = app.events.Receiver(handlers=handlers)
        try:
            with receiver:
                receiver.capture(limit=limit, wakeup=True)
            return
        except OperationalError as exc:
            if first:
                raise
            say(f"Lost the broker: {exc} Trying again.")
            time.sleep(RETRY_S)
        finally:
            first = False


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
    click.echo(f"{event.get('hostname')} [{when:%Y-%m-%d %H:%M:%S.%f}] {kind.replace('-', ' ')}: {text}".rstrip(": "))
