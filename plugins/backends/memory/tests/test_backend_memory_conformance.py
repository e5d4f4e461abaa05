"""The memory backend keeps the contract of result backends."""

from __future__ import annotations

import uuid

import pytest

from celeriac.testing.backend_suite import BackendConformance
from celeriac_backend_memory.backend import MemoryBackend


class TestMemoryBackend(BackendConformance):
    plugin = "celeriac_backend_memory"
    compresses = True
    abilities = MemoryBackend.abilities

    @pytest.fixture
    def url(self) -> str:
        return f"memory://{uuid.uuid4().hex}"
