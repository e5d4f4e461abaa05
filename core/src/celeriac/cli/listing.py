"""`celeriac list` and `celeriac graph`: what is bound to what, and what starts in which order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

import click

from celeriac.bootsteps import Step, in_order, is_required
from celeriac.cli.fleet import is_error
from celeriac.cli.group import Command, State, option
from celeriac.cli.types import WAIT

as_json = option("--json", "as_json", is_flag=True, help="Print JSON.")

#: What a worker starts, in this order, and what each step needs: `worker/worker.py` is the program.
STEPS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("Settings", ()),
    ("Tasks", ("Settings",)),
    ("Plugins", ("Settings",)),
    ("Transport", ("Plugins",)),
    ("ResultBackend", ("Plugins",)),
    ("Pool", ("Plugins", "Tasks")),
    ("Consumer", ("Transport", "Pool")),
    ("Settle", ("ResultBackend", "Consumer")),
    ("RemoteControl", ("Transport", "Consumer")),
    ("Beat", ("Transport", "Tasks")),
)


#: A program's own steps, and after what they start.
OWN_STEPS: Final = {"worker": "Pool", "consumer": "RemoteControl"}


@click.group("list")
def list_group() -> None:
    """List what the app declares."""


@list_group.command("bindings", cls=Command)
@as_json
@click.pass_obj
def bindings(state: State, /, as_json: bool) -> None:
    """List queues with the exchange, key and type that feed them."""
    app = state.app()
    specs = [spec for _, spec in sorted(app.router.queues.items())]
    if as_json:
        rows = [
            {"queue": s.name, "exchange": s.exchange, "routing_key": s.routing_key, "type": s.exchange_type}
            for s in specs
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    table = [("QUEUE", "EXCHANGE", "ROUTING KEY", "TYPE")]
    table += [(s.name, s.exchange or "(default)", s.routing_key or s.name, s.exchange_type) for s in specs]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())


@click.group()
def graph() -> None:
    """Print graphs in the language of Graphviz: celeriac graph workers | dot -Tsvg."""


@graph.command("bootsteps", cls=Command)
@click.argument("words", nargs=-1)
@click.pass_obj
def bootsteps(state: State, /, words: tuple[str, ...]) -> None:
    """Print what a worker starts, the app's own steps among it, and what each needs."""
    names = [name for name, _ in STEPS]
    edges = [(name, need) for name, needs in STEPS for need in needs]
    own = state.app().steps
    for place, after in OWN_STEPS.items():
        before: list[type[Step]] = []
        for kind in in_order(own.get(place, ())):
            names.append(name_of(kind))
            edges.append((name_of(kind), after))
            edges += [(name_of(kind), name_of(other)) for other in before if is_required(other, kind)]
            before.append(kind)
    click.echo("\n".join(dot("bootsteps", names, edges)))


def name_of(kind: type[Step]) -> str:
    """What a step of the program's own is called."""
    return kind.label or kind.name or f"{kind.__module__}:{kind.__qualname__}"


@graph.command("workers", cls=Command)
@click.argument("words", nargs=-1, metavar="[KEY:VALUE]...")
@option("-t", "--timeout", type=WAIT, default=1.0, show_default=True, help="Wait so many seconds for workers.")
@click.pass_obj
def workers(state: State, /, words: tuple[str, ...], timeout: float) -> None:
    """Print workers, their queues and the broker.

    Words say what is there instead of asking: nodes:w1,w2 queues:celery,mail.
    """
    given = dict(word.partition(":")[::2] for word in words)
    app = state.app()
    if "nodes" in given:
        queues = [name for name in given.get("queues", "").split(",") if name] or list(app.router.queues)
        found: dict[str, list[str]] = {name: queues for name in given["nodes"].split(",") if name}
    else:
        answers = app.control.inspect(timeout=timeout).active_queues() or {}
        found = {
            node: [queue["name"] for queue in queues]
            for node, queues in sorted(answers.items())
            if not is_error(queues)  # a scheduler, which consumes nothing
        }
    names = sorted({queue for queues in found.values() for queue in queues})
    edges = [(node, queue) for node, queues in found.items() for queue in queues]
    edges += [(queue, "broker") for queue in names]
    click.echo("\n".join(dot("workers", [*found, *names, "broker"], edges)))


def dot(name: str, nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A directed graph, line by line."""
    yield f"digraph {name} {{"
    yield '    rankdir="LR";'
    for node in nodes:
        yield f"    {json.dumps(node)};"
    for start, end in edges:
        yield f"    {json.dumps(start)} -> {json.dumps(end)};"
    yield "}"
