"""The django backends keep the contract of result backends: on SQLite, on PostgreSQL, and in a cache."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import pytest
from django.core.cache import caches
from django.core.management import call_command

from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.kit import KitHost
from celeriac.testing.services import MemcachedService, PostgresService
from celeriac_backend_django import celeriac_make_backend
from celeriac_backend_django.cache import DjangoCacheBackend
from celeriac_backend_django.database import DjangoDatabaseBackend


@pytest.fixture(scope="module")
def sqlite_place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('django')}/db.sqlite3"


@pytest.fixture(scope="module")
def postgres_place(postgres_service: PostgresService) -> str:
    return postgres_service.fresh_url()


_migrated: set[str] = set()


def use_migrated(use_database: Callable[[str], None], place: str) -> None:
    """Make this the project's database, and its tables once."""
    use_database(place)
    if place not in _migrated:
        call_command("migrate", verbosity=0)
        _migrated.add(place)


class TestOnSqlite(BackendConformance):
    plugin = "celeriac_backend_django"
    abilities = DjangoDatabaseBackend.abilities
    compresses = False

    @pytest.fixture
    def url(self, sqlite_place: str, use_database: Callable[[str], None]) -> str:
        use_migrated(use_database, sqlite_place)
        return "django-db"


class TestOnPostgres(BackendConformance):
    plugin = "celeriac_backend_django"
    abilities = DjangoDatabaseBackend.abilities
    compresses = False

    @pytest.fixture
    def url(self, postgres_place: str, use_database: Callable[[str], None]) -> str:
        use_migrated(use_database, postgres_place)
        return "django-db"


class TestInTheCache(BackendConformance):
    plugin = "celeriac_backend_django"
    abilities = DjangoCacheBackend({}, KitHost()).abilities
    compresses = False

    @pytest.fixture
    def url(self) -> str:
        return "django-cache"


class TestInMemcached(BackendConformance):
    plugin = "celeriac_backend_django"
    abilities = DjangoCacheBackend({}, KitHost()).abilities | {"shared"}
    compresses = False
    settings = MappingProxyType({**BackendConformance.settings, "cache_backend": "memcached"})

    @pytest.fixture
    def url(self, memcached_service: MemcachedService) -> str:
        caches.settings["memcached"] = {
            "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
            "LOCATION": f"127.0.0.1:{memcached_service.port}",
        }
        return "django-cache"


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_backend("redis://localhost", {}, KitHost()) is None
