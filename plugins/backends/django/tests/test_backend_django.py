"""What the django backends promise beyond the contract: known tables, transactions, the admin, faults, errors."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.test import RequestFactory
from django.utils import timezone

from celeriac.exceptions import (
    BackendLost,
    BackendStoreError,
    BackendUnreachable,
    ImproperlyConfigured,
    SettingError,
    Unsupported,
)
from celeriac.spec import DONE_S, Chord, ChordPart, StoredResult
from celeriac.testing.kit import KitHost
from celeriac.testing.services import MariaDBService, PostgresService
from celeriac_backend_django.cache import DjangoCacheBackend
from celeriac_backend_django.database import DjangoDatabaseBackend
from celeriac_backend_django.models import ChordCounter, GroupResult, JoinedChord, JoinedPart, TaskResult

LABEL = "django_celery_results"


def make(**settings: Any) -> DjangoDatabaseBackend:
    return DjangoDatabaseBackend(settings, KitHost())


def result(
    backend: Any, task_id: str, state: str = "SUCCESS", value: Any = 5, serializer: str = "json", **more: Any
) -> StoredResult:
    document = {
        "status": state, "result": value, "traceback": None, "children": [], "date_done": None, "task_id": task_id,
    }  # fmt: skip
    return StoredResult(task_id, state, backend.encode({**document, **more}, KitHost().serializer(serializer)))


def fetched(backend: Any, task_id: str) -> dict[str, Any]:
    document: dict[str, Any] = backend.decode(backend.fetch([task_id])[task_id])
    return document


def peek(file: Path, sql: str) -> list[Any]:
    conn = sqlite3.connect(file, isolation_level=None)
    try:
        return conn.execute(sql).fetchall()
    finally:
        conn.close()


# -- the tables ---------------------------------------------------------------------------------------------


def test_a_row_has_the_columns_and_encodings_that_are_known(project: Path) -> None:
    backend = make()
    more = {"name": "t.add", "args": [1, 2], "kwargs": {"x": 1}, "worker": "w@h", "retries": 2, "queue": "q"}
    stamps = {"stamped_headers": ["s"], "s": ["1"]}
    backend.store([result(backend, "a", value={"v": 3}, **more, **stamps)])
    row = TaskResult.objects.get(task_id="a")
    assert (row.status, row.content_type, row.content_encoding) == ("SUCCESS", "application/json", "utf-8")
    assert (row.result, row.task_name, row.task_args, row.task_kwargs) == ('{"v": 3}', "t.add", "[1, 2]", '{"x": 1}')
    assert row.worker == "w@h"
    assert abs(row.date_done - timezone.now()) < timedelta(minutes=5)
    done = row.date_done.isoformat()
    assert fetched(backend, "a") == {
        "status": "SUCCESS", "result": {"v": 3}, "traceback": None, "children": [], "date_done": done, "task_id": "a",
        **more, **stamps,
    }  # fmt: skip
    backend.store([result(backend, "b", "STARTED")])
    assert TaskResult.objects.get(task_id="b").date_started is not None


@pytest.mark.parametrize("serializer", ["pickle", "msgpack", "yaml"])
def test_every_serializer_s_result_is_text_in_the_table(project: Path, serializer: str) -> None:
    backend = make(result_serializer=serializer, result_accept_content=[serializer])
    backend.store([result(backend, "a", value={"v": [1, None]}, serializer=serializer)])
    assert fetched(backend, "a")["result"] == {"v": [1, None]}
    assert isinstance(TaskResult.objects.get(task_id="a").result, str)


def test_models_and_migration_agree(project: Path) -> None:
    call_command("makemigrations", LABEL, check=True, dry_run=True, verbosity=3)
    names = {
        name for (name,) in peek(project, "SELECT name FROM django_migrations WHERE app = 'django_celery_results'")
    }
    assert len(names) == 16
    indexes = {name for (name,) in peek(project, "SELECT name FROM sqlite_master WHERE name LIKE 'django_cele_%'")}
    assert {index.name for model in (TaskResult, GroupResult) for index in model._meta.indexes} <= indexes


def test_a_chord_that_has_ended_is_forgotten_even_if_results_are_kept_for_ever(project: Path) -> None:
    backend = make(result_expires=None)
    backend.open_chords([Chord("g", 1, b"body", 60.0)])
    backend.close_chords(backend.join([ChordPart("g", "a", 0, b"a")]))
    kept_until = JoinedChord.objects.get(chord_key="g").expires
    assert kept_until is not None
    assert time.time() < kept_until <= time.time() + DONE_S


def test_a_traceback_that_is_no_utf8_is_kept_with_its_failure(project: Path) -> None:
    backend, name = make(), os.fsdecode(b"caf\xe9")
    backend.store([result(backend, "a", "FAILURE", traceback=f"no {name}", name=name, args=[name], kwargs={})])
    found = fetched(backend, "a")
    assert (found["traceback"], found["name"], found["args"]) == ("no caf\\udce9", "caf\\udce9", [name])


def test_a_chord_grows_once_for_a_task(project: Path) -> None:
    backend = make()
    backend.open_chords([Chord("g", 1, b"body", 60.0)])
    for _ in range(2):  # as when the answer to the first time was lost on its way
        backend.grow_chord("g", "more")
    assert backend.join([ChordPart("g", "more", None, b"more")]) == []
    (claim,) = backend.join([ChordPart("g", "a", 0, b"a")])
    assert [data for _, data in claim.parts] == [b"a", b"more"]
    backend.close_chords([claim])
    assert not JoinedPart.objects.exists()


def test_a_chord_that_django_celery_results_has_begun_is_joined_and_its_row_goes(project: Path) -> None:
    backend = make()
    members = [[["a", None], None], [["b", None], None]]
    ChordCounter.objects.create(group_id="g", sub_tasks=json.dumps(members), count=2)
    first, second = (ChordPart("g", name, place, name.encode(), b"body") for place, name in enumerate("ab"))
    assert backend.join([first, first]) == []
    (claim,) = backend.join([second])
    assert (claim.size, claim.parts, claim.body) == (2, [(0, b"a"), (1, b"b")], b"body")
    assert ChordCounter.objects.get(group_id="g").count == 2
    backend.close_chords([claim])
    assert backend.join([first]) == []
    assert not ChordCounter.objects.filter(group_id="g").exists()


def test_a_chord_begun_in_a_transaction_that_is_undone_was_not_begun(project: Path) -> None:
    backend = make()
    with transaction.atomic():
        backend.open_chords([Chord("g", 1, b"body", 60.0)])
        transaction.set_rollback(True)
    assert not JoinedChord.objects.exists()
    assert backend.join([ChordPart("g", "a", 0, b"a")]) == []


def test_with_the_original_app_chords_are_left_to_a_message_that_polls(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "is_installed", lambda name: name != "celeriac_backend_django")
    assert make().abilities == {"groups", "persistent", "shared"}


def test_the_admin_shows_results_and_writes_none(project: Path) -> None:
    backend = make()
    backend.store([result(backend, "a")])
    request = RequestFactory().get("/")
    request.user = User(is_superuser=True, is_staff=True, is_active=True)
    model_admin = admin.site._registry[TaskResult]
    page = model_admin.changelist_view(request)
    page.render()
    assert b">a<" in page.content.replace(b"\n", b"")
    assert not model_admin.has_add_permission(request)
    form = model_admin.changeform_view(request, str(TaskResult.objects.get().pk))
    form.render()
    assert b'<input type="text"' not in form.content
    assert GroupResult in admin.site._registry


# -- writing ------------------------------------------------------------------------------------------------


def test_inside_a_caller_s_transaction_results_are_part_of_it(project: Path) -> None:
    backend = make()
    with pytest.raises(RuntimeError), transaction.atomic():
        backend.store([result(backend, "a")])
        assert fetched(backend, "a")["result"] == 5
        raise RuntimeError
    assert backend.fetch(["a"]) == {}


def test_who_was_quicker_is_seen(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, other = make(), make()
    rows = TaskResult._base_manager.bulk_create

    def after_another(*words: Any, **named: Any) -> Any:
        monkeypatch.undo()
        other.store([result(other, "a", "STARTED", 1), result(other, "b", "SUCCESS", 1)])
        return rows(*words, **named)

    manager = type(TaskResult._base_manager.using("default"))
    monkeypatch.setattr(manager, "bulk_create", lambda self, *words, **named: after_another(*words, **named))
    backend.store([result(backend, "a", "SUCCESS", 2), result(backend, "b", "FAILURE", 2)])
    assert (fetched(backend, "a")["result"], fetched(backend, "b")["result"]) == (2, 1)


def test_a_row_that_does_not_fit_fails_alone_and_says_so(use_database: Any, postgres_service: PostgresService) -> None:
    use_database(postgres_service.fresh_url())
    call_command("migrate", LABEL, verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {LABEL}_taskresult ADD CONSTRAINT small CHECK (length(result) < 1000)")
    backend = make()
    backend.store([result(backend, "a"), result(backend, "big", value="x" * 2000), result(backend, "c")])
    assert (fetched(backend, "a")["status"], fetched(backend, "c")["status"]) == ("SUCCESS", "SUCCESS")
    assert fetched(backend, "big")["status"] == "FAILURE"
    assert "could not be stored" in fetched(backend, "big")["result"]["exc_message"][0]


@pytest.fixture(scope="module")
def mariadb_place(use_database: Callable[[str], None], mariadb_service: MariaDBService) -> str:
    """A migrated database with latin1 for its character set."""
    url = mariadb_service.fresh_url()
    use_database(url)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {url.rpartition('/')[2]} CHARACTER SET latin1")
    # MySQL cannot take back what makes tables, and Django makes none in a transaction there.
    call_command("migrate", LABEL, verbosity=0)
    return url


@pytest.fixture
def mariadb(use_database: Callable[[str], None], mariadb_place: str) -> None:
    use_database(mariadb_place)


@pytest.mark.usefixtures("mariadb")
def test_on_mysql_migrate_makes_the_tables() -> None:
    backend = make()
    assert backend.ping(1)
    backend.store([result(backend, "a", "STARTED", 1), result(backend, "b", "FAILURE", 1)])
    backend.store([result(backend, "a"), result(backend, "b", "STARTED")])
    assert (fetched(backend, "a")["result"], fetched(backend, "b")["status"]) == (5, "FAILURE")


@pytest.mark.usefixtures("mariadb")
def test_mysql_is_told_no_more_than_it_takes_and_names_what_is_longer() -> None:
    """The server hangs up on a statement that is too long, which looks as if it was away."""
    with connection.cursor() as cursor:
        cursor.execute("SET GLOBAL max_allowed_packet = 1048576")  # for connections to come
    connection.close()
    try:
        backend, quotes = make(), '"' * 300_000
        many = [result(backend, f"m{n}", value="x" * 100_000) for n in range(12)]
        backend.store([result(backend, "long", value=quotes), *many])
        assert fetched(backend, "long")["status"] == "FAILURE"
        assert "max_allowed_packet is 1048576" in fetched(backend, "long")["result"]["exc_message"][0]
        assert {fetched(backend, f"m{n}")["status"] for n in range(12)} == {"SUCCESS"}
        backend.open_chords([Chord("g", 2, b"body", 60.0)])
        large, small = ChordPart("g", "a", 0, b'"' * 600_000), ChordPart("g", "b", 1, b"[]")
        (claim,) = backend.join([large, small])
        assert (b"max_allowed_packet" in claim.parts[0][1], claim.parts[1]) == (True, (1, b"[]"))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET GLOBAL max_allowed_packet = DEFAULT")


@pytest.mark.usefixtures("mariadb")
def test_on_mysql_a_text_that_its_character_set_lacks_costs_no_result() -> None:
    backend = make()
    backend.store([result(backend, "c", "STARTED"), result(backend, "d", "success")])
    backend.store([result(backend, "c", "FAILURE", "e", traceback="no \N{SNOWMAN}"), result(backend, "d")])
    found = fetched(backend, "c")
    assert (found["status"], found["result"], found["traceback"]) == ("FAILURE", "e", "no \\u2603")
    assert fetched(backend, "d")["status"] == "SUCCESS"
    with pytest.raises(BackendStoreError, match="there is a task 'd'"):
        backend.store([result(backend, "D")])


def test_a_refusal_that_mysqls_client_calls_operational_is_no_outage() -> None:
    tries: list[int] = []

    def refuse() -> None:
        tries.append(1)
        raise OperationalError(1366, "Incorrect string value")

    with pytest.raises(BackendStoreError, match=r"refuses it: .*Incorrect string value"):
        make()._do(refuse)
    assert tries == [1]


def test_R7_cleaning_up_is_bounded_and_takes_groups_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac_backend_django.database.EXPIRED_PER_CLEANUP", 10)
    monkeypatch.setattr("celeriac_backend_django.database.EXPIRED_PER_STATEMENT", 5)
    backend = make(result_expires=60)
    backend.store([result(backend, f"t{n}") for n in range(23)])
    TaskResult.objects.update(date_done="2001-01-01T00:00:00+00:00")
    backend.save_group("g", [])
    GroupResult.objects.update(date_done="2001-01-01T00:00:00+00:00")
    assert [backend.cleanup() for _ in range(4)] == [10, 10, 4, 0]
    assert make(result_expires=None).cleanup() == 0


# -- faults and errors --------------------------------------------------------------------------------------


def test_a_cut_connection_is_replaced_unless_a_transaction_is_open(
    use_database: Callable[[str], None], postgres_service: PostgresService
) -> None:
    url = postgres_service.fresh_url()
    use_database(url)
    call_command("migrate", LABEL, verbosity=0)
    backend = make()
    backend.store([result(backend, "a")])

    def cut() -> None:
        connection.ensure_connection()
        cursor = connection.connection.cursor()
        with pytest.raises(Exception, match="terminat"):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    cut()
    backend.store([result(backend, "b")])
    assert set(backend.fetch(["a", "b"])) == {"a", "b"}
    with pytest.raises(Exception), transaction.atomic():  # noqa: B017 - what ends the transaction is Django's
        cut()
        with pytest.raises(BackendLost):
            backend.store([result(backend, "c")])
    backend.store([result(backend, "c")])
    assert set(backend.fetch(["a", "b", "c"])) == {"a", "b", "c"}


def test_missing_tables_are_said(use_database: Callable[[str], None], tmp_path: Path) -> None:
    use_database(f"sqlite:///{tmp_path}/empty.sqlite3")
    with pytest.raises(BackendUnreachable, match=r"manage\.py migrate"):
        make().ping(1)


def test_migrations_that_have_not_been_run_are_said(project: Path) -> None:
    assert make().ping(1)
    call_command("migrate", LABEL, "0015", verbosity=0)
    with pytest.raises(BackendUnreachable, match=r"manage\.py migrate"):
        make().ping(1)


def test_an_app_that_is_not_installed_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "get_model", lambda label, name: apps.get_app_config(f"no_{label}"))
    with pytest.raises(ImproperlyConfigured, match="'celeriac_backend_django' to INSTALLED_APPS"):
        make().fetch(["a"])


@pytest.mark.parametrize("make_one", [make, lambda **settings: DjangoCacheBackend(settings, KitHost())])
def test_what_makes_no_sense_is_refused_by_name(make_one: Any, project: Path) -> None:
    with pytest.raises(SettingError, match="result_expires is 'soon'"):
        make_one(result_expires="soon")
    backend = make_one()
    for verb in (lambda: backend.watch(["a"]), lambda: backend.commands([])):
        with pytest.raises(Unsupported):
            verb()


def test_a_cache_that_keeps_nothing_or_is_not_there_is_refused() -> None:
    with pytest.raises(BackendUnreachable, match="DummyCache"):
        DjangoCacheBackend({"cache_backend": "none"}, KitHost()).ping(1)
    with pytest.raises(SettingError, match="cache_backend"):
        DjangoCacheBackend({"cache_backend": "nowhere"}, KitHost())


def test_a_cached_result_is_the_document_itself_and_a_dead_holder_s_lock_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac_backend_django.cache.LOCK_S", 0.3)
    backend = DjangoCacheBackend({}, KitHost())
    backend.store([result(backend, "doc", "STARTED", 1)])
    assert caches["default"].get("celery-task-meta-doc")["status"] == "STARTED"
    caches["default"].add("celeriac-lock-celery-task-meta-doc", 1, 0.3)
    backend.store([result(backend, "doc", "SUCCESS", 2)])
    assert fetched(backend, "doc")["result"] == 2
    caches["default"].add("celeriac-lock-celery-task-meta-doc", 1, 60)
    with pytest.raises(BackendLost, match="locked"):
        backend.store([result(backend, "doc", "FAILURE", 3)])
    caches["default"].delete("celeriac-lock-celery-task-meta-doc")
