"""The memcached backend keeps the contract of result backends, in a server and in a dict of this process."""

from __future__ import annotations

import uuid

import pytest

from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.kit import KitHost
from celeriac_backend_memcached import celeriac_make_backend
from celeriac_backend_memcached.backend import PRIVATE


class TestMemcached(BackendConformance):
    plugin = "celeriac_backend_memcached"
    compresses = True
    abilities = PRIVATE | {"shared"}

    @pytest.fixture
    def url(self, memcached_url: str) -> str:
        return f"cache+{memcached_url}/"


class TestMemory(BackendConformance):
    plugin = "celeriac_backend_memcached"
    compresses = True
    abilities = PRIVATE

    @pytest.fixture
    def url(self) -> str:
        return f"cache+memory://{uuid.uuid4().hex}"


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_backend("redis://localhost", {}, KitHost()) is None
