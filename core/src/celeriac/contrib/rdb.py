"""A debugger for tasks: the prompt of pdb at a socket, since a task has no terminal.

In a task::

    from celeriac.contrib import rdb

    rdb.set_trace()

The task then waits, and the worker's log says where: `telnet 127.0.0.1 6899`, or `nc`. `continue` lets the task go on,
and so do `quit` and hanging up: who leaves a debugger does not mean the task to fail. Time limits hold meanwhile.

Whoever reaches the socket can run code as the worker. It is bound to this machine only, unless `CELERY_RDB_HOST` (or
`CELERIAC_RDB_HOST`) says otherwise; `CELERY_RDB_PORT` is the first port that is tried. With `CELERY_RDBSIG=1` in the
worker's environment, `kill -USR2` stops a process of it at whatever it does.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
from bdb import BdbQuit
from pdb import Pdb
from types import FrameType
from typing import Any, Final, TextIO

from celeriac import signals

__all__ = ["DEFAULT_PORT", "Rdb", "debugger", "set_trace"]

DEFAULT_PORT: Final = 6899
#: So many ports are tried, the first among them.
PORTS: Final = 100

_log = logging.getLogger("celeriac.task")


class Rdb(Pdb):
    """A debugger with a socket of its own, on which one client at a time is served.

    Args:
        host, port: Where; default: the environment, then this machine only and `DEFAULT_PORT`.
        port_search_limit: So many ports are tried, from `port` on.
        port_skew: Added to `port`.
        out: Where it says that it waits; default: the log.
    Raises:
        OSError: There is no free port, or no such address.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        port_search_limit: int = PORTS,
        port_skew: int = 0,
        out: TextIO | None = None,
    ) -> None:
        first = (port or int(_setting("RDB_PORT") or DEFAULT_PORT)) + port_skew
        self._out = out
        self._listener = _listen(host or _setting("RDB_HOST") or "127.0.0.1", first, port_search_limit)
        self.host, self.port = self._listener.getsockname()[:2]
        self.active = True
        self._say(f"waits for you: telnet {self.host} {self.port}")
        try:
            self._client, address = self._listener.accept()
        except BaseException:  # a time limit, as a rule
            self._listener.close()
            raise
        self._listener.close()
        self._handle = self._client.makefile("rw", encoding="utf-8", errors="replace", newline="\n")
        super().__init__(completekey="tab", stdin=self._handle, stdout=self._handle)
        self.prompt = "(rdb) "
        self._say(f"in session with {address[0]}:{address[1]}")

    def set_trace(self, frame: FrameType | None = None, **_: Any) -> None:
        """Stop at the caller's next line, or in this frame."""
        super().set_trace(frame or sys._getframe().f_back)

    def do_continue(self, arg: str) -> bool | None:
        """c(ont(inue)): go on to the next breakpoint; without one, the session ends."""
        done = super().do_continue(arg)
        if not self.breaks:
            self.close()
        return done

    do_c = do_cont = do_continue

    def do_quit(self, arg: str) -> bool | None:
        """q(uit), exit: end the session. The task goes on."""
        self.clear_all_breaks()
        return self.do_continue(arg)

    do_q = do_exit = do_quit

    def do_EOF(self, arg: str) -> bool | None:
        """The client has hung up: as `quit`."""
        return self.do_quit(arg)

    def interaction(self, *args: Any, **kwargs: Any) -> None:
        """The dialogue at one stop."""
        try:
            super().interaction(*args, **kwargs)
        except (OSError, ValueError) as exc:  # ValueError: its file is closed
            if self.active and isinstance(exc, ValueError) and not self._handle.closed:
                raise
            self.do_quit("")
        except BdbQuit:
            self.do_quit("")

    def close(self) -> None:
        """End the session."""
        if not self.active:
            return
        self.active = False
        for part in (self._handle, self._client):
            try:
                part.close()
            except OSError:
                pass  # what it could not say, nobody would have read
        self._say("session over")

    def _say(self, what: str) -> None:
        text = f"Remote debugger in process {os.getpid()}: {what}"
        if self._out is None:
            _log.warning(text)
        else:
            self._out.write(text + "\n")
            self._out.flush()


def debugger() -> Rdb:
    """A debugger: the one whose session goes on in this process, or a new one, which waits for a client."""
    global _current
    if _current is None or not _current.active:
        _current = Rdb()
    return _current


def set_trace(frame: FrameType | None = None) -> None:
    """Stop here, and let whoever connects look around.

    Raises:
        OSError: There is no port to wait at.
    """
    debugger().set_trace(frame or sys._getframe().f_back)


def install_handler() -> None:
    """If the environment says so (`CELERY_RDBSIG`), let SIGUSR2 open a debugger in this process and its pool's."""
    if not _setting("RDBSIG"):
        return

    if threading.current_thread() is not threading.main_thread():
        return  # signals are not ours there

    def stop(signum: int, frame: FrameType | None) -> None:
        # At once, rather than at the next line: what it waits for may never come.
        session = debugger()
        session.reset()
        session.interaction(frame, None)
        if not session.breaks:
            session.close()

    def listen(**_: Any) -> None:
        signal.signal(signal.SIGUSR2, stop)

    listen()
    signals.worker_process_init.connect(listen, weak=False, dispatch_uid="celeriac.contrib.rdb")


def _setting(name: str) -> str | None:
    return os.environ.get(f"CELERIAC_{name}") or os.environ.get(f"CELERY_{name}")


def _listen(host: str, first: int, ports: int) -> socket.socket:
    """A socket at the first free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(first, first + ports):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1)
            return listener
        except OSError as exc:
            listener.close()
            if exc.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise OSError(errno.EADDRINUSE, f"no free port for the debugger on {host} from {first} to {first + ports - 1}")


_current: Rdb | None = None
