"""A short campaign of faults on each broker (the long one is `python -m benchmarks.chaos`)."""

from __future__ import annotations

import pytest
from benchmarks.chaos import campaign
from benchmarks.chaos.faults import REGISTER

#: Those that take no more than a moment each.
KINDS = {
    "sqlite": ["locked", "wakes_removed", "child_killed", "worker_powered_off", "descriptors_exhausted", "garbage"],
    "redis": ["cut", "reset_mid_answer", "port_closed", "scripts_flushed", "server_killed", "worker_killed", "garbage"],
    "amqp": ["cut", "reset_mid_answer", "port_closed", "hold", "child_killed", "worker_powered_off"],
}


@pytest.mark.timeout(300)  # it takes 20 to 40 s, and three times as long on a busy machine
@pytest.mark.parametrize(
    "broker",
    [
        pytest.param("sqlite"),
        pytest.param("redis", marks=pytest.mark.services),
        pytest.param("amqp", marks=[pytest.mark.services, pytest.mark.xdist_group("rabbitmq")]),
    ],
)
def test_nothing_is_lost_and_what_runs_twice_is_told_so(broker: str, request: pytest.FixtureRequest) -> None:
    if broker == "redis":
        request.getfixturevalue("redis_service")  # says what to do where there is none
    server = request.getfixturevalue("rabbitmq_service") if broker == "amqp" else None
    kinds = KINDS[broker]
    said: list[str] = []
    outcome = campaign.run(broker, tasks=150, faults=len(kinds), seed=3, kinds=kinds, server=server, say=said.append)
    assert outcome.is_clean, "\n".join([*said, *outcome.deserters, *outcome.surprises])
    assert {one.name for one in outcome.struck if one.proof and one.recovery_s is not None} == set(kinds), said
    assert outcome.accepted >= 150


def test_the_campaign_has_fifteen_kinds_of_faults_for_each_broker() -> None:
    assert all(len(kinds) >= 15 for kinds in REGISTER.values())
