"""The state that `django-db` keeps holds its contract, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.management import call_command
from django.db import transaction

from celeriac.spec import ABSENT, Change, SharedState
from celeriac.testing.kit import KitHost
from celeriac.testing.services import PostgresService
from celeriac.testing.state_suite import StateConformance
from celeriac_backend_django.database import DjangoDatabaseBackend

Pair = tuple[SharedState, SharedState]


@pytest.fixture(scope="module")
def sqlite_project(tmp_path_factory: pytest.TempPathFactory, use_database: Callable[[str], None]) -> str:
    return migrated(f"sqlite:///{tmp_path_factory.mktemp('django')}/db.sqlite3", use_database)


@pytest.fixture(scope="module")
def postgres_project(postgres_service: PostgresService, use_database: Callable[[str], None]) -> str:
    return migrated(postgres_service.fresh_url(), use_database)


def migrated(url: str, use_database: Callable[[str], None]) -> str:
    use_database(url)
    call_command("migrate", verbosity=0)
    return url


def states_of_two() -> Pair:
    return DjangoDatabaseBackend({}, KitHost()).state(), DjangoDatabaseBackend({}, KitHost()).state()


class OfAProject(StateConformance):
    def test_keys_that_a_column_cannot_tell_apart_are_apart(self, states: Pair, space: str) -> None:
        keys = ["a", "a ", "A", "ä", "\0", "x" * 200, "x" * 201, "x" * 202]
        states[0].write(space, [Change(key, key.encode()) for key in keys])
        found = states[1].read(space).entries
        assert {key: entry.value for key, entry in found.items()} == {key: key.encode() for key in keys}
        assert states[1].write(space, [Change("a", b"2")], given={"a ": ABSENT}) is None

    def test_of_many_keys_all_are_found(self, states: Pair, space: str) -> None:
        keys = [f"k{number}" for number in range(700)]
        states[0].write(space, [Change(key, b"1") for key in keys])
        assert list(states[1].read(space, [*keys[5:600], "nobody"]).entries) == keys[5:600]
        states[1].write(space, [Change(key, None) for key in keys[1:]])
        assert set(states[0].read(space).entries) == {"k0"}

    def test_within_a_transaction_of_the_callers_it_is_part_of_that(self, states: Pair, space: str) -> None:
        states[0].write(space, [Change("a", b"1")])
        with transaction.atomic():
            states[0].write(space, [Change("a", b"2")])
            assert states[0].write(space, [Change("b", b"2")], given={"a": ABSENT}) is None
            assert states[0].read(space).entries["a"].value == b"2"
            transaction.set_rollback(True)
        assert states[0].read(space).entries["a"].value == b"1"


class TestOnSqlite(OfAProject):
    @pytest.fixture
    def states(self, sqlite_project: str, use_database: Callable[[str], None]) -> Pair:
        use_database(sqlite_project)
        return states_of_two()


class TestOnPostgres(OfAProject):
    @pytest.fixture
    def states(self, postgres_project: str, use_database: Callable[[str], None]) -> Pair:
        use_database(postgres_project)
        return states_of_two()
