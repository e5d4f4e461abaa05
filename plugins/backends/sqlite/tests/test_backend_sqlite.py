"""What the sqlite backend promises beyond the contract: expiry, indices, waiting, errors that help."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from celeriac.exceptions import BackendLost, BackendUnreachable, SettingError
from celeriac.spec import DONE_S, Chord, ChordPart, StoredResult
from celeriac.testing.kit import KitHost
from celeriac_backend_sqlite import backend as module
from celeriac_backend_sqlite import celeriac_make_backend
from celeriac_backend_sqlite.backend import FETCH, STORE, SqliteBackend
from celeriac_support_sqlite import file
from celeriac_support_sqlite.wake import folder_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def make(path: Path, **settings: Any) -> SqliteBackend:
    return SqliteBackend(f"sqlite:///{path}", settings, KitHost())


@pytest.fixture
def backend(path: Path) -> Iterator[SqliteBackend]:
    backend = make(path)
    yield backend
    backend.close()


def peek(path: Path, sql: str, parameters: Any = ()) -> list[Any]:
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        return conn.execute(sql, parameters).fetchall()
    finally:
        conn.close()


def test_a_chord_that_has_ended_is_forgotten_even_if_results_are_kept_for_ever(path: Path) -> None:
    backend = make(path, result_expires=None)
    backend.open_chords([Chord("g", 1, b"body", 60.0)])
    backend.close_chords(backend.join([ChordPart("g", "a", 0, b"a")]))
    ((kept_until,),) = peek(path, "SELECT expires FROM celeriac_chords")
    assert time.time() < kept_until <= time.time() + DONE_S
    backend.close()


@pytest.mark.parametrize("text", ["half \ud800", "of a file's name \udce9", "nul \0 inside"])
def test_R11_text_that_is_no_utf8_names_its_own_result_chord_and_group(backend: SqliteBackend, text: str) -> None:
    backend.store([StoredResult(text, text, b"1"), StoredResult("half ?", "SUCCESS", b"2")])
    assert backend.fetch([text, "half ?", "\N{GRINNING FACE}"]) == {text: b"1", "half ?": b"2"}
    watch = backend.watch([text])
    assert watch.wait(5) == [(text, b"1")]
    watch.close()
    backend.open_chords([Chord(text, 2, b"body", 0.0)])
    assert backend.join([ChordPart(text, text, 0, b"a")]) == []
    (claim,) = backend.overdue_chords(1)
    assert (claim.group, claim.parts) == (text, [(0, b"a")])
    backend.close_chords([claim])
    assert backend.join([ChordPart(text, "b", 1, b"b")]) == []
    backend.save_group(text, [[text, None], []])
    assert backend.load_group(text) == [[text, None], []]
    backend.delete_group(text)
    backend.forget([text])
    assert (backend.load_group(text), backend.fetch([text])) == (None, {})


def test_a_waiter_of_a_folder_that_was_removed_is_not_used_again(path: Path, backend: SqliteBackend) -> None:
    first = backend.watch(["a"])
    first.close()
    shutil.rmtree(folder_of(str(path)))
    second = backend.watch(["b"])
    assert os.listdir(folder_of(str(path)))
    second.close()


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_backend("redis://localhost", {}, KitHost()) is None


@pytest.mark.parametrize(
    ("expires", "seconds"), [(60, 60), (timedelta(minutes=2), 120), (1.5, 1.5), (0, None), (None, None)]
)
def test_result_expires_is_seconds_or_a_timedelta(path: Path, expires: Any, seconds: float | None) -> None:
    began = time.time()
    make(path, result_expires=expires).store([StoredResult("t", "SUCCESS", b"x")])
    ended = time.time()
    ((kept_until,),) = peek(path, "SELECT expires FROM celeriac_results")
    if seconds is None:
        assert kept_until is None
    else:
        assert began <= kept_until - seconds + 0.001
        assert kept_until - seconds - 0.001 <= ended


def test_another_kind_of_result_expires_is_refused_by_name(path: Path) -> None:
    with pytest.raises(SettingError, match=r"result_expires is 'soon'"):
        make(path, result_expires="soon")


def test_R3_an_expired_result_does_not_stand_in_the_way(path: Path) -> None:
    brief = make(path, result_expires=0.05)
    brief.store([StoredResult("t", "SUCCESS", b"old")])
    time.sleep(0.06)
    brief.store([StoredResult("t", "STARTED", b"new")])
    assert peek(path, "SELECT state, data FROM celeriac_results") == [("STARTED", b"new")]


def test_R7_cleaning_up_is_bounded_and_uses_its_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXPIRED_PER_CLEANUP", 10)
    brief = make(path, result_expires=0.01)
    brief.store([StoredResult(f"t{n}", "SUCCESS", b"x") for n in range(25)])
    time.sleep(0.02)
    assert [brief.cleanup() for _ in range(4)] == [10, 10, 5, 0]
    plan = peek(path, "EXPLAIN QUERY PLAN SELECT id FROM celeriac_results WHERE expires <= 1.0 LIMIT 1")
    assert "celeriac_results_expires" in plan[0][3]


def test_R7_every_store_removes_some_of_what_has_expired(path: Path) -> None:
    brief, worker = make(path, result_expires=0.01), make(path)
    brief.store([StoredResult(f"t{n}", "SUCCESS", b"x") for n in range(100)])
    time.sleep(0.02)
    for left in (100 - 32, 100 - 2 * 32, 100 - 3 * 32, 0):
        worker.store([StoredResult("new", "STARTED", b"x")])
        assert peek(path, "SELECT count(*) FROM celeriac_results WHERE task_id <> 'new'") == [(left,)]


def test_reading_and_writing_use_the_index(path: Path, backend: SqliteBackend) -> None:
    backend.ping(1)
    plan = " ".join(row[3] for row in peek(path, f"EXPLAIN QUERY PLAN {FETCH}", ('["a"]', 1.0)))
    assert "SCAN celeriac_results" not in plan
    row = ("t", "SUCCESS", 1, b"x", None, 1.0, None, None)
    plan = " ".join(str(line[3]) for line in peek(path, f"EXPLAIN QUERY PLAN {STORE}", row))
    assert "SCAN celeriac_results" not in plan


def test_a_file_of_the_first_version_gets_the_column_that_it_lacks_and_keeps_its_results(
    path: Path, backend: SqliteBackend
) -> None:
    backend.store([StoredResult("old", "FAILURE", b"x")])
    backend.close()
    peek(path, "ALTER TABLE celeriac_results DROP COLUMN fence")
    peek(path, "UPDATE celeriac_parts SET version = 1 WHERE part = 'backend'")
    newer = make(path)
    newer.store([StoredResult("new", "FAILURE", b"y", received=1020.0, redelivered=True)])
    newer.store([StoredResult("new", "SUCCESS", b"stale", received=1000.0)])
    assert newer.fetch(["old", "new"]) == {"old": b"x", "new": b"y"}
    newer.close()


def test_commands_make_the_tables_they_need(path: Path, backend: SqliteBackend) -> None:
    (((sql, rows), _), topics) = backend.commands([StoredResult("t", "SUCCESS", b"x")])
    conn = sqlite3.connect(path, isolation_level=None)
    conn.executemany(sql, rows)
    conn.close()
    assert backend.fetch(["t"]) == {"t": b"x"}
    assert len(topics) == 1


def test_a_broker_and_a_backend_are_joint_when_their_urls_name_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "results.db")
    names = {
        SqliteBackend(url, {}, KitHost()).joint
        for url in (
            f"sqlite:///{tmp_path}/results.db",
            "sqlite:///results.db",
            "sqlite:///./results.db",
            "sqlite:///link.db",
        )
    }
    assert len(names) == 1
    assert SqliteBackend("sqlite:///other.db", {}, KitHost()).joint not in names


def test_R8_thousands_of_results_are_waited_for_without_hot_looking(path: Path, backend: SqliteBackend) -> None:
    worker = make(path)
    ids = [f"task-{n}" for n in range(3000)]
    watch = backend.watch(ids)

    def work() -> None:
        for start in range(0, 3000, 30):
            worker.store([StoredResult(task_id, "SUCCESS", b"x") for task_id in ids[start : start + 30]])

    thread = threading.Thread(target=work)
    thread.start()
    told: set[str] = set()
    looks = 0
    deadline = time.monotonic() + 100
    while len(told) < 3000 and time.monotonic() < deadline:
        news = [task_id for task_id, _ in watch.wait(1.0)]
        watch.discard(news)
        told.update(news)
        looks += 1
    thread.join()
    assert told == set(ids)
    assert looks < 300
    watch.close()
    worker.close()


def test_a_closed_wait_leaves_its_ear_to_the_next(path: Path, backend: SqliteBackend) -> None:
    for n in range(10):
        backend.watch([f"t{n}"]).close()
    assert len(os.listdir(folder_of(str(path)))) == 2
    watches = [backend.watch(["t"]) for _ in range(8)]
    for watch in watches:
        watch.close()
    assert len(os.listdir(folder_of(str(path)))) == 2 * module.SPARE_EARS
    backend.close()
    assert os.listdir(folder_of(str(path))) == []


def test_a_wait_survives_a_lost_wake_up(path: Path, backend: SqliteBackend) -> None:
    watch = backend.watch(["t"])
    assert watch.wait(0.01) == []
    timer = threading.Timer(
        0.1,
        peek,
        (path, "INSERT INTO celeriac_results (task_id, state, ready, data) VALUES ('t', 'SUCCESS', 1, x'01')"),
    )
    timer.start()
    assert watch.wait(20.0) == [("t", b"\x01")]
    timer.join()
    watch.close()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    backend = make(tmp_path / "no" / "results.db")
    for verb in (
        lambda: backend.store([StoredResult("t", "SUCCESS", b"x")]),
        lambda: backend.fetch(["t"]),
        lambda: backend.commands([StoredResult("t", "SUCCESS", b"x")]),
        lambda: backend.watch(["t"]),
        lambda: backend.ping(1),
    ):
        with pytest.raises(BackendUnreachable, match=rf"folder {tmp_path}/no does not exist"):
            verb()


def test_a_lock_that_stays_is_backend_lost(path: Path, backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.ping(1)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(type(backend._database).transaction.__wrapped__, "__defaults__", (0.2,))
    with pytest.raises(BackendLost, match="was locked by another process"):
        backend.store([StoredResult("t", "SUCCESS", b"x")])
    writer.execute("ROLLBACK")
    writer.close()
    backend.store([StoredResult("t", "SUCCESS", b"x")])
    assert backend.fetch(["t"]) == {"t": b"x"}


def test_a_full_disk_is_waited_out_by_whoever_waits_for_a_result(
    backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "Ear", no_room)
    with pytest.raises(BackendLost, match="no room for a listener's files"):
        backend.watch(["a"])


def test_the_disk_that_a_long_reader_has_cost_is_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "WAL_KEPT_BYTES", 1 << 20)
    backend = make(path)
    backend.store([StoredResult("a", "SUCCESS", b"{}")])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM celeriac_results").fetchall()
    for n in range(10):
        backend.store([StoredResult(f"b{n}", "SUCCESS", bytes(1 << 20))])
    log = path.with_name(path.name + "-wal")
    assert log.stat().st_size > 10 << 20
    reader.close()
    for n in range(3):
        backend.store([StoredResult(f"c{n}", "SUCCESS", b"{}")])
    assert log.stat().st_size <= 1 << 20
    backend.close()
