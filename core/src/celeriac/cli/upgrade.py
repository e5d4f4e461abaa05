"""`celeriac upgrade settings`: rewrite the names that settings had before Celery 4."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from io import BytesIO
from tokenize import NAME, OP, TokenError, tokenize
from typing import Final

import click

from celeriac.app.settings_table import TABLE
from celeriac.cli.errors import say
from celeriac.cli.group import Command, option

#: Name before Celery 4 → name since.
OLD: Final = {setting.old: setting.name for setting in TABLE.values() if setting.old}


@click.group()
def upgrade() -> None:
    """Bring a program's files up to date."""


@upgrade.command("settings", cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, writable=True), metavar="FILE")
@option("--django", is_flag=True, help="New names in capitals behind CELERY_, for namespace='CELERY'.")
@option("--compat", is_flag=True, help="The same; Celery's other word for it.")
@option("--dry-run", is_flag=True, help="Leave FILE as it is and print what would stand in it.")
@option("--no-backup", is_flag=True, help="Do not keep the old file as FILE.orig.")
def settings(file: str, django: bool, compat: bool, dry_run: bool, no_backup: bool) -> None:
    """Rewrite the old upper-case names of settings in FILE (BROKER_URL, CELERYD_CONCURRENCY …).

    Only names of the program are touched, not text or comments.
    """
    with open(file, "rb") as source:
        old = source.read()
    try:
        new, changes = rewrite(
            old, {name: f"CELERY_{to.upper()}" if django or compat else to for name, to in OLD.items()}
        )
    except (SyntaxError, TokenError, UnicodeDecodeError) as exc:
        raise click.UsageError(f"{file} cannot be read as Python: {exc}.") from exc
    if dry_run:
        click.echo(new.decode("utf-8", "replace"), nl=False)
        return
    for was, now in sorted(changes.items()):
        say(f"{was} -> {now}")
    if not changes:
        click.echo(f"{file}: no old names.")
        return
    if not no_backup:
        shutil.copy2(file, f"{file}.orig")
    _replace(file, new)
    kept = "" if no_backup else f" The old file is {file}.orig."
    click.echo(f"{file}: {len(changes)} name{'' if len(changes) == 1 else 's'} changed.{kept}")


def rewrite(source: bytes, names: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The program with these names replaced, and which were.

    A name counts where it is one of the module or the class: not as an attribute (`x.NAME`) nor as a keyword of a call.

    Raises:
        SyntaxError, TokenError: It is no Python.
    """
    tokens = list(tokenize(BytesIO(source).readline))
    encoding = tokens[0].string
    lines = source.decode(encoding).split("\n")  # as tokenize counts them: a form feed, say, ends no line
    changes: dict[str, str] = {}
    depth = 0
    found: list[tuple[int, int, str, str]] = []
    for at, token in enumerate(tokens):
        if token.type == OP and token.string in "([{":
            depth += 1
        elif token.type == OP and token.string in ")]}":
            depth -= 1
        new = names.get(token.string) if token.type == NAME else None
        if new is None or new == token.string:
            continue
        before, after = tokens[at - 1].string, tokens[at + 1].string
        if before == "." or (depth and after == "="):
            continue
        changes[token.string] = new
        found.append((*token.start, token.string, new))
    for row, column, was, new in sorted(found, reverse=True):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + new + line[column + len(was) :]
    return "\n".join(lines).encode(encoding), changes


def _replace(path: str, data: bytes) -> None:
    """In one step, so that a full disk costs nothing."""
    folder = os.path.dirname(os.path.abspath(path))
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".celeriac-upgrade-")
    try:
        with open(descriptor, "wb") as out:
            out.write(data)
        shutil.copymode(path, name)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
