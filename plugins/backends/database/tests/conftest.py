"""A database on each server for the tests of one module."""

from __future__ import annotations

import pytest

from celeriac.testing.services import MariaDBService, PostgresService


@pytest.fixture(scope="module")
def postgres_place(postgres_service: PostgresService) -> str:
    return f"db+{postgres_service.fresh_url()}"


@pytest.fixture(scope="module")
def mariadb_place(mariadb_service: MariaDBService) -> str:
    return f"db+{mariadb_service.fresh_url()}"
