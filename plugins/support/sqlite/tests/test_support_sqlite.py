"""The file that broker and result store share, and the wake-ups beside it, without either of them."""

from __future__ import annotations

import os
import resource
import select
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

from celeriac.exceptions import ImproperlyConfigured
from celeriac_support_sqlite.file import DEFAULT_FILE, Database, Location, StoreTrouble, trouble
from celeriac_support_sqlite.wake import Bell, Ear, folder_of, is_alive, topic

SCHEMA = ["CREATE TABLE notes (text)"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared.db"


def open_file(path: Path, part: str = "notes", version: int = 1) -> Database:
    return Database(Location(f"sqlite:///{path}"), part, version, SCHEMA)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///sub/queue.db", "{cwd}/sub/queue.db"),
        ("sqlite:////var/lib/queue.db", "/var/lib/queue.db"),
        ("sqlite://", f"{{cwd}}/{DEFAULT_FILE}"),
        ("sqlite:", f"{{cwd}}/{DEFAULT_FILE}"),
        ("sqlite:///with%20space.db?durability=host", "{cwd}/with space.db"),
    ],
)
def test_a_url_names_a_file(url: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location(url).path == expected.format(cwd=os.path.realpath(tmp_path))


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("sqlite://queue.db", "sqlite:///queue.db"),
        ("sqlite://var/queue.db", "sqlite:////var/queue.db"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///q.db?durabilty=host", "durability"),
        ("sqlite:///q.db?durability=FULL", "'process' or 'host'"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_with_one_that_does(url: str, hint: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="(?s).*" + hint.replace("?", r"\?")):
        Location(url)


def test_a_file_that_may_not_be_written_is_named_with_who_must(path: Path) -> None:
    # The superuser may write whatever the mode says, so the error comes from SQLite opened as it would be.
    open_file(path).connect().close()
    conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as caught:
        conn.execute("CREATE TABLE x (y)")
    conn.close()
    found = trouble(caught.value, str(path))
    assert found.kind == "unreachable"
    assert f"{path} cannot be written" in str(found)
    assert f"User {os.getuid()}" in found.hint


def test_a_transaction_that_fails_leaves_nothing(path: Path) -> None:
    database = open_file(path)
    with pytest.raises(ZeroDivisionError), database.transaction() as conn:
        conn.execute("INSERT INTO notes VALUES ('half')")
        raise ZeroDivisionError
    with database.transaction() as conn:
        conn.execute("INSERT INTO notes VALUES ('whole')")
    assert database.read(lambda conn: conn.execute("SELECT text FROM notes").fetchall()) == [("whole",)]
    database.close()


def test_a_connection_to_a_file_that_was_replaced_meanwhile_is_not_lent_again(path: Path) -> None:
    database = open_file(path)
    with database.connection() as old:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        with database.transaction():
            pass  # another thread, on the new file
    with database.connection() as conn:
        assert conn is not old
    database.close()


def test_parts_have_versions_of_their_own(path: Path) -> None:
    open_file(path).connect().close()
    other = Database(Location(f"sqlite:///{path}"), "others", 7, ["CREATE TABLE others (text)"])
    other.connect().close()
    with pytest.raises(StoreTrouble, match=r"the notes tables in .* have version 1, this celeriac reads 2") as caught:
        open_file(path, version=2).connect()
    assert caught.value.kind == "unreachable"


def is_awake(ear: Ear) -> bool:
    return bool(select.select([ear.fd], [], [], 0)[0])


def test_a_bell_wakes_who_sleeps_and_cares(path: Path) -> None:
    ear, bell = Ear(str(path)), Bell(str(path))
    mail, noise = topic("mail"), topic("noise")
    ear.listen([mail])
    bell.ring([mail])
    assert not is_awake(ear), "it does not sleep"
    ear.sleep()
    bell.ring([noise])
    assert not is_awake(ear), "it does not care"
    bell.ring([mail, noise])
    assert is_awake(ear)
    ear.drain()
    bell.ring([mail])
    assert not is_awake(ear), "it has been woken already"
    ear.sleep()
    ear.ignore([mail])
    bell.ring([mail])
    assert not is_awake(ear), "it cares no longer"
    bell.close()
    ear.close()


def test_a_bell_wakes_a_listener_that_has_made_its_files_anew(path: Path) -> None:
    ear, bell, mail = Ear(str(path)), Bell(str(path)), topic("mail")
    ear.listen([mail])
    ear.sleep()
    bell.ring([mail])
    assert is_awake(ear)
    os.unlink(ear.page)
    assert ear.is_given_up()
    new = ear.again()
    ear.let_go()
    new.listen([mail])
    new.sleep()
    bell.ring([mail])
    assert is_awake(new)
    assert not new.is_given_up()
    assert is_alive(folder_of(str(path)), new.name, 60)
    bell.close()
    new.close()
    assert os.listdir(folder_of(str(path))) == []


def test_a_listener_lives_until_it_closes_or_is_silent_for_too_long(path: Path) -> None:
    folder = folder_of(str(path))
    ear = Ear(str(path))
    assert is_alive(folder, ear.name, 60)
    assert not is_alive(folder, ear.name, -1)
    ear.close()
    assert not is_alive(folder, ear.name, 60)
    assert os.listdir(folder) == []


def test_a_process_without_descriptors_takes_nobody_for_dead(path: Path) -> None:
    ear = Ear(str(path))
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used, before[0]), before[1]))
    spare = []
    try:
        with suppress(OSError):
            while True:
                spare.append(os.dup(0))
        assert is_alive(folder_of(str(path)), ear.name, 60)
        assert is_alive(folder_of(str(path)), "another", 60), "it might be"
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not is_alive(folder_of(str(path)), "another", 60)
    ear.close()


def test_nobody_to_wake_is_no_error(path: Path) -> None:
    Bell(str(path)).ring([topic("mail")])
