"""What is judged unsafe about a RabbitMQ, and that an alarm is heard of."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp.health import judge
from celeriac_broker_amqp.transport import AmqpTransport

URL = "amqp://guest:***@127.0.0.1:5672//"


def found(
    version: str = "3.12.1", url: str = URL, blocked: str = "", longest: float | None = 60.0
) -> set[tuple[str, str]]:
    return {(one.level, one.about) for one in judge(version, "RabbitMQ", url, blocked, longest)}


def test_a_good_server_is_told_nothing() -> None:
    assert found() == set()


def test_an_old_server_an_alarm_and_the_account_of_everybody_are_found() -> None:
    assert found("3.6.2") == {("error", "version")}
    assert found(blocked="low on memory") == {("error", "alarm")}
    assert found(url="amqp://guest:***@rabbit.example//") == {("warning", "access")}
    assert found(url="amqp://me:***@rabbit.example//") == {("note", "access")}
    assert found(url="amqps://me:***@rabbit.example//") == set()


@pytest.mark.parametrize(
    ("version", "longest", "level"),
    [("3.12.1", 3600.0, "note"), ("3.12.1", None, "note"), ("3.8.9", 3600.0, None), ("3.12.1", 1799.0, None)],
)
def test_a_task_that_outlasts_the_consumer_timeout_is_found(
    version: str, longest: float | None, level: str | None
) -> None:
    assert found(version, longest=longest) == ({(level, "consumer timeout")} if level else set())


def test_an_alarm_of_a_server_is_heard_of(rabbitmq_service: RabbitMQService, amqp_url: str, tools: Any) -> None:
    transport = AmqpTransport(amqp_url, {})
    tools.set_memory_alarm(rabbitmq_service, True)
    try:
        about = {one.about: one for one in transport.diagnose(longest_task_s=60.0, timeout_s=10.0)}
        assert "low on memory" in about["alarm"].text
    finally:
        tools.set_memory_alarm(rabbitmq_service, False)
        transport.close()
