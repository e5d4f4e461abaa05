"""A debugger at a socket: who leaves it, leaves the program running."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.contrib import rdb
from celeriac.testing.services import free_ports


class Debugged:
    """A function that stops in a debugger, in a thread, and a client of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (self.port,) = free_ports(1)
        monkeypatch.setenv("CELERY_RDB_PORT", str(self.port))
        self.answer: Any = None
        self.waits = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.socket = self._connect()
        self.file = self.socket.makefile("rw", newline="\n")

    def _run(self) -> None:
        self.answer = double(4)

    def _connect(self) -> socket.socket:
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 20)
            except ConnectionRefusedError:
                assert self.thread.is_alive()

    def read(self) -> str:
        text = ""
        while not text.endswith("(rdb) "):
            text += self.file.read(1)
        return text

    def say(self, line: str) -> None:
        self.file.write(line + "\n")
        self.file.flush()

    def end(self) -> Any:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.answer


def double(number: int) -> int:
    result = number * 2
    rdb.set_trace()
    result += 0
    return result


@pytest.fixture
def debugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Debugged]:
    made = Debugged(monkeypatch)
    yield made
    made.file.close()
    made.socket.close()
    made.end()


def test_one_looks_around_changes_things_and_goes_on(debugged: Debugged) -> None:
    debugged.read()
    debugged.say("p result")
    assert "8" in debugged.read()
    debugged.say("where")
    assert "double" in debugged.read()
    debugged.say("!result = 5")
    debugged.read()
    debugged.say("c")
    assert debugged.end() == 5


def test_steps_go_line_by_line(debugged: Debugged) -> None:
    places = [debugged.read()]
    while "return result" not in places[-1]:  # from Python 3.13 on it begins a line earlier
        assert len(places) < 4, places
        debugged.say("n")
        places.append(debugged.read())
    debugged.say("c")
    assert debugged.end() == 8


@pytest.mark.parametrize("word", ["quit", "exit", "q", ""])
def test_who_leaves_lets_it_go_on(debugged: Debugged, word: str) -> None:
    debugged.read()
    if word:
        debugged.say(word)
    else:
        debugged.socket.shutdown(socket.SHUT_RDWR)
    assert debugged.end() == 8


def test_a_port_that_is_taken_is_passed_over_and_the_next_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        first = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"no free port for the debugger on 127.0.0.1 from {first}"):
            rdb.Rdb(port=first, port_search_limit=1)
