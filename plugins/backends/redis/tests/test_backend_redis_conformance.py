"""The redis backend keeps the contract of result backends."""

from __future__ import annotations

import pytest

from celeriac.testing.backend_suite import BackendConformance
from celeriac_backend_redis.backend import ABILITIES


class TestRedisBackend(BackendConformance):
    plugin = "celeriac_backend_redis"
    compresses = True
    abilities = ABILITIES

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url
