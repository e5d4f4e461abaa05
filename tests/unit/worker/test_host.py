"""Classes of a program's own beside the worker's loop: which can be, and which cannot."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from celeriac import Celery, bootsteps
from celeriac.exceptions import ImproperlyConfigured
from celeriac.testing.threaded import start_worker
from celeriac.worker.consumer import Agent, Consumer
from celeriac.worker.host import agent_class, consumer_class


class Plain:
    """An agent on a broker that kombu does not know."""

    def __init__(self, connection: Any) -> None:
        self.told = [connection]

    def start(self) -> None:
        self.told.append("started")

    def stop(self) -> None:
        self.told.append("stopped")


class AgentStep(bootsteps.StartStopStep):
    """An agent that is a step already."""


class Told(bootsteps.Step):
    """Says something of itself."""

    def info(self, parent: Any) -> dict[str, Any]:
        return {"told": type(parent).__name__}


class ToldToo(Told):
    """Another, of the consumer."""

    def info(self, parent: Any) -> dict[str, Any]:
        return {"told too": type(parent).__name__}


class Own(Consumer):
    """With a part of Celery's loop."""

    def create_task_handler(self) -> None:
        """Never called."""


def app(**settings: Any) -> Celery:
    return Celery("host", broker="memory://", set_as_current=False, **settings)


def test_what_leads_to_no_fitting_class_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="worker_agent: 'nowhere:Agent' leads to nothing"):
        agent_class(app(worker_agent="nowhere:Agent"))
    with pytest.raises(ImproperlyConfigured, match=r"no subclass of celeriac\.worker\.consumer:Consumer"):
        consumer_class(app(worker_consumer=f"{__name__}:Plain"))
    with pytest.raises(ImproperlyConfigured, match="worker_consumer: 'celeriac:Nobody' leads to nothing"):
        consumer_class(app(worker_consumer="celeriac:Nobody"))


def test_there_is_no_agent_unless_one_is_named_and_it_may_be_a_step() -> None:
    assert agent_class(app()) is None
    assert agent_class(app(worker_agent=AgentStep)) is AgentStep
    assert agent_class(app(worker_agent=Plain)) is Agent
    assert consumer_class(app()) is Consumer


def test_an_agent_without_a_connection_lives_as_long_as_the_steps() -> None:
    controller: Any = type("Controller", (), {"gossip": None, "loop": None})()
    consumer = Consumer(app=app(worker_agent=Plain), controller=controller)
    consumer.start()
    assert consumer.agent.told == [None, "started"]
    consumer.stop()
    assert consumer.agent.told == [None, "started", "stopped"]


def test_what_is_a_part_of_celery_s_loop_is_said_not_to_be_called(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "celeriac.worker"):
        assert consumer_class(app(worker_consumer=Own)) is Own
    assert "Own: this worker does not call create_task_handler" in caplog.text


def test_inspect_stats_shows_what_steps_say_of_themselves() -> None:
    made = app()
    made.steps["worker"].add(f"{__name__}:Told")
    made.steps["consumer"].add(ToldToo)
    with start_worker(made, pool="threads", perform_ping_check=False) as worker:
        stats = made.control.inspect([worker.hostname], timeout=60).stats()[worker.hostname]
    assert (stats["told"], stats["told too"]) == ("ThreadedWorker", "Consumer")
