"""Mingle and gossip, beside a real Celery worker: what is revoked is told both ways, comers and goers are heard of."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from tests.integration.conftest import BROKERS, wait_until
from tests.integration.fleet import Fleet, make_fleet

pytestmark = pytest.mark.services
WAIT_S = 30.0


@pytest.fixture(params=[BROKERS[1]])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """With a worker of Celery's that knows of a revoked task."""
    fleet = make_fleet(request.param, request, tmp_path_factory.mktemp("siblings"))
    try:
        fleet.worker("theirs", "-c", "1", library="celery", CONTROL_QUEUE="theirs")
        assert fleet.app.control.revoke("by-celery", destination=["theirs@here"], reply=True, timeout=WAIT_S)
        yield fleet
    finally:
        fleet.close()


def revoked(fleet: Fleet, node: str) -> list[str]:
    found = wait_until(lambda: fleet.app.control.inspect([node], timeout=3).revoked(), 2 * WAIT_S, f"{node}'s answer")
    return list(found[node])


def start(fleet: Fleet, kind: str, wanted: set[str], *options: str, library: str = "celeriac") -> str:
    """Start a worker that mingles, until one is told so; its name. Who answers later than in a second, as on a busy
    machine, is not waited for."""
    for number in range(4):
        name = f"{kind}{number}"
        env = {"CONTROL_SIBLINGS": "1"} if "--gossip" in options else {}
        process = fleet.worker(name, "-c", "1", *options, library=library, CONTROL_QUEUE=name, **env)
        if set(revoked(fleet, f"{name}@here")) == wanted:
            return name
        fleet.end(process)
    pytest.fail(f"no worker was told of {wanted}:\n{fleet.log(name)}")


def test_workers_of_both_kinds_mingle_and_ours_hears_who_comes_and_goes(fleet: Fleet) -> None:
    ours = start(fleet, "ours", {"by-celery"}, "--mingle", "--gossip")
    assert "1 revoked ids" in fleet.log(ours)

    def wait_for(words: str) -> None:
        wait_until(lambda: f"SIBLING {words}@here" in fleet.log(ours), WAIT_S, f"{words}, in {fleet.log(ours)[-2000:]}")

    wait_for("join theirs")
    assert fleet.app.control.revoke("by-ours", destination=[f"{ours}@here"], reply=True, timeout=WAIT_S)
    late = start(fleet, "late", {"by-celery", "by-ours"}, library="celery")
    wait_for(f"join {late}")
    fleet.processes[-1].terminate()
    wait_for(f"leave {late}")
    os.killpg(fleet.processes[0].pid, signal.SIGKILL)
    wait_for("lost theirs")
    assert f"SIBLING join {ours}@here" not in fleet.log(ours), "it is no sibling of its own"
