"""What a worker knows to be revoked: from where, until when, and what it does with it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from celeriac.app.revocations import (
    LONGEST_KEY,
    Revocation,
    id_key,
    keys_of_stamps,
    pack,
    parse_signal,
    stamp_key,
    unpack,
)
from celeriac.spec.data import Head
from celeriac.spec.state import Entry, Snapshot
from celeriac.testing.kit import eventually
from celeriac.worker import revoked
from celeriac.worker.clock import Clock
from celeriac.worker.revoked import RevocationWatch, Revoked


def snapshot(entries: dict[str, bytes], now: float = 1000.0, expires: float | None = None) -> Snapshot:
    return Snapshot(1, now, {key: Entry(value, 1, expires) for key, value in entries.items()})


def test_nothing_revoked_is_falsy_and_matches_nothing() -> None:
    revoked = Revoked()
    assert not revoked
    assert revoked.match(Head("id", "t", stamps={"a": "b"})) is None


def test_ids_and_stamps_match_whatever_form_the_stamps_have() -> None:
    revoked = Revoked()
    keys = [id_key("one"), stamp_key("customer", "a"), stamp_key("n", 7)]
    revoked.take_over(snapshot(dict.fromkeys(keys, pack(Revocation()))))
    assert revoked
    assert revoked.match(Head("one", "t"))
    assert revoked.match(Head("two", "t", stamps={"customer": ["z", "a"]}))
    assert revoked.match(Head("two", "t", stamps={"n": 7}))
    assert not revoked.match(Head("two", "t", stamps={"customer": "b", "other": "a"}))
    assert revoked.ids() == ["one"]
    assert keys_of_stamps({"customer": ["a"], "n": 7}) == keys_of_stamps(["customer=a", "n=7"])
    with pytest.raises(ValueError, match="header=value"):
        keys_of_stamps(["customer"])


def test_only_what_changed_is_news() -> None:
    revoked = Revoked()
    first, ended = pack(Revocation()), pack(Revocation(15))
    assert set(revoked.take_over(snapshot({"id:a": first, "id:b": first}))) == {"id:a", "id:b"}
    assert revoked.take_over(snapshot({"id:a": first, "id:b": ended})) == {"id:b": Revocation(15)}
    assert revoked.take_over(snapshot({"id:b": ended})) == {}
    assert not revoked.match(Head("a", "t")), "the store has dropped it"


def test_a_revocation_ends_by_the_clock_of_its_store_not_by_ours() -> None:
    now = [50_000.0]  # the store's clock is far behind
    revoked = Revoked(clock=Clock(unix=lambda: now[0]))
    revoked.take_over(snapshot({"id:a": pack(Revocation())}, now=1000.0, expires=1060.0))
    now[0] += 59
    assert revoked.match(Head("a", "t"))
    now[0] += 2
    assert not revoked.match(Head("a", "t"))


def test_what_was_heard_outlives_the_worker_in_its_file_and_nothing_new_is_dropped(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    revoked = Revoked(path=path)
    revoked.hear({id_key(str(n)): Revocation(9) for n in range(1500)})
    again = Revoked(path=path)
    assert all(again.match(Head(str(n), "t")) == Revocation(9) for n in range(1500))
    expired = Revoked(expires_s=-1, path=str(tmp_path / "other"))
    expired.hear({id_key("x"): Revocation()})
    assert not Revoked(path=str(tmp_path / "other"))


def test_a_file_that_cannot_be_read_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"\x00 not ours")
    revoked = Revoked(path=str(path))
    assert not revoked
    assert "cannot be read" in caplog.text
    revoked.hear({id_key("x"): Revocation()})
    assert Revoked(path=str(path)).match(Head("x", "t"))
    assert [p.read_bytes() for p in tmp_path.glob("state.unreadable-*")] == [b"\x00 not ours"]


@pytest.mark.parametrize("name", ["SIGKILL", "kill", "9", 9, signal.SIGKILL])
def test_signals_have_names_and_numbers(name: Any) -> None:
    assert parse_signal(name) == 9


def test_a_signal_that_is_none_is_refused_and_keys_fit_the_store() -> None:
    assert parse_signal(None) == signal.SIGTERM
    for name in ("SIGNONE", "999", "default_int_handler", ""):
        with pytest.raises(ValueError, match="there is no signal"):
            parse_signal(name)
    assert unpack(b"anything") is None
    keys = [id_key("x" * 1000), id_key("y" * 1000), id_key("a\nb"), id_key("\ud800"), stamp_key("h" * 300, "v")]
    assert len(set(keys)) == 5
    assert all(len(key) <= LONGEST_KEY + 10 and key.isprintable() for key in keys)


def test_a_watch_goes_on_after_a_fault_of_the_store_s_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoked, "LOOK_S", 0.01)
    looks: list[str] = []

    class Broken:
        def version(self, space: str) -> int:
            looks.append(space)
            raise ZeroDivisionError("a fault of the plugin's")

    watch = RevocationWatch(Broken(), lambda snapshot: None)  # type: ignore[arg-type]
    watch.start()
    eventually(lambda: len(looks) > 1, within_s=60)
    assert watch.is_alive()
    watch.stop()
    watch.join(60)
