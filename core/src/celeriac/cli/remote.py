"""`celeriac status`, `celeriac inspect` and `celeriac control`: ask running workers, and tell them what to do."""

from __future__ import annotations

import json
import pprint
from collections.abc import Callable, Mapping, Sequence, Sized
from inspect import Parameter, signature
from typing import Any, Final

import click

from celeriac.app.control import flatten_reply
from celeriac.cli.errors import FAILED, UNREACHABLE, say
from celeriac.cli.group import Command, F, State, option
from celeriac.cli.types import WAIT, Words
from celeriac.exceptions import CeleryCommandException
from celeriac.worker.control import CommandInfo, Panel

_INDENT = " " * 4
#: Commands that are more than a word to the workers that are there: the app keeps what they say for those to come.
KEPT: Final = ("revoke", "terminate", "revoke_by_stamped_headers")


def _asking(fun: F) -> F:
    """The options of whoever asks workers."""
    for add in (
        option("-j", "--json", "as_json", is_flag=True, help="Print the replies as one JSON object."),
        option("-d", "--destination", type=Words(), default="", help="Ask only these nodes (a,b,c)."),
        option("-t", "--timeout", type=WAIT, metavar="SECONDS", help="How long to wait for replies. Default: 1."),
    ):
        fun = add(fun)
    return fun


def _commanding(fun: F) -> F:
    """Those and the words of whoever gives a command."""
    fun = click.argument("command", required=False)(click.argument("arguments", nargs=-1)(fun))
    return option("--list", "listed", is_flag=True, help="List the commands.")(_asking(fun))


@click.command(cls=Command)
@_asking
@click.pass_obj
def status(state: State, timeout: float | None, destination: list[str], as_json: bool) -> None:
    """Show which workers are online."""
    inspect = state.app().control.inspect(
        destination=destination or None, timeout=timeout or 1.0, callback=None if as_json else _say_status
    )
    replies = _require(inspect.ping())
    if as_json:
        click.echo(json.dumps(replies))
    else:
        _say_count(state, replies)


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@_commanding
@click.pass_obj
def inspect(state: State, /, **given: Any) -> None:
    """Ask running workers about themselves: celeriac inspect COMMAND.

    --list shows the commands. Exit code 1: all replies are errors; 69: no worker replied in time.
    """
    replies = _command("inspect", state, **given)
    if replies and not given["as_json"]:
        _say_count(state, flatten_reply(replies))


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@_commanding
@click.pass_obj
def control(state: State, /, **given: Any) -> None:
    """Tell running workers what to do: celeriac control COMMAND.

    --list shows the commands. Exit code 1: all replies are errors; 69: no worker replied in time.
    """
    _command("control", state, **given)


def _command(
    kind: str,
    state: State,
    *,
    listed: bool,
    timeout: float | None,
    destination: list[str],
    as_json: bool,
    command: str | None,
    arguments: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Send a command, or list those of this kind; the replies, which have been printed."""
    app = state.app()
    if command is None or listed:
        _list_commands(kind, as_json, required=listed)
        return []
    info = _find(kind, command)
    given = _read_arguments(info, arguments)
    options: dict[str, Any] = {
        "destination": destination or None,
        "reply": True,
        "timeout": timeout or info.default_timeout,
        "callback": None if as_json else _say_reply,
    }
    if command in KEPT:
        replies = _revoke(app, command, given, options)
    else:
        replies = app.control.broadcast(command, arguments=given, **options)
    _require(replies)
    if as_json:
        click.echo(json.dumps(flatten_reply(replies) if kind == "inspect" else replies, default=str))
    if all(_is_error(value) for reply in replies for value in reply.values()):
        raise CeleryCommandException(f"No node could do it: {command} was answered with errors only.", FAILED)
    return replies


def _revoke(app: Any, command: str, given: dict[str, Any], options: dict[str, Any]) -> list[dict[str, Any]]:
    """What a program's `app.control.revoke` does: keep it where workers look, then tell those that are there."""
    try:
        replies: list[dict[str, Any]] = getattr(app.control, command)(**given, **options)
    except ValueError as exc:  # no such signal, no such stamp
        raise click.UsageError(f"{exc}.") from exc
    if not replies and options["destination"] is None and app.shared_state is not None:
        say("It is kept: workers that start from now on obey it.")
    return replies


def _find(kind: str, name: str) -> CommandInfo:
    for info in Panel.meta.values():
        if name in (info.name, info.alias) and info.kind == kind:
            return info
    other = next((info.kind for info in Panel.meta.values() if name in (info.name, info.alias)), None)
    hint = f" It is a command of celeriac {other}." if other else f" celeriac {kind} --list shows them."
    raise click.UsageError(f"There is no {kind} command {name!r}.{hint}")


def _list_commands(kind: str, as_json: bool, *, required: bool) -> None:
    if not required:
        raise click.UsageError(f"Which command? celeriac {kind} --list shows them.")
    infos = sorted((info for info in Panel.meta.values() if info.kind == kind and info.visible), key=lambda i: i.name)
    if as_json:
        click.echo(json.dumps([{"name": i.name, "signature": i.signature, "help": i.help} for i in infos]))
        return
    for info in infos:
        click.echo(f"{info.name} {info.signature or ''}".rstrip())
        click.echo(_INDENT + info.help)


def _read_arguments(info: CommandInfo, words: Sequence[str]) -> dict[str, Any]:
    """The words after the command, by name.

    Raises:
        click.UsageError: There are too many or too few, or one cannot be read.
    """
    left, given = list(words), {}
    for name, convert in info.args:
        if not left:
            break
        given[name] = _convert(name, convert, left.pop(0))
    wanted = signature(Panel.data[info.name]).parameters
    for name, _ in info.args:
        if name not in given and name in wanted and wanted[name].default is Parameter.empty:
            raise click.UsageError(f"{info.name} takes {info.signature or name}; {name} is missing.")
    if info.variadic is not None:
        if not left and info.name in KEPT:
            raise click.UsageError(f"{info.name} of what? It takes {info.signature}.")
        given[info.variadic] = left
    elif left:
        raise click.UsageError(f"{info.name} takes {info.signature or 'no arguments'}; {left[0]!r} is one too many.")
    return given


def _convert(name: str, convert: Callable[[str], Any], word: str) -> Any:
    try:
        return convert(word)
    except ValueError:
        raise click.UsageError(f"{name}: {word!r} cannot be read as such.") from None


def _require(replies: Any) -> Any:
    if not replies:
        raise CeleryCommandException(
            "No nodes replied within time constraint. Is a worker running that has this broker?", UNREACHABLE
        )
    return replies


def _is_error(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and "error" in value


def _say_status(reply: Mapping[str, Any]) -> None:
    for node in reply:
        click.echo(f"->  {node}: {click.style('OK', fg='green')}")


def _say_reply(reply: Mapping[str, Any]) -> None:
    for node, value in reply.items():
        word, text = _pretty(value)
        click.echo(f"->  {node}: {word}")
        if text:
            click.echo("\n".join(2 * _INDENT + line for line in text.splitlines()))


def _pretty(value: Any) -> tuple[str, str]:
    ok = click.style("OK", fg="green", bold=True)
    if _is_error(value):
        return click.style("ERROR", fg="red", bold=True), _text(value["error"])
    if isinstance(value, Mapping) and len(value) == 1 and "ok" in value:
        return ok, _text(value["ok"])
    if isinstance(value, (list, tuple)):
        return ok, "\n".join(f"* {_text(item)}" for item in value) if value else "- empty -"
    return ok, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else pprint.pformat(value, width=100)


def _say_count(state: State, replies: Sized) -> None:
    if not state.given.quiet:
        count = len(replies)
        say(f"\n{count} node{'' if count == 1 else 's'} online.")
