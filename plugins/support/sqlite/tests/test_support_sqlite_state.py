"""The state that SQLite plugins offer keeps its contract, also between a broker and a backend of one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.exceptions import TransportUnreachable
from celeriac.spec import Change, SharedState
from celeriac.testing.kit import KitHost, make_by_hook, make_transport
from celeriac.testing.state_suite import StateConformance

Pair = tuple[SharedState, SharedState]


class TestSqliteState(StateConformance):
    @pytest.fixture
    def states(self, tmp_path: Path) -> Iterator[Pair]:
        """The broker's and the backend's."""
        url = f"sqlite:///{tmp_path}/state.db"
        transport = make_transport("celeriac_broker_sqlite", url)
        arguments = {"url": url, "settings": {}, "host": KitHost()}
        backend = make_by_hook("celeriac_backend_sqlite", "celeriac_make_backend", **arguments)
        yield transport.state(), backend.state()  # type: ignore[attr-defined]
        transport.close()
        backend.close()

    @pytest.mark.parametrize("text", ["half \ud800", "of a file's name \udce9", "nul \0 inside"])
    def test_keys_may_be_any_text(self, states: Pair, text: str) -> None:
        version = states[0].write(text, [Change(text, b"1"), Change("other", b"2")])
        assert version
        assert list(states[1].read(text, ["other", text, "nobody"]).entries) == ["other", text]
        assert set(states[1].read(text).entries) == {"other", text}
        assert states[1].write(text, [Change(text, None)], given={text: version})
        assert states[0].read(text, [text]).entries == {}

    def test_versions_grow_even_if_the_file_is_lost(self, states: Pair, tmp_path: Path) -> None:
        before = states[0].write("space", [Change("a", b"1")])
        for path in tmp_path.glob("state.db*"):
            if path.is_file():
                path.unlink()
        after = states[0].write("space", [Change("a", b"2")], given={"a": 0})
        assert before
        assert after
        assert after > before

    def test_a_child_has_connections_of_its_own(self, states: Pair) -> None:
        states[0].write("space", [Change("a", b"1")])
        pid = os.fork()
        if pid == 0:
            try:
                states[0].write("space", [Change("b", b"2")])
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert set(states[0].read("space").entries) == {"a", "b"}


def test_what_is_wrong_with_the_file_is_said_in_the_plugins_words(tmp_path: Path) -> None:
    transport = make_transport("celeriac_broker_sqlite", f"sqlite:///{tmp_path}/nowhere/state.db")
    with pytest.raises(TransportUnreachable, match="does not exist"):
        transport.state().read("space")  # type: ignore[attr-defined]
