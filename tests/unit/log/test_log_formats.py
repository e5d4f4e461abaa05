"""The log in the user's own format, handlers that were there before, and what is printed."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from celeriac import Celery, signals
from celeriac._state import running
from celeriac.app.log import LONGEST_LINE, LoggedStream, Logging
from celeriac.cli.group import cli
from celeriac.cli.logs import set_up_log
from celeriac.cli.worker import worker
from celeriac.log import Formats, TaskLog, configure
from celeriac.utils.log import get_task_logger, task_logger

CELERYS = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging is the process's; give it back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    root = logging.getLogger()
    kept = root.handlers[:], root.level, sys.stdout, sys.stderr
    structlog.reset_defaults()
    yield
    root.handlers[:], root.level = kept[0], kept[1]
    sys.stdout, sys.stderr = kept[2], kept[3]
    structlog.reset_defaults()
    logging.captureWarnings(False)


def lines_of(formats: Formats) -> io.StringIO:
    stream = io.StringIO()
    configure("console", "info", stream, False, formats)
    return stream


def test_all_lines_have_the_format_of_the_setting() -> None:
    stream = lines_of(Formats("%(levelname)s|%(name)s|%(message)s"))
    logging.getLogger("mine").warning("hot %d", 5)
    structlog.get_logger("theirs").info("plugin.loaded", plugin="redis")
    assert stream.getvalue().splitlines() == ["WARNING|mine|hot 5", "INFO|theirs|plugin.loaded plugin='redis'"]


def test_lines_about_tasks_have_it_too_and_celery_s_words() -> None:
    stream = io.StringIO()
    log = TaskLog("console", "info", stream, False, Formats(CELERYS, "%H"))
    log.line(20, "task.succeeded", task_id="1", task_name="t", runtime_s=0.5, result="4")
    log.line(40, "task.failed", task_id="1", task_name="t", error="E()", traceback="Traceback:\n  x")
    log.flush()
    first, second, *trace = stream.getvalue().splitlines()
    assert first.endswith(": INFO/MainProcess] Task t[1] succeeded in 0.5s: 4")
    assert second.endswith(": ERROR/MainProcess] Task t[1] raised unexpected: E()")
    assert trace == ["  Traceback:", "    x"]


def test_task_loggers_have_a_format_of_their_own_which_may_name_the_task() -> None:
    stream = lines_of(Formats("%(message)s", None, "%(task_name)s[%(task_id)s] %(message)s"))
    logging.getLogger("app").info("plain")
    get_task_logger("proj.tasks").info("from a task")
    assert stream.getvalue().splitlines() == ["plain", "???[???] from a task"]
    assert running() is None


def test_whatever_is_logged_stays_one_line_in_any_format() -> None:
    stream = lines_of(Formats("%(levelname)s %(message)s"))
    logging.getLogger("x").error("a\nCRITICAL forged %s", "\x1b[2J\r")
    structlog.get_logger("x").error("event\nforged", key="v\nw", url="redis://:geheim@h")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()
    assert "geheim" not in stream.getvalue()


def test_a_format_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        lines_of(Formats("%(message"))


def test_json_stays_json_whatever_the_format() -> None:
    stream = io.StringIO()
    configure("json", "info", stream, False, Formats("%(message)s"))
    logging.getLogger("x").warning("hello")
    assert stream.getvalue().startswith('{"timestamp"')


def test_handlers_that_were_there_stay_if_the_app_says_so() -> None:
    mine = logging.NullHandler()
    logging.getLogger().handlers[:] = [mine]
    configure("console", "info", io.StringIO(), False, hijack=False)
    assert logging.getLogger().handlers == [mine]
    configure("console", "info", io.StringIO(), False)
    assert mine not in logging.getLogger().handlers


def test_what_is_printed_becomes_whole_lines_of_the_log_once() -> None:
    stream = lines_of(Formats("%(levelname)s %(name)s %(message)s"))
    Logging(Celery("t", set_as_current=False)).redirect_stdouts("ERROR")
    print("half", end=" ")
    print("whole\nand more")
    sys.stderr.write("oops\n")
    assert stream.getvalue().splitlines() == [
        "ERROR celeriac.redirected half whole",
        "ERROR celeriac.redirected and more",
        "ERROR celeriac.redirected oops",
    ]


def test_a_program_that_a_task_starts_can_write_to_what_stands_for_standard_output() -> None:
    stream = LoggedStream(logging.getLogger("x"), logging.WARNING)
    assert sys.__stdout__ is not None
    assert stream.fileno() == sys.__stdout__.fileno()
    assert not stream.isatty()


# -- signals ----------------------------------------------------------------------------------------------


def test_an_app_that_sets_logging_up_itself_is_left_alone() -> None:
    told: list[object] = []

    def mine(**facts: object) -> None:
        told.append((facts["loglevel"], facts["format"]))

    before = logging.getLogger().handlers[:]
    signals.setup_logging.connect(mine)
    try:
        words = {"loglevel": 20, "log_format": None, "logfile": None}
        assert set_up_log(Celery("t", set_as_current=False), words, False) is False
    finally:
        signals.setup_logging.disconnect(mine)
    assert told == [(20, "console")]
    assert logging.getLogger().handlers == before


def test_those_who_want_to_change_the_loggers_get_them() -> None:
    told: list[object] = []

    def note(logger: logging.Logger | None = None, **facts: object) -> None:
        told.append(logger)

    signals.after_setup_logger.connect(note)
    signals.after_setup_task_logger.connect(note)
    try:
        words = {"loglevel": 20, "log_format": None, "logfile": None}
        assert set_up_log(Celery("t", set_as_current=False), words, False) is True
    finally:
        signals.after_setup_logger.disconnect(note)
        signals.after_setup_task_logger.disconnect(note)
    assert told == [logging.getLogger(), task_logger]


# -- options, settings, environment -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "no_color", "colored"),
    [(None, False, False), (True, False, True), (False, False, False), (True, True, False)],
)
def test_colours_are_as_the_setting_has_them_and_none_if_the_option_says_so(
    tmp_path: Path, setting: bool | None, no_color: bool, colored: bool
) -> None:
    app = Celery("t", set_as_current=False, worker_log_color=setting)
    path = tmp_path / "log"
    set_up_log(app, {"loglevel": 20, "log_format": None, "logfile": str(path)}, no_color)
    logging.getLogger("some").warning("said")
    assert ("\x1b[" in path.read_text()) is colored
    assert "said" in path.read_text()


def test_programs_that_tasks_start_find_the_log_in_their_environment(tmp_path: Path) -> None:
    app = Celery("t", set_as_current=False, worker_redirect_stdouts_level="ERROR")
    set_up_log(app, {"loglevel": 20, "log_format": None, "logfile": f"{tmp_path}/log"}, False)
    script = "import os; print({n: v for n, v in os.environ.items() if n.startswith('CELERY_LOG')})"
    found = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=True)
    assert ast.literal_eval(found.stdout) == {
        "CELERY_LOG_LEVEL": "20",
        "CELERY_LOG_FILE": f"{tmp_path}/log",
        "CELERY_LOG_REDIRECT": "1",
        "CELERY_LOG_REDIRECT_LEVEL": "ERROR",
    }


@pytest.mark.parametrize("name", ["CELERY_WORKER_LOGLEVEL", "CELERIAC_WORKER_LOGLEVEL"])
def test_options_of_the_log_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "debug")
    monkeypatch.setenv(name.replace("LOGLEVEL", "LOGFILE"), "%n.log")
    given = worker.make_context("worker", [], parent=cli.make_context("celeriac", ["worker"]))
    assert (given.params["loglevel"], given.params["logfile"]) == (logging.DEBUG, "%n.log")


def test_what_several_threads_print_at_once_is_all_there_in_whole_lines() -> None:
    lines: list[str] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(0.0001)  # others print meanwhile
            lines.append(record.getMessage())

    logger = logging.Logger("printed")
    logger.addHandler(Slow())
    stream = LoggedStream(logger, logging.WARNING)

    def work(number: int) -> None:
        for count in range(50):
            print(f"{number}:", end=" ", file=stream)
            print(count, file=stream)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(lines) == sorted(f"{number}: {count}" for number in range(4) for count in range(50))


def test_what_never_ends_its_line_is_logged_in_pieces() -> None:
    stream = lines_of(Formats("%(message)s"))
    printed = LoggedStream(logging.getLogger("x"), logging.WARNING)
    for _ in range(3 * LONGEST_LINE // 10):
        printed.write("." * 10)
    assert 2 * LONGEST_LINE < len(stream.getvalue()) < 4 * LONGEST_LINE


def test_a_field_that_a_record_lacks_ends_no_worker() -> None:
    formats = Formats("%(levelname)s %(request_id)s %(message)s")
    stream = lines_of(formats)
    task_log = TaskLog("console", "info", stream, formats=formats)
    task_log.line(logging.INFO, "task.ignored", task_id="1", task_name="t")
    task_log.flush()
    logging.getLogger("mine").warning("with it", extra={"request_id": "r1"})
    assert stream.getvalue().splitlines() == ["INFO ??? Task t[1] ignored", "WARNING r1 with it"]
    with pytest.raises(ValueError, match="cannot be filled in"):
        TaskLog("console", "info", stream, formats=Formats("%(request_id)d %(message)s"))
