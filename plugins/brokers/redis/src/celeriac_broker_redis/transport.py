"""The transport: sends, declares, looks; makes consumers. Called by core, from any thread."""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from celeriac.exceptions import (
    ImproperlyConfigured,
    PublishRejected,
    PublishUncertain,
    TransportLost,
    TransportUnreachable,
)
from celeriac.spec.data import DeadBox, DeadLetter, ExchangeSpec, Head, Malformed, Payload, QueueSpec
from celeriac.spec.diagnosis import Finding
from celeriac.spec.envelope import pack as pack_envelope
from celeriac.spec.envelope import read_head, unpack
from celeriac.spec.servers import Servers
from celeriac.spec.transport import Poller
from celeriac_broker_redis import deadletters
from celeriac_broker_redis.consumer import RedisConsumer
from celeriac_broker_redis.listener import RedisListener, listen_at_list, listen_to_channels
from celeriac_broker_redis.options import Configuration, configure
from celeriac_broker_redis.producer import DELAY, Command, Producer, Tables, binding_rows, topic_pattern
from celeriac_broker_redis.scripts import DESPITE_ALL, PURGE, SEND, SEND_ONCE, Script
from celeriac_broker_redis.wires import Wires
from celeriac_support_redis import health
from celeriac_support_redis.state import RedisState
from celeriac_support_redis.wire import Address, ReplyError, Wire, WireLost, WireUnreachable, pack

SCHEMES: Final = ("redis", "rediss", "redis+socket", "unix", "sentinel", "redis+cluster", "rediss+cluster")
ABILITIES: Final = frozenset(
    {
        "attempts",
        "browse_dead",
        "dead_letter",
        "depth",
        "diagnose",
        "durable",
        "fanout",
        "lease",
        "once",
        "priority",
        "purge",
        "shared",
        "spares",
        "state",
    }
)
#: The version of what `joined` is made of between this broker and a backend: Lua and its words (see `scripts.SETTLE`).
JOINT: Final = "redis-lua-1"
#: What is broadcast to a list disappears by itself when nobody has read it for so long.
TRANSIENT_MS: Final = 60_000


def make_transport(url: str, settings: Mapping[str, Any]) -> RedisTransport | None:
    """The transport for a URL of ours; None for another's."""
    return RedisTransport(configure(url, settings)) if url.partition(":")[0] in SCHEMES else None


class RedisTransport:
    """Redis as Celery uses it. Connects when first needed; connections for sending are shared among threads."""

    def __init__(self, configuration: Configuration) -> None:
        self._conf = configuration
        self._keys = configuration.keys
        self._producer = Producer(configuration.keys, configuration.options, configuration.address.db)
        self._pid = os.getpid()
        self._servers = Servers(configuration.urls, configuration.settings)
        self._wires = Wires(configuration, self._servers)
        #: Those that live, and those that could not say goodbye.
        self._consumers: list[RedisConsumer] = []
        self._serial = itertools.count()
        self._listeners: weakref.WeakSet[RedisListener] = weakref.WeakSet()
        self.abilities = ABILITIES | {"delay"} if configuration.options.delay else ABILITIES
        #: None where there are several servers: the one in use need not be the one that has the results.
        self.joint: str | None = None if len(configuration.addresses) > 1 else f"{JOINT}:{configuration.address.store}"
        #: So that a node of a cluster that does not have the slot says so before a script begins.
        self._slot_keys = (configuration.address.slot_key,) if configuration.address.slot_key else ()

    # sending

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        """See `Transport.send`. What goes to one list is one command; several lists are one script."""
        deadline = time.monotonic() + timeout_s
        commands = self._commands(payloads, timeout_s)
        if not commands:
            return
        if len(commands) == 1 and commands[0][0] != DELAY:
            reply = self._store(commands[0], len(payloads), deadline)
        else:
            reply = self._store_by(SEND, self._slot_keys, commands, len(payloads), deadline)
        self._check_taken(reply, payloads)

    def send_once(self, payloads: Sequence[Payload], *, key: str, keep_s: float, timeout_s: float = 10.0) -> bool:
        """See `OnceTransport.send_once`."""
        deadline = time.monotonic() + timeout_s
        name = f"{self._keys.prefix}celeriac.once.{key}"
        note: Command = ("SET", name, b"1", "PX", max(1, int(keep_s * 1000)))
        commands = [*self._commands(payloads, timeout_s), note]
        reply = self._store_by(SEND_ONCE, (name,), commands, len(payloads), deadline)
        self._check_taken(reply, payloads)
        return bool(reply)

    def _commands(self, payloads: Sequence[Payload], timeout_s: float) -> Sequence[Command]:
        exchanges = self._producer.exchanges(payloads)
        tables = self._tables(exchanges, timeout_s) if exchanges else None
        return self._producer.commands(payloads, tables)

    def _store_by(
        self, script: Script, keys: Sequence[str], commands: Sequence[Command], count: int, deadline: float
    ) -> Any:
        words = [word for command in commands for word in (len(command), *command)]
        reply = self._store(("EVALSHA", script.sha, len(keys), *keys, *words), count, deadline)
        if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
            reply = self._store(("EVAL", script.text, len(keys), *keys, *words), count, deadline)
        return reply

    def _check_taken(self, reply: Any, payloads: Sequence[Payload]) -> None:
        if isinstance(reply, ReplyError):
            raise PublishRejected(f"{self._conf.address} refused {len(payloads)} message(s): {reply}")

    def _store(self, command: Command, count: int, deadline: float) -> Any:
        """Perform it once; a connection that broke on the way leaves open whether it was.

        Raises:
            TransportLost: This server takes no messages, or not any more; nothing was stored.
        """
        for last in (False, True):
            wire = self._take(deadline - time.monotonic())
            try:
                wire.write(pack(command), deadline - time.monotonic())
                reply = wire.read(1, deadline - time.monotonic())[0]
            except BaseException as exc:  # whatever it was, half a command may be out
                self._wires.discard(wire)
                if not isinstance(exc, WireLost):
                    raise
                raise PublishUncertain(
                    f"{exc} while {count} message(s) were on their way; they may or may not have been stored."
                ) from exc
            if not (isinstance(reply, ReplyError) and reply.is_elsewhere):
                self._wires.put_back(wire)
                return reply
            self._wires.discard(wire)
            if last:
                raise TransportLost(f"{wire.address} answered: {reply}") from reply
        raise AssertionError("unreachable")

    def _tables(self, exchanges: Sequence[str], timeout_s: float) -> Tables:
        sep = self._keys.sep
        members = self._ask([("SMEMBERS", self._keys.binding(exchange)) for exchange in exchanges], timeout_s)
        return {exchange: binding_rows(found, sep) for exchange, found in zip(exchanges, members, strict=True)}

    # consuming

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Poller, window: int) -> RedisConsumer:
        """See `Transport.consumer`."""
        self.declare(queues)
        serial = next(self._serial)

        def make(address: Address) -> RedisConsumer:
            conf = replace(self._conf, address=address)
            return RedisConsumer(
                conf, self._producer, queues, owner=owner, poller=poller, serial=serial, declare=self.declare
            )

        with self._translate():
            consumer = self._wires.connecting(make)
            self._consumers = [old for old in self._consumers if not old.clean]
            gone = [old for old in self._consumers if old.closed]
            consumer.inherit(gone)  # at once, for it may be the first worker after an outage of all
            self._consumers = [old for old in self._consumers if not old.closed]
        self._consumers.append(consumer)
        return consumer

    # broadcasts

    def broadcast(self, exchange: ExchangeSpec, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        """See `FanoutTransport.broadcast`. Direct exchanges lead to lists, as kombu's reply queues are; those of other
        types are channels, to which kombu publishes what it broadcasts."""
        rows: Tables = {}
        if exchange.type == "direct":
            rows = self._tables([exchange.name], timeout_s)
        commands: list[Command] = []
        for payload in payloads:
            raw = pack_envelope(payload, self._producer.next_tag())
            key = payload.route.routing_key
            if exchange.type != "direct":
                commands.append(("PUBLISH", self._producer.channel(exchange.name, key), raw))
                continue
            for queue in {queue for bound, _, queue in rows[exchange.name] if bound == key}:
                name = self._keys.list_key(queue)
                commands += [("LPUSH", name, raw), ("PEXPIRE", name, TRANSIENT_MS)]
        if commands:
            self._ask(commands, timeout_s)

    def listen(self, exchange: ExchangeSpec, queue: QueueSpec, *, poller: Poller) -> RedisListener:
        """See `FanoutTransport.listen`."""
        with self._translate():
            wire = self._dial(name="celeriac-listener")
            try:
                if exchange.type == "direct":
                    sep = self._keys.sep
                    binding = self._keys.binding(exchange.name), sep.join((queue.routing_key, "", queue.name))
                    self._ask([("SADD", *binding)])
                    key = self._keys.list_key(queue.name)
                    cleanup: list[Command] = [("SREM", *binding), ("DEL", key)]
                    listener = listen_at_list(wire, poller, key, lambda: self._ask(cleanup, 2.0))
                else:
                    pattern = self._producer.pattern(exchange.name, queue.routing_key.replace("#", "*"))
                    listener = listen_to_channels(wire, poller, pattern)
            except BaseException:
                wire.close()
                raise
        self._listeners.add(listener)
        return listener

    # queues

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Write the bindings as kombu does; a queue itself comes to be with its first message."""
        commands: list[Command] = []
        for queue in queues:
            try:
                f"{queue.name}{queue.exchange}{queue.routing_key}".encode()
            except UnicodeEncodeError as exc:  # half a surrogate pair, which JSON can carry
                raise ImproperlyConfigured(f"the queue {queue.name!r} cannot be declared: {exc}") from exc
            if not queue.exchange:
                continue
            pattern = topic_pattern(queue.routing_key) if queue.exchange_type == "topic" else ""
            member = self._keys.sep.join((queue.routing_key, pattern, queue.name))
            commands.append(("SADD", self._keys.binding(queue.exchange), member))
            if "x-expires" not in queue.arguments:
                commands.append(("SADD", self._keys.permanent_binding(queue.exchange), member))
        if commands:
            self._ask([("EVAL", DESPITE_ALL.text, 1, self._keys.odd, *command) for command in commands])

    def delete(self, queue: str) -> None:
        """See `Transport.delete`. Bindings to it are removed too, wherever they are."""
        self._ask([("DEL", *self._keys.lists(queue), self._keys.delayed(queue), self._keys.serves(queue))])
        ending = (self._keys.sep + queue).encode()
        for key in self._scan(*self._keys.bindings()):
            members = [member for member in self._ask([("SMEMBERS", key)])[0] if member.endswith(ending)]
            if members:
                self._ask([("SREM", key, *members)])

    def _scan(self, *patterns: str) -> list[bytes]:
        found: list[bytes] = []
        for pattern in patterns:
            cursor: bytes = b"0"
            while True:
                cursor, keys = self._ask([("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)])[0]
                found += keys
                if cursor == b"0":
                    break
        return found

    def purge(self, queue: str) -> int:
        """See `Transport.purge`."""
        return int(self._run(PURGE, [self._keys.delayed(queue), *self._keys.lists(queue)], ()))

    def depth(self, queue: str) -> int:
        """See `Transport.depth`."""
        return sum(self._ask([("LLEN", key) for key in self._keys.lists(queue)]))

    def state(self) -> RedisState:
        """See `KeepsState`."""
        address = self._conf.address
        return RedisState(
            self._ask_once, lambda reply: TransportLost(f"{address} answered: {reply}"), self._keys.prefix
        )

    # what was set aside

    def dead_boxes(self, queues: Sequence[str]) -> list[DeadBox]:
        """See `DeadLetters.dead_boxes`."""
        return deadletters.dead_boxes(self._keys, self._ask, self._run, queues)

    def browse_dead(self, queue: str, *, after: str = "", limit: int = 100) -> list[DeadLetter]:
        """See `DeadLetters.browse_dead`."""
        return deadletters.browse_dead(self._keys, self._ask, queue, after, limit)

    def requeue_dead(self, queue: str, ids: Sequence[str]) -> int:
        """See `DeadLetters.requeue_dead`."""
        return deadletters.requeue_dead(self._keys, self._ask, self._run, queue, ids)

    def drop_dead(self, queue: str, ids: Sequence[str]) -> int:
        """See `DeadLetters.drop_dead`."""
        return deadletters.drop_dead(self._keys, self._run, queue, ids)

    def _run(self, script: Script, keys: Sequence[str], words: Sequence[Any]) -> Any:
        """A script that may be performed twice; its text goes along, for it is rarely called."""
        return self._ask([("EVAL", script.text, len(keys), *keys, *words)])[0]

    # messages

    def read_head(self, raw: bytes) -> Head | Malformed:
        """See `Transport.read_head`."""
        return read_head(raw)

    def unpack(self, raw: bytes) -> Payload:
        """See `Transport.unpack`."""
        return unpack(raw)

    # life

    def ping(self, timeout_s: float) -> str:
        """See `Transport.ping`."""
        wire = self._dial(timeout_s)
        try:
            return health.ask_name(wire, timeout_s)
        except (WireLost, ReplyError) as exc:
            raise TransportUnreachable(f"{exc}.", url=self._conf.url, hint="Is it a Redis server?") from exc
        finally:
            wire.close()

    def diagnose(self, *, longest_task_s: float | None, timeout_s: float) -> list[Finding]:
        """See `Diagnoses.diagnose`. How long tasks run does not matter: leases are renewed."""
        with self._translate():
            wire = self._dial(timeout_s)
            try:
                return health.examine(wire, "broker", timeout_s)
            finally:
                wire.close()

    def after_fork(self) -> None:
        """See `Transport.after_fork`."""
        self._pid = os.getpid()
        for wire in self._wires.idle:
            wire.close()
        self._wires = Wires(self._conf, self._servers)
        for consumer in self._consumers:
            consumer.abandon()
        self._consumers = []
        for listener in list(self._listeners):
            listener.abandon()
        self._listeners.clear()
        self._producer.renew()

    def close(self) -> None:
        """See `Transport.close`. Consumers have their own `close`."""
        self._wires.close()

    # connections for sending and asking

    def _take(self, timeout_s: float) -> Wire:
        """See `Wires.take`."""
        if os.getpid() != self._pid:
            self.after_fork()
        return self._wires.take(timeout_s)

    def _dial(self, timeout_s: float | None = None, *, name: str = "") -> Wire:
        """A connection of its own for the caller."""
        timeout_s = self._conf.address.connect_timeout_s if timeout_s is None else timeout_s
        return self._wires.connect(time.monotonic() + timeout_s, name=name)

    def _ask(self, commands: Sequence[Command], timeout_s: float = 10.0) -> list[Any]:
        """Commands that may be performed twice, and their replies."""
        wire = self._take(timeout_s)
        try:
            with self._translate():
                replies = wire.pipeline(commands, timeout_s=timeout_s)
        except BaseException:
            self._wires.discard(wire)
            raise
        self._wires.put_back(wire)
        return replies

    def _ask_once(self, command: Command) -> Any:
        """One command that may not be performed twice, and its reply; an error of the server's is one too."""
        wire = self._take(self._conf.address.timeout_s)
        try:
            with self._translate():
                wire.write(pack(command))
                reply = wire.read(1)[0]
        except BaseException:
            self._wires.discard(wire)
            raise
        if isinstance(reply, ReplyError) and reply.is_elsewhere:
            self._wires.discard(wire)
        else:
            self._wires.put_back(wire)
        return reply

    @contextmanager
    def _translate(self) -> Iterator[None]:
        """Our client's errors as those of the contract."""
        try:
            yield
        except WireUnreachable as exc:
            raise TransportUnreachable(str(exc), url=self._conf.url, hint=exc.hint) from exc
        except WireLost as exc:
            raise TransportLost(f"{exc}.") from exc
        except ReplyError as exc:
            raise TransportLost(f"{self._conf.address} answered: {exc}") from exc
