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
        fleet.app.control.revoke("by-celery", destination=["theirs@here"], reply=True, timeout=WAIT_S)
        yield fleet
    finally:
        fleet.close()


def revoked(fleet: Fleet, node: str) -> list[str]:
    found: list[str] = fleet.app.control.inspect([node], timeout=WAIT_S).revoked()[node]
    return found


def test_workers_of_both_kinds_mingle_and_ours_hears_who_comes_and_goes(fleet: Fleet) -> None:
    fleet.worker("ours", "-c", "1", "--mingle", "--gossip", CONTROL_QUEUE="ours", CONTROL_SIBLINGS="1")
    assert "Mingled with 1 workers: 1 revoked ids" in fleet.log("ours")
    assert revoked(fleet, "ours@here") == ["by-celery"]
    wait_until(lambda: "SIBLING join theirs@here" in fleet.log("ours"), WAIT_S, "the worker that was there before")
    fleet.app.control.revoke("by-ours", destination=["ours@here"], reply=True, timeout=WAIT_S)
    late = fleet.worker("late", "-c", "1", library="celery", CONTROL_QUEUE="late")
    assert sorted(revoked(fleet, "late@here")) == ["by-celery", "by-ours"], "Celery's worker has asked ours"
    wait_until(lambda: "SIBLING join late@here" in fleet.log("ours"), WAIT_S, "the worker that came")
    late.terminate()
    wait_until(lambda: "SIBLING leave late@here" in fleet.log("ours"), WAIT_S, "the worker that went")
    os.killpg(fleet.processes[0].pid, signal.SIGKILL)
    wait_until(lambda: "SIBLING lost theirs@here" in fleet.log("ours"), WAIT_S, "the worker that fell silent")
    assert "SIBLING join ours@here" not in fleet.log("ours"), "it is no sibling of its own"
