"""`celeriac logtool` reads what celeriac writes on a console, what it writes as JSON, and what Celery writes."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Literal

import pytest

from celeriac.cli.group import run
from celeriac.log import TaskLog

CELERYS = """\
[2026-11-22 15:24:30,000: INFO/MainProcess] Connected to redis://localhost:6379/0
[2026-11-22 15:24:31,000: INFO/MainProcess] Task tasks.add[c-1] received
[2026-11-22 15:24:32,000: INFO/ForkPoolWorker-1] Task tasks.add[c-1] succeeded in 0.5s: 4
[2026-11-22 15:24:33,000: INFO/MainProcess] Task tasks.mul[c-2] received
[2026-11-22 15:24:34,000: ERROR/ForkPoolWorker-1] Task tasks.mul[c-2] raised unexpected: ValueError('no')
Traceback (most recent call last):
  File "x.py", line 1, in mul
ValueError: no
[2026-11-22 15:24:35,000: INFO/MainProcess] Task tasks.add[c-3] received
"""


def write_ours(path: Path, format: Literal["console", "json"], color: bool) -> None:
    stream = io.StringIO()
    log = TaskLog(format, "debug", stream, color)
    for id in ("o-1", "o-2", "o-3"):
        log.line(logging.INFO, "task.received", task_id=id, task_name="tasks.add")
    log.line(logging.INFO, "task.succeeded", task_id="o-1", task_name="tasks.add", runtime_s=0.25, result="4")
    trace = "Traceback (most recent call last):\n  File\nValueError: no"
    log.line(
        logging.ERROR, "task.failed", task_id="o-2", task_name="tasks.add", error="ValueError('no')", traceback=trace
    )
    log.flush()
    path.write_text(stream.getvalue())


@pytest.fixture(params=["celery", "console", "color", "json"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A log with one call done, one failed, one without an end."""
    path = tmp_path / "worker.log"
    if request.param == "celery":
        path.write_text(CELERYS)
    else:
        write_ours(path, "json" if request.param == "json" else "console", request.param == "color")
    return str(path)


def test_stats_count_what_became_of_the_calls(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logtool", "stats", "--json", file]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["received"] == 3
    assert found["total"]["errors"] == 1
    rows = found["tasks"].values()
    assert sum(row.get("succeeded", 0) for row in rows) == 1
    assert sum(row.get("failed", 0) for row in rows) == 1
    assert found["tasks"]["tasks.add"]["mean_s"] in (0.5, 0.25)


def test_a_call_without_an_end_is_incomplete(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logtool", "incomplete", "--json", file]) == 0
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found["task_id"] in ("c-3", "o-3")


def test_errors_and_traces_are_printed_with_what_follows_them(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("errors", "traces"):
        assert run(["logtool", command, file]) == 0
        out = capsys.readouterr().out
        assert "ValueError('no')" in out
        assert "Traceback (most recent call last):" in out
        assert "succeeded" not in out


def test_debug_prints_what_is_not_about_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "celery.log"
    path.write_text(CELERYS)
    assert run(["logtool", "debug", str(path)]) == 0
    assert capsys.readouterr().out == "2026-11-22 15:24:30,000 INFO Connected to redis://localhost:6379/0\n"


def test_a_forged_line_in_a_traceback_does_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.log"
    path.write_text("[2026-11-22 15:24:34,000: ERROR/x] oh \x1b]0;title\x07\nTraceback\n  \x1b[2J\n")
    assert run(["logtool", "errors", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_missing_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logtool", "stats", "/nowhere/at/all.log"]) == 2
    assert "'/nowhere/at/all.log' does not exist" in capsys.readouterr().err


def test_garbled_lines_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "odd.log"
    event = {
        "event": "task.failed",
        "timestamp": "t",
        "task_name": "a",
        "task_id": "1",
        "runtime_s": 1,
        "error": "\ud800",
    }
    file.write_text(
        json.dumps({**event, "level": "error"}) + "\n"
        "2026-11-22 15:24:31.000 [info     ] Task a[1] succeeded in 1.2026-11-22 15s: 4\n"
        "2026-11-22 15:24:31.000 [info     ] Task a[2] succeeded in 1.5e-05s: 4\n"
    )
    assert run(["logtool", "stats", "--json", str(file)]) == 0
    row = json.loads(capsys.readouterr().out)["tasks"]["a"]
    assert (row["succeeded"], row["failed"], row["longest_s"]) == (1, 1, 1.5e-05)
    assert run(["logtool", "errors", str(file)]) == 0
    assert "\\ud800" in capsys.readouterr().out
