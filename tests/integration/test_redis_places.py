"""Redis behind Sentinels and as a cluster: a worker finds its server, and finds the next one after a failover."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import House, wait_until

from celeriac.exceptions import OperationalError, TransportUnreachable
from celeriac.result import ResultSet
from celeriac.testing.services import ANSWER_S, RedisClusterService, RedisService, SentinelService, ask
from celeriac_broker_redis.transport import make_transport
from celeriac_support_redis.wire import connect, parse_url

pytestmark = pytest.mark.services

Start = Callable[[Any], Any]


def wait_for_replica(port: int) -> None:
    """Until a replica has all that was written so far to the server at this port."""
    wire = connect(parse_url(f"redis://127.0.0.1:{port}")[0])
    assert wire.pipeline([("INCR", "mark"), ("WAIT", 1, 60_000)], timeout_s=90.0)[1] == 1
    wire.close()


def test_a_master_that_dies_under_load_costs_nothing_that_its_replica_had(
    tmp_path: Path, private_service: Start
) -> None:
    master = private_service(RedisService())
    replica = private_service(RedisService(options=("--replicaof", "127.0.0.1", str(master.port))))
    sentinel = private_service(SentinelService(master.port))
    known = b"SENTINEL replicas mymaster\r\n"
    wait_until(lambda: str(replica.port).encode() in ask(sentinel.port, known, enough=40))
    url = f"sentinel://127.0.0.1:1;sentinel://127.0.0.1:{sentinel.port}/0?master_name=mymaster"
    house = House(tmp_path, url, url)
    try:
        worker = house.worker("-c", "2")
        results = [house.send("sleep", 0.05, f"n{n}") for n in range(60)]
        wait_until(lambda: len(house.ran()) > 4, what="some tasks")
        wait_for_replica(master.port)
        master.kill()
        while len(results) < 80:  # a client sends all the while
            try:
                results.append(house.send("sleep", 0.01, f"n{len(results)}"))
            except OperationalError:
                assert not replica_is_master(replica) or worker.process.poll() is None
        assert replica_is_master(replica)
        assert ResultSet(results).get(timeout=90) == [f"n{n}" for n in range(80)]
        assert worker.stop() == 0
    finally:
        house.close()


def test_of_two_servers_the_other_is_used_when_one_is_gone(tmp_path: Path, private_service: Start) -> None:
    first, second = private_service(RedisService()), private_service(RedisService())
    house = House(tmp_path, f"{first.url};{second.url}", f"sqlite:///{tmp_path}/results.db")
    try:
        worker = house.worker("-c", "1")
        assert house.send("add", 1, 1).get(timeout=30) == 2
        first.kill()
        worker.wait_for("The broker is back")
        assert house.send("add", 2, 2).get(timeout=30) == 4
        wait_until(lambda: house.app.control.ping(timeout=1.0, limit=1), what="its listening at the second")
        first.restart()
        second.kill()
        wait_until(lambda: worker.log.count("The broker is back") > 1)
        assert house.send("add", 3, 3).get(timeout=30) == 6
        assert worker.stop() == 0
    finally:
        house.close()


def replica_is_master(replica: RedisService) -> bool:
    return b"role:master" in ask(replica.port, b"INFO replication\r\n", enough=60, timeout_s=ANSWER_S)


def test_sentinels_that_want_a_password_get_theirs_and_the_server_gets_its_own(private_service: Start) -> None:
    master = private_service(RedisService())
    sentinel = private_service(SentinelService(master.port, password="watcher"))
    options: dict[str, Any] = {"master_name": "mymaster"}
    refused = make_transport(sentinel.url, {"broker_transport_options": options})
    assert refused is not None
    with pytest.raises(TransportUnreachable, match="NOAUTH"):
        refused.ping(30.0)
    options["sentinel_kwargs"] = {"password": "watcher"}
    admitted = make_transport(sentinel.url, {"broker_transport_options": options})
    assert admitted is not None
    assert admitted.ping(30.0).startswith(("Redis", "Valkey"))
    with pytest.raises(TransportUnreachable, match=r"Sentinel, which keeps no data.*Write sentinel://"):
        direct = make_transport(f"redis://:watcher@127.0.0.1:{sentinel.port}/0", {})
        assert direct is not None
        direct.ping(30.0)


def test_a_worker_on_a_cluster_works_with_broker_and_results_in_one_slot(
    tmp_path: Path, private_service: Start
) -> None:
    cluster: RedisClusterService = private_service(RedisClusterService())
    house = House(tmp_path, cluster.url, cluster.url)
    try:
        worker = house.worker("-c", "2")
        assert ResultSet([house.send("add", n, n) for n in range(30)]).get(timeout=60) == [2 * n for n in range(30)]
        assert house.app.control.broadcast("ping", reply=True, limit=1, timeout=20.0), "broadcasts reach it"
        assert worker.stop() == 0
        sizes = [node.ask("DBSIZE") for node in cluster.masters]
        assert sorted(sizes)[:2] == [":0\r\n", ":0\r\n"], "the keys of everything are with one master"
    finally:
        house.close()
