"""`celeriac worker` as its users meet it: what it prints, what it obeys, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.watched import CELERIAC, Watched

TASKS = """
from celeriac import Celery
from celeriac.utils.log import get_task_logger

app = Celery("tasks", broker="sqlite:///{folder}/broker.db", backend="sqlite:///{folder}/results.db")
log = get_task_logger(__name__)

@app.task
def add(x, y):
    return x + y

@app.task
def fail(secret):
    raise ValueError("no luck at redis://user:" + secret + "@host")

@app.task
def whisper():
    log.warning("psst")
"""


GOODBYE = """
from celeriac import signals

@signals.worker_shutdown.connect
def goodbye(**_):
    print("goodbye")
"""

Start = Callable[..., Watched]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS.format(folder=tmp_path))
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts workers of one slot, with the log level info."""
    workers: list[Watched] = []

    def start(*words: str, ready: str = "ready.", **variables: str) -> Watched:
        made = "-A", "tasks", "worker", "-l", "info", "-P", "solo", *words
        worker = Watched(folder, *made, variables=variables)
        workers.append(worker)
        if ready:
            worker.wait_for(ready)
        return worker

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def send(folder: Path) -> Callable[..., str]:
    """Sends a call; returns its id."""

    def send(*words: str) -> str:
        command = [CELERIAC, "-A", "tasks", "call", *words]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    return send


def refusal(folder: Path, *words: str, code: int = 2) -> str:
    """A worker that must not start: what it says, without a traceback."""
    command = [CELERIAC, *words]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.strip().splitlines()[-1]


# -- what it prints -----------------------------------------------------------------------------------------


def test_the_page_says_what_runs_where_with_plugins_and_versions(start: Start, folder: Path) -> None:
    worker = start("-n", "w1@%h", "-Q", "fast,slow")
    assert worker.stop() == 0
    page = worker.out
    assert page.strip().startswith("w1@")
    for line in (
        ".> app:         tasks",
        f".> transport:   sqlite:///{folder}/broker.db",
        "  sqlite (celeriac-broker-sqlite 0.1.0)",
        f".> results:     sqlite:///{folder}/results.db",
        "  sqlite (celeriac-backend-sqlite 0.1.0)",
        ".> concurrency: 1 (solo)",
        "solo (celeriac-pool-solo 0.1.0)",
        ".> task events: OFF",
        ".> fast             exchange=fast(direct) key=fast",
        ".> slow             exchange=slow(direct) key=slow",
        "  . tasks.add",
    ):
        assert line in page
    assert "celeriac.errback" not in page, "the user's tasks, not ours"


def test_quiet_prints_no_page_and_a_high_level_no_tasks(start: Start) -> None:
    worker = start("-q")
    worker.stop()
    assert worker.out == ""
    worker = start("-l", "warning", ready="")
    deadline = time.monotonic() + 60
    while "[queues]" not in worker.out:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.stop()
    assert "[tasks]" not in worker.out


def test_task_lines_are_celerys_and_hide_passwords(start: Start, send: Callable[..., str]) -> None:
    worker = start()
    good, bad = send("tasks.add", "-a", "[2, 2]"), send("tasks.fail", "-a", '["c4n4ry"]')
    send("tasks.whisper")
    worker.wait_for("whisper", count=3)
    assert worker.stop() == 0
    assert f"Task tasks.add[{good}] received" in worker.err
    assert re.search(rf"Task tasks\.add\[{good}\] succeeded in \d+\.\d+s", worker.err), worker.err
    assert f"Task tasks.fail[{bad}] raised unexpected: ValueError(" in worker.err
    assert "Traceback (most recent call last)" in worker.err
    assert "psst" in worker.err
    assert "c4n4ry" not in worker.err


def test_every_line_is_json_when_asked_for(start: Start, send: Callable[..., str]) -> None:
    worker = start("--log-format", "json", ready="worker.ready")
    task_id = send("tasks.add", "-a", "[2, 2]")
    send("tasks.whisper")
    worker.wait_for("psst")
    assert worker.stop() == 0
    lines = [json.loads(line) for line in worker.err.splitlines() if line.startswith("{")]
    assert lines[0]["event"] == "worker.ready"
    assert [line["result"] for line in lines if line["event"] == "task.succeeded" and line["task_id"] == task_id] == [
        "4"
    ]
    assert [line["task_name"] for line in lines if line["event"] == "psst"] == ["tasks.whisper"]


def test_lines_go_to_a_file_when_asked_for(start: Start, folder: Path) -> None:
    worker = start("--logfile", "worker.log", ready="")
    deadline = time.monotonic() + 60
    while not (folder / "worker.log").exists() or "ready." not in (folder / "worker.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.stop()
    assert "ready." not in worker.err


# -- what it obeys ------------------------------------------------------------------------------------------


def test_it_consumes_only_the_queues_that_were_asked_for(start: Start, send: Callable[..., str]) -> None:
    worker = start("-Q", "fast,slow", "-X", "slow")
    send("tasks.add", "-a", "[1, 1]", "--queue", "slow")
    wanted = send("tasks.add", "-a", "[1, 1]", "--queue", "fast")
    worker.wait_for("succeeded")
    worker.stop()
    assert worker.err.count("received") == 1
    assert f"[{wanted}] received" in worker.err


def test_purge_drops_what_waited(start: Start, send: Callable[..., str]) -> None:
    send("tasks.add", "-a", "[1, 1]")
    worker = start("--purge")
    kept = send("tasks.add", "-a", "[2, 2]")
    worker.wait_for("succeeded")
    worker.stop()
    assert worker.err.count("received") == 1
    assert f"[{kept}] received" in worker.err


def test_include_brings_more_tasks(start: Start, folder: Path) -> None:
    (folder / "more.py").write_text("from tasks import app\n\n@app.task\ndef extra(): pass\n")
    worker = start("-I", "more")
    worker.stop()
    assert "  . more.extra" in worker.out


def test_options_come_from_the_environment_by_celerys_names_too(start: Start) -> None:
    worker = start(CELERY_WORKER_HOSTNAME="named@here", CELERIAC_WORKER_QUEUES="one,two")
    worker.stop()
    assert worker.out.strip().startswith("named@here")
    assert ".> one " in worker.out


def test_settings_may_stand_behind_the_options(start: Start) -> None:
    worker = start("worker.prefetch_multiplier=1", "task_default_queue=elsewhere")
    worker.stop()
    assert ".> elsewhere" in worker.out


def test_celerys_options_without_a_meaning_here_are_taken(start: Start) -> None:
    worker = start("--without-gossip", "--without-mingle", "--without-heartbeat", "-O", "fair", "--pool-putlocks", "-E")
    assert worker.stop() == 0
    assert ".> task events: ON\n" in worker.out


def test_auto_is_one_slot_per_processor(start: Start) -> None:
    worker = start("-P", "threads", "-c", "auto")
    worker.stop()
    assert f".> concurrency: {len(os.sched_getaffinity(0))} (threads)" in worker.out


# -- how it refuses -----------------------------------------------------------------------------------------


def test_an_unreachable_broker_is_one_sentence_and_69(folder: Path) -> None:
    broker = ("-A", "tasks", "-b", "redis://:c4n4ry@localhost:1/0")
    line = refusal(folder, *broker, "worker", "-P", "solo", "broker.connection_retry_on_startup=False", code=69)
    assert "localhost:1" in line
    assert "c4n4ry" not in line


def test_a_worker_that_waits_for_its_broker_ends_in_good_order_when_it_is_told_to(start: Start, folder: Path) -> None:
    with (folder / "tasks.py").open("a") as file:
        file.write(GOODBYE)
    words = ("--pidfile", "w.pid", "broker_url=redis://127.0.0.1:1/0", "broker.connection_retry_on_startup=True")
    worker = start(*words, ready="Waiting for the broker")
    assert (folder / "w.pid").exists()
    assert worker.stop() == 0
    assert "goodbye" in worker.err
    assert "Stopped before the broker could be reached." in worker.err
    assert not (folder / "w.pid").exists()


def test_an_unreachable_result_store_is_one_sentence_and_69(folder: Path) -> None:
    words = ("-A", "tasks", "--result-backend", "redis://localhost:1/0", "worker", "-P", "solo")
    assert "localhost:1" in refusal(folder, *words, code=69)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-b", "redis://localhost:notaport/0", "worker"), "notaport"),
        (("worker", "worker_concurency=3"), "worker_concurrency"),
        (("worker", "--concurrency", "many"), "'many' is neither a number above 0 nor 'auto'"),
        (("worker", "--loglevel", "loud"), "no log level is called 'loud'"),
        (("worker", "--logfile", "/nonexistent/x"), "cannot write to '/nonexistent/x'"),
        (("worker", "-Q", "a", "-X", "a"), "excluded"),
        (("worker", "--autoscale", "3,1"), "cannot grow or shrink"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_2(folder: Path, words: tuple[str, ...], text: str) -> None:
    assert text in refusal(folder, "-A", "tasks", *words, "--pool", "solo")


def test_a_task_module_that_fails_shows_its_own_traceback_only(folder: Path) -> None:
    (folder / "more.py").write_text("import tasks\n1 / 0\n")
    command = [CELERIAC, "-A", "tasks", "worker", "-I", "more"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert 'more.py", line 2' in ran.stderr
    assert "celeriac/" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("Error: The app's tasks could not be imported: ZeroDivisionError")


def test_a_worker_whose_page_nobody_reads_works_all_the_same(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = folder / "worker.log"
    command = [CELERIAC, "-A", "tasks", "worker", "-P", "solo", "-l", "info", "-f", log]
    process = subprocess.Popen(command, cwd=folder, stdout=writing, stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and "ready." in log.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_an_app_may_set_up_its_own_log(start: Start, folder: Path) -> None:
    with (folder / "tasks.py").open("a") as file:
        file.write(
            "\nimport logging, sys\nfrom celeriac.signals import setup_logging\n\n"
            "@setup_logging.connect\ndef mine(**_):\n"
            "    logging.basicConfig(level='INFO', stream=sys.stderr, format='MINE %(message)s')\n"
        )
    worker = start(ready=" ready. broker=")
    assert worker.stop() == 0
    assert f"MINE {worker.out.split()[0]} ready. broker='sqlite'" in worker.err


def test_an_app_may_add_to_the_log_that_was_set_up(start: Start, folder: Path) -> None:
    with (folder / "tasks.py").open("a") as file:
        file.write(
            "\nimport logging\nfrom celeriac.signals import after_setup_logger\n\n"
            "@after_setup_logger.connect\ndef more(logger, loglevel, **_):\n"
            "    logger.addHandler(logging.FileHandler('copy.log'))\n    logger.info('level %d', loglevel)\n"
        )
    worker = start()
    worker.stop()
    assert "level 20" in worker.err
    copy = (folder / "copy.log").read_text()
    assert "level 20" in copy
    assert " ready. broker='sqlite'" in copy


def test_a_setting_that_nobody_knows_is_a_warning_in_one_sentence(start: Start) -> None:
    worker = start("surprising=1")
    worker.stop()
    assert worker.err.startswith("Warning: No setting has the name 'surprising'")
