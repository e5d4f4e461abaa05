"""What a worker writes: tasks name themselves in every pool, and no secret comes out anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.watched import CELERIAC, Watched

from celeriac.testing.services import RedisService
from celeriac_support_redis.wire import connect, parse_url

TALKERS = """
import logging
import structlog
from celeriac import Celery
from celeriac.utils.log import get_task_logger

app = Celery("talkers", broker="sqlite:///broker.db", backend="sqlite:///broker.db")

def talk():
    get_task_logger(__name__).warning("by task logger")
    logging.getLogger("some.library").warning("by logging\\n{forged}", extra={{"colour": "blue"}})
    structlog.get_logger("mine").warning("by.structlog", number=5)
    print("by print")

@app.task
def say():
    talk()

@app.task
async def asay():
    talk()

@app.task(name="evil\\x1b[2J\\nname")
def evil(text):
    raise ValueError(text)
"""


def call(folder: Path, *words: str) -> str:
    ran = subprocess.run([CELERIAC, *words], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork", "asyncio"])
def test_whatever_a_task_logs_or_prints_is_one_line_that_names_the_task(tmp_path: Path, pool: str) -> None:
    (tmp_path / "talkers.py").write_text(TALKERS.format(forged="forged"))
    task = "talkers.asay" if pool == "asyncio" else "talkers.say"
    id = call(tmp_path, "-A", "talkers", "call", task)
    evil = call(tmp_path, "-A", "talkers", "call", "evil\x1b[2J\nname", "-a", '["\\u001b]0;x\\u0007\\nforged"]')
    words = ("-A", "talkers", "worker", "-P", pool, "-c", "1", "-l", "info", "--log-format", "json", "-q")
    worker = Watched(tmp_path, *words)
    try:
        worker.wait_for("by print", "task.failed", "task.succeeded")
        worker.stop()
    finally:
        worker.close()
    events = [json.loads(line) for line in worker.err.splitlines()]
    said = {event["event"]: event for event in events if str(event["event"]).startswith("by")}
    assert set(said) == {"by task logger", "by logging\nforged", "by.structlog", "by print"}
    assert {(event["task_id"], event["task_name"]) for event in said.values()} == {(id, task)}
    assert said["by logging\nforged"]["colour"] == "blue"
    assert said["by.structlog"]["number"] == 5
    assert said["by print"]["level"] == "warning"
    (failed,) = [event for event in events if event["event"] == "task.failed"]
    assert failed["task_id"] == evil
    assert all(ord(char) >= 32 for char in worker.err.replace("\n", ""))


def test_the_format_of_the_settings_is_the_worker_s_and_prints_may_stay_prints(tmp_path: Path) -> None:
    (tmp_path / "talkers.py").write_text(TALKERS.format(forged="forged"))
    id = call(tmp_path, "-A", "talkers", "call", "talkers.say")
    settings = ["worker.log_format=%(levelname)s/%(processName)s - %(message)s"]
    settings += ["worker.task_log_format=%(task_name)s %(task_id)s - %(message)s", "worker.redirect_stdouts=0"]
    worker = Watched(tmp_path, "-A", "talkers", "worker", "-P", "solo", "-l", "info", *settings)
    try:
        worker.wait_for("succeeded")
        worker.stop()
    finally:
        worker.close()
    lines = worker.err.splitlines()
    assert f"INFO/MainProcess - Task talkers.say[{id}] received" in lines
    assert f"talkers.say {id} - by task logger" in lines
    assert "by print" in worker.out.splitlines()


# -- the canary -------------------------------------------------------------------------------------------

CANARY = "kanarienvogel-7f3a"
SECRETIVE = """
from celeriac import Celery
from celeriac.app.settings_source import declared

secrets = {{name: "{canary}" for name, one in declared().items() if one.kind == "secret"}}
app = Celery("secretive", changes={{
    **secrets,
    "message_seal_key": None,
    "broker_url": "{broker}",
    "result_backend": "{backend}",
    "broker_transport_options": {{"sentinel_kwargs": {{"password": "{canary}"}}}},
    "result_backend_transport_options": {{"master_password": "{canary}"}},
    "x_api_token": "{canary}",
}})

@app.task
def fail():
    raise ValueError("cannot reach " + app.conf.broker_url)

@app.task
def add(x, y):
    return x + y
"""
COMMANDS = (
    ("report",),
    ("report", "--json"),
    ("check",),
    ("check", "--json"),
    ("doctor",),
    ("doctor", "--json"),
    ("list", "bindings", "--json"),
    ("graph", "workers", "nodes:a"),
    ("plugins", "list"),
    ("dead", "list"),
    ("schedule", "list"),
    ("call", "secretive.add", "-a", "[1, 2]"),
    ("result", "unheard-of", "--no-wait"),
    ("purge", "-f"),
)


def write_app(folder: Path, broker: str, backend: str) -> None:
    (folder / "secretive.py").write_text(SECRETIVE.format(canary=CANARY, broker=broker, backend=backend))


def with_password(url: str) -> str:
    return url.replace("://", f"://:{CANARY}@")


@pytest.fixture
def locked_redis(private_service: Callable[[Any], Any]) -> str:
    """The URL of a Redis that wants the canary for a password."""
    service = private_service(RedisService())
    wire = connect(parse_url(service.url)[0])
    wire.call("CONFIG", "SET", "requirepass", CANARY)
    wire.close()
    return with_password(service.url)


def test_no_secret_is_said_by_any_command_or_by_a_worker(tmp_path: Path, locked_redis: str) -> None:
    write_app(tmp_path, locked_redis, locked_redis)
    # In one process, for each costs a second; --traceback so that nothing is left unsaid.
    program = (
        "import json, sys\nfrom celeriac.cli.group import run\n"
        "for words in json.loads(sys.argv[1]):\n    print('+', words, flush=True)\n    print('=', run(words))\n"
    )
    words = json.dumps([["-A", "secretive", "--traceback", *command] for command in COMMANDS])
    ran = subprocess.run(
        [sys.executable, "-c", program, words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.count("\n= 0\n") >= len(COMMANDS) - 3, ran.stdout + ran.stderr
    assert CANARY not in ran.stdout + ran.stderr
    for number, log_format in enumerate(("console", "json")):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_app(folder, locked_redis, locked_redis)
        words = ("-P", "solo", "-l", "debug", "-E", "--log-format", log_format)
        worker = Watched(folder, "-A", "secretive", "worker", *words)
        (folder / "events").mkdir()
        write_app(folder / "events", locked_redis, locked_redis)
        monitor = Watched(folder / "events", "-A", "secretive", "events", "--json")
        try:
            worker.wait_for("ready")
            deadline = time.monotonic() + 60
            while "task-failed" not in monitor.out:
                assert time.monotonic() < deadline, monitor.out + monitor.err + worker.err
                call(tmp_path, "-A", "secretive", "call", "secretive.fail")
                time.sleep(0.5)
            worker.wait_for("cannot reach redis://")
            worker.stop()
        finally:
            worker.close()
            monitor.close()
        assert CANARY not in worker.out + worker.err
        assert CANARY not in monitor.out + monitor.err


@pytest.mark.parametrize("scheme", ["redis", "amqp", "sqlite"])
def test_no_secret_is_said_when_nothing_answers(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}://me:{CANARY}@127.0.0.1:1/0"
    write_app(tmp_path, url, url if scheme == "redis" else "rpc://")
    worker = ("worker", "-P", "solo", "-l", "debug", "broker.connection_retry=False")
    for command in (("call", "secretive.add"), ("doctor",), worker):
        words = [CELERIAC, "-A", "secretive", "--traceback", *command]
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ran.returncode != 0, ran.stdout
        assert CANARY not in ran.stdout + ran.stderr, command
