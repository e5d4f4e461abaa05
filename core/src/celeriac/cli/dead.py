"""`celeriac dead`: the messages that were set aside: list, show, give back, drop."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from celeriac.cli.errors import FAILED, say
from celeriac.cli.group import Command, State, option
from celeriac.cli.types import Words
from celeriac.spec.data import DeadLetter, Head

if TYPE_CHECKING:
    from celeriac.spec.transport import DeadLetters, Transport

PAGE = 1000
#: Entries that travel in one command to the broker.
BATCH = 200

of_queues = option("-Q", "--queues", type=Words(), default="", help="Only of these queues (a,b,c).")
of_task = option("--task", metavar="NAME", help="Only calls of this task.")
of_reason = option("--reason", metavar="TEXT", help="Only those whose reason has this text in it.")
as_json = option("--json", "as_json", is_flag=True, help="Print JSON.")


class Found(NamedTuple):
    """A dead letter with what its head says; of bytes that are no message both are empty."""

    letter: DeadLetter
    task_id: str
    task: str


class Wanted(NamedTuple):
    """Which dead letters a command is about. Of `ids`, ids of entries or of calls, an empty one means any."""

    queues: Sequence[str] = ()
    ids: Sequence[str] = ()
    task: str | None = None
    reason: str | None = None

    def fits(self, found: Found) -> bool:
        return (
            (not self.ids or found.letter.id in self.ids or found.task_id in self.ids)
            and (self.task is None or found.task == self.task)
            and (self.reason is None or self.reason.lower() in found.letter.reason.lower())
        )


@click.group()
def dead() -> None:
    """List, show, give back or drop the messages that were set aside.

    A message is set aside when it cannot be read, when no worker knows its task, when it has killed its process several
    times, or when its task says so. Nobody is given it until a person decides.
    """


@dead.command("list", cls=Command)
@of_queues
@of_task
@of_reason
@option("-n", "--limit", type=int, default=50, show_default=True, help="At most so many, oldest first; 0 for all.")
@as_json
@click.pass_context
def list_dead(
    ctx: click.Context, queues: list[str], task: str | None, reason: str | None, limit: int, as_json: bool
) -> None:
    """List what was set aside, oldest first."""
    app = _app(ctx)
    box: DeadLetters = app.transport
    shown: list[Found] = []
    more = False
    for found in _find(app, Wanted(queues, task=task, reason=reason)):
        if limit and len(shown) >= limit:
            more = True
            break
        shown.append(found)
    if as_json:
        click.echo(json.dumps([_describe(found) for found in shown], indent=2))
        return
    for found in shown:
        letter = found.letter
        called = f"{found.task}[{found.task_id}]" if found.task else "not a message that can be read"
        click.echo(f"{letter.id}  {_time(letter.at)}  {letter.queue}  attempt {letter.attempt}  {_line(called)}")
        click.echo(f"    {_line(letter.reason)}")
    boxes = [one for one in box.dead_boxes(queues or list(app.router.queues)) if one.count or one.dropped]
    kept = ", ".join(
        f"{one.queue} {one.count}" + (f" ({one.dropped} older ones dropped)" if one.dropped else "") for one in boxes
    )
    say(f"Set aside: {kept or 'nothing'}." + (f" Shown are {len(shown)}; --limit 0 shows all." if more else ""))


@dead.command("show", cls=Command)
@click.argument("id", metavar="ID")
@of_queues
@option("--raw", is_flag=True, help="Write the bytes of the message as they are, and nothing else.")
@as_json
@click.pass_context
def show(ctx: click.Context, id: str, queues: list[str], raw: bool, as_json: bool) -> None:
    """Show all that is known of one: ID is its own, or that of the call."""
    app = _app(ctx)
    found = next(_find(app, Wanted(queues, ids=[id])), None)
    if found is None:
        raise click.ClickException(f"Nothing that was set aside has the id {id}.")
    if raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(found.letter.raw)
        return
    facts = {**_describe(found), **_content(app.transport, found.letter)}
    if as_json:
        click.echo(json.dumps(facts, indent=2, default=repr))
        return
    facts["at"] = _time(found.letter.at)
    for key, value in facts.items():
        if value not in ("", None):
            text: str = value if isinstance(value, str) else json.dumps(value, default=repr)
            click.echo(f"{key + ':':10} " + "\n           ".join([_line(line) for line in text.splitlines()]))


def _choice(verb: str) -> Callable[[Any], Callable[..., None]]:
    def add(command: Any) -> Callable[..., None]:
        for decorate in (
            as_json,
            option("-f", "--force", is_flag=True, help="Do not ask."),
            option("--all", "everything", is_flag=True, help=f"{verb} all of them."),
            of_reason,
            of_task,
            of_queues,
            click.argument("ids", nargs=-1, metavar="[ID]..."),
        ):
            command = decorate(command)
        chosen: Callable[..., None] = command
        return chosen

    return add


@dead.command("requeue", cls=Command)
@_choice("Give back")
@click.pass_context
def requeue(ctx: click.Context, /, **given: Any) -> None:
    """Give messages back to their queues, as if they had never been delivered.

    Name their ids (or those of the calls), or choose by --task, --reason, -Q, or --all.
    """
    _act(ctx, "requeue", **given)


@dead.command("drop", cls=Command)
@_choice("Drop")
@click.pass_context
def drop(ctx: click.Context, /, **given: Any) -> None:
    """Remove messages for good. They cannot be had back.

    Name their ids (or those of the calls), or choose by --task, --reason, -Q, or --all.
    """
    _act(ctx, "drop", **given)


def _act(
    ctx: click.Context,
    verb: str,
    *,
    ids: tuple[str, ...],
    queues: list[str],
    task: str | None,
    reason: str | None,
    everything: bool,
    force: bool,
    as_json: bool,
) -> None:
    if not (ids or queues or task or reason or everything):
        raise click.UsageError("Which ones? Name ids, or --task, --reason, --queues, or --all.")
    app = _app(ctx)
    chosen = list(_find(app, Wanted(queues, ids, task, reason)))
    known = {found.letter.id for found in chosen} | {found.task_id for found in chosen}
    missing = [id for id in ids if id not in known]
    for id in missing:
        say(f"Nothing that was set aside has the id {id}.")
    done = 0
    if chosen:
        if not force and not _confirm(verb, chosen):
            say("Nothing was changed.")
            ctx.exit(FAILED)
        done = _perform(app.transport, verb, chosen)
    if as_json:
        click.echo(json.dumps({"verb": verb, "chosen": len(chosen), "done": done, "missing": missing}))
    else:
        what = "Gave back" if verb == "requeue" else "Dropped"
        click.echo(f"{what} {done} message{'' if done == 1 else 's'}.")
    ctx.exit(FAILED if missing or done < len(chosen) else 0)


def _perform(box: DeadLetters, verb: str, chosen: list[Found]) -> int:
    act = box.requeue_dead if verb == "requeue" else box.drop_dead
    by_queue: dict[str, list[str]] = {}
    for found in chosen:
        by_queue.setdefault(found.letter.queue, []).append(found.letter.id)
    done = 0
    label = "Giving back" if verb == "requeue" else "Dropping"
    with click.progressbar(length=len(chosen), label=label, file=sys.stderr) as bar:
        for queue, ids in by_queue.items():
            for at in range(0, len(ids), BATCH):
                piece = ids[at : at + BATCH]
                done += act(queue, piece)
                bar.update(len(piece))
    return done


def _confirm(verb: str, chosen: list[Found]) -> bool:
    queues = sorted({found.letter.queue for found in chosen})
    what = "give back" if verb == "requeue" else "drop for good"
    say(f"This will {what} {len(chosen)} message(s) of {', '.join(queues)}. (-f to skip this question.)")
    return click.confirm("Are you sure?", default=False, err=True)


def _app(ctx: click.Context) -> Any:
    state: State = ctx.obj
    app = state.app()
    app.kernel.require(app.transport, {"browse_dead"}, because="celeriac dead was called")
    return app


def _find(app: Any, wanted: Wanted) -> Iterator[Found]:
    """The dead letters that are wanted, page by page."""
    transport = app.transport
    box: DeadLetters = transport
    queues = wanted.queues or [one.queue for one in box.dead_boxes(list(app.router.queues)) if one.count]
    for queue in queues:
        after = ""
        while page := box.browse_dead(queue, after=after, limit=PAGE):
            for letter in page:
                head = transport.read_head(letter.raw)
                found = Found(letter, head.id, head.task) if isinstance(head, Head) else Found(letter, "", "")
                if wanted.fits(found):
                    yield found
            after = page[-1].id
            if len(page) < PAGE:
                break


def _describe(found: Found) -> dict[str, Any]:
    letter = found.letter
    return {
        "id": letter.id,
        "queue": letter.queue,
        "task": found.task,
        "task_id": found.task_id,
        "reason": letter.reason,
        "attempt": letter.attempt,
        "at": letter.at,
        "owner": letter.owner,
        "bytes": len(letter.raw),
        "error": letter.error,
    }


def _content(transport: Transport, letter: DeadLetter) -> dict[str, Any]:
    """Headers and body as they can be shown."""
    try:
        payload = transport.unpack(letter.raw)
    except ValueError as exc:
        return {"unreadable": str(exc), "raw": repr(letter.raw[:1000])}
    return {
        "headers": payload.headers,
        "properties": payload.properties,
        "content": payload.content_type,
        "body": repr(payload.body[:1000]),
    }


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _line(text: str) -> str:
    """Text from a message, safe on a terminal: without control characters."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
