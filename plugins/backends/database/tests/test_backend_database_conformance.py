"""The database backend keeps the contract of result backends, on three databases and without an upsert of theirs."""

from __future__ import annotations

import pytest

from celeriac.testing.backend_suite import BackendConformance
from celeriac.testing.kit import KitHost
from celeriac_backend_database import celeriac_make_backend, tables
from celeriac_backend_database.backend import DatabaseBackend


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"db+sqlite:///{tmp_path_factory.mktemp('database')}/results.db"


class TestOnSqlite(BackendConformance):
    plugin = "celeriac_backend_database"
    compresses = True
    abilities = DatabaseBackend.abilities

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


class TestWithoutAnUpsert(TestOnSqlite):
    """What concerns writing, as on a dialect for which no such statement is known."""

    @pytest.fixture(autouse=True)
    def no_upsert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("celeriac_backend_database.backend.upsert", lambda *words: None)
        monkeypatch.setattr("celeriac_backend_database.chords.insert_or_leave", lambda *words: None)
        assert tables.upsert("oracle", tables.Tables(None, None).task, ["status"]) is None


for name in dir(TestWithoutAnUpsert):
    if name.startswith("test_") and not name.startswith(("test_R3", "test_R9", "test_R10")):
        setattr(TestWithoutAnUpsert, name, None)  # the same for both


class TestOnPostgres(BackendConformance):
    plugin = "celeriac_backend_database"
    compresses = True
    abilities = DatabaseBackend.abilities

    @pytest.fixture
    def url(self, postgres_place: str) -> str:
        return postgres_place


class TestOnMariaDB(BackendConformance):
    plugin = "celeriac_backend_database"
    compresses = True
    abilities = DatabaseBackend.abilities

    @pytest.fixture
    def url(self, mariadb_place: str) -> str:
        return mariadb_place


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_backend("redis://localhost", {}, KitHost()) is None
