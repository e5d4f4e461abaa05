"""The page about the command line names every command, option and variable, and no other."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click

from celeriac.cli.group import COMMANDS, common_options
from celeriac.log.lines import WORDS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "command-line.md").read_text()


def options(parameters: list[click.Parameter]) -> set[str]:
    return {name for one in parameters if isinstance(one, click.Option) and not one.hidden for name in one.opts}


def test_every_command_is_on_it() -> None:
    assert [name for name in COMMANDS if not re.search(rf"^\| `{name}\b", PAGE, re.M)] == []


def test_every_option_of_the_worker_and_of_all_commands_is_on_it() -> None:
    worker = import_module(COMMANDS["worker"][0]).worker
    wanted = options(worker.params) | options(list(common_options(hidden=False)))
    assert {name for name in wanted if f"`{name}`" not in PAGE} == set()


def test_every_variable_of_the_common_options_is_on_it() -> None:
    variables = {name for one in common_options(hidden=False) for name in one.envvar or ()}
    assert {name for name in variables if f"`{name}`" not in PAGE} == set()


def test_it_names_only_events_that_exist() -> None:
    named = set(re.findall(r"`(task\.\w+)`", PAGE))
    assert named - set(WORDS) == set()
