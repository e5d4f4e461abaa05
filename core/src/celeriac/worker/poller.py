"""Where the worker sleeps: on all descriptors of its consumer and its pool at once, and on signals."""

from __future__ import annotations

import os
import selectors
import threading


class Sleeper:
    """The worker's `Poller`. Used by one thread; `wake` may be called from any, from signal handlers, and also after
    `close`."""

    def __init__(self) -> None:
        # So that nobody writes to a descriptor which is closed meanwhile and perhaps somebody else's by now. A signal
        # handler may come in the midst of the same, therefore one that its own thread may take again.
        self._open = threading.RLock()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._selector.register(self._read_fd, selectors.EVENT_READ)

    @property
    def wakeup_fd(self) -> int:
        """For `signal.set_wakeup_fd`: a byte written here ends a sleep."""
        return self._write_fd

    def watch(self, fd: int) -> None:
        """See `Poller.watch`."""
        try:
            self._selector.register(fd, selectors.EVENT_READ)
        except KeyError:
            # Watched already, or a number used again after its descriptor was closed unsaid.
            self._selector.unregister(fd)
            self._selector.register(fd, selectors.EVENT_READ)

    def unwatch(self, fd: int) -> None:
        """See `Poller.unwatch`."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            return  # never watched, as the contract allows

    def sleep(self, timeout_s: float | None) -> None:
        """Until a descriptor has news, `wake` is called, or the time is over."""
        for key, _ in self._selector.select(timeout_s):
            if key.fd == self._read_fd:
                self._drain()

    def wake(self) -> None:
        """End the sleep, or the next one."""
        with self._open:
            if self._closed:
                return
            try:
                os.write(self._write_fd, b"\0")
            except BlockingIOError:
                return  # full: it will wake anyway

    def close(self) -> None:
        """Let go of the descriptors."""
        with self._open:
            if self._closed:
                return
            self._closed = True
            self._selector.close()
            for fd in (self._read_fd, self._write_fd):
                os.close(fd)

    def _drain(self) -> None:
        try:
            while len(os.read(self._read_fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            return  # empty
