"""Results behind Redis Sentinels: the master is asked for, and another one is found after a failover."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.exceptions import BackendError, BackendUnreachable, ImproperlyConfigured
from celeriac.spec import StoredResult
from celeriac.testing.kit import KitHost, eventually
from celeriac.testing.services import RedisService, SentinelService, ask
from celeriac_backend_redis.backend import RedisBackend
from celeriac_support_redis.wire import parse_url

OPTIONS = {"result_backend_transport_options": {"master_name": "mymaster"}}


def result(backend: RedisBackend, task_id: str) -> StoredResult:
    document = {"status": "SUCCESS", "result": 5, "traceback": None, "children": [], "task_id": task_id}
    return StoredResult(task_id, "SUCCESS", backend.encode(document, KitHost().serializer("json")))


def test_results_survive_the_master(private_service: Any) -> None:
    master = private_service(RedisService())
    replica = private_service(RedisService(options=("--replicaof", "127.0.0.1", str(master.port))))
    sentinel = private_service(SentinelService(master.port))
    away = private_service(RedisService())
    away.stop()  # a Sentinel that does not answer
    url = f"sentinel://127.0.0.1:{away.port};sentinel://127.0.0.1:{sentinel.port}/3"
    backend = RedisBackend(url, OPTIONS, KitHost())
    assert backend.ping(2).startswith(("Redis", "Valkey"))
    backend.store([result(backend, "before")])
    eventually(lambda: b"celery-task-meta-before" in ask(replica.port, b"SELECT 3\r\nKEYS *\r\n", enough=40), 60)
    known = b"SENTINEL replicas mymaster\r\n"
    eventually(lambda: str(replica.port).encode() in ask(sentinel.port, known, enough=40), 60)
    master.kill()

    def works_again() -> bool:
        try:
            backend.store([result(backend, "after")])
        except BackendError:
            return False
        return True

    eventually(works_again, 60)
    assert set(backend.fetch(["before", "after"])) == {"before", "after"}
    assert b"celery-task-meta-after" in ask(replica.port, b"SELECT 3\r\nKEYS *\r\n", enough=60)
    backend.close()


def test_what_sentinels_do_not_know_is_said(private_service: Any) -> None:
    master = private_service(RedisService())
    sentinel = private_service(SentinelService(master.port))
    backend = RedisBackend(sentinel.url, {"result_backend_transport_options": {"master_name": "other"}}, KitHost())
    with pytest.raises(BackendUnreachable, match="knows no master 'other'"):
        backend.fetch(["a"])
    sentinel.kill()
    with pytest.raises(BackendUnreachable, match="Do the Sentinels run"):
        RedisBackend(sentinel.url, OPTIONS, KitHost()).ping(1)


def test_a_master_without_a_name_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="master_name"):
        RedisBackend("sentinel://127.0.0.1:1", {}, KitHost())


@pytest.mark.parametrize(
    "url", ["sentinel://:geheim@a:1;b;c:3/5", "sentinel://:geheim@a:1;sentinel://b;sentinel://c:3/5"]
)
def test_celerys_ways_to_write_sentinels_are_read(url: str) -> None:
    address, _ = parse_url(url)
    assert address.sentinels == (("a", 1), ("b", 26379), ("c", 3))
    assert (address.db, address.password) == (5, "geheim")
    assert "geheim" not in str(address)
