"""On a Redis Cluster: all keys in one slot, so one node has them; which one may change at any time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac.exceptions import ImproperlyConfigured, TransportUnreachable
from celeriac.spec import QueueSpec, Transport
from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.kit import Bench, eventually
from celeriac.testing.services import RedisClusterService, RedisNodeService
from celeriac_broker_redis.transport import ABILITIES, make_transport
from celeriac_support_redis.wire import connect

#: Clauses whose tests wait for seconds, and that no cluster has a part in: kept on a single server.
SLOW = ("test_B11_", "test_B12_", "test_B24_", "test_B13_", "test_S1_")


class TestRedisClusterBroker(BrokerConformance):
    plugin = "celeriac_broker_redis"
    abilities = ABILITIES | {"delay"}
    urgent_first = (0, 9)

    @pytest.fixture
    def queue(self, transport: Transport) -> Iterator[str]:
        name = f"kit-{uuid.uuid4().hex[:12]}"
        transport.consumer([QueueSpec(name)], owner="first", poller=Bench(), window=1).close()
        yield name
        transport.delete(name)

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest, redis_cluster_url: str) -> str:
        lease_s = 1.5 if request.node.name.startswith("test_B9_") else 15
        return f"{redis_cluster_url}&lease={lease_s}&socket_connect_timeout=30"


for name in dir(TestRedisClusterBroker):
    if name.startswith(SLOW):
        setattr(TestRedisClusterBroker, name, None)


def holder(cluster: RedisClusterService, key: str) -> RedisNodeService:
    """The node that serves this key."""
    return next(node for node in cluster.nodes if node.is_running and node.ask("EXISTS", key).startswith(":"))


def test_a_node_that_hands_over_its_slots_and_one_that_dies_cost_no_message(
    private_service: Callable[[Any], Any], desks: Any
) -> None:
    cluster: RedisClusterService = private_service(RedisClusterService(replicas=True))
    desk = desks(cluster.url)
    consumer = desk.consumer()
    desk.send("held", "ready")
    (held,) = desk.receive(consumer, 1)
    first = holder(cluster, "{celeriac}")
    replica = cluster.replicas[cluster.masters.index(first)]
    eventually(lambda: "+OK" in replica.ask("CLUSTER", "FAILOVER"))
    eventually(lambda: _has(lambda: holder(cluster, "{celeriac}") is replica))
    desk.send("sent after it")  # over a connection that led to the other
    desk.settle(consumer, [held])
    found = desk.receive(consumer, 2)
    assert {one.head.id: one.redelivered for one in found} == {"ready": False, "sent after it": False}
    desk.settle(consumer, found)

    desk.send("held when it dies", "waits when it dies")
    (held,) = desk.receive(consumer, 1)
    wire = connect(desk.transport._conf.address)
    assert wire.pipeline([("INCR", "{celeriac}mark"), ("WAIT", 1, 30_000)])[1] == 1
    wire.close()
    replica.kill()
    eventually(lambda: _has(lambda: holder(cluster, "{celeriac}") is first), 60.0)
    (waits,) = desk.receive(consumer, 1)
    desk.settle(consumer, [held, waits])
    desk.send("sent to the third")
    assert desk.take(consumer, 1) == ["sent to the third"]


def _has(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except StopIteration:
        return False  # nobody has it, for the time being


def test_a_redis_url_that_leads_to_a_node_of_a_cluster_says_what_to_write(
    redis_cluster_service: RedisClusterService,
) -> None:
    port = redis_cluster_service.masters[1].port
    transport = make_transport(f"redis://127.0.0.1:{port}/0", {})
    assert transport is not None
    with pytest.raises(TransportUnreachable, match=rf"node of a Redis Cluster.*redis\+cluster://127.0.0.1:{port}"):
        transport.ping(30.0)


def test_a_redis_url_with_a_hash_tag_for_a_prefix_finds_its_node(
    redis_cluster_service: RedisClusterService, desks: Any
) -> None:
    for master in redis_cluster_service.masters:
        desk = desks(f"redis://127.0.0.1:{master.port}/0", global_keyprefix="shop:{orders}:")
        consumer = desk.consumer()
        desk.send("a")
        assert desk.take(consumer, 1) == ["a"]


def test_a_prefix_that_spreads_the_keys_of_a_cluster_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'shop', which has no hash tag.*'\{celeriac\}'"):
        make_transport("redis+cluster://h", {"broker_transport_options": {"global_keyprefix": "shop"}})


def test_two_that_are_in_different_slots_do_not_settle_together() -> None:
    def joint(prefix: str) -> str | None:
        transport = make_transport("redis+cluster://h", {"broker_transport_options": {"global_keyprefix": prefix}})
        assert transport is not None
        return transport.joint

    assert joint("{a}x") == joint("{a}y") != joint("{b}x")


def test_a_database_other_than_the_first_is_refused_by_a_cluster(redis_cluster_service: RedisClusterService) -> None:
    transport = make_transport(redis_cluster_service.url + "/3", {})
    assert transport is not None
    with pytest.raises(TransportUnreachable, match="SELECT is not allowed"):
        transport.ping(30.0)
