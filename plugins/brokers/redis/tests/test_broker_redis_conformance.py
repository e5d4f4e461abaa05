"""The redis broker keeps the contract of brokers."""

from __future__ import annotations

import pytest

from celeriac.testing.broker_suite import BrokerConformance
from celeriac_broker_redis.transport import ABILITIES


class TestRedisBroker(BrokerConformance):
    plugin = "celeriac_broker_redis"
    abilities = ABILITIES | {"delay"}
    settings = {"broker_transport_options": {"lease": 1.5}}  # noqa: RUF012 - a fixed mapping
    urgent_first = (0, 9)

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url
