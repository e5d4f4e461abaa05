"""Settings of Celery's that few programs set, in a worker that has them all."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from kombu import Connection
from tests.integration.conftest import House, wait_until

from celeriac import chord, signature
from celeriac.exceptions import WorkerLostError

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def heeded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With a worker of `heeded_app`."""
    url = request.getfixturevalue("redis_service").fresh_url()
    made = House(tmp_path_factory.mktemp("heeded"), url, url)
    made.app.conf.task_protocol = 1
    made.worker("-c", "2", app="heeded_app")
    yield made
    made.close()


def test_a_death_counts_as_one_of_the_task_s_retries(heeded: House) -> None:
    survives = [heeded.app.send_task(name, (1,)) for name in ("late", "early", "unbound")]
    assert [result.get(timeout=30) for result in survives] == [1, 1, 1]
    for name, runs in (("late", 2), ("early", 2), ("unbound", 3)):
        before = len(heeded.ran())
        result = heeded.app.send_task(name, (9,))
        with pytest.raises(WorkerLostError):
            result.get(timeout=30)
        lines = heeded.ran()[before:]
        assert [line for line in lines if line.endswith("False")] == [f"{name} {n} False" for n in range(runs)]
        if name == "late":
            assert lines[1::2] == ["late retry WorkerLostError", "late failure WorkerLostError"], "its requests hear"
    plain = heeded.app.send_task("plain", (9,))
    with pytest.raises(WorkerLostError):
        plain.get(timeout=30)
    assert [line for line in heeded.ran() if line.startswith("plain")] == ["plain 0 False"] + ["plain 0 True"] * 2
    wait_until(lambda: "It is tried again in 0.1 s (retry 1 of 1)" in heeded.workers[0].log, what="the log line")


def test_what_has_succeeded_is_not_run_again_and_what_follows_is_done(heeded: House) -> None:
    canvas = chord(
        [signature("done_and_dead", (5,), app=heeded.app), signature("follow", (6,), app=heeded.app)],
        signature("follow", app=heeded.app),
    )
    linked = heeded.app.send_task("done_and_dead", (7,), link=signature("follow"))
    assert canvas.apply_async().get(timeout=30) == [5, 6]
    wait_until(lambda: "followed 7" in heeded.ran(), what="the callback")
    assert linked.get(timeout=30) == 7
    assert [heeded.ran().count(f"ran {value}") for value in (5, 7)] == [1, 1]
    wait_until(lambda: heeded.workers[0].log.count("it has succeeded before") == 2, what="the log lines")


def test_a_consumer_and_an_agent_of_the_program_s_own_run_beside_the_loop(heeded: House) -> None:
    assert heeded.ran()[:2] == ["agent started on redis", "step started, agent Agent"]
    assert heeded.app.send_task("follow", (9,), queue="extra").get(timeout=30) == 9
    heeded.app.send_task("nobody_knows_it")
    with Connection(heeded.broker) as connection, connection.Producer(serializer="json") as producer:
        producer.publish({"hello": 1}, routing_key="celery")
    wait_until(
        lambda: {"NotRegistered nobody_knows_it", 'no task {"hello": 1} application/json'} <= set(heeded.ran()),
        what="the hooks",
    )
    assert "Listening: this worker does not call on_decode_error" in heeded.workers[0].log


def test_an_idle_worker_waits_before_a_cold_stop(heeded: House) -> None:
    begun, before = time.monotonic(), len(heeded.ran())
    assert heeded.workers[0].stop(signal.SIGQUIT) == 0
    assert time.monotonic() - begun >= 1.0
    stopped = [line for line in heeded.ran()[before:] if line.endswith("stopped")]
    assert stopped == ["step stopped", "agent stopped", "consumer stopped"]
