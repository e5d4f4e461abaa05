"""What is said to systemd: the very lines, to a real datagram socket of either kind."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.beat import Service
from celeriac.utils.systemd import PULSE_S, Pulse, ServiceManager


@pytest.fixture(params=["file", "abstract"])
def hears(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has it, and its name as in `NOTIFY_SOCKET`."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@celeriac-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(60)
        yield listener, name


def test_every_word_arrives_as_systemd_wants_it(hears: tuple[socket.socket, str]) -> None:
    listener, name = hears
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
    assert manager.listens
    assert (manager.watchdog_s, manager.pulse_s) == (3.0, 1.0)
    manager.starting("Waiting.", 4)
    manager.ready("Here.")
    manager.status("Here.")
    manager.status("Two\nlines, ä.")
    manager.live()
    began_us = time.monotonic_ns() // 1000
    manager.reloading("Anew.")
    manager.stopping("Gone.")
    heard = [listener.recv(1000).decode() for _ in range(6)]
    reloading = heard.pop(4).splitlines()
    assert heard == [
        "EXTEND_TIMEOUT_USEC=4000000\nSTATUS=Waiting.",
        "READY=1\nSTATUS=Here.",
        "STATUS=Two lines, ä.",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=Gone.",
    ]
    assert [reloading[0], reloading[2]] == ["RELOADING=1", "STATUS=Anew."]
    assert began_us <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "5000000"}, 5.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_a_watchdog_is_fed_if_it_is_this_process_that_it_watches(environ: dict[str, str], wanted: float | None) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": "/nowhere/at/all", **environ})
    assert manager.watchdog_s == wanted
    assert manager.pulse_s == (PULSE_S if wanted is None else wanted / 3)
    manager.live()  # nobody hears it, which is no error
    manager.ready("Here.")


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "relative/path"])
def test_where_nobody_listens_nothing_is_said(name: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "5000000"})
    assert not manager.listens
    assert manager.watchdog_s is None
    manager.ready("Here.")


def test_a_service_that_stands_still_gives_no_sign_of_life(hears: tuple[socket.socket, str]) -> None:
    listener, name = hears
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000"})
    stalled_s, looks = 1.0, itertools.count()
    pulse = Pulse(manager, lambda: stalled_s, lambda: f"{next(looks)} looks.")
    pulse.start()
    assert [listener.recv(100).decode() for _ in range(3)] == [f"STATUS={n} looks." for n in range(3)]
    stalled_s = 0.0
    assert b"WATCHDOG=1" in [listener.recv(100) for _ in range(30)]
    pulse.stop()


def test_beat_says_that_it_lives_while_nothing_is_due() -> None:
    turns = threading.Semaphore(0)
    service = Service(_beatless())
    service.on_turn, service.turn_s = turns.release, 0.01
    thread = threading.Thread(target=service.start)
    thread.start()
    assert all(turns.acquire(timeout=60) for _ in range(5))
    service.stop(wait=True)
    thread.join(60)


def _beatless() -> object:
    from celeriac import Celery

    return Celery("b", broker="memory://", set_as_current=False)
