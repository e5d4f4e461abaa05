"""Tasks for later over a restart of everything, in short (the long one is `python -m benchmarks.delays`)."""

from __future__ import annotations

import pytest
from benchmarks.delays import measure

MIB = 1024


@pytest.mark.parametrize(
    "broker",
    [
        pytest.param("sqlite"),
        pytest.param("redis", marks=pytest.mark.services),
        pytest.param("amqp", marks=[pytest.mark.services, pytest.mark.xdist_group("rabbitmq")]),
    ],
)
def test_each_runs_once_and_none_early_and_waiting_costs_the_worker_nothing(
    broker: str, request: pytest.FixtureRequest
) -> None:
    if broker == "redis":
        request.getfixturevalue("redis_service")  # says what to do where there is none
    server = request.getfixturevalue("rabbitmq_service") if broker == "amqp" else None
    found = measure(broker, tasks=3000, soon_s=8.0, span_s=3.0, server=server)
    assert (found["missing"], found["early"], found["again"]) == (0, 0, 0), found
    assert found["more_kib"] < 5 * MIB, found
