"""The redis broker keeps the contract of brokers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from celeriac.spec import QueueSpec, Transport
from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.kit import Bench
from celeriac_broker_redis.transport import ABILITIES


class TestRedisBroker(BrokerConformance):
    plugin = "celeriac_broker_redis"
    abilities = ABILITIES | {"delay"}
    settings = {"broker_transport_options": {"lease": 1.5}}  # noqa: RUF012 - a fixed mapping
    urgent_first = (0, 9)
    recovery_s = 5.0

    @pytest.fixture
    def queue(self, transport: Transport) -> Iterator[str]:
        """One that a worker of ours serves: only then are its delayed messages kept apart (see the README)."""
        name = f"kit-{uuid.uuid4().hex[:12]}"
        transport.consumer([QueueSpec(name)], owner="first", poller=Bench(), window=1).close()
        yield name
        transport.delete(name)

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url
