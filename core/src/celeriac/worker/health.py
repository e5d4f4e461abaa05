"""Is this worker consuming? Asked by the watchdog, and by whoever supervises the process: through a file or over HTTP.

«Ready» means: the link to the broker is up, the loop turns, results can be stored or kept for a while, and nobody has
told the worker to stop. A worker whose slots are all busy is ready.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

from celeriac.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from celeriac.worker.consumer import Loop
    from celeriac.worker.link import Link

#: A loop that has not turned for so long hangs; idle, it turns every second.
STALLED_S: Final = 30.0
#: How long a client of the door may take to say what it wants.
REQUEST_S: Final = 0.5
REQUEST_BYTES: Final = 4096


class Health:
    """The facts. Safe to ask from any thread: it only looks.

    Args:
        runs_elsewhere: Tasks do not run in the loop's own thread, so nothing excuses a loop that stands still.
        is_told_to_end: The worker was told so, which a loop that stands still does not know.
    """

    def __init__(
        self, loop: Loop, link: Link, *, runs_elsewhere: bool, is_told_to_end: Callable[[], bool] = lambda: False
    ) -> None:
        self._loop = loop
        self._link = link
        self._runs_elsewhere = runs_elsewhere
        self._is_told_to_end = is_told_to_end
        self._turns = -1
        self._turned_at = time.monotonic()

    def trouble(self) -> str:
        """Why this worker does not consume; empty if it does."""
        if self._loop.is_stopping or self._is_told_to_end():
            return "the worker is stopping"
        if self._link.consumer is None:
            return "the broker is away"
        if self._link.is_blocked:
            return "the result store is away, and no more results can be kept for it"
        if self.stalled_s() > STALLED_S:
            return f"the worker's loop has not turned for {self.stalled_s():.0f} s"
        return ""

    def stalled_s(self) -> float:
        """For how long the loop has stood still, as far as it should not; looked at once a second or oftener."""
        now, turns = time.monotonic(), self._loop.turns
        if turns != self._turns or (not self._runs_elsewhere and len(self._loop.flights)):
            self._turns, self._turned_at = turns, now
        return now - self._turned_at


class ReadyFile:
    """A file that is there, and touched every second, while the worker consumes."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        try:
            self._path.unlink(missing_ok=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._path.parent):  # a folder that is there may still be nobody's to write in
                pass
        except OSError as exc:
            raise ImproperlyConfigured(
                f"the ready file {path} cannot be used: {exc.strerror}. Name another (setting worker_ready_file, "
                f"option --ready-file) in a folder where user {os.getuid()} may write."
            ) from exc

    def show(self, ready: bool) -> None:
        """Touch it, or remove it. A full disk is no reason to stop working: the file is then too old, which says so."""
        with suppress(OSError):
            if ready:
                self._path.touch()
            else:
                self._path.unlink(missing_ok=True)


class Door(threading.Thread):
    """Answers HTTP: `GET /ready` (or `/`) with 200 or 503, `GET /live` with 200 while the loop turns.

    The body is a line of JSON: `{"ready": true, "trouble": "", "node": "celery@host"}`.

    Raises:
        ImproperlyConfigured: The port cannot be had.
    """

    def __init__(self, health: Health, host: str, port: int, node: str) -> None:
        super().__init__(name="celeriac-health", daemon=True)
        self._health = health
        self._node = node
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as exc:
            hint = (
                "Give each worker of this machine a port of its own (--health-port)"
                if exc.errno == errno.EADDRINUSE
                else "Check worker_health_host and worker_health_port"
            )
            raise ImproperlyConfigured(f"no health probe on {host}:{port}: {exc.strerror}. {hint}.") from exc
        self.port: int = self._listener.getsockname()[1]
        _doors.add(self)

    def run(self) -> None:
        """Until `close`."""
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.05)  # no descriptors left, perhaps: the worker has other worries
                continue
            with client, suppress(OSError):  # who does not wait for the answer gets none
                client.settimeout(REQUEST_S)
                client.sendall(self._answer(client.recv(REQUEST_BYTES)))

    def close(self) -> None:
        """Answer no more. Idempotent."""
        with suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b" ", 2)
        method, path = (words[0], words[1].partition(b"?")[0]) if len(words) > 2 else (b"", b"")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", {"error": "GET or HEAD"}, method)
        trouble = self._health.trouble()
        facts = {"ready": not trouble, "trouble": trouble, "node": self._node}
        if path in (b"/", b"/ready"):
            return _response("503 Service Unavailable" if trouble else "200 OK", facts, method)
        if path == b"/live":
            stalled = self._health.stalled_s() > STALLED_S
            return _response("503 Service Unavailable" if stalled else "200 OK", facts, method)
        return _response("404 Not Found", {"error": "there are /ready and /live"}, method)


def _response(status: str, facts: dict[str, Any], method: bytes) -> bytes:
    body = (json.dumps(facts) + "\n").encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    )
    return (head + "\r\n").encode() + (b"" if method == b"HEAD" else body)


def _close_in_child() -> None:
    """A child of the pool must not keep the port: the next worker wants it as soon as this one is gone."""
    for door in list(_doors):
        door._listener.close()


_doors: weakref.WeakSet[Door] = weakref.WeakSet()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)
