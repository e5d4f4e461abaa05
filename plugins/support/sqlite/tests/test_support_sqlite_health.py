"""What is judged unsafe about a SQLite file and its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from celeriac_support_sqlite.file import Database, Location
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
    ],
)
def test_what_is_unsafe_is_found(facts: dict[str, Any], finding: tuple[str, str]) -> None:
    assert finding in found(**facts)


def test_a_file_in_use_is_examined(tmp_path: Path) -> None:
    database = Database(Location(f"sqlite:///{tmp_path}/a.db"), "kit", 1, ("CREATE TABLE kit (a)",))
    try:
        assert [one for one in examine(database) if one.about in ("file system", "journal")] == []
    finally:
        database.close()


def test_the_file_system_of_the_innermost_mount_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw 0 0\nb /data nfs4 rw 0 0\nc /data/my\\040disk xfs rw 0 0\n")
    paths = ("/etc/x", "/data/x", "/database/x", "/data/my disk/x")
    assert [file_system_of(path, str(mounts)) for path in paths] == ["ext4", "nfs4", "ext4", "xfs"]
    assert file_system_of("/etc/x", str(tmp_path / "none")) == ""
