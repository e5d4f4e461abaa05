"""How `celeriac multi` reads its words: the rules of Celery's."""

from __future__ import annotations

import shlex
import signal

import click
import pytest
from click.testing import CliRunner

from celeriac.cli.multi import command_of, multi, parse, split
from celeriac.cli.worker import worker
from celeriac.utils.ids import hostname


def nodes(text: str) -> dict[str, dict[str, str | None]]:
    return {node.name.partition("@")[0]: dict(node.options) for node in parse(shlex.split(text)).nodes}


def test_nodes_are_names_or_a_number() -> None:
    assert list(nodes("start w1 w2")) == ["w1", "w2"]
    assert list(nodes("start 3")) == ["celery1", "celery2", "celery3"]
    assert list(nodes("start 2 --range-prefix=x")) == ["x1", "x2"]
    assert parse(["start", "w1"]).nodes[0].name == f"w1@{hostname()}"
    assert parse(["start", "w1@there"]).nodes[0].name == "w1@there"
    assert parse(["start", "w1", "--suffix=there"]).nodes[0].name == "w1@there"
    assert parse(["start", "w1", "--hostname=there"]).nodes[0].name == "w1@there"


def test_an_option_is_for_all_or_for_some() -> None:
    found = nodes("start 4 -A proj -c 3 -c:1 10 -Q:2-3 images,video -l:celery4 debug -E")
    assert [each["-c"] for each in found.values()] == ["10", "3", "3", "3"]
    assert [each.get("-Q") for each in found.values()] == [None, "images,video", "images,video", None]
    assert [each.get("-l") for each in found.values()] == [None, None, None, "debug"]
    assert all(each["-A"] == "proj" and each["-E"] is None for each in found.values())


def test_names_may_follow_options_that_have_no_value() -> None:
    assert list(nodes("start -E w1 --purge w2 -A proj w3")) == ["w1", "w2", "w3"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("begin w1", "there is no 'begin'"),
        ("start", "which nodes"),
        ("start 2 -c:3 1", "outside of the 2 nodes"),
        ("start w1 -c:w2 1", "there is no node 'w2'"),
        ("stop w1 -SIGNONE", "no signal SIGNONE"),
    ],
)
def test_wrong_words_are_named(words: str, complaint: str) -> None:
    with pytest.raises(click.UsageError, match=complaint):
        parse(shlex.split(words))


def test_a_signal_may_be_chosen() -> None:
    assert parse(["stop", "w1"]).signum == signal.SIGTERM
    assert parse(["stop", "w1", "-INT"]).signum == parse(["stop", "w1", "-SIGINT"]).signum == signal.SIGINT
    assert parse(["stop", "-QUIT", "w1", "w2"]).signum == signal.SIGQUIT
    assert parse(["kill", "w1"]).signum == signal.SIGKILL


def test_a_command_has_the_nodes_name_and_files() -> None:
    request = parse(shlex.split("start w1 -A proj -c 2 --pidfile=/run/%n.pid --append='x=1' -- worker.prefetch=1"))
    words = command_of(request.nodes[0], request)
    assert words[1:6] == ["-m", "celeriac", "-A", "proj", "worker"]
    assert words[6:9] == ["--detach", "-n", f"w1@{hostname()}"]
    assert "--pidfile=/run/w1.pid" in words
    assert "--logfile=/var/log/celery/w1%I.log" in words
    assert words[words.index("-c") + 1] == "2"
    assert words[-3:] == ["x=1", "--", "worker.prefetch=1"]
    assert request.nodes[0].pidfile == "/run/w1.pid"


def test_what_would_be_run_is_shown() -> None:
    run = CliRunner().invoke
    assert run(multi, ["names", "2"]).output == f"celery1@{hostname()}\ncelery2@{hostname()}\n"
    assert run(multi, ["expand", "/run/%n.pid", "w1", "w2"]).output == "/run/w1.pid\n/run/w2.pid\n"
    shown = run(multi, ["show", "w1", "w2", "-A", "proj"]).output.splitlines()
    assert len(shown) == 2
    assert run(multi, ["get", "w2", "w1", "w2", "-A", "proj"]).output == f"{shown[1]}\n"
    assert "stopwait" in run(multi, ["--help"]).output


def test_no_option_of_the_worker_without_a_value_takes_a_node_for_one() -> None:
    flags = {
        word
        for option in worker.params
        if isinstance(option, click.Option) and option.is_flag
        for word in (*option.opts, *option.secondary_opts)
    }
    assert {flag for flag in flags if split([flag, "w1"])[0] != ["w1"]} == set()
