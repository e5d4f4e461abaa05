"""Revoked calls do not run: before they start, while they wait, while they run; by id and by stamp; after restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import House, make_house, wait_until

from celeriac.exceptions import TaskRevokedError, Unsupported

pytestmark = pytest.mark.services

KEEPING = [
    pytest.param("sqlite"),
    pytest.param("redis"),
    pytest.param("amqp", marks=pytest.mark.xdist_group("rabbitmq")),
]


@pytest.fixture(params=KEEPING)
def keeping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """Houses whose broker or result store keeps revocations."""
    house = make_house(request.param, request, tmp_path)
    if request.param == "amqp":
        broker = house.broker
        house.close()
        house = House(tmp_path, broker, f"sqlite:///{tmp_path}/results.db")
    yield house
    house.close()


def test_revoked_calls_do_not_run_and_those_that_run_are_ended(keeping: House) -> None:
    house = keeping
    before = house.send("sleep", 0.01, "before")
    stamped = {"stamped_headers": ["customer"], "customer": ["a", "b"]}
    marked = house.app.send_task("suite_app.sleep", (0.01, "stamped"), **stamped)
    before.revoke()
    marked.revoke_by_stamped_headers({"customer": "b"})
    # Nobody was there who could have heard of it.
    worker = house.worker("-c", "2", "worker.prefetch_multiplier=4")
    for result in (before, marked):
        with pytest.raises(TaskRevokedError, match="revoked"):
            result.get(timeout=30)
        assert result.state == "REVOKED"
    # Two run, four wait in the worker.
    running = [house.send("sleep", 60, f"running{n}") for n in range(2)]
    waiting = [house.send("sleep", 0.01, f"waiting{n}") for n in range(4)]
    wait_until(lambda: len(house.ran()) == 2, what="two that run")
    waiting[1].revoke()
    running[0].revoke()  # has begun: goes on
    running[1].revoke(terminate=True, signal="SIGKILL")
    with pytest.raises(TaskRevokedError, match="terminated"):
        running[1].get(timeout=30)
    with pytest.raises(TaskRevokedError, match="revoked"):
        waiting[1].get(timeout=30)
    assert [result.get(timeout=30) for result in (waiting[0], *waiting[2:])] == ["waiting0", "waiting2", "waiting3"]
    running[0].revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        running[0].get(timeout=30)
    wait_until(lambda: worker.log.count("Discarding revoked task") == 5, what="a line for each")
    begun = {line.split()[1] for line in house.ran() if line.startswith("start")}
    assert begun == {"running0", "running1", "waiting0", "waiting2", "waiting3"}
    assert worker.stop() == 0
    # All workers have been replaced since: it is still known.
    house.app.send_task("suite_app.sleep", (0.01, "again"), task_id=before.id)
    last = house.send("add", 1, 1)
    again = house.worker("-c", "1")
    assert last.get(timeout=30) == 2
    again.wait_for(f"Discarding revoked task: suite_app.sleep[{before.id}]")
    assert again.stop() == 0
    assert not any("again" in line for line in house.ran())


@pytest.mark.xdist_group("rabbitmq")
def test_where_nothing_keeps_revocations_revoke_says_so(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    house = make_house("amqp", request, tmp_path)
    try:
        with pytest.raises(Unsupported, match="ability 'state'"):
            house.app.revocations.revoke_ids(["x"])
        house.worker("-c", "1")
        running = house.send("sleep", 60, "heard")
        wait_until(lambda: house.ran(), what="one that runs")
        running.revoke(terminate=True, wait=True, timeout=2)  # those that are there hear of it all the same
        with pytest.raises(TaskRevokedError, match="terminated"):
            running.get(timeout=30)
    finally:
        house.close()
