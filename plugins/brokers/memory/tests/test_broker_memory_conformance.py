"""The memory broker keeps the contract of brokers."""

from __future__ import annotations

import uuid

import pytest

from celeriac.testing.broker_suite import BrokerConformance
from celeriac_broker_memory.transport import MemoryTransport


class TestMemoryBroker(BrokerConformance):
    plugin = "celeriac_broker_memory"
    abilities = MemoryTransport.abilities
    urgent_first = (9, 0)

    @pytest.fixture
    def url(self) -> str:
        return f"memory://{uuid.uuid4().hex}"
