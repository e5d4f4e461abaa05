"""What systemd wants to hear of a service: ready, reloading, stopping, what it does, and that it lives.

The protocol is a datagram of a few lines, documented and stable (`sd_notify(3)`), so no library stands in between: of
those on PyPI one needs systemd's headers to build, others have been left for years. Where nobody listens, nothing is
sent.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

#: Between two words that it lives, if systemd does not want them oftener, and between two looks at what to say.
PULSE_S: Final = 5.0
#: A manager that does not take a datagram for so long does without it.
SEND_S: Final = 1.0

_log = logging.getLogger("celeriac.systemd")


class ServiceManager:
    """The way to systemd, if it is there. May be used from any thread; nothing is ever raised.

    Args:
        environ: With `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` as systemd sets them.

    Attributes:
        listens: Somebody does.
        watchdog_s: Without a sign of life for so long the service is killed; None: it wants none.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte with which abstract names begin; anything else is no socket of this machine.
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else ""
        self.listens = bool(self._address)
        self.watchdog_s = _watchdog_s(environ) if self.listens else None
        self._status = ""

    @property
    def pulse_s(self) -> float:
        """How often to give a sign of life: at least twice as often as is asked for."""
        return PULSE_S if self.watchdog_s is None else min(PULSE_S, self.watchdog_s / 3)

    def ready(self, status: str) -> None:
        """It serves now, for the first time or again."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """It begins anew, and will be ready again."""
        self._status = status
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """It is about to end."""
        self._status = status
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """What it does, for `systemctl status`; sent if it is news."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def starting(self, status: str, more_s: float) -> None:
        """It is not ready yet, and wants so many seconds more."""
        self._status = status
        self._send(f"EXTEND_TIMEOUT_USEC={int(more_s * 1e6)}", f"STATUS={status}")

    def live(self) -> None:
        """A sign of life, if one is asked for."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self.listens:
            return
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_S)
                sender.sendto(text.encode("utf-8", "replace"), self._address)
        except OSError as exc:  # a service that works need not end for it
            _log.debug("systemd does not hear %r: %s", lines[0], exc)


class Pulse(threading.Thread):
    """Tells the manager how the service is, and that it lives as long as it does.

    Args:
        stalled_s: For how long the service has not turned.
        describe: What it does now.
    """

    def __init__(self, manager: ServiceManager, stalled_s: Callable[[], float], describe: Callable[[], str]) -> None:
        super().__init__(name="celeriac-systemd", daemon=True)
        self._manager = manager
        self._stalled_s = stalled_s
        self._describe = describe
        self._end = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        manager = self._manager
        while not self._end.wait(manager.pulse_s):
            if manager.watchdog_s is not None and self._stalled_s() <= manager.watchdog_s:
                manager.live()
            manager.status(self._describe())

    def stop(self) -> None:
        """Tell no more."""
        self._end.set()
        if self.ident is not None:
            self.join(2 * SEND_S)


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """As systemd wants it of this very process."""
    wanted: dict[str, Any] = {}
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        text = environ.get(name, "")
        if text and not text.isdigit():
            return None
        wanted[name] = int(text or 0)
    if not wanted["WATCHDOG_USEC"] or wanted["WATCHDOG_PID"] not in (0, os.getpid()):
        return None
    return float(wanted["WATCHDOG_USEC"]) / 1e6
