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
    urgent_first = (0, 9)
    recovery_s = 14.0  # before the lease ends

    @pytest.fixture
    def queue(self, transport: Transport) -> Iterator[str]:
        """One that a worker of ours serves: only then are its delayed messages kept apart (see the README)."""
        name = f"kit-{uuid.uuid4().hex[:12]}"
        transport.consumer([QueueSpec(name)], owner="first", poller=Bench(), window=1).close()
        yield name
        transport.delete(name)

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest, redis_url: str) -> str:
        # Those that are killed in other tests do not renew, and must have what they took when they are.
        lease_s = 1.5 if {"test_B12", "test_B9_"} & {request.node.name[:8]} else 15
        return f"{redis_url}?lease={lease_s}&socket_connect_timeout=30"
