"""The redis backend keeps the contract of result backends on a Redis Cluster, too."""

from __future__ import annotations

import pytest

from celeriac.exceptions import BackendUnreachable, ImproperlyConfigured
from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.kit import KitHost
from celeriac.testing.services import RedisClusterService
from celeriac_backend_redis.backend import ABILITIES, RedisBackend

#: Clauses whose tests wait for seconds, and that no cluster has a part in: kept on a single server.
SLOW = ("test_R7_", "test_R9_a_claim_is_held", "test_R10_an_overdue")


class TestRedisClusterBackend(BackendConformance):
    plugin = "celeriac_backend_redis"
    compresses = True
    abilities = ABILITIES

    @pytest.fixture
    def url(self, redis_cluster_url: str) -> str:
        return redis_cluster_url


for name in dir(TestRedisClusterBackend):
    if name.startswith(SLOW):
        setattr(TestRedisClusterBackend, name, None)


def test_a_redis_url_that_leads_to_a_node_of_a_cluster_says_what_to_write(
    redis_cluster_service: RedisClusterService,
) -> None:
    backend = RedisBackend(f"redis://127.0.0.1:{redis_cluster_service.masters[1].port}/0", {}, KitHost())
    with pytest.raises(BackendUnreachable, match=r"node of a Redis Cluster.*redis\+cluster://"):
        backend.fetch(["a"])


def test_a_prefix_that_spreads_the_keys_of_a_cluster_is_refused() -> None:
    options = {"result_backend_transport_options": {"global_keyprefix": "shop"}}
    with pytest.raises(ImproperlyConfigured, match=r"'shop_', which has no hash tag.*'\{celeriac\}'"):
        RedisBackend("redis+cluster://h", options, KitHost())
