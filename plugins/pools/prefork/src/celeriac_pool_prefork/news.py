"""One descriptor that is readable when any child has news, so that the worker watches one and not dozens.

Called by `pool`. Where epoll exists (Linux), the worker's poller gets its descriptor; elsewhere every
descriptor is registered with the poller, and a `poll` object says which are ready.
"""

from __future__ import annotations

import select

from celeriac.spec import Poller


class News:
    """The descriptors of the children, asked all at once."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poll = None if self._epoll else select.poll()
        if self._epoll:
            poller.watch(self._epoll.fileno())

    def add(self, fd: int) -> None:
        if self._epoll:
            self._epoll.register(fd, select.EPOLLIN)
        elif self._poll:
            self._poll.register(fd, select.POLLIN)
            self._poller.watch(fd)

    def remove(self, fd: int) -> None:
        """Stop watching `fd`; before it is closed, for a sibling may hold it too and keep it alive in the kernel."""
        if self._epoll:
            self._epoll.unregister(fd)
        elif self._poll:
            self._poller.unwatch(fd)
            self._poll.unregister(fd)

    def ready(self, timeout_s: float = 0.0) -> list[int]:
        """The descriptors with news, at most `timeout_s` from now."""
        if self._epoll:
            return [fd for fd, _ in self._epoll.poll(timeout_s)]
        if self._poll:
            return [fd for fd, _ in self._poll.poll(timeout_s * 1000)]
        return []

    def close(self) -> None:
        if self._epoll:
            self._poller.unwatch(self._epoll.fileno())
            self._epoll.close()

    def forget(self) -> None:
        """Let go in a forked child, where the poller is not ours to change."""
        if self._epoll:
            self._epoll.close()
