"""`celeriac call`: send a call of a task by its name."""

from __future__ import annotations

import json
from typing import Any

import click

from celeriac.cli.errors import say
from celeriac.cli.find_app import has_task
from celeriac.cli.group import Command, State, option


class Json(click.ParamType):  # type: ignore[type-arg] # generic from click 8.5 on
    """JSON of one type."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind = kind
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it, or say what is wrong with it."""
        if isinstance(value, self.kind):
            return value
        try:
            found = json.loads(value)
        except ValueError as exc:
            self.fail(f"{value!r} is not JSON ({exc}).", param, ctx)
        if not isinstance(found, self.kind):
            self.fail(f"{value!r} is no {self.name}.", param, ctx)
        return found


class SecondsOrTime(click.ParamType):  # type: ignore[type-arg] # generic from click 8.5 on
    """Seconds from now, or an ISO 8601 time."""

    name = "seconds or time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A float, or a datetime."""
        from datetime import datetime

        try:
            return float(value)
        except (TypeError, ValueError):
            pass  # then it should be a time
        try:
            return datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        except ValueError:
            self.fail(f"{value!r} is neither a number of seconds nor a time such as 2030-01-31T12:00:00.", param, ctx)


@click.command(cls=Command)
@click.argument("name")
@option("-a", "--args", type=Json(list, "JSON list"), default="[]", help="Positional arguments, a JSON list.")
@option("-k", "--kwargs", type=Json(dict, "JSON object"), default="{}", help="Keyword arguments, a JSON object.")
@option("--eta", type=SecondsOrTime(), help="Run it at this time (ISO 8601).")
@option("--countdown", type=float, help="Run it so many seconds from now.")
@option("--expires", type=SecondsOrTime(), help="Do not run it after so many seconds, or after this time.")
@option("--serializer", help="Encode the arguments with this serializer plugin.")
@option("--queue", help="Send it to this queue.")
@option("--exchange", help="Send it to this exchange.")
@option("--routing-key", help="Send it with this routing key.")
@option("--priority", type=click.IntRange(0, 255), help="Its priority.")
@option("--json", "as_json", is_flag=True, help="Print the id in a JSON object.")
@click.pass_obj
def call(state: State, /, name: str, args: list[Any], kwargs: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Send a call of the task NAME and print its id.

    The task need not be known here: celeriac -b redis:// call tasks.add -a '[2, 2]'
    """
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(given.get("eta"), float):
        given["countdown"] = given.pop("eta")
    app = state.app()
    if state.given.app and not has_task(app, name):
        say(f"{name} is not among the tasks of {state.given.app}; sent all the same.")
    result = app.send_task(name, args=args, kwargs=kwargs, **given)
    click.echo(json.dumps({"task_id": result.id}) if as_json else result.id)
