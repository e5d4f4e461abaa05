"""The memory broker keeps shared state."""

from __future__ import annotations

import uuid

import pytest

from celeriac.spec import SharedState
from celeriac.testing.state_suite import StateConformance
from celeriac_broker_memory.transport import MemoryTransport


class TestMemoryState(StateConformance):
    @pytest.fixture
    def states(self) -> tuple[SharedState, SharedState]:
        url = f"memory://{uuid.uuid4().hex}"
        return MemoryTransport(url).state(), MemoryTransport(url).state()
