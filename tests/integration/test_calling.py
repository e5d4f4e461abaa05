"""What a program adds to a worker happens at its moments: signals, steps, loader hooks. Broadcasts reach everyone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.common import Broadcast
from tests.integration.conftest import BROKERS, House, make_house, wait_until

from celeriac import Celery
from celeriac.contrib.abortable import AbortableAsyncResult
from celeriac.exceptions import TimeLimitExceeded
from celeriac.utils.nodenames import worker_direct


def lines_of(house: House, beginning: str) -> list[str]:
    return [line for line in house.ran() if line.startswith(beginning)]


def order_of(house: House, *wanted: str) -> list[int]:
    lines = house.ran()
    return [lines.index(line) for line in wanted]


@pytest.fixture
def own_house(sqlite_house: House) -> House:
    return sqlite_house


def test_signals_steps_and_loader_hooks_come_at_their_moments(own_house: House) -> None:
    house = own_house
    worker = house.worker("-n", "w1@here", "-c", "1", "-Q", "celery", SUITE_APP="calling_app")
    app = house.app
    assert app.send_task("calling_app.add", [2, 3]).get(timeout=30) == 5
    assert app.send_task("calling_app.again").get(timeout=30) == "twice"
    with pytest.raises(KeyError):
        app.send_task("calling_app.fail").get(timeout=30)
    with pytest.raises(TimeLimitExceeded):
        app.send_task("calling_app.slow").get(timeout=30)
    app.send_task("calling_app.add", [1, 1], expires=-1)
    app.send_task("nobody.knows.it")
    for moment in ("task_revoked", "task_unknown", "task_rejected"):
        wait_until(lambda: lines_of(house, f"signal {moment} in worker"), what=moment)  # noqa: B023 # called at once
    # A queue that a receiver of celeryd_after_setup added, and the worker's own, beside the one of -Q.
    assert app.send_task("calling_app.add", [1, 2], queue="late").get(timeout=30) == 3
    assert app.send_task("calling_app.add", [1, 3], queue=worker_direct("w1@here")).get(timeout=30) == 4
    assert worker.stop() == 0
    lines = house.ran()
    assert [line for line in lines if "lacks" in line] == []
    heard = {line for line in lines if line.startswith("signal ")}
    in_worker = (
        "celeryd_init", "worker_init", "celeryd_after_setup", "worker_before_create_process", "worker_ready",
        "task_received", "task_revoked", "task_unknown", "task_rejected", "worker_shutting_down", "worker_shutdown",
        "after_setup_logger", "after_setup_task_logger",
    )  # fmt: skip
    in_child = (
        "worker_process_init", "task_prerun", "task_postrun", "task_success", "task_retry", "task_failure",
        "worker_process_shutdown",
    )  # fmt: skip
    wanted = {f"signal {name} in worker" for name in in_worker} | {f"signal {name} in child" for name in in_child}
    assert wanted - heard == set()
    # The child that ran over its limit is gone: of that failure the worker tells.
    assert "signal task_failure in worker" in heard
    moments = [
        "signal celeryd_init in worker", "signal worker_init in worker", "loader on_worker_init",
        "signal celeryd_after_setup in worker", "step First made with queues=['celery']", "step First starts for w1",
        "step ASecond starts", "step OfConsumer starts for w1", "signal worker_ready in worker",
        "signal worker_shutting_down in worker", "step OfConsumer stops", "step ASecond stops", "step First stops",
        "loader on_worker_shutdown", "signal worker_shutdown in worker",
    ]  # fmt: skip
    assert order_of(house, *moments) == sorted(order_of(house, *moments))
    assert "loader on_worker_process_init child" in lines
    one_run = [
        "loader on_task_init calling_app.add", "signal task_success in child", "loader on_process_cleanup",
        "signal task_postrun in child",
    ]  # fmt: skip
    assert order_of(house, "signal task_prerun in child", *one_run) == sorted(
        order_of(house, "signal task_prerun in child", *one_run)
    )


def test_a_task_that_looks_can_be_asked_to_stop(own_house: House) -> None:
    own_house.worker("-c", "1", SUITE_APP="calling_app")
    sent = own_house.app.send_task("calling_app.patient")
    wait_until(lambda: "patient runs" in own_house.ran())
    result = AbortableAsyncResult(sent.id, app=own_house.app, backend=own_house.app.backend)
    result.abort()
    assert result.get(timeout=30) == "stopped"
    assert not result.is_aborted()


@pytest.fixture(params=BROKERS)
def sealed_house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    house = make_house(request.param, request, tmp_path)
    yield house
    house.close()


@pytest.mark.services
def test_a_broadcast_reaches_every_worker_once_and_seals_hold_on_the_way(sealed_house: House) -> None:
    house, key = sealed_house, "k" * 32
    workers = [
        house.worker("-n", f"w{n}@here", "-c", "1", ready=False, SUITE_APP="calling_app", SUITE_SEAL=key)
        for n in (1, 2)
    ]
    for worker in workers:
        worker.wait_for("ready")
    client = Celery("client", broker=house.broker, backend=house.backend, set_as_current=False)
    client.conf.update(task_queues=[Broadcast("news")], message_seal_key=key)
    try:
        client.send_task("calling_app.hear", ["one"], queue="news")
        client.send_task("calling_app.hear", ["two"], exchange="news", countdown=0.1)
        heard = wait_until(
            lambda: len(lines_of(house, "heard")) == 4 and sorted(lines_of(house, "heard")),
            what="each message in each worker",
        )
        pids = sorted(str(worker.pid) for worker in workers)
        assert heard == sorted(f"heard {text} pid={pid}" for text in ("one", "two") for pid in pids)
        # Ordinary calls go to one worker; without the key they are not run.
        assert client.send_task("calling_app.add", [2, 3]).get(timeout=30) == 5
        house.app.send_task("calling_app.hear", ["forged"], queue="celery")
        log = "refused a message without a seal"
        wait_until(lambda: any(log in worker.log for worker in workers), what=log)
        assert not lines_of(house, "heard forged")
        for worker in workers:
            assert worker.stop() == 0
    except BaseException:
        print([worker.log[-3000:] for worker in workers], house.ran())
        raise
    finally:
        client.close()
