"""`celeriac plugins`: what is installed, what one of them is, and whether they can be loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from celeriac.cli.errors import FAILED, OK
from celeriac.cli.group import Command, option
from celeriac.cli.plugin_check import Verdict, check_plugin
from celeriac.exceptions import PluginError, PluginNotFound
from celeriac.kernel.discovery import PluginInfo, catalog
from celeriac.kernel.kernel import Kernel
from celeriac.spec.hooks import KINDS

as_json = option("--json", "as_json", is_flag=True, help="Print JSON.")
of_kind = option("-k", "--kind", type=click.Choice(list(KINDS)), help="Only plugins of this kind.")


@click.group(invoke_without_command=True)
@option("--check", "check_all", is_flag=True, help="The same as the command check.")
@click.pass_context
def plugins(ctx: click.Context, /, check_all: bool) -> None:
    """List, show and check the installed plugins.

    `list` and `show` read metadata and import nothing; `check` imports each plugin in a process of its own.
    """
    if ctx.invoked_subcommand is None and check_all:
        ctx.invoke(check, name=None, timeout=10.0, as_json=False)
    elif ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins, kind=None, as_json=False)


@plugins.command("list", cls=Command)
@of_kind
@as_json
def list_plugins(kind: str | None, as_json: bool) -> None:
    """List the installed plugins."""
    found = catalog().all(kind)
    if as_json:
        click.echo(json.dumps([_describe(info) for info in found], indent=2))
        return
    rows = [(info.kind, info.name, info.dist_name, info.dist_version, _remark(info)) for info in found]
    _print_table(("KIND", "NAME", "DIST", "VERSION", ""), rows)
    for trouble in catalog().troubles:
        click.secho(trouble, fg="yellow", err=True)


@plugins.command("show", cls=Command)
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show what is known about NAME, which is redis, broker:redis or redis@dist."""
    found = [{**_describe(info), **_details(info)} for info in _find(name)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for number, facts in enumerate(found):
        if number:
            click.echo()
        for key, value in facts.items():
            if value:
                click.echo(f"{key + ':':10} {', '.join(value) if isinstance(value, list) else value}")


@plugins.command("check", cls=Command)
@click.argument("name", required=False)
@option("--timeout", type=float, default=10.0, show_default=True, metavar="SECONDS", help="For each plugin.")
@as_json
@click.pass_context
def check(ctx: click.Context, name: str | None, timeout: float, as_json: bool) -> None:
    """Import each installed plugin, or NAME, and see whether it keeps its contract.

    Each is loaded in a process of its own, so one that hangs or ends its process is reported like any other.
    Ends with 1 if one is bad.
    """
    found = _unaliased(_find(name) if name else catalog().all())
    verdicts: list[Verdict] = []
    with (
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads,
        click.progressbar(length=len(found), label="Checking", file=sys.stderr) as bar,
    ):
        for verdict in threads.map(lambda info: check_plugin(info, timeout), found):
            verdicts.append(verdict)
            bar.update(1)
    troubles = catalog().troubles
    if as_json:
        facts = [
            {**_describe(info), "ok": verdict.ok, "error": verdict.error}
            for info, verdict in zip(found, verdicts, strict=True)
        ]
        click.echo(json.dumps(facts, indent=2))
    else:
        for info, verdict in zip(found, verdicts, strict=True):
            mark = click.style("ok ", fg="green") if verdict.ok else click.style("BAD", fg="red", bold=True)
            click.echo(f"{mark} {info}" if verdict.ok else f"{mark} {verdict.error}")
        for trouble in troubles:
            click.echo(f"{click.style('BAD', fg='red', bold=True)} {trouble}")
    ctx.exit(OK if all(verdict.ok for verdict in verdicts) and not troubles else FAILED)


def _find(name: str) -> list[PluginInfo]:
    """All plugins that `name` may mean."""
    kind, colon, rest = name.partition(":")
    if colon and kind not in KINDS:
        raise PluginNotFound(f"there is no kind {kind!r} of plugins; there are {', '.join(KINDS)}.", kind=kind)
    kinds: Sequence[str] = [kind] if colon else list(KINDS)
    bare, _, dist = (rest if colon else name).partition("@")
    found = [info for one in kinds for info in catalog().named(one, bare) if not dist or info.dist_name == dist]
    if not found:
        names = sorted({info.name for info in catalog().all() if info.kind in kinds})
        raise PluginNotFound(f"no installed plugin is named {name!r}. Installed: {', '.join(names) or 'none'}.")
    return found


def _unaliased(infos: Iterable[PluginInfo]) -> list[PluginInfo]:
    """The first name of each module only."""
    first: dict[tuple[str, str, str], PluginInfo] = {}
    for info in infos:
        first.setdefault((info.kind, info.module, info.dist_name), info)
    return list(first.values())


def _describe(info: PluginInfo) -> dict[str, Any]:
    return {
        "kind": info.kind,
        "name": info.name,
        "dist": info.dist_name,
        "version": info.dist_version,
        "module": info.module,
        "remark": _remark(info),
    }


def _details(info: PluginInfo) -> dict[str, Any]:
    dist = info.entry_point.dist
    metadata: Any = dist.metadata if dist is not None else {}
    aliases = [one.name for one in catalog().all(info.kind) if one.module == info.module and one.name != info.name]
    return {
        "aliases": aliases,
        "summary": metadata.get("Summary", ""),
        "license": metadata.get("License-Expression") or metadata.get("License", ""),
        "requires": list(dist.requires or ()) if dist is not None else [],
        "folder": str(dist.locate_file("")) if dist is not None else "",
        "hook": KINDS[info.kind][2],
    }


def _remark(info: PluginInfo) -> str:
    """Why it could not be chosen by its name alone; empty if it could."""
    try:
        Kernel({}).find(info.kind, f"{info.name}@{info.dist_name}" if info.dist_name else info.name)
    except PluginError as exc:
        return type(exc).__name__.removeprefix("Plugin").lower()
    return "several dists have this name" if len(catalog().named(info.kind, info.name)) > 1 else ""


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        click.echo("No plugin is installed. Try: pip install 'celeriac[standard]'")
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for number, row in enumerate([head, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)
