"""The state that the database backend keeps holds its contract, on three databases and without an upsert of theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from celeriac.exceptions import BackendUnreachable
from celeriac.spec import ABSENT, Change, SharedState
from celeriac.testing.kit import KitHost
from celeriac.testing.state_suite import StateConformance
from celeriac_backend_database.backend import DatabaseBackend

Pair = tuple[SharedState, SharedState]


class OnADatabase(StateConformance):
    @pytest.fixture
    def states(self, url: str) -> Iterator[Pair]:
        """Those of two backends."""
        backends = [DatabaseBackend(url, {}, KitHost()) for _ in range(2)]
        yield backends[0].state(), backends[1].state()
        for backend in backends:
            backend.close()

    def test_keys_that_a_column_cannot_tell_apart_are_apart(self, states: Pair, space: str) -> None:
        keys = ["a", "a ", "A", "ä", "\0", "json:1", "x" * 155, "x" * 156, "x" * 157]
        states[0].write(space, [Change(key, key.encode()) for key in keys])
        found = states[1].read(space).entries
        assert {key: entry.value for key, entry in found.items()} == {key: key.encode() for key in keys}
        assert set(states[1].read(space, ["a ", "\0", "x" * 156]).entries) == {"a ", "\0", "x" * 156}
        assert states[1].write(space, [Change("a", b"2")], given={"a ": ABSENT}) is None
        assert states[1].read(f"{space} ").entries == {}

    def test_of_many_keys_all_are_found_at_one_instant(self, states: Pair, space: str) -> None:
        keys = [f"k{number}" for number in range(1_200)]
        states[0].write(space, [Change(key, b"1") for key in keys])
        assert list(states[1].read(space, [*keys[5:1_100], "nobody"]).entries) == keys[5:1_100]
        states[1].write(space, [Change(key, None) for key in keys[1:]])
        assert set(states[0].read(space).entries) == {"k0"}


class TestOnSqlite(OnADatabase):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"db+sqlite:///{tmp_path}/state.db"

    def test_a_child_has_connections_of_its_own(self, states: Pair) -> None:
        states[0].write("space", [Change("a", b"1")])
        pid = os.fork()
        if pid == 0:  # pragma: no cover - runs in the child
            try:
                states[0].write("space", [Change("b", b"2")])
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert set(states[0].read("space").entries) == {"a", "b"}


class TestWithoutAnUpsert(TestOnSqlite):
    @pytest.fixture(autouse=True)
    def no_upsert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("celeriac_backend_database.state.insert_or_leave", lambda *words: None)
        monkeypatch.setattr("celeriac_backend_database.state._replace", lambda *words: None)


class TestOnPostgres(OnADatabase):
    @pytest.fixture
    def url(self, postgres_place: str) -> str:
        return postgres_place


class TestOnMariaDB(OnADatabase):
    @pytest.fixture
    def url(self, mariadb_place: str) -> str:
        return mariadb_place


def test_celerys_tables_stay_as_they_are_and_versions_grow_without_ours(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/state.db")
    backend = DatabaseBackend(f"db+sqlite:///{tmp_path}/state.db", {}, KitHost())
    backend.ping(1)
    assert not [name for name in sa.inspect(engine).get_table_names() if name.startswith("celeriac_")]
    before = backend.state().write("space", [Change("a", b"1")])
    backend.close()
    with engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM celeriac_state_versions"))
        conn.execute(sa.text("DELETE FROM celeriac_state"))
    after = backend.state().write("space", [Change("a", b"2")], given={"a": ABSENT})
    assert before is not None
    assert after is not None
    assert after > before
    backend.close()
    engine.dispose()


def test_a_database_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    backend = DatabaseBackend(f"db+sqlite:///{tmp_path}/no/such.db", {}, KitHost())
    with pytest.raises(BackendUnreachable, match="unable to open database file"):
        backend.state().read("space")
