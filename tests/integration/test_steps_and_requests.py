"""What programs of Celery's bring into a worker: steps, a consumer of their own, requests, a debugger in a task."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
from kombu import Connection, Exchange, Queue
from tests.integration.conftest import House, WorkerProcess, wait_until

from celeriac.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celeriac.testing.services import free_ports

pytestmark = pytest.mark.services


class Client:
    """Of the debugger that this worker's log has told of last."""

    def __init__(self, worker: WorkerProcess) -> None:
        port = int(worker.log.rpartition("telnet 127.0.0.1 ")[2].split()[0])
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self._file = self._socket.makefile("rw", newline="\n")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._socket.close()

    def answer(self) -> str:
        text = ""
        while not text.endswith("(rdb) "):
            text += self._file.read(1)
        return text

    def say(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.answer()


@pytest.fixture(scope="module")
def stepped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With a worker of `steps_app`."""
    url = request.getfixturevalue("redis_service").fresh_url()
    made = House(tmp_path_factory.mktemp("stepped"), url, url)
    made.worker("-c", "3", app="steps_app", CELERY_RDB_PORT=str(free_ports(1)[0]), CELERY_RDBSIG="1")
    yield made
    made.close()


def test_a_consumer_step_serves_a_queue_of_its_own_and_may_call_tasks(stepped: House) -> None:
    queue = Queue("orders", Exchange("orders"), "routing_key")
    with Connection(stepped.broker) as connection, connection.Producer(serializer="json") as producer:
        for number in (41, 42):
            producer.publish(
                {"number": number}, exchange=queue.exchange, routing_key="routing_key", declare=[queue], retry=True
            )
    wait_until(lambda: {"order 41", "order 42"} <= set(stepped.ran()), what="both orders")
    stepped.workers[0].wait_for("Task steps.add")
    assert len([line for line in stepped.ran() if line.startswith("order")]) == 2


def test_a_step_has_the_worker_s_timer_and_sees_what_runs(stepped: House) -> None:
    result = stepped.app.send_task("steps.nap", (60,))
    wait_until(lambda: any(f"saw {result.id} of " in line for line in stepped.ran()), what="a look at the task")
    assert any(f"saw {result.id} of [60]" in line or f"saw {result.id} of (60,)" in line for line in stepped.ran())


def test_a_custom_request_hears_what_becomes_of_its_task(stepped: House) -> None:
    def call(how: str, **options: float) -> tuple[str, BaseException | str]:
        result = stepped.app.send_task("steps.told", (how,), **options)
        return result.id, result.get(timeout=30, propagate=False)

    def heard(task_id: str) -> list[str]:
        return [line.replace(task_id, "").split(None, 1)[0] for line in stepped.ran() if task_id in line]

    def said(text: str) -> bool:
        return any(text in line for line in stepped.ran())

    good, _ = call("well")
    assert heard(good) == ["accepted", "success"]
    assert said(f"success {good} 'well'")
    bad, error = call("fail")
    assert isinstance(error, ValueError)
    assert said(f"failure {bad} ValueError ")
    again, _ = call("retry")
    assert heard(again) == ["accepted", "retry", "accepted", "success"]
    assert said(f"retry {again} KeyError('again')")
    dead, error = call("die")
    assert isinstance(error, WorkerLostError)
    assert said(f"failure {dead} WorkerLostError")
    soft, error = call("sleep", soft_time_limit=0.3)
    assert isinstance(error, SoftTimeLimitExceeded)
    assert said(f"timeout {soft} soft 0.3")
    assert said(f"failure {soft} SoftTimeLimitExceeded")
    hard, error = call("sleep", time_limit=0.3)
    assert isinstance(error, TimeLimitExceeded)
    assert heard(hard) == ["accepted", "timeout"]
    assert said(f"timeout {hard} hard 0.3")


def test_a_task_can_be_debugged_over_a_socket(stepped: House) -> None:
    worker = stepped.workers[0]
    result = stepped.app.send_task("steps.debug", (21,))
    worker.wait_for("waits for you: telnet 127.0.0.1 ")
    with Client(worker) as client:
        client.answer()
        assert "42" in client.ask("p y")
        client.say("continue")
        assert result.get(timeout=30) == 42


def test_a_signal_opens_a_debugger_in_what_a_process_does(stepped: House) -> None:
    worker = stepped.workers[0]
    before = worker.log.count("waits for you")
    result = stepped.app.send_task("steps.nap", (1234,))
    line = wait_until(
        lambda: next((line for line in stepped.ran() if f"saw {result.id} of " in line), None),
        what="the task's process",
    )
    os.kill(int(line.rpartition(" ")[2]), signal.SIGUSR2)
    wait_until(lambda: worker.log.count("waits for you") > before, what="the debugger")
    with Client(worker) as client:
        assert "(rdb) " in client.answer()
        assert "1234" in client.ask("p count")
        client.ask("left[1:] = []")
        client.say("continue")
    assert result.get(timeout=30) is None


def test_a_worker_s_steps_stop_with_it(stepped: House) -> None:
    assert stepped.workers[0].stop() == 0
    assert "watch stopped" in stepped.ran()
