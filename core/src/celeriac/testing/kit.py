"""What the conformance suites of brokers, backends and serializers share: making the plugin's object as the kernel
does, waiting as the worker does, and leaving out the clauses of abilities that a plugin does not declare.
"""

from __future__ import annotations

import importlib
import inspect
import select
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from celeriac.spec import Consumer, Delivery, ExchangeSpec, FanoutTransport, QueueSpec, Serializer, Transport

#: What a test waits for comes long before; only a broken plugin needs so much.
PATIENCE_S: Final = 30.0
#: How often a worker under test renews its lease: more often than a real one, for leases are short in tests.
RENEW_S: Final = 0.5

F = TypeVar("F", bound=Callable[..., Any])


def needs(*abilities: str) -> Callable[[F], F]:
    """Marks a test of a suite that only plugins with all of these abilities have to pass."""

    def mark(test: F) -> F:
        test.needed_abilities = frozenset(abilities)  # type: ignore[attr-defined]
        return test

    return mark


def needs_no(ability: str) -> Callable[[F], F]:
    """Marks a test that holds for plugins without this ability."""

    def mark(test: F) -> F:
        test.unneeded_ability = ability  # type: ignore[attr-defined]
        return test

    return mark


class AbilityAware:
    """Base of the suites: a subclass names its abilities, and has only the tests that they call for.

    Attributes:
        plugin: The plugin's module.
        abilities: What its object declares; a test of the suite compares.
        left_out: Names of the tests that do not apply.
    """

    plugin: str
    abilities: frozenset[str]
    left_out: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "abilities"):
            return
        left_out = set()
        for name, test in inspect.getmembers(cls, inspect.isfunction):
            needed: frozenset[str] = getattr(test, "needed_abilities", frozenset())
            if not needed <= cls.abilities or getattr(test, "unneeded_ability", None) in cls.abilities:
                setattr(cls, name, None)  # pytest does not collect it
                left_out.add(name)
        cls.left_out = frozenset(left_out)


def make_by_hook(plugin: str, hook: str, **arguments: Any) -> Any:
    """Call a plugin's hook with as many of the arguments as it takes, as pluggy does."""
    function = getattr(importlib.import_module(plugin), hook)
    taken = inspect.signature(function).parameters
    made = function(**{name: value for name, value in arguments.items() if name in taken})
    assert made is not None, f"{plugin}.{hook} answers None for {arguments}"
    return made


def make_transport(plugin: str, url: str, settings: Mapping[str, Any] | None = None) -> Transport:
    transport: Transport = make_by_hook(plugin, "celeriac_make_transport", url=url, settings=settings or {})
    return transport


class KitSerializers:
    """The `SerializerHost` of a serializer under test: the installed plugins, by their names."""

    def make_serializer(self, name: str) -> Serializer:
        arguments = {"name": name, "settings": {}, "host": self}
        made: Serializer = make_by_hook(f"celeriac_serializer_{name}", "celeriac_make_serializer", **arguments)
        return made


class KitHost:
    """The `Host` of a backend under test."""

    def __init__(self, transport: Transport | None = None) -> None:
        self._transport = transport

    def transport(self) -> Transport:
        assert self._transport is not None, "this suite has no transport; give KitHost one"
        return self._transport

    def reply_queue(self) -> str:
        return "kit-replies"

    def serializer(self, name: str) -> Serializer:
        return KitSerializers().make_serializer(name)


class Bench:
    """A poller for one consumer, and a worker's way of using both: ask, sleep until there is news, renew."""

    patience_s = PATIENCE_S

    def __init__(self) -> None:
        self._renew_at = 0.0
        self._poll = select.poll()
        self._watched: set[int] = set()

    def watch(self, fd: int) -> None:
        self._watched.add(fd)
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.remove(fd)
            self._poll.unregister(fd)

    def nap(self, timeout_s: float) -> None:
        """Until a descriptor has news, or the time is over."""
        self._poll.poll(max(timeout_s, 0.0) * 1000 + 1)

    def sleep(self, consumer: Consumer, timeout_s: float) -> None:
        """Until a descriptor has news, the consumer wants to be asked again, or the time is over."""
        interval_s = consumer.poll_interval_s
        until = time.monotonic() + (timeout_s if interval_s is None else min(timeout_s, interval_s))
        while True:
            now = time.monotonic()
            if now >= self._renew_at:
                consumer.renew()
                self._renew_at = now + RENEW_S
            pause_s = max(min(until, self._renew_at) - now, 0.0)
            if self._poll.poll(pause_s * 1000 + 1) or time.monotonic() >= until:
                return

    def take(self, consumer: Consumer, count: int, within_s: float | None = None) -> list[Delivery]:
        """Receive `count` deliveries; fewer if they do not come in time (`patience_s`, unless given)."""
        deadline = time.monotonic() + (self.patience_s if within_s is None else within_s)
        taken: list[Delivery] = []
        while True:
            taken += consumer.receive(count - len(taken))
            left_s = deadline - time.monotonic()
            if len(taken) >= count or left_s <= 0:
                return taken
            self.sleep(consumer, left_s)

    def take_none(self, consumer: Consumer, during_s: float = 0.25) -> None:
        """Assert that nothing comes for a while."""
        found = self.take(consumer, 1, during_s)
        assert not found, f"received {found} although nothing should come"


class ListenerBench:
    """A listener with a poller of its own, read as its owner reads it."""

    def __init__(self, transport: FanoutTransport, exchange: ExchangeSpec, queue: QueueSpec) -> None:
        self._bench = Bench()
        self.listener = transport.listen(exchange, queue, poller=self._bench)

    def close(self) -> None:
        self.listener.close()

    def take(self, count: int) -> list[bytes]:
        """Receive `count` messages; fewer if they do not come in time."""
        deadline = time.monotonic() + Bench.patience_s
        taken: list[bytes] = []
        while True:
            taken += self.listener.receive(count - len(taken))
            left_s = deadline - time.monotonic()
            if len(taken) >= count or left_s <= 0:
                return taken
            pause_s = self.listener.poll_interval_s
            self._bench.nap(left_s if pause_s is None else min(left_s, pause_s))


def eventually(holds: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Assert that something becomes true in time; returns what it was then."""
    deadline = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{holds} was not true within {within_s} s"
        time.sleep(0.01)
    return found
