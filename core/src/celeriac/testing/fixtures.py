"""pytest fixtures for tests that need real servers; in a conftest.py: `pytest_plugins = ["celeriac.testing.fixtures"]`.

One private server of each kind per test process, started by the first test that asks. The `…_service` fixtures give
the shared server itself: look, do not break. The `…_url` fixtures give each test a place of its own on it. A test that
wants to kill or freeze its server starts one of its own: `redis = private_service(RedisService())`, which
is closed afterwards.

A server that cannot be had skips its tests, with the reason. With CELERIAC_REQUIRE_SERVICES=1 it fails them.
Every test that asks for a server is marked `services`. Those of a server that takes long to start (RabbitMQ: ten
seconds) share one pytest-xdist group, unless they are marked with another (`-n 2 --dist loadgroup`).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

from celeriac.testing.services import (
    MariaDBService,
    MemcachedService,
    PostgresService,
    RabbitMQService,
    RedisClusterService,
    RedisService,
    S,
    ServiceError,
)

REQUIRE_SERVICES = "CELERIAC_REQUIRE_SERVICES"
SERVICE_FIXTURES = frozenset(
    {
        "redis_cluster_service",
        "redis_service",
        "mariadb_service",
        "memcached_service",
        "postgres_service",
        "rabbitmq_service",
        "private_service",
    }
)
SLOW_SERVICE_FIXTURES = {
    "rabbitmq_service": "rabbitmq",
    "mariadb_service": "mariadb",
    "postgres_service": "postgres",
    "redis_cluster_service": "redis-cluster",
}

__all__ = [
    "amqp_url",
    "mariadb_service",
    "mariadb_url",
    "memcached_service",
    "memcached_url",
    "postgres_service",
    "postgres_url",
    "private_service",
    "rabbitmq_service",
    "redis_cluster_service",
    "redis_cluster_url",
    "redis_service",
    "redis_url",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "services: needs a real server, which the test run starts for itself")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        used = SERVICE_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if used:
            item.add_marker(pytest.mark.services)
        if item.get_closest_marker("xdist_group") is None:
            for fixture in used & SLOW_SERVICE_FIXTURES.keys():
                item.add_marker(pytest.mark.xdist_group(SLOW_SERVICE_FIXTURES[fixture]))


@pytest.fixture(scope="session")
def redis_service() -> Iterator[RedisService]:
    """The test run's own Redis."""
    yield from run_service(RedisService())


@pytest.fixture
def redis_url(redis_service: RedisService) -> str:
    """An empty database of the test run's Redis."""
    return redis_service.fresh_url()


@pytest.fixture(scope="session")
def redis_cluster_service() -> Iterator[RedisClusterService]:
    """The test run's own Redis Cluster of three masters."""
    yield from run_service(RedisClusterService())


@pytest.fixture
def redis_cluster_url(redis_cluster_service: RedisClusterService) -> str:
    """Keys of one's own in the test run's Redis Cluster, in any of its slots."""
    return f"{redis_cluster_service.url}/0?global_keyprefix={{{uuid.uuid4().hex[:12]}}}"


@pytest.fixture(scope="session")
def memcached_service() -> Iterator[MemcachedService]:
    """The test run's own Memcached, for values of at most eight megabytes."""
    yield from run_service(MemcachedService(options=("-I", "8m")))


@pytest.fixture
def memcached_url(memcached_service: MemcachedService) -> str:
    """The test run's Memcached; it has no rooms, so use keys of your own."""
    return memcached_service.url


@pytest.fixture(scope="session")
def postgres_service() -> Iterator[PostgresService]:
    """The test run's own PostgreSQL."""
    yield from run_service(PostgresService())


@pytest.fixture
def postgres_url(postgres_service: PostgresService) -> str:
    """An empty database of the test run's PostgreSQL."""
    return postgres_service.fresh_url()


@pytest.fixture(scope="session")
def mariadb_service() -> Iterator[MariaDBService]:
    """The test run's own MariaDB."""
    yield from run_service(MariaDBService())


@pytest.fixture
def mariadb_url(mariadb_service: MariaDBService) -> str:
    """An empty database of the test run's MariaDB."""
    return mariadb_service.fresh_url()


@pytest.fixture(scope="session")
def rabbitmq_service() -> Iterator[RabbitMQService]:
    """The test run's own RabbitMQ."""
    yield from run_service(RabbitMQService())


@pytest.fixture
def amqp_url(rabbitmq_service: RabbitMQService) -> Iterator[str]:
    """An empty virtual host of the test run's RabbitMQ; removed afterwards, with the connections to it."""
    url = rabbitmq_service.fresh_url()
    yield url
    rabbitmq_service.delete_vhost(urlsplit(url).path.removeprefix("/"))


@pytest.fixture
def private_service() -> Iterator[Callable[[S], S]]:
    """A function that starts a service for this test alone, to be broken as it likes, and closed at the end."""
    with ExitStack() as stack:

        def start(service: S) -> S:
            stack.callback(service.close)
            try:
                service.start()
            except ServiceError as exc:
                do_without(exc)
            return service

        yield start


def run_service(service: S) -> Iterator[S]:
    """The body of a session fixture: the running service, or a skip (a failure where services are required)."""
    try:
        service.start()
    except ServiceError as exc:
        do_without(exc)
    try:
        yield service
    finally:
        service.close()


def do_without(error: ServiceError) -> NoReturn:
    """Skip the test for want of a server, or fail it where servers are required."""
    reason = str(error)
    if os.environ.get(REQUIRE_SERVICES, "0") not in ("", "0"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason.splitlines()[0])
