"""`migrate`, `upgrade`, `list`, `graph`, `shell`, `report`, and commands that others bring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import pytest

from celeriac import Celery, bootsteps
from celeriac.cli import group as group_room
from celeriac.cli.group import run
from celeriac.cli.shell import shell_names
from celeriac.contrib import migrate
from celeriac_broker_memory.transport import MemoryConsumer


def make_app(name: str, **settings: Any) -> Celery:
    given = {"broker_url": f"memory://{name}", "result_backend": f"memory://{name}", **settings}
    app = Celery("tasks", changes=given, set_as_current=False)

    @app.task(name="tasks.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="tasks.mul")
    def mul(x: int, y: int) -> int:
        return x * y

    return app


# -- migrate ----------------------------------------------------------------------------------------------


def send(app: Celery, count: int = 3) -> list[str]:
    ids = [app.tasks["tasks.add"].delay(n, n).id for n in range(count)]
    app.tasks["tasks.mul"].delay(1, 1)
    return ids


def depths(app: Celery, url: str, *queues: str) -> list[int]:
    transport = app.make_transport(url)
    try:
        return [transport.depth(queue) for queue in queues]
    finally:
        transport.close()


def test_messages_are_copied_and_the_source_keeps_them(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("copy")
    send(app)
    assert run(["migrate", "memory://copy", "memory://copied", "-t", "0.1", "-T", "tasks.add"], app) == 0
    assert "Copied 3 messages; 1 of other tasks stay." in capsys.readouterr().out
    assert depths(app, "memory://copied", "celery") == [3]
    assert depths(app, "memory://copy", "celery") == [4]


def test_messages_are_moved_to_a_queue_of_another_name_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("move")
    ids = send(app)
    words = ["migrate", "memory://move", "memory://moved", "-a", "-t", "0.1", "-Q", "celery:other", "-n", "3", "--json"]
    assert run(words, app) == 0
    assert json.loads(capsys.readouterr().out) == {"sent": 3, "left": 0, "removed": True}
    assert depths(app, "memory://moved", "celery", "other") == [0, 3]
    assert depths(app, "memory://move", "celery") == [1]
    seen: list[Any] = []
    there = make_app("there", broker_url="memory://moved")
    migrate.move(lambda body, one: seen.append((one.id, body)), app=there, queues=["other"], timeout=0.1)
    assert [id for id, _ in seen] == ids
    assert [body[:2] for _, body in seen] == [([n, n], {}) for n in range(3)]


def test_a_call_is_moved_by_its_id_and_others_by_their_task() -> None:
    app = make_app("by-id")
    ids = send(app)
    assert migrate.move_task_by_id(ids[1], "urgent", app=app, timeout=0.1).count == 1
    assert migrate.move_by_taskmap({"tasks.mul": "slow"}, app=app, timeout=0.1).count == 1
    assert depths(app, "memory://by-id", "celery", "urgent", "slow") == [2, 1, 1]


def test_a_move_that_breaks_in_the_middle_loses_nothing() -> None:
    app = make_app("broken")
    send(app)

    def burst(body: Any, message: migrate.Movable) -> str:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        migrate.move(burst, app=app, timeout=0.1)
    assert depths(app, "memory://broken", "celery") == [4]


def test_what_stays_is_kept_while_the_other_broker_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app("slowly")
    send(app)
    renewed = threading.Event()
    monkeypatch.setattr(migrate, "RENEW_S", 0.01)

    def renew(consumer: MemoryConsumer) -> list[Any]:
        renewed.set()
        return []

    monkeypatch.setattr(MemoryConsumer, "renew", renew)
    waited: list[bool] = []
    migrate.migrate_tasks(
        "memory://slowly", "memory://slowly-there", app=app, timeout=0.1,
        on_message=lambda done, message: waited.append(renewed.wait(60)),
    )  # fmt: skip
    assert waited == [True] * 4


# -- upgrade ----------------------------------------------------------------------------------------------

OLD = """\
# BROKER_URL stays in a comment
BROKER_URL = 'redis://'  # the broker
CELERYD_CONCURRENCY = 4
CELERY_TASK_SERIALIZER: str = "json"
text = "CELERYD_CONCURRENCY"
other.BROKER_URL = f(BROKER_URL=1)
print(CELERYD_CONCURRENCY)
"""


def test_old_names_are_rewritten_where_they_are_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "conf.py"
    file.write_text(OLD)
    assert run(["upgrade", "settings", "--dry-run", str(file)]) == 0
    shown = capsys.readouterr().out
    assert file.read_text() == OLD
    assert run(["upgrade", "settings", str(file)]) == 0
    assert file.read_text() == shown
    assert (tmp_path / "conf.py.orig").read_text() == OLD
    assert shown.splitlines() == [
        "# BROKER_URL stays in a comment",
        "broker_url = 'redis://'  # the broker",
        "worker_concurrency = 4",
        'task_serializer: str = "json"',
        'text = "CELERYD_CONCURRENCY"',
        "other.BROKER_URL = f(BROKER_URL=1)",
        "print(worker_concurrency)",
    ]


def test_for_django_the_new_names_are_in_capitals(tmp_path: Path) -> None:
    file = tmp_path / "settings.py"
    file.write_text("CELERYD_CONCURRENCY = 4\nDEBUG = True\n")
    assert run(["upgrade", "settings", "--django", "--no-backup", str(file)]) == 0
    assert file.read_text() == "CELERY_WORKER_CONCURRENCY = 4\nDEBUG = True\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_no_python_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "conf.py"
    file.write_text("BROKER_URL = (\n")
    assert run(["upgrade", "settings", str(file)]) == 2
    assert file.read_text() == "BROKER_URL = (\n"


# -- looking ----------------------------------------------------------------------------------------------


def test_bindings_are_listed_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("bindings", task_default_queue="mail")
    assert run(["list", "bindings"], app) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["mail", "mail", "mail", "direct"]
    assert run(["list", "bindings", "--json"], app) == 0
    assert json.loads(capsys.readouterr().out)[0]["routing_key"] == "mail"


def test_graphs_are_in_the_language_of_graphviz(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", "bootsteps"]) == 0
    assert '    "Consumer" -> "Pool";' in capsys.readouterr().out

    class First(bootsteps.StartStopStep):
        label = "First"

    class Second(bootsteps.StartStopStep):
        requires = (First, "celeriac.worker.components:Pool")

    class Orders(bootsteps.ConsumerStep):
        name = "orders"

    app = make_app("graph")
    app.steps["worker"].update({First, Second})
    app.steps["consumer"].add(Orders)
    assert run(["graph", "bootsteps"], app) == 0
    out = capsys.readouterr().out
    own = [line.strip() for line in out.splitlines() if "First" in line or "Second" in line or "orders" in line]
    second = f"{__name__}:{Second.__qualname__}"
    assert sorted(own) == sorted(
        ['"First";', f'"{second}";', '"orders";', '"First" -> "Pool";', f'"{second}" -> "Pool";',
         f'"{second}" -> "First";', '"orders" -> "RemoteControl";']
    )  # fmt: skip
    assert run(["graph", "workers", "nodes:a,b", "queues:celery"], make_app("graph")) == 0
    out = capsys.readouterr().out
    assert out.startswith("digraph workers {")
    assert '    "a" -> "celery";' in out


def test_the_shell_has_the_app_its_tasks_and_the_canvas(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "from celeriac import Celery\napp = Celery('tasks', broker='memory://', backend='memory://')\n"
        "@app.task\ndef add(x, y):\n    return x + y\n"
    )
    words = [sys.executable, "-m", "celeriac", "-A", "tasks", "shell", "--python"]
    said = "print(add.name, app is celery, group.__name__)\n"
    ran = subprocess.run(words, cwd=tmp_path, input=said, capture_output=True, text=True, timeout=60)
    assert "tasks.add True group" in ran.stdout, ran.stderr
    assert "add" not in shell_names(make_app("shell"), with_tasks=False)


def test_a_shell_that_is_not_installed_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bpython", None)
    assert run(["shell", "-B"], make_app("bpython")) == 2
    assert "pip install bpython" in capsys.readouterr().err


def test_the_report_is_json_too_and_masks_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("report", redis_password="geheim", broker_url="redis://:geheim@nowhere/0")
    assert run(["report", "--json"], app) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["settings"]["broker_url"] == "redis://:***@nowhere/0"
    assert "geheim" not in out


def test_config_names_the_settings_of_an_app_that_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere.py").write_text("task_default_queue = 'from-elsewhere'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert run(["--config", "elsewhere", "list", "bindings"], make_app("config")) == 0
    assert "from-elsewhere" in capsys.readouterr().out
    app = make_app("own")
    app.config_from_object({"task_default_queue": "its-own"})
    assert run(["--config", "elsewhere", "list", "bindings"], app) == 0
    assert "its-own" in capsys.readouterr().out


# -- commands of others -----------------------------------------------------------------------------------


class Entry:
    """An entry point in celery.commands."""

    def __init__(self, command: Any) -> None:
        self.command = command

    def load(self) -> Any:
        if isinstance(self.command, Exception):
            raise self.command
        return self.command


def test_a_command_written_for_celery_finds_its_app(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.pass_context
    def flower(ctx: click.Context) -> None:
        click.echo(f"app {ctx.obj.app.main}, quiet {ctx.obj.quiet}")

    monkeypatch.setattr(group_room, "_commands_for_celery", lambda: {"flower": Entry(flower)})
    assert run(["-q", "flower"], make_app("theirs")) == 0
    assert capsys.readouterr().out == "app tasks, quiet True\n"


def test_a_command_for_celery_that_cannot_be_loaded_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"flower": Entry(ImportError("No module named 'celery'"))}
    monkeypatch.setattr(group_room, "_commands_for_celery", lambda: broken)
    assert run(["--help"]) == 0
    assert "flower" in capsys.readouterr().out
    assert run(["flower"], make_app("broken-command")) == 2
    assert "No module named 'celery'" in capsys.readouterr().err


def test_characters_that_end_no_line_in_python_end_none_here(tmp_path: Path) -> None:
    file = tmp_path / "conf.py"
    file.write_bytes(b"# one\x0c\nA = 'x\xe2\x80\xa8y'\r\nBROKER_URL = 'redis://'\r\n\x0c\nCELERYD_CONCURRENCY = 4\n")
    assert run(["upgrade", "settings", "--no-backup", str(file)]) == 0
    assert file.read_bytes() == (
        b"# one\x0c\nA = 'x\xe2\x80\xa8y'\r\nbroker_url = 'redis://'\r\n\x0c\nworker_concurrency = 4\n"
    )


def test_a_node_that_answers_with_an_error_is_no_worker_of_the_graph(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app("graph-beat")
    answers = {"w@h": [{"name": "celery"}], "celerybeat@h": {"error": "a scheduler answers ping only"}}
    monkeypatch.setattr(app.control.Inspect, "active_queues", lambda self: answers)
    assert run(["graph", "workers"], app) == 0
    assert '"w@h" -> "celery";' in (out := capsys.readouterr().out)
    assert "celerybeat" not in out
