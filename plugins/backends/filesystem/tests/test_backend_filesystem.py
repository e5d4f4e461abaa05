"""What the filesystem backend promises beyond the contract: Celery's files, whole ones only, bounds, errors."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from celeriac.exceptions import BackendLost, BackendUnreachable, SettingError, Unsupported
from celeriac.spec import Chord, ChordClaim, ChordPart, StoredResult
from celeriac.testing.kit import KitHost
from celeriac_backend_filesystem.backend import OWN_FOLDER, FilesystemBackend


def make(folder: Path, **settings: Any) -> FilesystemBackend:
    return FilesystemBackend(f"file://{folder}", settings, KitHost())


def result(backend: FilesystemBackend, task_id: str, state: str = "SUCCESS", value: Any = 5) -> StoredResult:
    document = {
        "status": state, "result": value, "traceback": None, "children": [], "date_done": None, "task_id": task_id,
    }  # fmt: skip
    return StoredResult(task_id, state, backend.encode(document, KitHost().serializer("json")))


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_results_and_groups_are_celerys_files(tmp_path: Path) -> None:
    backend = make(tmp_path)
    backend.store([result(backend, "a")])
    backend.save_group("g", [["g", None], []])
    assert json.loads((tmp_path / "celery-task-meta-a").read_bytes())["result"] == 5
    assert json.loads((tmp_path / "celery-taskset-meta-g").read_bytes()) == {"result": [["g", None], []]}
    assert sorted(os.listdir(tmp_path)) == [OWN_FOLDER, "celery-task-meta-a", "celery-taskset-meta-g"]
    assert all(name.startswith("lock-") for name in os.listdir(tmp_path / OWN_FOLDER))


def test_R11_groups_named_like_folders_are_apart(tmp_path: Path) -> None:
    backend = make(tmp_path)
    for group in ("", ".", ".."):
        (claim,) = _joined(backend, group)
        backend.close_chords([claim])


def _joined(backend: FilesystemBackend, group: str) -> list[ChordClaim]:
    backend.open_chords([Chord(group, 1, b"body", 60.0)])
    return backend.join([ChordPart(group, "a", 0, b"a")])


def test_a_result_that_is_too_big_for_the_file_system_is_kept_as_a_failure(tmp_path: Path) -> None:
    backend = make(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        backend.store([result(backend, "big", value="x" * 5_000_000), result(backend, "small")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = {task_id: backend.decode(data) for task_id, data in backend.fetch(["big", "small"]).items()}
    assert (found["small"]["status"], found["big"]["status"]) == ("SUCCESS", "FAILURE")
    assert found["big"]["result"]["exc_type"] == "BackendStoreError"
    assert "File too large" in found["big"]["result"]["exc_message"][0]


WRITER = """
import sys
from celeriac.spec import StoredResult
from celeriac.testing.kit import KitHost
from celeriac_backend_filesystem.backend import FilesystemBackend
backend = FilesystemBackend(sys.argv[1], {}, KitHost())
serializer = KitHost().serializer("json")
print("begun", flush=True)
for n in range(10 ** 9):
    document = {"status": "PROGRESS", "result": str(n % 10) * 200_000, "task_id": "a"}
    backend.store([StoredResult("a", "PROGRESS", serializer.dumps(document))])
"""


def test_S8_a_reader_sees_whole_results_also_of_a_writer_that_is_killed(tmp_path: Path) -> None:
    backend = make(tmp_path)
    seen = set()
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, f"file://{tmp_path}"], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begun\n"
            until = time.monotonic() + 0.5
            while time.monotonic() < until or not seen:
                data = backend.fetch(["a"]).get("a")
                if data is not None:
                    text = backend.decode(data)["result"]
                    assert len(text) == 200_000
                    assert len(set(text)) == 1
                    seen.add(text[0])
            writer.send_signal(signal.SIGKILL)
    backend.store([result(backend, "a")])  # nobody's lock stayed behind
    assert backend.decode(backend.fetch(["a"])["a"])["result"] == 5
    left = [path for path in (tmp_path / OWN_FOLDER).iterdir() if path.name.startswith("new-")]
    for path in left:
        age(path, 7200)
    (tmp_path / OWN_FOLDER / "new-still-written").touch()
    backend.cleanup()
    assert [path.name for path in (tmp_path / OWN_FOLDER).glob("new-*")] == ["new-still-written"]


def test_what_a_killed_writer_left_behind_the_end_of_a_log_is_written_over(tmp_path: Path) -> None:
    backend = make(tmp_path)
    backend.open_chords([Chord("g", 2, b"body", 60.0)])
    backend.join([ChordPart("g", "a", 0, b"a")])
    with (tmp_path / OWN_FOLDER / "chords" / "g.parts").open("ab") as log:
        log.write(b"\0\0\xff\xff torn")
    (claim,) = backend.join([ChordPart("g", "b", 1, b"b")])
    assert claim.parts == [(0, b"a"), (1, b"b")]
    backend.close_chords([claim])
    assert os.listdir(tmp_path / OWN_FOLDER / "chords") == ["g.state"]


def test_a_chord_that_has_ended_is_forgotten_even_if_results_are_kept_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac_backend_filesystem.chords.DONE_S", 0.0)
    backend = make(tmp_path, result_expires=None)
    backend.open_chords([Chord("g", 1, b"body", 60.0), Chord("h", 1, b"body", 60.0)])
    backend.close_chords(backend.join([ChordPart("g", "a", 0, b"a")]))
    assert backend.cleanup() == 1
    assert sorted(os.listdir(tmp_path / OWN_FOLDER / "chords")) == ["h.body", "h.state"]


def test_R7_chords_without_news_are_removed_with_the_rest(tmp_path: Path) -> None:
    backend, others = make(tmp_path, result_chord_expires=0.01), make(tmp_path, result_expires=3600)
    backend.join([ChordPart("g", "a", 0, b"a")])  # of one that is never opened
    others.open_chords([Chord("h", 2, b"body", 60.0)])
    deadline = time.monotonic() + 30
    while not (removed := others.cleanup()):
        assert time.monotonic() < deadline
    assert removed == 1
    assert sorted(os.listdir(tmp_path / OWN_FOLDER / "chords")) == ["h.body", "h.state"]


def test_R7_cleaning_up_is_bounded_and_leaves_what_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac_backend_filesystem.backend.EXPIRED_PER_CLEANUP", 10)
    backend = make(tmp_path, result_expires=60)
    backend.store([result(backend, f"t{n}") for n in range(22)])
    backend.save_group("g", [])
    (tmp_path / "letter").touch()
    for path in tmp_path.iterdir():
        age(path, 120)
    backend.store([result(backend, "new")])
    assert [backend.cleanup() for _ in range(4)] == [10, 10, 3, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [OWN_FOLDER, "celery-task-meta-new", "letter"]
    assert make(tmp_path, result_expires=None).cleanup() == 0


def test_a_file_that_is_no_result_is_replaced(tmp_path: Path) -> None:
    backend = make(tmp_path)
    (tmp_path / "celery-task-meta-a").write_bytes(b"\xff torn")
    with pytest.raises(ValueError):
        backend.decode(backend.fetch(["a"])["a"])
    backend.store([result(backend, "a", "STARTED", 1)])
    assert backend.decode(backend.fetch(["a"])["a"])["result"] == 1


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    backend = make(tmp_path / "no")
    for verb in (
        lambda: backend.store([result(backend, "a")]),
        lambda: backend.fetch(["a"]),
        lambda: backend.ping(1),
        backend.cleanup,
    ):
        with pytest.raises(BackendUnreachable):
            verb()
    (tmp_path / "no").mkdir()
    backend.store([result(backend, "a")])
    assert set(backend.fetch(["a"])) == {"a"}


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((BackendLost, BackendUnreachable)):
        make(tmp_path / "file").fetch(["a"])


@pytest.mark.parametrize("url", ["file://", "file://elsewhere/folder", "filesystem:///"])
def test_a_url_without_a_folder_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="three"):
        FilesystemBackend(url, {}, KitHost())


def test_what_makes_no_sense_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="result_expires is 'soon'"):
        make(tmp_path, result_expires="soon")
    for verb in (lambda: make(tmp_path).watch(["a"]), lambda: make(tmp_path).commands([])):
        with pytest.raises(Unsupported):
            verb()
