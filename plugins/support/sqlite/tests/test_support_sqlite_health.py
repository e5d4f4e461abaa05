"""What is judged unsafe about a SQLite file and its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac_support_sqlite.file import Database, Location, StoreTrouble
from celeriac_support_sqlite.health import examine, file_system_of, judge

GOOD: dict[str, Any] = {"system": "ext4", "mode": "wal", "size": 1000, "log": 1000, "free": 2**40}


def found(**facts: Any) -> set[tuple[str, str]]:
    return {(one.level, one.about) for one in judge("/data/a.db", **{**GOOD, **facts})}


def test_a_good_place_is_told_nothing() -> None:
    assert found() == set()


@pytest.mark.parametrize(
    ("facts", "finding"),
    [
        ({"system": "nfs4"}, ("error", "file system")),
        ({"mode": "delete"}, ("warning", "journal")),
        ({"free": 100 * 2**20}, ("warning", "disk")),
        ({"free": 1000}, ("error", "disk")),
        ({"log": 2**30}, ("warning", "log")),
        ({"size": 2**33}, ("note", "size")),
        ({"public": ["/data/a.db"]}, ("warning", "permissions")),
    ],
)
def test_what_is_unsafe_is_found(facts: dict[str, Any], finding: tuple[str, str]) -> None:
    assert finding in found(**facts)


PLACES = ("file system", "journal", "permissions")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(Location(f"sqlite:///{tmp_path}/a.db"), "kit", 1, ("CREATE TABLE kit (a)",))
    yield database
    database.close()


def test_a_file_in_use_is_examined(database: Database) -> None:
    assert [one for one in examine(database) if one.about in PLACES] == []


def test_what_everybody_may_write_to_is_found(database: Database, tmp_path: Path) -> None:
    examine(database)
    (tmp_path / "a.db").chmod(0o666)
    (found,) = [one for one in examine(database) if one.about in PLACES]
    assert (found.level, found.about) == ("warning", "permissions")
    assert f"{tmp_path}/a.db:" in found.text


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_what_this_user_may_not_write_to_is_found(database: Database, tmp_path: Path, mode: int) -> None:
    examine(database)
    tmp_path.chmod(mode)
    database.close()
    os.seteuid(65534)
    try:
        (found,) = examine(database)
        with pytest.raises(StoreTrouble, match="must be allowed to write"):
            database.read(lambda conn: None)
    finally:
        os.seteuid(0)
    assert (found.level, found.about) == ("error", "permissions")
    assert "user (65534)" in found.text


def test_the_file_system_of_the_innermost_mount_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw 0 0\nb /data nfs4 rw 0 0\nc /data/my\\040disk xfs rw 0 0\n")
    paths = ("/etc/x", "/data/x", "/database/x", "/data/my disk/x")
    assert [file_system_of(path, str(mounts)) for path in paths] == ["ext4", "nfs4", "ext4", "xfs"]
    assert file_system_of("/etc/x", str(tmp_path / "none")) == ""
