"""Settings of Celery's that few programs set, in a worker that has them all."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from tests.integration.conftest import House, wait_until

from celeriac import chord, signature
from celeriac.exceptions import WorkerLostError

pytestmark = [pytest.mark.services, pytest.mark.xdist_group("redis")]


@pytest.fixture(scope="module")
def heeded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With a worker of `heeded_app`."""
    url = request.getfixturevalue("redis_service").fresh_url()
    made = House(tmp_path_factory.mktemp("heeded"), url, url)
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
        assert heeded.ran()[before:] == [f"{name} {n} False" for n in range(runs)]
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
    assert linked.get(timeout=5) == 7
    assert [heeded.ran().count(f"ran {value}") for value in (5, 7)] == [1, 1]
    wait_until(lambda: heeded.workers[0].log.count("it has succeeded before") == 2, what="the log lines")


def test_an_idle_worker_waits_before_a_cold_stop(heeded: House) -> None:
    begun = time.monotonic()
    assert heeded.workers[0].stop(signal.SIGQUIT) == 0
    assert time.monotonic() - begun >= 1.0
