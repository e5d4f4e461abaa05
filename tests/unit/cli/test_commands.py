"""The small commands and what all commands share: options, environment, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from celeriac import Celery
from celeriac.cli.events import _print_event
from celeriac.cli.group import COMMANDS, State, run
from celeriac.exceptions import TaskRevokedError


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    """An app with a task, in memory."""
    url = f"memory://{request.node.name}"
    app = Celery("tasks", broker=url, backend=url, set_as_current=False)

    @app.task(name="tasks.add")
    def add(x: int, y: int) -> int:
        return x + y

    return app


@pytest.fixture
def celeriac(app: Celery, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run_one(*words: str, app: Any = app) -> Ran:
        code = run(list(words), app)
        return Ran(code, *capsys.readouterr())

    return run_one


# -- help -------------------------------------------------------------------------------------------------


def test_help_imports_no_command_and_names_all() -> None:
    code = (
        "import sys; from celeriac.cli.group import run; run(['--help']);"
        "print([name for name in sys.modules if name in ('celeriac.app.base', 'structlog', 'kombu', 'rich')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert [name for name in COMMANDS if f"  {name} " not in ran.stdout] == []
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_agrees_with_the_table(celeriac: Run, command: str) -> None:
    ran = celeriac(command, "--help")
    assert ran.code == 0
    assert f"Usage: celeriac {command}" in ran.out


def test_a_misspelt_command_is_answered_with_the_near_one(celeriac: Run) -> None:
    ran = celeriac("wroker")
    assert ran.code == 2
    assert "Did you mean 'worker'?" in ran.err


def test_an_unknown_command_is_answered_with_all(celeriac: Run) -> None:
    ran = celeriac("xyzzy")
    assert ran.code == 2
    assert "There are: worker, call" in ran.err


def test_a_misspelt_option_is_answered_with_the_near_one(celeriac: Run) -> None:
    ran = celeriac("worker", "--concurency", "2")
    assert ran.code == 2
    assert "--concurrency" in ran.err


def test_the_version_is_printed(celeriac: Run) -> None:
    ran = celeriac("--version")
    assert (ran.code, ran.out) == (0, "celeriac 0.1.0\n")


def test_shell_completion_knows_the_commands() -> None:
    environment = {**os.environ, "_CELERIAC_COMPLETE": "bash_complete", "COMP_WORDS": "celeriac pl", "COMP_CWORD": "1"}
    program = Path(sys.executable).parent / "celeriac"
    ran = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "plugins" in ran.stdout


def test_an_extensions_command_is_a_command(fake_site: Any, tmp_path: Path) -> None:
    source = (
        "import click\nfrom celeriac.spec import hookimpl\nCELERIAC_API = (1, 0)\n"
        "@hookimpl\ndef celeriac_add_commands(group):\n"
        "    group.add_command(click.Command('greet', callback=lambda: click.echo('hello'), help='Greet.'))\n"
    )
    fake_site.install("extension", "greeter", source)
    fake_site.install("extension", "broken", "1 / 0")
    program = Path(sys.executable).parent / "celeriac"
    for words, expected in ((["greet"], "hello"), (["--help"], "greet +Greet.")):
        ran = subprocess.run(
            [program, *words], env=fake_site.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0
        assert re.search(expected, ran.stdout)
        assert "plugin extension:broken" in ran.stderr


# -- options all commands share -----------------------------------------------------------------------------


def test_common_options_may_stand_before_and_behind_the_command(celeriac: Run, app: Celery) -> None:
    celeriac("-b", "memory://before", "purge", "-f")
    assert app.conf.broker_url == "memory://before"
    celeriac("purge", "-f", "-b", "memory://behind")
    assert app.conf.broker_url == "memory://behind"


def test_an_option_behind_the_command_counts_though_the_app_was_found_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app_early.py").write_text(
        "from celeriac import Celery\napp = Celery('there', broker='memory://early')\n"
    )
    state = State()
    monkeypatch.syspath_prepend(tmp_path)
    state.take({"app": "app_early"})
    assert state.app().conf.broker_url == "memory://early"
    state.take({"broker": "memory://late"})
    assert state.app().conf.broker_url == "memory://late"


@pytest.mark.parametrize("variable", ["CELERIAC_BROKER", "CELERY_BROKER", "BROKER_URL"])
def test_the_broker_may_come_from_the_environment(celeriac: Run, app: Celery, variable: str) -> None:
    os.environ[variable] = "memory://environment"
    celeriac("purge", "-f")
    assert app.conf.broker_url == "memory://environment"


@pytest.mark.parametrize("prefix", ["CELERIAC", "CELERY"])
def test_a_commands_options_may_come_from_the_environment(celeriac: Run, prefix: str) -> None:
    os.environ[f"{prefix}_CALL_ARGS"] = "[1"
    ran = celeriac("call", "tasks.add")
    assert ran.code == 2
    assert "'[1' is not JSON" in ran.err


def test_workdir_is_entered_first(celeriac: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "app_workdir.py").write_text("from celeriac import Celery\napp = Celery('there', broker='memory://')\n")
    ran = celeriac("--workdir", str(tmp_path), "-A", "app_workdir", "report", app=None)
    assert "app -> there" in ran.out
    assert "cannot enter '/nonexistent'" in celeriac("--workdir", "/nonexistent", "report").err


def test_a_worker_without_an_app_asks_for_one(celeriac: Run) -> None:
    ran = celeriac("worker", app=None)
    assert ran.code == 2
    assert "Which app?" in ran.err


# -- errors -------------------------------------------------------------------------------------------------


def test_an_unreachable_broker_ends_with_69_and_one_sentence(celeriac: Run) -> None:
    ran = celeriac("-b", "redis://:secret@localhost:1/0", "call", "tasks.add", "-a", "[1, 2]")
    assert ran.code == 69
    (line,) = ran.err.strip().splitlines()
    assert "localhost:1" in line
    assert "secret" not in line


def test_an_error_that_begins_with_a_tasks_name_leaves_it_as_it_is(celeriac: Run, app: Celery) -> None:
    app.task(lambda: None, name="shop.bill", rate_limit="often")
    ran = celeriac("worker", "-P", "solo")
    assert ran.code == 2
    assert ran.err.startswith("Error: shop.bill: ")


def test_a_wrong_setting_ends_with_2_and_one_sentence(celeriac: Run) -> None:
    ran = celeriac("worker", "broke_url=x")
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1


def test_a_bug_is_one_sentence_with_a_hint_and_a_traceback_when_asked_for(celeriac: Run) -> None:
    class Broken:
        conf = None

    ran = celeriac("report", app=Broken())
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "AttributeError" in ran.err
    assert "--traceback" in ran.err
    assert "Traceback" in celeriac("--traceback", "report", app=Broken()).err


@pytest.mark.parametrize(
    ("words", "env", "colored"),
    [
        (["-A", "no_such_app", "worker"], {}, True),
        (["-A", "no_such_app", "worker"], {"NO_COLOR": "1"}, False),
        (["-A", "no_such_app", "worker"], {"CELERIAC_NO_COLOR": "1"}, False),
        (["-C", "-A", "no_such_app", "worker"], {}, False),
        (["-A", "no_such_app", "worker", "-C"], {}, False),
    ],
)
def test_an_error_on_a_terminal_has_colours_unless_they_are_not_wanted(
    words: list[str], env: dict[str, str], colored: bool
) -> None:
    ours, theirs = os.openpty()
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("NO_COLOR")}
    command = [sys.executable, "-m", "celeriac", *words]
    ran = subprocess.run(command, stderr=theirs, env={**inherited, **env}, timeout=120, check=False)
    said = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert ran.returncode == 2
    assert "There is no module 'no_such_app'" in said
    assert ("\x1b[" in said) is colored


def test_a_broker_that_refuses_a_message_is_not_one_that_cannot_be_reached(celeriac: Run) -> None:
    ran = celeriac("call", "tasks.add", "--exchange", "nope")
    assert ran.code == 1
    assert "no queue is bound to exchange 'nope'" in ran.err


@pytest.mark.parametrize("name", ["nope", "nope:Loader", "os:nope"])
def test_a_loader_that_is_not_there_is_a_usage_error(celeriac: Run, name: str) -> None:
    ran = celeriac("--loader", name, "check")
    assert ran.code == 2
    assert f"there is no loader {name!r}" in ran.err


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback() -> None:
    """It takes long enough for people who see at once what they have mistyped."""
    script = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "celeriac.cli.group":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from celeriac.cli import main
main(["report"])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 130
    assert ran.stderr.strip() == "Aborted."


# -- call, result, purge, report ----------------------------------------------------------------------------


def test_call_sends_and_prints_the_id_and_purge_removes_it(celeriac: Run, app: Celery) -> None:
    ran = celeriac("call", "tasks.add", "-a", "[2]", "-k", '{"y": 2}', "--countdown", "60", "--expires", "90")
    assert ran.code == 0
    assert len(ran.out.strip()) == 36
    assert celeriac("purge", "-f").out == "Purged 1 message from queue celery.\n"
    assert celeriac("purge", "-f").out == "No messages purged from queue celery.\n"


def test_call_and_purge_speak_json_to_programs(celeriac: Run) -> None:
    for queue in ("a", "a", "b"):
        sent = json.loads(celeriac("call", "tasks.add", "--queue", queue, "--json").out)
        assert len(sent.pop("task_id")) == 36
        assert sent == {}
    assert json.loads(celeriac("purge", "-f", "-Q", "a,b,c", "--json").out) == {"a": 2, "b": 1, "c": 0}


def test_purge_asks_and_takes_silence_for_no(celeriac: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    celeriac("call", "tasks.add", "-a", "[2, 2]")
    monkeypatch.setattr("celeriac.cli.purge.click.confirm", lambda *_, **__: False)
    assert celeriac("purge").code == 1
    assert "Purged 1 message" in celeriac("purge", "-f").out


def test_purge_takes_queues_and_leaves_queues_out(celeriac: Run) -> None:
    for queue in ("a", "b", "c"):
        celeriac("call", "tasks.add", "--queue", queue)
    assert "Purged 2 messages from 2 queues: a, c." in celeriac("purge", "-f", "-Q", "a,b,c", "-X", "b").out
    assert celeriac("purge", "-f", "-Q", "a", "-X", "a").code == 2


def test_call_says_which_value_is_wrong(celeriac: Run) -> None:
    assert "is no JSON list" in celeriac("call", "x", "-a", "{}").err
    assert "neither a number of seconds nor a time" in celeriac("call", "x", "--eta", "tomorrow").err


def test_result_prints_the_value_and_its_code_tells_how_it_ended(celeriac: Run, app: Celery) -> None:
    app.backend.store_result("good", 4, "SUCCESS")
    app.backend.store_result("bad", ValueError("no"), "FAILURE", traceback="Traceback …")
    assert celeriac("result", "good") == Ran(0, "4\n", "")
    ran = celeriac("result", "bad")
    assert (ran.code, ran.out, ran.err) == (1, "", "FAILURE: ValueError: no\n")
    assert celeriac("result", "bad", "--traceback").out == "Traceback …\n"
    document = json.loads(celeriac("result", "bad", "--json").out)
    assert (document["state"], document["result"]) == ("FAILURE", "ValueError('no')")


def test_result_does_not_wait_when_told_so(celeriac: Run) -> None:
    ran = celeriac("result", "unheard-of", "--timeout", "0")
    assert ran.code == 1
    assert "its state is PENDING. Nothing is known of it" in ran.err


def test_report_shows_settings_without_secrets(celeriac: Run, app: Celery) -> None:
    app.conf.broker_url = "redis://user:canary@host/0"
    app.conf.broker_transport_options = {"password": "canary"}
    ran = celeriac("report")
    assert ran.code == 0
    assert "celeriac:0.1.0" in ran.out
    assert "celeriac-broker-memory:0.1.0" in ran.out
    assert "canary" not in ran.out


# -- plugins ------------------------------------------------------------------------------------------------


def test_plugins_are_listed_with_a_remark_where_a_name_is_taken_twice(celeriac: Run, fake_site: Any) -> None:
    fake_site.install("broker", "twice", "raise SystemExit", dist="acme-one")
    fake_site.install("broker", "twice", "raise SystemExit", dist="acme-two")
    ran = celeriac("plugins", "list", "--kind", "broker", "--json")
    remarks = {one["dist"]: one["remark"] for one in json.loads(ran.out) if one["name"] == "twice"}
    assert remarks == dict.fromkeys(["acme-one", "acme-two"], "several dists have this name")
    assert "acme-one" in celeriac("plugins").out


def test_a_plugin_is_shown_without_being_imported(celeriac: Run, fake_site: Any) -> None:
    fake_site.install("broker", "good", "raise SystemExit", dist="acme-good")
    assert "acme-good" in celeriac("plugins", "show", "broker:good").out
    ran = celeriac("plugins", "show", "gooood")
    assert ran.code == 2
    assert "no installed plugin is named 'gooood'" in ran.err.lower()


def test_one_plugin_can_be_checked(celeriac: Run, fake_site: Any) -> None:
    fake_site.install("broker", "good", dist="acme-good")
    fake_site.install("broker", "bad", "raise SystemExit", dist="acme-bad")
    assert celeriac("plugins", "check", "broker:good").code == 0
    ran = celeriac("plugins", "check", "bad")
    assert ran.code == 1
    assert "BAD plugin broker:bad (acme-bad 1.0) is broken" in ran.out


def test_result_of_a_revoked_call_says_that_it_has_ended(celeriac: Run, app: Celery) -> None:
    app.backend.store_result("gone", TaskRevokedError("revoked"), "REVOKED")
    ran = celeriac("result", "gone")
    assert (ran.code, ran.out, ran.err) == (1, "", "REVOKED: TaskRevokedError: revoked\n")


@pytest.mark.parametrize(
    ("shell", "code"),
    [("report >&- 2>&-", 0), ("nonsense 2>&-", 2)],
)
def test_a_closed_stream_is_as_one_that_nobody_reads(shell: str, code: int) -> None:
    program = Path(sys.executable).parent / "celeriac"
    ran = subprocess.run(f"{program} {shell}", shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", "")


@pytest.mark.parametrize(
    "words",
    [
        ("worker", "--heartbeat-interval", "-1"),
        ("worker", "--heartbeat-interval", "0"),
        ("worker", "--time-limit", "-5"),
        ("inspect", "-t", "nan", "ping"),
        ("status", "-t", "1e12"),
        ("beat", "--max-interval", "-1"),
    ],
)
def test_seconds_that_make_no_sense_are_refused(celeriac: Run, words: tuple[str, ...]) -> None:
    assert celeriac(*words).code == 2


def test_no_event_commands_the_terminal_or_forges_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    _print_event({"type": "task-sent", "hostname": "h\x1b[2J", "uuid": "u\nworker@h [x] forged", "name": "\udc80"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b" not in out


def test_a_task_of_a_module_that_the_app_includes_is_known(
    celeriac: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "has_included_tasks"
    (tmp_path / f"{name}.py").write_text(
        f"from celeriac import Celery\napp = Celery(broker='memory://{name}', backend='memory://{name}', "
        f"include=['{name}_there'], set_as_current=False)\n"
    )
    (tmp_path / f"{name}_there.py").write_text(f"from {name} import app\nadd = app.task(name='there.add')(max)\n")
    monkeypatch.chdir(tmp_path)
    assert celeriac("-A", name, "call", "there.add", app=None).err == ""
    assert "PENDING" in celeriac("-A", name, "result", "-t", "there.add", "--timeout", "0", "x", app=None).err
    assert "sent all the same" in celeriac("-A", name, "call", "there.sub", app=None).err
