"""Remote control and events, client and worker ours, on every broker that has processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.conftest import BROKERS, wait_until
from tests.integration.fleet import Fleet, make_fleet

from celeriac.events import State
from celeriac.exceptions import TaskRevokedError
from celeriac.messaging.broadcasts import control_exchange
from celeriac.spec import Payload, Route

NODE = "w1@here"
WAIT_S = 60.0


@pytest.fixture(scope="module", params=BROKERS)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """With one worker of two slots, which tells about tasks."""
    fleet = make_fleet(request.param, request, tmp_path_factory.mktemp("control"))
    try:
        fleet.worker("w1", "-c", "2", "-E")
        yield fleet
    finally:
        fleet.close()


def inspect(fleet: Fleet, **options: Any) -> Any:
    return fleet.app.control.inspect([NODE], timeout=WAIT_S, **options)


def control(fleet: Fleet, command: str, **arguments: Any) -> Any:
    """The node's answer to a command."""
    (reply,) = fleet.app.control.broadcast(command, arguments, [NODE], reply=True, timeout=WAIT_S)
    return reply[NODE]


def send(fleet: Fleet, task: str, *args: Any, **options: Any) -> Any:
    return fleet.app.send_task(f"control.{task}", args, **options)


def test_a_worker_answers_who_asks_for_it_and_nobody_else(fleet: Fleet) -> None:
    app_control = fleet.app.control
    assert app_control.ping([NODE], timeout=WAIT_S) == [{NODE: {"ok": "pong"}}]
    assert app_control.ping(timeout=WAIT_S, limit=1) == [{NODE: {"ok": "pong"}}]
    assert app_control.inspect(pattern="w*@here", matcher="glob", timeout=WAIT_S, limit=1).ping()
    assert app_control.inspect(pattern=r"w\d@", matcher="pcre", timeout=WAIT_S, limit=1).ping()
    assert app_control.inspect(pattern="x*", matcher="glob", timeout=0.3).ping() is None
    assert app_control.inspect(["other@here"], timeout=0.3).ping() is None
    heard: list[Any] = []
    app_control.broadcast("ping", destination=[NODE], reply=True, timeout=WAIT_S, callback=heard.append)
    assert heard == [{NODE: {"ok": "pong"}}]


def test_what_runs_is_shown_with_its_arguments_and_its_process(fleet: Fleet) -> None:
    result = send(fleet, "nap", 600)
    try:
        wait_until(lambda: any(info["worker_pid"] for info in inspect(fleet).active()[NODE]))
        (info,) = inspect(fleet).active()[NODE]
        assert (info["id"], info["name"], info["args"], info["kwargs"]) == (result.id, "control.nap", [600], {})
        assert info["hostname"] == NODE
        assert info["worker_pid"] in inspect(fleet).stats()[NODE]["pool"]["processes"]
        assert abs(info["time_start"] - time.time()) < 300
        assert info["delivery_info"]["routing_key"] == "controlled"
        state, shown = inspect(fleet).query_task(result.id)[NODE][result.id]
        assert (state, shown["id"]) == ("active", result.id)
        assert inspect(fleet).query_task("unheard-of")[NODE] == {}
    finally:
        answer = control(fleet, "terminate", task_id=[result.id], signal="SIGKILL")
    assert answer == {"ok": f"terminate: {result.id}"}
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT_S)


def test_what_waits_in_the_worker_is_shown_and_a_revoked_task_does_not_run(fleet: Fleet) -> None:
    control(fleet, "rate_limit", task_name="control.add", rate_limit="1/m")
    send(fleet, "add", 1, 1).get(timeout=WAIT_S)
    result = send(fleet, "add", 1, 1)
    (entry,) = wait_until(lambda: inspect(fleet).scheduled()[NODE])
    assert entry["request"]["id"] == result.id
    assert entry["eta"]
    assert inspect(fleet).query_task([result.id])[NODE][result.id][0] == "scheduled"
    assert control(fleet, "revoke", task_id=result.id) == {"ok": f"tasks {result.id} flagged as revoked"}
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT_S)
    assert result.id in inspect(fleet).revoked()[NODE]
    assert inspect(fleet).scheduled()[NODE] == []
    control(fleet, "rate_limit", task_name="control.add", rate_limit=None)


def test_tasks_are_revoked_by_their_stamps(fleet: Fleet) -> None:
    control(fleet, "revoke_by_stamped_headers", headers={"customer": ["acme"]})
    stamped = send(fleet, "add", 1, 1, stamped_headers=["customer"], customer="acme")
    other = send(fleet, "add", 1, 1, stamped_headers=["customer"], customer="other")
    with pytest.raises(TaskRevokedError):
        stamped.get(timeout=WAIT_S)
    assert other.get(timeout=WAIT_S) == 2


def test_a_worker_says_what_it_is(fleet: Fleet) -> None:
    send(fleet, "add", 2, 2).get(timeout=WAIT_S)

    def settled() -> Any:  # it has counted the task, and has a new process for one that was killed before
        found = inspect(fleet).stats()[NODE]
        return found["total"].get("control.add") and len(found["pool"]["processes"]) == 2 and found

    stats = wait_until(settled)
    assert stats["pool"]["max-concurrency"] == 2
    assert stats["pid"] > 1
    assert int(stats["clock"]) > 0
    assert stats["rusage"]["maxrss"] > 0
    assert stats["uptime"] >= 0
    assert stats["broker"]["transport"] in fleet.broker
    assert [queue["name"] for queue in inspect(fleet).active_queues()[NODE]] == ["controlled"]
    assert "control.add" in " ".join(inspect(fleet).registered()[NODE])
    assert inspect(fleet).registered("rate_limit", "max_retries")[NODE][0] == "control.add [max_retries=3]"
    assert inspect(fleet).conf()[NODE]["task_default_queue"] == "controlled"
    assert len(inspect(fleet).conf(with_defaults=True)[NODE]) > 100
    assert "celeriac:" in inspect(fleet).report()[NODE]["ok"]
    before = inspect(fleet).clock()[NODE]["clock"]
    assert inspect(fleet).clock()[NODE]["clock"] > before
    assert inspect(fleet).memsample()[NODE].endswith("MB")
    assert "MB" in inspect(fleet).memdump()[NODE]
    assert set(inspect(fleet).hello("new@here", ["r1"])[NODE]) == {"revoked", "clock"}
    assert "r1" in inspect(fleet).revoked()[NODE]


def test_limits_of_tasks_are_changed(fleet: Fleet) -> None:
    assert control(fleet, "rate_limit", task_name="control.add", rate_limit="100/s")["ok"]
    assert "control.add [rate_limit=100/s]" in inspect(fleet).registered()[NODE]
    assert control(fleet, "rate_limit", task_name="control.add", rate_limit=0)["ok"]
    assert "control.add" in inspect(fleet).registered()[NODE]
    assert control(fleet, "rate_limit", task_name="nobody", rate_limit="1/s") == {"error": "unknown task"}
    assert "error" in control(fleet, "rate_limit", task_name="control.add", rate_limit="often")
    assert control(fleet, "time_limit", task_name="control.nap", hard=0.5)["ok"]
    result = send(fleet, "nap", 30)
    with pytest.raises(Exception, match=r"0\.5"):
        result.get(timeout=WAIT_S)
    assert control(fleet, "time_limit", task_name="control.nap", hard=None)["ok"]


def test_queues_are_added_and_taken_away(fleet: Fleet) -> None:
    assert control(fleet, "add_consumer", queue="extra") == {"ok": "add consumer extra"}
    assert send(fleet, "add", 3, 4, queue="extra").get(timeout=WAIT_S) == 7
    assert control(fleet, "cancel_consumer", queue="extra") == {"ok": "no longer consuming from extra"}
    assert [queue["name"] for queue in inspect(fleet).active_queues()[NODE]] == ["controlled"]


def test_the_pool_grows_shrinks_and_begins_anew(fleet: Fleet) -> None:
    def processes() -> list[int]:
        pids: list[int] = inspect(fleet).stats()[NODE]["pool"]["processes"]
        return pids

    assert control(fleet, "pool_grow", n=1) == {"ok": "pool will grow"}
    wait_until(lambda: len(processes()) == 3)
    assert control(fleet, "pool_shrink", n=1) == {"ok": "pool will shrink"}
    wait_until(lambda: len(processes()) == 2)
    before = set(processes())
    assert control(fleet, "pool_restart") == {"ok": "reload started"}
    wait_until(lambda: len(processes()) == 2 and not before & set(processes()))
    assert send(fleet, "add", 1, 2).get(timeout=WAIT_S) == 3
    assert "error" in control(fleet, "autoscale", max=3, min=1)


def test_users_commands_are_commands_and_errors_are_replies(fleet: Fleet) -> None:
    assert control(fleet, "count_up", n=4) == {"ok": 5}
    assert control(fleet, "whoami") == {"hostname": NODE, "tasks": True}
    assert control(fleet, "nonsense") == {"error": "KeyError('nonsense')"}
    assert "TypeError" in control(fleet, "count_up", wrong=1)["error"]


def test_what_is_no_command_is_dropped_and_counted(fleet: Fleet) -> None:
    exchange = control_exchange(fleet.app.conf)
    before = inspect(fleet).stats()[NODE]["remote_control"]["malformed"]
    for body in (b"", b"null", b"\xff", b'{"method": 5}', b'{"method": "ping", "destination": 7}', b"[" * 5000):
        payload = Payload(
            body, "application/json", "utf-8", {}, {"delivery_mode": 1}, Route("", exchange.name, "fanout")
        )
        fleet.app.transport.broadcast(exchange, [payload])  # type: ignore[attr-defined]
    wait_until(lambda: inspect(fleet).stats()[NODE]["remote_control"]["malformed"] == before + 6)


def test_a_flood_of_commands_does_not_hold_up_tasks(fleet: Fleet) -> None:
    for _ in range(500):
        fleet.app.control.broadcast("memsample")
    assert send(fleet, "add", 20, 22).get(timeout=100) == 42
    assert fleet.app.control.ping([NODE], timeout=100)


def test_events_tell_the_life_of_tasks(fleet: Fleet) -> None:
    state, seen = State(), []

    def note(event: dict[str, Any]) -> None:
        seen.append(event)
        state.event(event)

    with fleet.app.events.Receiver(handlers={"*": note}) as receiver:
        receiver.open()
        receiver.wakeup_workers()
        good, bad = send(fleet, "add", 2, 2), send(fleet, "boom", "oh")
        retried, telling = send(fleet, "again"), send(fleet, "telling")

        def types(result: Any) -> list[str]:
            return [event["type"] for event in seen if event.get("uuid") == result.id]

        def all_there() -> bool:
            receiver.drain(0.1)
            workers[:] = state.alive_workers()
            calls = {good.id, bad.id, retried.id, telling.id}
            ended = {event["uuid"] for event in seen if event["type"] in ("task-succeeded", "task-failed")}
            sent = {event["uuid"] for event in seen if event["type"] == "task-sent"}
            return calls <= ended & sent and any(worker.processed for worker in workers)

        workers: list[Any] = []
        wait_until(all_there)
    told = types(good)
    assert [type for type in told if type != "task-sent"] == ["task-received", "task-started", "task-succeeded"]
    assert told.count("task-sent") == 1  # by the client, which may be slower to tell than the worker to run
    of_worker = [type for type in types(retried) if type != "task-sent"]
    assert of_worker[-3:] == ["task-received", "task-started", "task-succeeded"]
    assert "task-retried" in types(retried)
    assert "task-progress" in types(telling)
    order = ("task-sent", "task-received", "task-started", "task-succeeded")
    sent, received, started, succeeded = sorted(
        (event for event in seen if event.get("uuid") == good.id), key=lambda event: order.index(event["type"])
    )
    assert (sent["queue"], sent["name"], sent["args"], sent["root_id"]) == (
        "controlled", "control.add", "(2, 2)", good.id,
    )  # fmt: skip
    assert (received["name"], received["args"], received["kwargs"]) == ("control.add", "(2, 2)", "{}")
    assert (received["retries"], received["eta"], received["expires"], received["parent_id"]) == (0, None, None, None)
    assert succeeded["result"] == "4"
    assert succeeded["runtime"] >= 0
    assert received["clock"] < started["clock"] < succeeded["clock"]
    for event in (received, started, succeeded):
        assert (event["hostname"], type(event["pid"]), type(event["utcoffset"])) == (NODE, int, int)
        assert abs(event["timestamp"] - time.time()) < 300
    task = state.tasks[bad.id]
    assert (task.state, task.exception) == ("FAILURE", "ValueError('oh')")
    assert "boom" in (task.traceback or "")
    (worker,) = workers
    assert (worker.hostname, worker.sw_ident, worker.freq) == (NODE, "py-celeriac", 2.0)
    assert worker.processed
    assert worker.loadavg


def test_task_events_are_switched_off_and_on(fleet: Fleet) -> None:
    assert control(fleet, "enable_events") == {"ok": "task events already enabled"}
    assert control(fleet, "disable_events") == {"ok": "task events disabled"}
    seen: list[Any] = []
    with fleet.app.events.Receiver(handlers={"*": seen.append}) as receiver:
        receiver.open()
        quiet = send(fleet, "add", 1, 1)
        quiet.get(timeout=WAIT_S)
        assert control(fleet, "enable_events") == {"ok": "task events enabled"}
        loud = send(fleet, "add", 1, 1)
        wait_until(
            lambda: receiver.drain(0.1) or loud.id in {e.get("uuid") for e in seen if e["type"] == "task-succeeded"}
        )
    told = {event["uuid"] for event in seen if event["type"] in ("task-received", "task-started", "task-succeeded")}
    assert quiet.id not in told


@pytest.mark.parametrize("fleet", ["sqlite"], indirect=True)
def test_the_command_lines_say_the_same(fleet: Fleet) -> None:
    assert fleet.ask("celeriac", "status", "-t", "60", "-d", NODE) == {NODE: {"ok": "pong"}}
    shown = fleet.run("celeriac", "inspect", "-t", "60", "-d", NODE, "registered")
    assert shown.returncode == 0
    assert f"->  {NODE}: OK" in shown.stdout
    assert "* control.add" in shown.stdout
    assert "1 node online." in shown.stderr
    assert fleet.ask("celeriac", "control", "-t", "60", "-d", NODE, "count_up", "6") == [{NODE: {"ok": 7}}]
    nobody = fleet.run("celeriac", "inspect", "-t", "0.2", "-d", "nobody@here", "ping")
    assert nobody.returncode == 69
    assert "No nodes replied within time constraint" in nobody.stderr
    assert fleet.run("celeriac", "control", "ping").returncode == 2
    assert "pool_grow" in fleet.run("celeriac", "control", "--list").stdout
    dump = fleet.ask("celeriac", "events", "--dump", "--limit", "1")
    assert dump["hostname"] == NODE
    assert "task" in fleet.run("celeriac", "events", "--help").stdout


def test_a_worker_is_shut_down_from_afar(fleet: Fleet) -> None:
    process = fleet.worker("w2", "-c", "1", CONTROL_QUEUE="other")
    seen: list[Any] = []
    with fleet.app.events.Receiver(handlers={"worker-offline": seen.append}) as receiver:
        receiver.open()
        fleet.app.control.shutdown(["w2@here"])
        assert process.wait(WAIT_S) == 0
        wait_until(lambda: receiver.drain(0.1) or seen)
    assert seen[0]["hostname"] == "w2@here"
    assert fleet.app.control.ping([NODE], timeout=WAIT_S)


@pytest.mark.parametrize("fleet", ["sqlite"], indirect=True)
def test_a_worker_scales_itself(fleet: Fleet) -> None:
    fleet.worker("scaling", "--autoscale", "3,1", CONTROL_QUEUE="scaled", AUTOSCALE_KEEPALIVE="0.5")
    node = "scaling@here"

    def stats() -> Any:
        return fleet.app.control.inspect([node], timeout=WAIT_S).stats()[node]

    assert stats()["autoscaler"] == {"max": 3, "min": 1, "current": 1, "qty": 0}
    go_on = fleet.place / "go-on"
    held = [send(fleet, "hold", str(go_on), queue="scaled") for _ in range(3)]
    wait_until(lambda: stats()["autoscaler"]["current"] == 3)
    go_on.touch()
    assert [one.get(timeout=WAIT_S) for one in held] == ["held"] * 3
    wait_until(lambda: stats()["autoscaler"]["current"] == 1)
    (refused,) = fleet.app.control.pool_grow(1, [node], reply=True, timeout=WAIT_S)
    assert "error" in refused[node]
    (changed,) = fleet.app.control.autoscale(5, 2, [node], reply=True, timeout=WAIT_S)
    assert changed[node] == {"ok": "autoscale now max=5 min=2"}
    wait_until(lambda: stats()["autoscaler"]["current"] == 2)
    fleet.app.control.shutdown([node])
