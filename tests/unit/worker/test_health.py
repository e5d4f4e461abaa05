"""The worker knows whether it consumes: it tells others, and when it is deaf it sees to it."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import ImproperlyConfigured, TransportLost
from celeriac.worker import consumer
from celeriac.worker.watchdog import Watchdog
from celeriac.worker.worker import EXIT_DEAF, EXIT_OK, Worker


class Running:
    """A worker of a small app, in a thread of this process, on the memory broker."""

    def __init__(self, name: str, *, pool: str = "threads", **settings: Any) -> None:
        self.app = Celery(f"health-{name}", broker=f"memory://health-{name}", backend=f"memory://health-{name}")
        self.app.conf.update(settings)
        self.app.task(name="add")(lambda x, y: x + y)
        self.ready = threading.Event()
        self.code: int | None = None
        self.worker = Worker(self.app, pool=pool, concurrency=2, on_ready=lambda worker: self.ready.set())
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Running:
        self.thread.start()
        assert self.ready.wait(60)
        return self

    def _run(self) -> None:
        self.code = self.worker.run()

    def stop(self) -> int | None:
        self.worker.stop()
        self.thread.join(60)
        return self.code

    def works(self) -> bool:
        return bool(self.app.send_task("add", (2, 2)).get(timeout=60) == 4)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(**settings: Any) -> Running:
        made.append(Running(f"{request.node.name}-{len(made)}", **settings))
        return made[-1]

    yield make
    for one in made:
        if one.thread.is_alive():
            one.stop()


def until(true: Callable[[], Any], within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
    return found


def answer_to(running: Running, request: str) -> bytes:
    """None, if this thread was so slow that the door did not wait for its request."""
    assert running.worker._door is not None
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", running.worker._door.port), 30) as client,
        suppress(ConnectionError),
    ):
        client.sendall(request.encode())
        while data := client.recv(4096):
            answer += data
    return answer


def ask(running: Running, request: str = "GET /ready HTTP/1.1\r\n\r\n") -> tuple[int, Any]:
    answer = until(lambda: answer_to(running, request))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None


def lose_broker(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is away from now on, until the patches are undone."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise TransportLost("gone")

    monkeypatch.setattr(running.worker.transport, "consumer", fail)
    monkeypatch.setattr(running.worker.link.consumer, "receive", fail)
    running.worker._sleeper.wake()


# -- telling others -----------------------------------------------------------------------------------------


def test_a_worker_says_over_http_whether_it_consumes(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run(worker_health_port=0).start()
    assert ask(running) == (200, {"ready": True, "trouble": "", "node": running.worker.hostname})
    assert ask(running, "HEAD / HTTP/1.0\r\n\r\n") == (200, None)
    with monkeypatch.context() as patch:
        lose_broker(running, patch)
        until(lambda: ask(running)[0] == 503)
        assert ask(running)[1]["trouble"] == "the broker is away"
        assert ask(running, "GET /live?x=1 HTTP/1.1\r\n\r\n")[0] == 200
    until(lambda: ask(running)[0] == 200)
    assert running.works()


def test_nonsense_at_the_door_is_answered_and_a_silent_client_holds_up_nobody_for_long(
    run: Callable[..., Running],
) -> None:
    running = run(worker_health_port=0).start()
    assert ask(running, "GET /other HTTP/1.1\r\n\r\n")[0] == 404
    assert ask(running, "POST /ready HTTP/1.1\r\n\r\n")[0] == 405
    assert ask(running, "\x00\x01\r\n")[0] == 405
    assert running.worker._door is not None
    with socket.create_connection(("127.0.0.1", running.worker._door.port), 10):
        assert ask(running)[0] == 200


def test_a_stopping_worker_is_not_ready(run: Callable[..., Running]) -> None:
    running = run(worker_health_port=0)
    gate = threading.Event()
    running.app.task(name="wait")(lambda: gate.wait(60))
    running.start()
    running.app.send_task("wait")
    until(lambda: len(running.worker.loop.flights))
    running.worker.stop()
    until(lambda: ask(running)[0] == 503)
    assert ask(running)[1]["trouble"] == "the worker is stopping"
    gate.set()
    running.thread.join(60)
    assert running.code == EXIT_OK


def test_a_loop_that_stands_still_is_not_ready_and_not_alive(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run(worker_health_port=0).start()
    monkeypatch.setattr("celeriac.worker.health.STALLED_S", 0.2)
    gate = threading.Event()
    monkeypatch.setattr(running.worker.pool, "collect", lambda: gate.wait(60) and [])
    until(lambda: ask(running)[0] == 503)
    assert "has not turned" in ask(running)[1]["trouble"]
    assert ask(running, "GET /live HTTP/1.1\r\n\r\n")[0] == 503
    monkeypatch.undo()
    gate.set()
    until(lambda: ask(running)[0] == 200)


def test_a_port_that_is_taken_is_told_before_anything_is_consumed(run: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        running = run(worker_health_port=other.getsockname()[1])
        with pytest.raises(ImproperlyConfigured, match="--health-port"):
            running.worker.run()


def test_the_ready_file_is_there_while_the_worker_consumes(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "ready"
    path.parent.mkdir()
    path.touch()  # of a worker that was killed
    running = run(worker_ready_file=str(path)).start()
    until(path.exists)
    os.utime(path, (1, 1))
    until(lambda: path.stat().st_mtime > 1)
    with monkeypatch.context() as patch:
        lose_broker(running, patch)
        until(lambda: not path.exists())
    until(path.exists)
    assert running.stop() == EXIT_OK
    assert not path.exists()


def test_a_ready_file_that_cannot_be_is_told_before_anything_is_consumed(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "ready", Path("/proc/ready")):  # nobody, not even root, may write in the second
        running = run(worker_ready_file=str(path))
        with pytest.raises(ImproperlyConfigured, match="--ready-file"):
            running.worker.run()


# -- seeing to it -------------------------------------------------------------------------------------------


def deafen(one: Any) -> None:
    """This consumer hears nothing more, and says nothing of it."""
    one.receive = lambda limit: []


def test_a_deaf_worker_makes_its_link_anew_and_works_on(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer, "IDLE_S", 0.1)
    running = run(worker_watchdog=0.8).start()
    assert running.works()
    deafen(running.worker.link.consumer)
    with caplog.at_level(logging.ERROR):
        assert running.works()
    assert "Deaf: messages are ready (1 in celery)" in caplog.text
    assert running.worker.link.epoch == 2
    assert running.stop() == EXIT_OK


def test_a_worker_that_stays_deaf_ends_with_a_code_of_its_own(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer, "IDLE_S", 0.1)
    running = run(worker_watchdog=0.2).start()
    make = running.worker.transport.consumer

    def make_deaf(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        deafen(made)
        return made

    monkeypatch.setattr(running.worker.transport, "consumer", make_deaf)
    deafen(running.worker.link.consumer)
    with caplog.at_level(logging.ERROR):
        running.app.send_task("add", (2, 2))
        running.thread.join(60)
    assert running.code == EXIT_DEAF
    assert "over 3 new links" in caplog.text
    assert running.worker.transport.depth("celery") == 1, "for the next process"


def test_an_idle_worker_and_a_busy_one_are_left_alone(run: Callable[..., Running]) -> None:
    running = run(worker_watchdog=0.8)
    gate = threading.Event()
    running.app.task(name="wait")(lambda: gate.wait(60))
    running.start()
    time.sleep(1.0)
    for _ in range(6):
        running.app.send_task("wait")
    until(lambda: len(running.worker.loop.flights) == 2)
    time.sleep(1.0)
    gate.set()
    assert running.works()
    assert running.worker.link.epoch == 1


def test_a_worker_whose_loop_runs_a_long_task_itself_is_not_deaf_to_what_waits_behind(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = Watchdog._look_at_progress, []
    monkeypatch.setattr(Watchdog, "_look_at_progress", lambda watchdog: looks.append(look(watchdog)))
    running = run(pool="solo", worker_watchdog=0.2, worker_prefetch_multiplier=4)
    begun, gate = threading.Event(), threading.Event()
    running.app.task(name="wait")(lambda: begun.set() or gate.wait(60))
    running.start().app.send_task("wait")
    assert begun.wait(60)
    behind = running.app.send_task("add", (2, 2))
    looks.clear()
    until(lambda: len(looks) > 30)  # enough for four verdicts, the last of which ends a worker that is deaf
    gate.set()
    assert behind.get(timeout=60) == 4
    assert running.worker.link.epoch == 1
    assert running.stop() == EXIT_OK


def test_without_a_watchdog_nothing_is_made_anew(run: Callable[..., Running]) -> None:
    running = run(worker_watchdog=0).start()
    deafen(running.worker.link.consumer)
    running.app.send_task("add", (2, 2))
    time.sleep(0.5)
    assert running.worker.link.epoch == 1
