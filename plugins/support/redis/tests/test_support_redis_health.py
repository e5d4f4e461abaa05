"""What is judged unsafe about a Redis server, from the facts it gives."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac_support_redis.health import Role, judge, parse_info
from celeriac_support_redis.wire import Address

GOOD = {
    "redis_version": "7.2.4",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "maxmemory": "1000",
    "used_memory": "100",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "connected_clients": "5",
    "maxclients": "10000",
}
HERE = Address()
FAR = Address(host="redis.example", password="x", tls={})


def found(
    use: Role = "broker", address: Address = HERE, config: dict[str, str] | None = None, **facts: Any
) -> set[tuple[str, str]]:
    return {(one.level, one.about) for one in judge({**GOOD, **facts}, config or {}, address, use)}


def test_a_good_server_is_told_nothing() -> None:
    assert found() == set()
    assert found("backend") == set()
    assert found(address=FAR) == set()


@pytest.mark.parametrize(
    ("facts", "finding"),
    [
        ({"redis_version": "5.0.9"}, ("error", "version")),
        ({"maxmemory_policy": "allkeys-lru"}, ("error", "eviction policy")),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, ("note", "eviction policy")),
        ({"maxmemory": "0"}, ("note", "memory limit")),
        ({"used_memory": "900"}, ("warning", "memory")),
        ({"aof_last_write_status": "err"}, ("error", "disk")),
        ({"rdb_last_bgsave_status": "err"}, ("error", "disk")),
        ({"aof_enabled": "0"}, ("note", "persistence")),
        ({"aof_enabled": "0", "config": {"save": ""}}, ("warning", "persistence")),
        ({"role": "slave"}, ("error", "replica")),
        ({"cluster_enabled": "1"}, ("error", "cluster")),
        ({"connected_clients": "9000"}, ("warning", "connections")),
        ({"address": Address(host="redis.example")}, ("warning", "access")),
        ({"address": Address(host="redis.example", password="x")}, ("note", "access")),
    ],
)
def test_what_is_unsafe_is_found(facts: dict[str, Any], finding: tuple[str, str]) -> None:
    assert finding in found(**facts)


def test_results_that_expire_may_be_evicted_and_messages_that_do_not_are_kept() -> None:
    assert found("backend", maxmemory_policy="volatile-ttl") == {("warning", "eviction policy")}
    assert found("broker", maxmemory_policy="volatile-ttl") == set()


def test_valkey_counts_by_its_own_version() -> None:
    assert found(redis_version="5.0.0", valkey_version="8.0.1") == set()


def test_info_is_read_line_by_line() -> None:
    assert parse_info("# Server\r\nredis_version:7.0.1\r\nos:Linux a:b\r\n") == {
        "redis_version": "7.0.1",
        "os": "Linux a:b",
    }
