"""What the database backend promises beyond the contract: Celery's tables, old ones too, settings, faults, errors."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from celeriac.exceptions import BackendLost, BackendStoreError, BackendUnreachable, SettingError, Unsupported
from celeriac.spec import DONE_S, Change, Chord, ChordPart, StoredResult
from celeriac.testing.kit import KitHost, eventually
from celeriac.testing.services import MariaDBService, PostgresService
from celeriac_backend_database.backend import DatabaseBackend
from celeriac_backend_database.engine import translate

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

Make = Callable[..., DatabaseBackend]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[DatabaseBackend] = []

    def one(url: str, **settings: Any) -> DatabaseBackend:
        made.append(DatabaseBackend(url, settings, KitHost()))
        return made[-1]

    yield one
    for backend in made:
        backend.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def result(backend: DatabaseBackend, task_id: str, state: str = "SUCCESS", value: Any = 5, **more: Any) -> StoredResult:
    document = {
        "status": state, "result": value, "traceback": None, "children": [], "date_done": None, "task_id": task_id,
    }  # fmt: skip
    return StoredResult(task_id, state, backend.encode({**document, **more}, KitHost().serializer("json")))


def fetched(backend: DatabaseBackend, task_id: str) -> dict[str, Any]:
    return backend.decode(backend.fetch([task_id])[task_id])


def peek(file: Path, sql: str) -> list[Any]:
    conn = sqlite3.connect(file, isolation_level=None)
    try:
        return conn.execute(sql).fetchall()
    finally:
        conn.close()


def admin(url: str) -> sa.Engine:
    """Another way to a server, to look at it and to disturb."""
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    scheme, _, rest = url.partition("://")
    return sa.create_engine(f"{drivers[scheme]}://{rest}", poolclass=sa.NullPool)


# -- the tables ---------------------------------------------------------------------------------------------


def test_what_is_too_long_a_statement_for_mysql_is_kept_as_a_failure_and_keeps_nobody_waiting(
    make: Make, mariadb_place: str
) -> None:
    """The server hangs up on it, which looks as if it was away."""
    engine = admin(mariadb_place.removeprefix("db+"))
    with engine.connect() as conn:
        conn.exec_driver_sql("SET GLOBAL max_allowed_packet = 1048576")  # for connections to come
    try:
        backend, quotes = make(mariadb_place), '"' * 300_000
        backend.store([result(backend, "a", value=quotes), result(backend, "b")])
        assert fetched(backend, "a")["result"]["exc_type"] == "BackendStoreError"
        assert "max_allowed_packet is 1048576" in fetched(backend, "a")["result"]["exc_message"][0]
        assert fetched(backend, "b")["result"] == 5
        backend.open_chords([Chord("g", 2, b"body", 60.0)])
        large, small = ChordPart("g", "a", 0, b'"' * 600_000), ChordPart("g", "b", 1, b"[]")
        (claim,) = backend.join([large, small])
        assert (b"max_allowed_packet" in claim.parts[0][1], claim.parts[1]) == (True, (1, b"[]"))
        backend.close_chords([claim])
    finally:
        with engine.connect() as conn:
            conn.exec_driver_sql("SET GLOBAL max_allowed_packet = DEFAULT")
        engine.dispose()


def test_a_traceback_that_is_no_utf8_is_kept_with_its_failure(make: Make, file: Path) -> None:
    backend = make(f"db+sqlite:///{file}")
    name = os.fsdecode(b"caf\xe9")
    backend.store([result(backend, "a", "FAILURE", traceback=f"no {name}", name=name, args=[name], kwargs={})])
    found = fetched(backend, "a")
    assert (found["traceback"], found["name"], found["args"]) == ("no caf\\udce9", "caf\\udce9", [name])


def test_a_chord_that_has_ended_is_forgotten_even_if_results_are_kept_for_ever(make: Make, file: Path) -> None:
    backend = make(f"db+sqlite:///{file}", result_expires=None)
    backend.open_chords([Chord("g", 1, b"body", 60.0)])
    backend.close_chords(backend.join([ChordPart("g", "a", 0, b"a")]))
    ((kept_until,),) = peek(file, "SELECT expires FROM celeriac_chords")
    assert time.time() < kept_until <= time.time() + DONE_S


def test_a_chord_grows_once_for_a_task_though_the_answer_to_a_commit_was_lost(
    make: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make(f"db+sqlite:///{file}")
    backend.open_chords([Chord("g", 1, b"body", 60.0)])
    dialect, lost = backend._engine.dialect, ["the first"]
    commit = dialect.do_commit

    def commit_and_lose_the_answer(connection: Any) -> None:
        commit(connection)
        if lost:
            raise sqlite3.OperationalError(lost.pop())

    monkeypatch.setattr(dialect, "do_commit", commit_and_lose_the_answer)
    monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)
    backend.grow_chord("g", "more")
    monkeypatch.undo()
    assert not lost
    assert peek(file, "SELECT size FROM celeriac_chords") == [(2,)]
    assert backend.join([ChordPart("g", "more", None, b"more")]) == []
    (claim,) = backend.join([ChordPart("g", "a", 0, b"a")])
    assert [data for _, data in claim.parts] == [b"a", b"more"]
    backend.close_chords([claim])
    assert peek(file, "SELECT count(*) FROM celeriac_chord_parts") == [(0,)]


def test_a_row_has_celerys_columns_and_encodings(make: Make, file: Path) -> None:
    backend = make(f"db+sqlite:///{file}")
    extended = {
        "name": "t.add", "args": [1, 2], "kwargs": {"x": 1}, "worker": "w@h", "retries": 2, "queue": "q",
        "stamped_headers": ["s"], "s": ["1"],
    }  # fmt: skip
    backend.store([result(backend, "a", value={"v": 3}, date_done="2026-11-22T07:22:53.273035+00:00", **extended)])
    columns = (
        "task_id, status, result, date_done, traceback, children, name, args, kwargs, worker, retries, queue, stamps"
    )
    assert peek(file, f"SELECT {columns} FROM celery_taskmeta") == [
        (
            "a", "SUCCESS", b'{"v": 3}', "2026-11-22 07:22:53.273035", None, None, "t.add", b"[1, 2]", b'{"x": 1}',
            "w@h", 2, "q", b'{"stamped_headers": ["s"], "stamps": {"s": ["1"]}}',
        )
    ]  # fmt: skip
    assert fetched(backend, "a") == {
        "status": "SUCCESS", "result": {"v": 3}, "traceback": None, "children": [], "task_id": "a",
        "date_done": "2026-11-22T07:22:53.273035+00:00", **extended,
    }  # fmt: skip


def test_a_table_of_an_older_celery_is_used_as_it_is(make: Make, file: Path) -> None:
    peek(
        file,
        "CREATE TABLE celery_taskmeta (id INTEGER NOT NULL PRIMARY KEY, task_id VARCHAR(155) UNIQUE,"
        " status VARCHAR(50), result BLOB, date_done DATETIME, traceback TEXT)",
    )
    backend = make(f"db+sqlite:///{file}")
    backend.store([result(backend, "a", children=[[["c", None], None]], name="t.add", args=[1], kwargs={})])
    document = fetched(backend, "a")
    assert (document["result"], document["children"]) == (5, [])
    assert "name" not in document


def test_tables_may_be_named_and_made_elsewhere(make: Make, postgres_service: PostgresService) -> None:
    url = postgres_service.fresh_url()
    engine = admin(url)
    with engine.begin() as conn:
        conn.execute(sa.text("CREATE SCHEMA here"))
    backend = make(
        f"db+{url}",
        database_table_names={"task": "my_tasks", "group": "my_groups"},
        database_table_schemas={"task": "here", "group": "here"},
    )
    backend.store([result(backend, "a")])
    with engine.connect() as conn:
        assert conn.execute(sa.text("SELECT task_id FROM here.my_tasks")).all() == [("a",)]
        assert sorted(sa.inspect(conn).get_table_names(schema="here")) == ["my_groups", "my_tasks"]
        assert sa.inspect(conn).get_table_names() == []


@pytest.mark.parametrize(("at_setup", "tables"), [(True, 2), (False, 0)])
def test_tables_are_made_at_the_start_or_at_the_first_result(
    make: Make, file: Path, at_setup: bool, tables: int
) -> None:
    backend = make(f"db+sqlite:///{file}", database_create_tables_at_setup=at_setup)
    assert backend.ping(1).startswith("sqlite 3.")
    find = "SELECT count(*) FROM sqlite_master WHERE name IN ('celery_taskmeta', 'celery_tasksetmeta')"
    assert peek(file, find) == [(tables,)]
    assert backend.fetch(["a"]) == {}
    assert peek(file, find) == [(2,)]


def test_two_who_make_the_tables_at_once_both_get_through(make: Make, postgres_service: PostgresService) -> None:
    url = f"db+{postgres_service.fresh_url()}"
    backends = [make(url) for _ in range(6)]
    together = threading.Barrier(6, timeout=30)
    failed: list[BaseException] = []

    def store(backend: DatabaseBackend, number: int) -> None:
        try:
            together.wait()
            backend.store([result(backend, f"t{number}")])
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=store, args=(backend, n)) for n, backend in enumerate(backends)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(backends[0].fetch([f"t{n}" for n in range(6)])) == 6


# -- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["database", "db", "database://", "db://"])
@pytest.mark.parametrize("prefix", ["", "db+"])
def test_the_url_may_be_a_setting_of_its_own(make: Make, file: Path, url: str, prefix: str) -> None:
    backend = make(url, database_url=f"{prefix}sqlite:///{file}")
    backend.store([result(backend, "a")])
    assert peek(file, "SELECT task_id FROM celery_taskmeta") == [("a",)]


def test_an_engine_takes_options_and_a_callback(make: Make, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    backend = make(
        f"db+sqlite:///{file}", database_engine_options={"echo": False, "pool_size": 3},
        database_engine_callback=seen.append,
    )  # fmt: skip
    assert seen == [backend._engine]
    assert backend._engine.pool.size() == 3  # type: ignore[attr-defined]
    make(f"db+sqlite:///{file}", database_engine_callback="sqlalchemy.inspect")
    with pytest.raises(SettingError, match=r"database_engine_callback is 'nowhere\.at_all'"):
        make(f"db+sqlite:///{file}", database_engine_callback="nowhere.at_all")
    with pytest.raises(SettingError, match="database_engine_options"):
        make(f"db+sqlite:///{file}", database_engine_options={"no_such_word": 1})


def test_short_lived_sessions_keep_no_connection(make: Make, postgres_service: PostgresService) -> None:
    url = f"db+{postgres_service.fresh_url()}"
    count = sa.text(f"SELECT count(*) {OTHERS}")
    engine = admin(url[3:])

    def has_others(conn: sa.Connection, many: int) -> bool:
        conn.rollback()
        return bool(conn.execute(count).scalar_one() == many)

    for short_lived, connections in ((True, 0), (False, 1)):
        backend = make(url, database_short_lived_sessions=short_lived)
        backend.store([result(backend, "a")])
        with engine.connect() as conn:
            # Only some time after it was closed the server counts a connection no more.
            eventually(partial(has_others, conn, connections), 60)


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("database", {}, "names no database"),
        ("db+postgresql://u:geheim@h:port/x", {}, "cannot be read"),
        ("db+nosuch://u:geheim@h/x", {}, "nosuch"),
        ("db+oracle://u:geheim@h/x", {}, "no driver for oracle is installed"),
        ("db+sqlite://", {"result_expires": "soon"}, "result_expires is 'soon'"),
    ],
)
def test_what_makes_no_sense_is_refused_without_showing_passwords(
    make: Make, url: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        make(url, **settings)
    assert "geheim" not in str(caught.value)


def test_what_the_backend_cannot_is_said(make: Make, file: Path) -> None:
    backend = make(f"db+sqlite:///{file}")
    with pytest.raises(Unsupported):
        backend.watch(["a"])
    with pytest.raises(Unsupported):
        backend.commands([])
    backend.store([])


@pytest.mark.parametrize("expires", [0, None])
def test_results_are_kept_for_ever_on_demand(make: Make, file: Path, expires: Any) -> None:
    backend = make(f"db+sqlite:///{file}", result_expires=expires)
    backend.store([result(backend, "a", date_done="2001-01-01T00:00:00+00:00")])
    assert backend.cleanup() == 0
    assert make(f"db+sqlite:///{file}", result_expires=timedelta(days=1)).cleanup() == 1


def test_R7_cleaning_up_is_bounded(make: Make, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac_backend_database.backend.EXPIRED_PER_CLEANUP", 10)
    monkeypatch.setattr("celeriac_backend_database.backend.EXPIRED_PER_STATEMENT", 5)
    backend = make(f"db+sqlite:///{file}", result_expires=60)
    backend.store([result(backend, f"t{n}", date_done="2001-01-01T00:00:00+00:00") for n in range(25)])
    assert [backend.cleanup() for _ in range(4)] == [10, 10, 5, 0]


# -- what does not fit --------------------------------------------------------------------------------------


def test_a_state_too_long_for_its_column_cannot_be_encoded(make: Make, file: Path) -> None:
    with pytest.raises(ValueError, match="longer than 50"):
        result(make(f"db+sqlite:///{file}"), "a", state="X" * 51)


def test_text_that_postgres_refuses_is_stored_as_readable(make: Make, postgres_service: PostgresService) -> None:
    backend = make(f"db+{postgres_service.fresh_url()}")
    backend.store([result(backend, "a", traceback="null: \0", name="n" * 400, args=[], kwargs={})])
    document = fetched(backend, "a")
    assert (document["traceback"], document["name"]) == ("null: \\0", "n" * 155)


def test_a_result_too_big_for_celerys_table_fails_alone_and_says_so(
    make: Make, mariadb_service: MariaDBService
) -> None:
    url = mariadb_service.fresh_url()
    engine = admin(url)
    with engine.begin() as conn:  # as Celery makes it: a BLOB has 64 KB
        conn.execute(
            sa.text(
                "CREATE TABLE celery_taskmeta (id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY,"
                " task_id VARCHAR(155) UNIQUE, status VARCHAR(50), result BLOB, date_done DATETIME, traceback TEXT,"
                " children BLOB)"
            )
        )
    backend = make(f"db+{url}")
    backend.store([result(backend, "a"), result(backend, "big", value="x" * 100_000), result(backend, "c")])
    assert (fetched(backend, "a")["status"], fetched(backend, "c")["status"]) == ("SUCCESS", "SUCCESS")
    document = fetched(backend, "big")
    assert document["status"] == "FAILURE"
    assert "100002 bytes (SUCCESS) could not be stored" in document["result"]["exc_message"][0]


@pytest.fixture
def latin1(mariadb_service: MariaDBService) -> Iterator[tuple[str, sa.Connection]]:
    """An empty database with that character set: its URL, and a connection."""
    url = mariadb_service.fresh_url()
    engine = admin(url)
    with engine.connect() as conn:
        conn.exec_driver_sql(f"ALTER DATABASE {url.rpartition('/')[2]} CHARACTER SET latin1")
        yield f"db+{url}", conn
    engine.dispose()


def test_on_mysql_our_tables_hold_any_text(make: Make, latin1: tuple[str, sa.Connection]) -> None:
    backend, text = make(latin1[0]), "no \N{SNOWMAN} \N{GRINNING FACE}"
    backend.store([result(backend, "a", "FAILURE", traceback=text, name=text, args=[text], kwargs={}, queue=text)])
    found = fetched(backend, "a")
    assert (found["traceback"], found["name"], found["args"], found["queue"]) == (text, text, [text], text)
    backend.store([result(backend, "a "), result(backend, "A", value=6)])  # to MariaDB, a blank at the end is nothing
    assert [fetched(backend, task_id)["result"] for task_id in ("a ", "A")] == [5, 6]
    backend.state().write("space", [Change(text, b"1")])
    assert list(backend.state().read("space", [text]).entries) == [text]


def test_on_mysql_a_text_that_its_character_set_lacks_costs_no_result(
    make: Make, latin1: tuple[str, sa.Connection]
) -> None:
    latin1[1].exec_driver_sql(  # as Celery makes it
        "CREATE TABLE celery_taskmeta (id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY, task_id VARCHAR(155) UNIQUE,"
        " status VARCHAR(50), result BLOB, date_done DATETIME, traceback TEXT, children BLOB)"
    )
    backend = make(latin1[0])
    backend.store([result(backend, "a", "FAILURE", "e", traceback="no \N{SNOWMAN}"), result(backend, "b", "success")])
    backend.store([result(backend, "b")])  # a state of somebody's own, which is not Celery's
    found = fetched(backend, "a")
    assert (found["status"], found["result"], found["traceback"]) == ("FAILURE", "e", "no \\u2603")
    assert fetched(backend, "b")["status"] == "SUCCESS"


def test_a_refusal_that_mysqls_client_calls_operational_is_no_outage() -> None:
    refused = sa.exc.OperationalError("INSERT", {}, Exception(1366, "Incorrect string value"))
    assert isinstance(translate(refused, sa.make_url("mysql://h/d")), BackendStoreError)


# -- faults -------------------------------------------------------------------------------------------------


def test_cut_connections_are_replaced_unseen(make: Make, postgres_service: PostgresService) -> None:
    url = postgres_service.fresh_url()
    engine = admin(url)
    kill = sa.text(f"SELECT pg_terminate_backend(pid) {OTHERS}")
    for options in ({}, {"database_engine_options": {"pool_pre_ping": False}}):
        backend = make(f"db+{url}", **options)
        backend.store([result(backend, "a")])
        with engine.connect() as conn:
            conn.execute(kill)
        backend.store([result(backend, "b")])
        assert set(backend.fetch(["a", "b"])) == {"a", "b"}


@pytest.mark.timeout(240)
def test_an_outage_is_said_and_over_when_the_server_is_back(private_service: Any, make: Make) -> None:
    postgres = private_service(PostgresService())
    backend = make(f"db+{postgres.url}")
    backend.store([result(backend, "a")])
    postgres.stop()
    with pytest.raises(BackendLost):
        backend.store([result(backend, "b")])
    with pytest.raises(BackendUnreachable, match="Is the server running"):
        backend.ping(1)
    with pytest.raises(BackendUnreachable):
        make(f"db+{postgres.url}").fetch(["a"])
    postgres.start()
    backend.store([result(backend, "b")])
    assert set(backend.fetch(["a", "b"])) == {"a", "b"}


def test_a_folder_that_is_not_there_is_said(make: Make, tmp_path: Path) -> None:
    backend = make(f"db+sqlite:///{tmp_path}/no/such.db")
    with pytest.raises(BackendUnreachable, match="unable to open database file"):
        backend.fetch(["a"])


def test_the_parents_connection_outlives_a_child_that_forgets_it(make: Make, postgres_service: PostgresService) -> None:
    backend = make(f"db+{postgres_service.fresh_url()}", database_engine_options={"pool_pre_ping": False})
    backend.store([result(backend, "a")])
    child = os.fork()
    if child == 0:  # pragma: no cover - runs in the child
        try:
            backend.after_fork()
            backend.store([result(backend, "b")])
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with backend._engine.connect() as conn:  # the very connection of before, without a try of ours
        assert conn.execute(sa.text("SELECT count(*) FROM celery_taskmeta")).scalar_one() == 2


def test_an_unreadable_row_is_a_value_error(make: Make, file: Path) -> None:
    backend = make(f"db+sqlite:///{file}")
    with pytest.raises(ValueError):
        backend.decode(b"nonsense")
    backend.ping(1)
    peek(file, "INSERT INTO celery_taskmeta (task_id, status, result) VALUES ('a', 'SUCCESS', x'ff')")
    with pytest.raises(ValueError):
        fetched(backend, "a")
