"""Remote control and events with strangers: a real Celery's command line and workers, and a real Flower.

On Redis and RabbitMQ, one worker of ours and one of Celery's side by side.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import flower_python
from tests.integration.conftest import wait_until
from tests.integration.fleet import Fleet, make_fleet

from celeriac.events import State
from celeriac.testing.services import free_ports

pytestmark = [pytest.mark.services, pytest.mark.slow]

OURS, THEIRS = "ours@here", "theirs@here"
BOTH = f"{OURS},{THEIRS}"
GET_S = 60.0
BROKERS = [
    pytest.param("redis"),
    pytest.param("amqp", marks=pytest.mark.xdist_group("rabbitmq")),
]

#: Asks a worker everything a Celery client can ask, in one process.
CLIENT = """
import json, sys
from control_app import app
node, running = sys.argv[1:]
inspect = app.control.inspect([node], timeout=60)
found = {
    name: getattr(inspect, name)()
    for name in (
        "ping", "active", "reserved", "scheduled", "revoked", "registered", "stats", "active_queues", "conf", "clock",
        "report", "memsample",
    )
}
found["query_task"] = inspect.query_task(running)
control = {"destination": [node], "reply": True, "timeout": 60}
found["control"] = {
    "rate_limit": app.control.rate_limit("control.add", "50/s", **control),
    "time_limit": app.control.time_limit("control.nap", soft=50, hard=60, **control),
    "add_consumer": app.control.add_consumer("extra", **control),
    "cancel_consumer": app.control.cancel_consumer("extra", **control),
    "pool_grow": app.control.pool_grow(1, **control),
    "pool_shrink": app.control.pool_shrink(1, **control),
    "disable_events": app.control.disable_events(**control),
    "enable_events": app.control.enable_events(**control),
    "revoke": app.control.revoke("some-id", **control),
    "terminate": app.control.terminate([running], signal="SIGKILL", **control),
    "nonsense": app.control.broadcast("nonsense", **control),
}
print("FOUND", json.dumps(found, default=str))
"""


@pytest.fixture(scope="module", params=BROKERS)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Both workers, each on a queue of its own."""
    fleet = make_fleet(request.param, request, tmp_path_factory.mktemp("strangers"))
    try:
        fleet.worker("ours", "-c", "2", "-E", CONTROL_QUEUE="ours")
        fleet.worker("theirs", "-c", "2", "-E", library="celery", CONTROL_QUEUE="theirs")
        yield fleet
    finally:
        fleet.close()


def send(fleet: Fleet, queue: str, task: str, *args: Any) -> Any:
    return fleet.app.send_task(f"control.{task}", args, queue=queue)


def active(fleet: Fleet, node: str) -> Any:
    """What it runs."""
    return fleet.app.control.inspect([node], timeout=GET_S).active()[node]


def as_celery(fleet: Fleet, node: str, running: str) -> Any:
    done = subprocess.run(
        [fleet.command("celery").removesuffix("celery") + "python", "-c", CLIENT, node, running],
        cwd=fleet.place, env=fleet.env("celery"), text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("FOUND ")[2])


def covers(ours: Any, theirs: Any) -> bool:
    """Everything that theirs has, ours has too; it may have more."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and all(key in ours and covers(ours[key], item) for key, item in theirs.items())
    if isinstance(theirs, list) and theirs:
        return isinstance(ours, list) and bool(ours) and covers(ours[0], theirs[0])
    return True


def test_a_celery_client_is_answered_as_by_a_celery_worker(fleet: Fleet) -> None:
    answers = {}
    for node, queue in ((OURS, "ours"), (THEIRS, "theirs")):
        running = send(fleet, queue, "nap", 60)
        wait_until(lambda node=node: active(fleet, node), GET_S)
        found = as_celery(fleet, node, running.id)
        answers[node] = {
            name: answer[node] for name, answer in found.items() if name != "control"
        } | {name: answer[0][node] for name, answer in found["control"].items()}  # fmt: skip
        assert answers[node]["query_task"][running.id][0] == "active"
        assert answers[node]["active"][0]["args"] == [60]
    ours, theirs = answers[OURS], answers[THEIRS]
    for name in ("ping", "clock", "active", "reserved", "scheduled", "active_queues"):
        assert covers(ours[name], theirs[name]), name
    for name in ("rate_limit", "time_limit", "add_consumer", "cancel_consumer", "pool_grow", "pool_shrink",
                 ):  # fmt: skip
        assert ours[name] == theirs[name], name
    # A Celery worker that was started with -E cannot be told to stop telling.
    assert ours["disable_events"] == {"ok": "task events disabled"}
    assert ours["enable_events"] == {"ok": "task events enabled"}
    assert "some-id" in ours["revoke"]["ok"]
    assert set(ours["terminate"]) == set(theirs["terminate"]) == {"ok"}
    assert ours["nonsense"] == theirs["nonsense"] == {"error": "KeyError('nonsense')"}
    assert {"total", "pid", "clock", "uptime", "pool", "broker", "prefetch_count", "rusage"} <= set(ours["stats"])
    assert set(theirs["stats"]["broker"]) <= set(ours["stats"]["broker"])
    assert {"max-concurrency", "processes", "max-tasks-per-child", "timeouts"} <= set(ours["stats"]["pool"])
    assert "control.add" in " ".join(ours["registered"])
    assert ours["conf"]["task_default_queue"] == "ours"
    assert "celeriac" in ours["report"]["ok"]
    assert "some-id" in fleet.app.control.inspect([OURS], timeout=60).revoked()[OURS]


@pytest.mark.parametrize("fleet", BROKERS[:1], indirect=True)  # Celery's commands do not know the broker
def test_the_celery_command_line_works_with_our_worker(fleet: Fleet) -> None:
    assert fleet.ask("celery", "inspect", "-t", "60", "-d", BOTH, "ping") == {
        OURS: {"ok": "pong"}, THEIRS: {"ok": "pong"},
    }  # fmt: skip
    status = fleet.run("celery", "status", "-t", "60", "-d", BOTH)
    assert f"{OURS}: OK" in status.stdout
    assert "2 nodes online" in status.stdout
    stats = fleet.run("celery", "inspect", "-t", "60", "-d", OURS, "stats")
    assert stats.returncode == 0
    assert "max-concurrency" in stats.stdout
    changed = fleet.run("celery", "control", "-t", "60", "-d", OURS, "rate_limit", "control.add", "70/s")
    assert "new rate limit set successfully" in changed.stdout


def test_celery_events_shows_what_happens_in_our_worker(fleet: Fleet) -> None:
    path = fleet.place / "dump.txt"
    with path.open("wb") as out:
        dump = subprocess.Popen(
            [fleet.command("celery"), "-A", "control_app", "events", "--dump"], cwd=fleet.place,
            env=fleet.env("celery"), stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    fleet.processes.append(dump)
    wait_until(lambda: "heartbeat" in path.read_text(), GET_S, "a heartbeat")
    done = send(fleet, "ours", "add", 40, 2)
    assert done.get(timeout=GET_S) == 42
    wait_until(lambda: f"{done.id}" in path.read_text() and "succeeded" in path.read_text(), GET_S, "the task's events")
    text = path.read_text()
    assert OURS in text
    assert "task received" in text
    fleet.end(dump)


def test_our_command_line_and_client_work_with_a_celery_worker(fleet: Fleet) -> None:
    assert fleet.ask("celeriac", "inspect", "-t", "60", "-d", BOTH, "ping") == {
        OURS: {"ok": "pong"}, THEIRS: {"ok": "pong"},
    }  # fmt: skip
    inspect = fleet.app.control.inspect([THEIRS], timeout=60)
    assert "control.add" in " ".join(inspect.registered()[THEIRS])
    assert inspect.stats()[THEIRS]["pool"]["max-concurrency"] >= 2
    assert inspect.conf()[THEIRS]
    assert [queue["name"] for queue in inspect.active_queues()[THEIRS]] == ["theirs"]
    (answer,) = fleet.app.control.rate_limit("control.add", "90/s", destination=[THEIRS], reply=True, timeout=60)
    assert answer[THEIRS] == {"ok": "new rate limit set successfully"}
    running = send(fleet, "theirs", "nap", 60)
    wait_until(lambda: active(fleet, THEIRS), GET_S)
    fleet.app.control.revoke(running.id, destination=[THEIRS], terminate=True, signal="SIGKILL")
    wait_until(lambda: not active(fleet, THEIRS), GET_S)
    assert running.id in inspect.revoked()[THEIRS]


def test_our_monitor_sees_both(fleet: Fleet) -> None:
    state = State()
    with fleet.app.events.Receiver(handlers={"*": state.event}) as receiver:
        receiver.open()
        receiver.wakeup_workers()
        calls = [send(fleet, queue, "add", 1, 1) for queue in ("ours", "theirs")]

        def all_seen() -> bool:
            receiver.drain(0.1)
            tasks = [state.tasks.get(call.id) for call in calls]
            return all(task is not None and task.state == "SUCCESS" for task in tasks) and {
                worker.hostname for worker in state.alive_workers()
            } >= {OURS, THEIRS}

        wait_until(all_seen, GET_S)
    for call in calls:
        task = state.tasks[call.id]
        assert (task.name, task.args, task.result) == ("control.add", "(1, 1)", "2")


class Flower:
    """A running Flower, driven by its HTTP API."""

    def __init__(self, fleet: Fleet) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.log_path: Path = fleet.place / "flower.log"
        command = str(flower_python().with_name("celery"))
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [command, "-A", "control_app", "flower", f"--port={port}", "--address=127.0.0.1",
                 "--inspect_timeout=10000"],
                cwd=fleet.place, env=fleet.env("celery", FLOWER_UNAUTHENTICATED_API="1"),
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        fleet.processes.append(self.process)

    def call(self, method: str, path: str, body: Any = None, form: str | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else (form or "").encode() if method == "POST" else None
        request = urllib.request.Request(self.url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as exc:
            return {"status": exc.code, "error": exc.read().decode(errors="replace")}

    def tell(self, path: str, form: str | None = None) -> str:
        """Have it tell a worker something; what that said. Flower waits a second for it, so it may be told again."""
        said: str = wait_until(lambda: self.call("POST", path, form=form).get("message"), GET_S, path)
        return said

    def is_up(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"Flower ended:\n{self.log_path.read_text()[-3000:]}")
        try:
            return bool(self.call("GET", "/api/workers?refresh=1").get(OURS))
        except (OSError, ValueError):
            return False


def test_flower_shows_and_steers_our_worker(fleet: Fleet) -> None:
    flower = Flower(fleet)
    wait_until(flower.is_up, 60, "Flower with our worker")
    wanted = {"stats", "registered", "active_queues", "conf"}

    def known() -> Any:
        found = flower.call("GET", f"/api/workers?refresh=1&workername={OURS}").get(OURS, {})
        return found if wanted <= found.keys() else None

    worker = wait_until(known, GET_S, "our worker in Flower")
    assert worker["stats"]["pool"]["max-concurrency"] >= 2
    assert "control.add" in " ".join(worker["registered"])
    assert [queue["name"] for queue in worker["active_queues"]] == ["ours"]
    assert worker["conf"]["task_default_queue"] == "ours"

    applied = flower.call("POST", "/api/task/async-apply/control.add", {"args": [20, 22], "queue": "ours"})
    task_id = applied["task-id"]

    def shown(state: str, id: str) -> Any:
        task = flower.call("GET", "/api/tasks").get(id)
        return task if task is not None and task["state"] == state else None

    task = wait_until(lambda: shown("SUCCESS", task_id), GET_S, "the task in Flower")
    assert (task["name"], task["args"], task["result"], task["worker"]) == ("control.add", "[20, 22]", "42", OURS)
    assert task["runtime"] is not None

    running = send(fleet, "ours", "nap", 120)
    wait_until(lambda: shown("STARTED", running.id), GET_S, "the running task in Flower")
    assert "Revoked" in flower.call("POST", f"/api/task/revoke/{running.id}?terminate=true&signal=SIGKILL")["message"]
    wait_until(lambda: shown("REVOKED", running.id), GET_S, "the revoked task in Flower")

    assert "Growing" in flower.tell(f"/api/worker/pool/grow/{OURS}?n=1")
    inspect = fleet.app.control.inspect([OURS], timeout=60)
    wait_until(lambda: inspect.stats()[OURS]["pool"]["max-concurrency"] >= 3, GET_S)
    assert "Shrinking" in flower.tell(f"/api/worker/pool/shrink/{OURS}?n=1")
    assert "add" in flower.tell(f"/api/worker/queue/add-consumer/{OURS}?queue=more")
    assert "no longer" in flower.tell(f"/api/worker/queue/cancel-consumer/{OURS}?queue=more")
    limited = flower.tell("/api/task/rate-limit/control.add", form=f"workername={OURS}&ratelimit=200/s")
    assert "new rate limit" in limited

    process = fleet.processes[0]
    assert "Shutting down" in flower.call("POST", f"/api/worker/shutdown/{OURS}")["message"]
    assert process.wait(GET_S) == 0
    fleet.end(flower.process)
    fleet.processes[0] = fleet.worker("ours", "-c", "2", "-E", CONTROL_QUEUE="ours")
