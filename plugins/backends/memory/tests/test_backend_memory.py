"""What the memory backend promises beyond the contract: one process, results that expire by themselves."""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.exceptions import BackendUnreachable, SettingError, Unsupported
from celeriac.spec import Chord, ChordPart, StoredResult
from celeriac.testing.kit import KitHost
from celeriac_backend_memory import backend as backend_module
from celeriac_backend_memory import celeriac_make_backend
from celeriac_backend_memory.backend import EXPIRED_PER_STORE, MemoryBackend


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def make(url: str, **settings: Any) -> MemoryBackend:
    return MemoryBackend(url, settings, KitHost())


def test_other_schemes_are_left_to_others() -> None:
    assert celeriac_make_backend("redis://localhost", {}, KitHost()) is None


def test_backends_of_one_url_share_their_results_and_others_do_not(url: str) -> None:
    make(url).store([StoredResult("t", "SUCCESS", b"x")])
    assert make(f"{url}/").fetch(["t"]) == {"t": b"x"}
    assert make(f"{url}-other").fetch(["t"]) == {}


@pytest.mark.parametrize("expires", [0.01, timedelta(milliseconds=10)])
def test_expired_results_go_with_the_next_ones_a_few_at_a_time(url: str, expires: Any) -> None:
    backend = make(url, result_expires=expires)
    backend.store([StoredResult(f"t{n}", "SUCCESS", b"x") for n in range(EXPIRED_PER_STORE + 5)])
    time.sleep(0.02)
    make(url).store([StoredResult("new", "SUCCESS", b"x")])
    assert backend.cleanup() == 5
    assert backend.fetch(["new", "t1"]) == {"new": b"x"}


def test_chords_and_groups_go_too_without_a_cleaning_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaning up is for backends that do not let things expire, so nobody does it here."""
    monkeypatch.setattr(backend_module, "EXPIRE_CHORDS_AT", 4)
    backend, now = make(url, result_expires=60), time.monotonic()
    for hour in range(1, 30):
        monkeypatch.setattr(backend_module, "time", SimpleNamespace(monotonic=lambda hour=hour: now + hour * 3600))
        backend.open_chords([Chord(f"g{hour}", 1, b"body", 60.0)])
        backend.close_chords(backend.join([ChordPart(f"g{hour}", "a", 0, b"a")]))
        backend.save_group(f"g{hour}", [])
    assert len(backend._shelf.chords._joins) + len(backend._shelf.chords._groups) < 20


@pytest.mark.parametrize("expires", [0, None])
def test_results_may_be_kept_for_ever(url: str, expires: Any) -> None:
    backend = make(url, result_expires=expires)
    backend.store([StoredResult("t", "SUCCESS", b"x")])
    assert backend.cleanup() == 0
    assert backend.fetch(["t"]) == {"t": b"x"}


def test_another_kind_of_result_expires_is_refused_by_name(url: str) -> None:
    with pytest.raises(SettingError, match=r"result_expires is 'soon'"):
        make(url, result_expires="soon")


def test_commands_for_a_broker_are_refused(url: str) -> None:
    with pytest.raises(Unsupported):
        make(url).commands([])


def test_a_forked_child_is_told_that_its_results_would_reach_nobody(url: str) -> None:
    backend = make(url)
    pid = os.fork()
    if pid == 0:  # pragma: no cover - runs in the child
        try:
            backend.store([StoredResult("t", "SUCCESS", b"x")])
        except BackendUnreachable as exc:
            os._exit(0 if "sqlite:///" in str(exc) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
