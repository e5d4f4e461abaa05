"""The transport's connections for sending and asking: opened when first needed, kept, shared among threads.

There are at most `broker_pool_limit`; who wants one more waits. Without a limit each is closed after its use. Where
`broker_url` has several URLs the server in use is connected to: see `celeriac.spec.servers`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from celeriac.exceptions import ConnectionsBusy, TransportUnreachable
from celeriac.spec.servers import Servers
from celeriac_broker_redis.options import Configuration
from celeriac_support_redis.wire import Address, Wire, WireLost, WireUnreachable, connect, role_of

T = TypeVar("T")


class Wires:
    """See the module. Per message `take` and `put_back` pop and append; there is a lock only where one has to wait,
    or to connect.

    Attributes:
        idle: Those that nobody uses.
    """

    def __init__(self, conf: Configuration, servers: Servers) -> None:
        self._conf = conf
        self._servers = servers
        self._limit = conf.pool_limit
        self._is_one_of_several = len(conf.addresses) > 1
        self.idle: deque[Wire] = deque()
        self._turn = threading.Condition(threading.Lock())
        self._count = 0  # of those that are open, idle ones too
        self._waiters = 0

    def take(self, timeout_s: float) -> Wire:
        """A connection that nobody uses and that has not been seen dead. It must be put back, or discarded.

        Raises:
            TransportUnreachable: There is none to be had.
            ConnectionsBusy: All were in use for too long.
        """
        while True:
            try:
                wire = self.idle.pop()
            except IndexError:
                break  # and out of here: an error of what follows is to be shown without this one
            if not wire.is_stale():
                return wire
            self.discard(wire)
        return self._take_new(time.monotonic() + timeout_s)

    def put_back(self, wire: Wire) -> None:
        """It may be used again."""
        if not self._limit or (self._is_one_of_several and wire.address is not self._address()):
            self.discard(wire)
            return
        self.idle.append(wire)
        if self._waiters:
            with self._turn:
                self._turn.notify()

    def discard(self, wire: Wire) -> None:
        """It may not."""
        wire.close()
        self._leave()

    def close(self) -> None:
        """Let go of those that are idle."""
        while True:
            try:
                wire = self.idle.pop()
            except IndexError:
                return
            self.discard(wire)

    def _take_new(self, deadline: float) -> Wire:
        """A new one, or one that comes back before there may be a new one."""
        with self._turn:
            wire = self._wait(deadline) if self._limit and self._count >= self._limit else None
            if wire is not None:
                return wire
            self._count += 1
        try:
            return self.connect(deadline)
        except BaseException:
            self._leave()
            raise

    def _wait(self, deadline: float) -> Wire | None:
        """Until one comes back; None once there may be a new one."""
        began, patience_s = time.monotonic(), self._conf.pool_patience_s
        ends = deadline if patience_s is None else min(deadline, began + patience_s)
        self._waiters += 1  # first, so that whoever puts one back either finds it counted, or is found
        try:
            while self._count >= self._limit:
                try:
                    wire = self.idle.pop()
                except IndexError:
                    if not self._turn.wait(max(0.0, ends - time.monotonic())) and time.monotonic() >= ends:
                        raise ConnectionsBusy(self._limit, round(max(0.0, ends - began), 3)) from None
                    continue
                if not wire.is_stale():
                    return wire
                wire.close()
                self._count -= 1
            return None
        finally:
            self._waiters -= 1

    def _leave(self) -> None:
        with self._turn:
            self._count -= 1
            self._turn.notify()

    # which server

    def _address(self) -> Address:
        return self._conf.addresses[self._servers.current]

    def connect(self, deadline: float, *, name: str = "") -> Wire:
        """A connection to the server in use, or to the next one; not counted among ours.

        Raises:
            TransportUnreachable: None can be reached.
        """
        before = self._servers.current
        wire = self.connecting(lambda address: self._connect_to(address, deadline, name))
        if self._servers.current != before:
            self.close()  # who sends is where who receives is
        return wire

    def connecting(self, act: Callable[[Address], T]) -> T:
        """Have `act` done for the server in use, or for the next one if it cannot be reached or is a replica."""

        def at(place: int) -> T:
            try:
                if self._is_one_of_several:
                    self._look_at(self._conf.addresses[place])
                return act(self._conf.addresses[place])
            except WireUnreachable as exc:
                raise TransportUnreachable(str(exc), url=self._servers.urls[place], hint=exc.hint) from exc

        return self._servers.connect(at)

    def _connect_to(self, address: Address, deadline: float, name: str) -> Wire:
        timeout_s = min(deadline - time.monotonic(), address.connect_timeout_s)
        return connect(address, timeout_s=max(0.05, timeout_s), name=name)

    def _look_at(self, address: Address) -> None:
        """Of several servers one may be a replica of another, which takes no messages.

        Raises:
            WireUnreachable: It is, or it cannot be reached.
        """
        wire = connect(address)
        try:
            role = role_of(wire, address.connect_timeout_s)
        except WireLost as exc:
            raise WireUnreachable(f"{exc}.", "Is it up?") from exc
        finally:
            wire.close()
        if role != "master":
            raise WireUnreachable(f"{address} takes no messages: it is a {role}.", "Is its master up?")
