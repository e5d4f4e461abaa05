"""Log lines, from `TaskLog`, structlog and the standard library alike."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from celeriac import _state
from celeriac.exceptions import CeleriacWarning
from celeriac.log import TaskLog, configure, has_colors, open_stream, parse_level

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
CANARY = "c4n4ry"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where lines go; the process's own set-up is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def task_lines(format: Any, level: str, *events: tuple[int, str, dict[str, Any]]) -> list[str]:
    stream = io.StringIO()
    log = TaskLog(format, level, stream)
    for number, event, fields in events:
        log.line(number, event, **fields)
    log.flush()
    return stream.getvalue().splitlines()


def one(format: Any, event: str, **fields: Any) -> str:
    (line,) = task_lines(format, "debug", (logging.INFO, event, fields))
    return line


WHO = {"task_id": "abc", "task_name": "t.add"}


# -- task lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "fields", "text"),
    [
        ("task.received", {}, "Task t.add[abc] received"),
        ("task.started", {"pid": 7}, "Task accepted: t.add[abc] pid:7"),
        ("task.succeeded", {"runtime_s": 0.001, "result": "4"}, "Task t.add[abc] succeeded in 0.001s: 4"),
        ("task.failed", {"error": "ValueError('x')"}, "Task t.add[abc] raised unexpected: ValueError('x')"),
        ("task.failed_expectedly", {"error": "E()"}, "Task t.add[abc] raised expected: E()"),
        ("task.retried", {"error": "Retry in 3s"}, "Task t.add[abc] retry: Retry in 3s"),
        ("task.revoked", {}, "Discarding revoked task: t.add[abc]"),
    ],
)
def test_the_console_speaks_of_tasks_in_celerys_words(event: str, fields: dict[str, Any], text: str) -> None:
    assert re.fullmatch(rf"{STAMP} \[info     \] {re.escape(text)}", one("console", event, **WHO, **fields))


def test_values_that_the_words_do_not_mention_stand_behind_them() -> None:
    assert one("console", "task.received", **WHO, queue="fast").endswith("Task t.add[abc] received       queue=fast")


def test_an_event_without_all_of_its_values_is_written_as_it_is() -> None:
    assert one("console", "task.succeeded", task_id="abc", a=1, b=2, c=3).endswith("a=1 b=2 c=3")


def test_json_has_every_value_as_a_key() -> None:
    line = json.loads(one("json", "task.succeeded", **WHO, runtime_s=0.001, result="4"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {"level": "info", "event": "task.succeeded", **WHO, "runtime_s": 0.001, "result": "4"}


def test_a_traceback_follows_the_line_and_is_structlogs_exception_in_json() -> None:
    fields = {**WHO, "error": "E()", "traceback": "Traceback:\n  here\nE"}
    lines = task_lines("console", "info", (logging.ERROR, "task.failed", fields))
    assert lines[1:] == ["  Traceback:", "    here", "  E"]
    assert json.loads(one("json", "task.failed", **fields))["exception"] == "Traceback:\n  here\nE"


def test_lines_below_the_level_are_not_written_and_the_flags_say_so() -> None:
    assert task_lines("console", "warning", (logging.INFO, "task.received", WHO)) == []
    log = TaskLog("console", "info", io.StringIO())
    assert (log.info_on, log.debug_on) == (True, False)


def test_a_batch_is_written_in_one_piece() -> None:
    class Counting(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            return super().write(text)

    stream = Counting()
    log = TaskLog("console", "info", stream)
    for _ in range(100):
        log.line(logging.INFO, "task.received", **WHO)
    log.flush()
    log.flush()
    assert (stream.writes, stream.getvalue().count("\n")) == (1, 100)


def test_a_log_whose_reader_has_gone_is_counted_and_does_not_raise() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        log = TaskLog("console", "info", stream)
        log.line(logging.INFO, "task.received", **WHO)
        log.flush()
        assert log.lost == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # so that closing the stream can flush


# -- what may stand in a value ----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["console", "json"])
@pytest.mark.parametrize("evil", ["\n", "\r", "\x1b[2J", "\x9b", "\u2028", "\u202e", "\x00"])
def test_no_value_can_forge_a_line_or_command_a_terminal(format: str, evil: str) -> None:
    text = one(format, "task.succeeded", **WHO, runtime_s=1, result=f"a{evil}b")
    if format == "console":
        assert evil not in text
    else:
        assert json.loads(text)["result"] == f"a{evil}b"
        assert text.isprintable()


def test_a_traceback_cannot_forge_a_line_at_the_margin() -> None:
    forged = "E\n2026-01-01 00:00:00.000 [info     ] all is well\x1b[2J"
    lines = task_lines("console", "info", (logging.ERROR, "task.failed", {**WHO, "error": "E", "traceback": forged}))
    assert all(line.startswith("  ") for line in lines[1:])
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("format", ["console", "json"])
def test_passwords_in_urls_are_masked_wherever_they_stand(format: str) -> None:
    url = f"redis://user:{CANARY}@host/0"
    fields = {**WHO, "error": f"no {url}", "traceback": f"at {url}", "more": {"deep": [url]}, "odd": {url}}
    text = "\n".join(task_lines(format, "info", (logging.ERROR, "task.failed", fields)))
    assert CANARY not in text
    assert text.count("user:***@host") == 4


def test_masking_leaves_json_whole() -> None:
    line = json.loads(one("json", "x", url="http://host:80", mail="a@b"))
    assert (line["url"], line["mail"]) == ("http://host:80", "a@b")


@pytest.mark.parametrize("value", ["\ud800", 2**70, object(), {1: 2}, {"a": {1, 2}}, float("nan"), b"\xff"])
@pytest.mark.parametrize("format", ["console", "json"])
def test_any_value_can_be_logged(format: str, value: Any) -> None:
    text = one(format, "odd", value=value)
    if format == "json":
        assert json.loads(text)["event"] == "odd"


# -- everybody else's lines -------------------------------------------------------------------------------


def test_task_lines_look_like_structlogs_own(stream: io.StringIO) -> None:
    configure("console", "info", stream)
    structlog.get_logger("x").info("odd.happened", a=1, b="two words")
    theirs = stream.getvalue().strip()
    ours = one("console", "odd.happened", a=1, b="two words")
    assert re.sub(STAMP, "", theirs.replace(" [x]", "", 1)) == re.sub(STAMP, "", ours)


@pytest.mark.parametrize("logger", ["structlog", "logging"])
def test_both_libraries_come_out_as_json(stream: io.StringIO, logger: str) -> None:
    configure("json", "info", stream)
    if logger == "structlog":
        structlog.get_logger("mine").warning("it.broke", why=f"redis://:{CANARY}@h", n=3)
    else:
        logging.getLogger("mine").warning("it.%s", "broke", extra={"why": f"redis://:{CANARY}@h", "n": 3})
    line = json.loads(stream.getvalue())
    line.pop("timestamp")
    assert line == {"level": "warning", "event": "it.broke", "logger": "mine", "why": "redis://:***@h", "n": 3}


def test_a_warning_of_ours_is_a_sentence_and_others_name_their_line(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # another test's
        configure("json", "info", stream)
        warnings.warn("the broker does not know leese", CeleriacWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    ours, theirs = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert ours == "the broker does not know leese"
    assert f"{__file__}:" in theirs


@pytest.mark.parametrize("format", ["console", "json"])
def test_an_exception_brings_its_traceback(stream: io.StringIO, format: Any) -> None:
    configure(format, "info", stream)
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("mine").exception("it.broke")
    assert "ValueError: no" in stream.getvalue()
    assert "Traceback (most recent call last)" in stream.getvalue()


def test_a_line_written_inside_a_task_names_it(stream: io.StringIO) -> None:
    class Named:
        id, name = "abc", "t.add"

    configure("json", "info", stream)
    token = _state.push_running(Named, Named)
    try:
        logging.getLogger("mine").info("hello")
    finally:
        _state.pop_running(token)
    logging.getLogger("mine").info("bye")
    inside, outside = map(json.loads, stream.getvalue().splitlines())
    assert (inside["task_id"], inside["task_name"]) == ("abc", "t.add")
    assert "task_id" not in outside


def test_lines_below_the_level_are_dropped(stream: io.StringIO) -> None:
    configure("console", "error", stream)
    structlog.get_logger("x").warning("no")
    logging.getLogger("x").warning("no")
    assert stream.getvalue() == ""


def test_colours_are_only_for_terminals(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    configure("console", "info", stream, color=True)
    logging.getLogger("x").info("hello")
    assert "\x1b[" in stream.getvalue()
    assert not has_colors(stream)
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert has_colors(stream)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colors(stream)


@pytest.mark.parametrize(
    ("text", "number"), [("info", 20), ("INFO", 20), ("warn", 30), ("FATAL", 50), ("15", 15), (10, 10)]
)
def test_levels_may_be_named_in_many_ways(text: Any, number: int) -> None:
    assert parse_level(text) == number


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'loud'; there are debug, info"):
        parse_level("loud")


def test_a_log_file_that_was_rotated_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    log = TaskLog("console", "info", open_stream(str(path)))
    for name in ("first", "second"):
        log.line(logging.INFO, name)
        log.flush()
        path.rename(tmp_path / name)
    assert [(tmp_path / name).read_text().split()[-1] for name in ("first", "second")] == ["first", "second"]


def test_importing_it_does_not_import_rich() -> None:
    code = "import celeriac.log, sys; print('rich' in sys.modules); import rich; print(rich.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["False", "rich"]


def test_a_line_of_an_errback_names_the_call_that_has_failed(stream: io.StringIO) -> None:
    class Failed:
        name, id = "proj.add", "id-7"

    class Errback:
        name, id = "proj.tell", None  # called as a function: it has no id of its own

    configure("json", "INFO", stream, False)
    outer = _state.push_running(Failed, Failed)
    inner = _state.push_running(Errback, Errback)
    logging.getLogger("proj").warning("told")
    _state.pop_running(inner)
    _state.pop_running(outer)
    line = json.loads(stream.getvalue())
    assert (line["task_id"], line["task_name"]) == ("id-7", "proj.add")


def test_a_value_called_like_ours_takes_no_place_of_ours_in_json(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    extra = {"event": "signup", "level": "gold", "timestamp": "now", "logger": "mine", "exception": "none", "plain": 1}
    logging.getLogger("shop").info("somebody came", extra=extra)
    found = json.loads(stream.getvalue())
    assert (found["event"], found["level"], found["logger"]) == ("somebody came", "info", "shop")
    assert {name: found[f"{name}_"] for name in ("event", "level", "timestamp", "logger")} == {
        name: extra[name] for name in ("event", "level", "timestamp", "logger")
    }
    assert (found["exception"], found["plain"]) == ("none", 1)


def test_what_cannot_go_to_a_new_file_goes_to_the_old_one(tmp_path: Path) -> None:
    folder, aside = tmp_path / "log", tmp_path / "aside"
    folder.mkdir()
    stream = open_stream(str(folder / "w.log"))
    for number, (before, after) in enumerate([(folder, aside), (aside, folder)]):
        before.rename(after)
        stream.write(f"{number}\n")
        stream.flush()
        assert (after / "w.log").read_text().endswith(f"{number}\n")
