"""`celeriac check` and `celeriac doctor` as a person and as a CI job meet them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac import Celery
from celeriac.cli.checkup import look_at_plugins, look_at_servers, look_at_settings
from celeriac.cli.group import run
from celeriac.spec import Finding


def make_app(name: str, **settings: object) -> Celery:
    given = {"broker_url": f"memory://{name}", "result_backend": f"memory://{name}", "worker_pool": "solo", **settings}
    app = Celery("tasks", changes=given, set_as_current=False)

    @app.task(name="tasks.add")
    def add(x: int, y: int) -> int:
        return x + y

    return app


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_an_app_that_is_well_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-A", "x", "check"], make_app("well")) == 0
    said = capsys.readouterr()
    assert said.err == "Found nothing wrong.\n"
    assert "pool:solo" in said.out


def test_the_exit_code_follows_the_worst_finding(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("eager", task_always_eager=True)
    assert run(["-A", "x", "check"], app) == 0
    assert run(["-A", "x", "check", "--fail-on", "warning"], app) == 1
    assert run(["-A", "x", "check", "--fail-on", "warning", "--ignore", "eager"], app) == 0


def test_a_program_reads_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-A", "x", "check", "--json"], make_app("json", task_soft_time_limit=9, task_time_limit=3)) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["worst"] == "error"
    titles = [section["title"] for section in document["sections"]]
    assert titles == ["settings", "plugins"]
    found = document["sections"][0]["findings"][0]
    assert (found["rule"], found["level"]) == ("soft-above-hard-limit", "error")
    assert set(found) == {"rule", "level", "about", "text", "remedy"}


def test_a_plugin_that_is_missing_and_a_pool_that_lacks_limits_are_found() -> None:
    app = make_app("plugins", worker_pool="threads", task_time_limit=30, accept_content=["json", "pickle"])
    _, facts = look_at_settings(app, ())
    assert facts is not None
    found = dict(look_at_plugins(app, facts).findings)
    assert "cannot enforce the hard time limit that tasks.add has" in found["limits-of-pool"].text
    assert "allow_unsafe_serializers" in found["unsafe-serializer"].text
    app.conf.worker_pool = "eventlet"
    missing = [one for rule, one in look_at_plugins(app, facts).findings if rule == "pool"]
    assert "no pool plugin is named 'eventlet'" in missing[0].text


def test_a_server_that_is_away_ends_a_doctor_with_69_and_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as deaf:  # bound, and not listening: nobody else gets its port meanwhile
        deaf.bind(("127.0.0.1", 0))
        app = make_app("away", broker_url=f"redis://:geheim@127.0.0.1:{deaf.getsockname()[1]}/0")
        assert run(["-A", "x", "doctor", "--timeout", "2"], app) == 69
    said = capsys.readouterr()
    assert "Connection refused" in said.out
    assert "geheim" not in said.out + said.err


def test_what_a_plugin_finds_at_its_server_is_shown_under_its_section() -> None:
    app = make_app("found")
    _, facts = look_at_settings(app, ())
    assert facts is not None
    facts.tasks["tasks.add"].time_limit = 7
    told: list[float | None] = []

    class Ill(type(app.transport)):  # type: ignore[misc]
        abilities = app.transport.abilities | {"diagnose"}

        def diagnose(self, *, longest_task_s: float | None, timeout_s: float) -> list[Finding]:
            told.append(longest_task_s)
            return [Finding("warning", "room", "There is none.")]

    app.transport.__class__ = Ill
    broker, _ = look_at_servers(app, facts, 2.0)
    assert (broker.reached, broker.findings) == (True, [("room", Finding("warning", "room", "There is none."))])
    assert told == [7]


def test_a_misspelt_setting_is_told_with_the_right_one_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "from celeriac import Celery\napp = Celery('t')\napp.config_from_object('conf')\n"
    )
    (tmp_path / "conf.py").write_text("broke_url = 'memory://'\n")
    words = [sys.executable, "-m", "celeriac", "-A", "tasks", "check"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1, ran.stderr
    assert "Did you mean 'broker_url'?" in ran.stdout
