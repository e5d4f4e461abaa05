"""The consumer: claims, waits, settles, over one connection for work and one for each list it waits on.

Whatever leaves a list is recorded in the same step under a tag of this consumer (`scripts.CLAIM`), or, for a
message that came while it waited, in its inbox, from which the next claim takes it up. Claims travel ahead: `receive`
writes one and returns; when the answer is there, the worker is woken and calls again. A settlement is written at
once, so it is on its way before the claim that follows it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import Struct

from celeriac.exceptions import TransportLost, TransportUnreachable
from celeriac.spec.data import Delivery, Payload, QueueSpec, Settlement
from celeriac.spec.envelope import read_head
from celeriac.spec.transport import Poller
from celeriac_broker_redis.attempts import MARK, attempt_of, mark_lost
from celeriac_broker_redis.leases import Leases
from celeriac_broker_redis.options import Configuration
from celeriac_broker_redis.producer import Producer
from celeriac_broker_redis.scripts import CLAIM, RETURN, Script, settle_script
from celeriac_broker_redis.wire import ReplyError, Wire, WireLost, WireUnreachable, connect, pack

MAX_CLAIM: Final = 1000
MAX_CLAIM_BYTES: Final = 8 * 1024 * 1024
MAX_ERROR_BYTES: Final = 8 * 1024
#: How long an idle consumer lets a list wait on which it does not block (a higher priority step, a delayed message): at
#: first, and at most.
IDLE_S: Final = (0.1, 1.0)
CLOSE_S: Final = 5.0


class Source:
    """One list: of which queue, and how an entry of `unacked` ends for a message from it."""

    __slots__ = ("key", "queue", "tail")

    def __init__(self, queue: str, key: str) -> None:
        self.queue = queue
        self.key = key
        self.tail = f', "", {json.dumps(queue)}]'


class Order(Struct, frozen=True):
    """The sources in the order in which one claim asks them, and that claim's words."""

    sources: list[Source]
    keys: list[str]
    tails: list[str]
    delayed_keys: list[str]
    delayed_words: list[str]


class Adoption(Struct, frozen=True):
    """A message that came while waiting: handed out already, to be taken up from its inbox under this number."""

    number: int
    source: Source
    inbox: str


class Waiting:
    """A connection that blocks on one list."""

    __slots__ = ("armed_until", "inbox", "source", "wire")

    def __init__(self, wire: Wire, source: Source, inbox: str) -> None:
        self.wire = wire
        self.source = source
        self.inbox = inbox
        self.armed_until: float | None = None


class Claim(Struct, frozen=True):
    """A claim on its way."""

    number: int
    limit: int
    order: Order
    adoptions: list[Adoption]


class Settled(Struct, frozen=True):
    """A settlement on its way: how many replies it gets, and its bytes."""

    replies: int
    data: bytes


class RedisConsumer:
    """See `celeriac.spec.Consumer`. Made by the transport, with its queues declared."""

    def __init__(
        self, conf: Configuration, producer: Producer, queues: Sequence[QueueSpec], *, owner: str, poller: Poller
    ) -> None:
        self._conf = conf
        self._keys = conf.keys
        self._producer = producer
        self._owner = owner
        self._poller = poller
        self._queues = list(dict.fromkeys(queue.name for queue in queues))
        self._orders: list[Order] = []
        self._turn = 0
        self.token = secrets.token_hex(6)
        self._tag = (self.token + ":%d").encode()
        self._number = 0
        #: number → (source, raw) of what was handed out and is not settled
        self._held: dict[int, tuple[Source, bytes]] = {}
        self._odd: set[int] = set()
        self._adopting: dict[int, Adoption] = {}
        self._to_adopt: list[Adoption] = []
        self._ready: list[Delivery] = []
        self._pending: deque[Claim | Settled] = deque()
        self._claiming = False
        self._waits: list[Waiting] = []
        self._dry = False
        self._wake_at = 0.0
        self._idle_s = IDLE_S[0]
        self._next_due: float | None = None
        self._stopping = self._closed = False
        self._settle_scripts: dict[str, Script] = {}
        self._leases = Leases(conf, self.token, owner)
        self._wire = self._open()

    # the contract

    @property
    def poll_interval_s(self) -> float | None:
        """Descriptors wake the worker; it also asks now and then, and so finds out when the server fell silent."""
        return 5.0 if self._waits else IDLE_S[1]

    def receive(self, limit: int) -> list[Delivery]:
        """See `Consumer.receive`."""
        try:
            self._hear()
            if limit > 0 or self._to_adopt:
                self._ask(limit)
        except WireLost as exc:
            raise self._lost(exc) from exc
        ready = self._ready
        if not ready:
            return []
        self._ready = []
        if len(ready) > limit:
            self._give_back([delivery.tag for delivery in ready[limit:]])
            del ready[limit:]
        return ready

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        """See `Consumer.settle`."""
        acks: list[bytes] = []
        odd = False
        others: list[Any] = []
        held = self._held
        tag = self._tag
        for settlement in batch:
            number = settlement.tag
            if settlement.verb == "ack":
                if held.pop(number, None) is not None:
                    acks.append(tag % number)
                    if number in self._odd:
                        self._odd.discard(number)
                        odd = True
            elif number in held:
                others += self._ending(settlement)
        if publish or joined is not None:
            self._post(1, self._settling(acks, others, batch, publish, joined))
        elif acks:
            self._post(*self._acknowledging(acks, odd))
        if others:
            self._post(
                1, self._script(RETURN, [self._keys.index, self._keys.unacked, self._keys.odd], ["", "", "", *others])
            )

    def flush(self, timeout_s: float) -> None:
        """See `Consumer.flush`."""
        deadline = time.monotonic() + timeout_s
        try:
            while any(type(entry) is Settled for entry in self._pending):
                if not self._wire.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise WireLost(f"{self._conf.address} did not answer within {timeout_s} s")
                self._hear()
        except WireLost as exc:
            raise self._lost(exc) from exc

    def renew(self) -> list[Any]:
        """See `Consumer.renew`. Also looks after consumers that are gone. Called from a thread of its own."""
        try:
            held = [number for number in list(self._held) if number not in self._adopting]
            lost = self._leases.renew([self._tag % number for number in held])
            missing = [held[position] for position in lost if held[position] in self._held]
            self._leases.sweep()
        except (WireLost, ReplyError) as exc:
            raise self._lost(exc) from exc
        return missing

    def resize(self, window: int) -> None:
        """Nothing to do: each claim says how many."""

    def subscribe(self, queue: QueueSpec) -> None:
        """See `Consumer.subscribe`. The transport's `declare` writes the binding."""
        if queue.name not in self._queues:
            self._queues.append(queue.name)
            self._reorder()

    def unsubscribe(self, queue: str) -> None:
        """See `Consumer.unsubscribe`."""
        if queue not in self._queues:
            return
        self._queues.remove(queue)
        self._reorder()
        try:
            self._quiet([wait for wait in self._waits if wait.source.queue == queue])
        except WireLost as exc:
            raise self._lost(exc) from exc

    def stop(self) -> None:
        """See `Consumer.stop`."""
        if self._stopping:
            return
        self._stopping = True
        try:
            self._quiet(self._waits)
            deadline = time.monotonic() + self._conf.address.timeout_s
            while self._claiming:
                self._wire.wait(deadline - time.monotonic())
                self._hear()
            self._ask(0)
            ready, self._ready = self._ready, []
            self._give_back([delivery.tag for delivery in ready])
        except WireLost as exc:
            raise self._lost(exc) from exc

    def close(self) -> None:
        """See `Consumer.close`. What cannot be given back now comes back when the lease ends."""
        if self._closed:
            return
        self._closed = True
        try:
            self.stop()
            self._give_back(list(self._held), lost=True)
            self.flush(CLOSE_S)
            self._leases.end()
        except (TransportLost, WireLost, ReplyError):
            pass  # the server cannot be told; others find the messages when the lease ends
        self._drop()

    def abandon(self) -> None:
        """In a forked child: forget the descriptors without a word to server or poller."""
        self._closed = True
        for wire in (self._wire, *(wait.wire for wait in self._waits)):
            wire.close()
        self._leases.abandon()

    # connections

    def _dial(self) -> Wire:
        return connect(self._conf.address, name=f"celeriac:{self.token}")

    def _open(self) -> Wire:
        try:
            wire = self._dial()
            self._leases.open()
        except WireUnreachable as exc:
            raise TransportUnreachable(str(exc), url=self._conf.url, hint=exc.hint) from exc
        except (WireLost, ReplyError) as exc:
            raise TransportLost(f"{exc}.") from exc
        self._poller.watch(wire.fileno())
        self._reorder()
        return wire

    def _drop(self) -> None:
        for wire in (self._wire, *(wait.wire for wait in self._waits)):
            if wire.fileno() >= 0:
                self._poller.unwatch(wire.fileno())
            wire.close()
        self._waits.clear()
        self._leases.abandon()

    def _lost(self, exc: Exception) -> TransportLost:
        return TransportLost(f"{exc}.")

    def _script(self, script: Script, keys: Sequence[Any], words: Sequence[Any]) -> bytes:
        return bytes(pack(("EVALSHA", script.sha, len(keys), *keys, *words)))

    def _post(self, replies: int, data: bytes) -> None:
        """Write a settlement."""
        self._pending.append(Settled(replies, data))
        try:
            self._wire.write(data)
        except WireLost as exc:
            raise self._lost(exc) from exc

    # hearing

    def _hear(self) -> None:
        """Read whatever has arrived, without waiting."""
        if self._pending:
            replies = self._wire.replies()
            if replies:
                self._answered(replies)
        for wait in self._waits:
            if wait.armed_until is not None:
                for reply in wait.wire.replies():
                    self._woken(wait, reply)

    def _answered(self, replies: list[Any]) -> None:
        at = 0
        while at < len(replies):
            entry = self._pending[0]
            if type(entry) is Claim:
                self._pending.popleft()
                self._claimed(entry, replies[at])
                at += 1
                continue
            assert type(entry) is Settled
            got = replies[at : at + entry.replies]
            at += len(got)
            for reply in got:
                if isinstance(reply, ReplyError):
                    raise WireLost(f"{self._conf.address} answered: {reply}") from reply
            if len(got) == entry.replies:
                self._pending.popleft()
            else:
                self._pending[0] = Settled(entry.replies - len(got), entry.data)

    def _claimed(self, claim: Claim, reply: Any) -> None:
        self._claiming = False
        if isinstance(reply, ReplyError):
            raise WireLost(f"{self._conf.address} answered: {reply}") from reply
        for adoption in claim.adoptions:
            self._adopting.pop(adoption.number, None)
        now = time.monotonic()
        self._next_due = now + reply[0] / 1000 if reply[0] >= 0 else None
        number, size = claim.number, 0
        for group in reply[2:]:
            source = claim.order.sources[group[0] - 1]
            size += self._deliver(source, group[1:], number)
            number += len(group) - 1
        got = number - claim.number
        self._dry = got < claim.limit and size < MAX_CLAIM_BYTES
        if got or claim.adoptions:
            self._idle_s = IDLE_S[0]

    def _deliver(self, source: Source, raws: list[bytes], number: int) -> int:
        """Make deliveries of messages with consecutive numbers; returns their bytes."""
        held, queue, append = self._held, source.queue, self._ready.append
        size = 0
        for raw in raws:
            held[number] = (source, raw)
            delivery = Delivery(number, raw, read_head(raw), queue)
            if MARK in raw:
                delivery.attempt, delivery.redelivered = attempt_of(raw)
            if raw[:1] != b"{" or raw[-1:] != b"}":
                self._odd.add(number)
            append(delivery)
            size += len(raw)
            number += 1
        return size

    def _woken(self, wait: Waiting, reply: Any) -> None:
        """A wait ended: with a message, or without because its time was over or it was called off."""
        wait.armed_until = None
        if isinstance(reply, ReplyError):
            if reply.code == "UNBLOCKED":
                return
            raise WireLost(f"{self._conf.address} answered: {reply}") from reply
        self._dry = False
        if reply is None:
            self._idle_s = min(self._idle_s * 2, IDLE_S[1])
            return
        self._idle_s = IDLE_S[0]
        adoption = Adoption(self._number, wait.source, wait.inbox)
        self._number += 1
        self._adopting[adoption.number] = adoption
        self._to_adopt.append(adoption)
        self._deliver(wait.source, [reply], adoption.number)

    # asking

    def _ask(self, limit: int) -> None:
        """Claim up to what is missing, or wait if the lists were empty a moment ago."""
        if self._claiming:
            return
        if self._dry and not self._to_adopt and (self._next_due is None or time.monotonic() < self._next_due):
            self._arm(limit - len(self._ready))
            return
        room = 0 if self._stopping else min(limit - len(self._ready) - self._armed(), MAX_CLAIM)
        if room <= 0 and not self._to_adopt:
            return
        self._claim(max(room, 0))

    def _claim(self, limit: int) -> None:
        order = self._orders[self._turn]
        self._turn = (self._turn + 1) % len(self._orders)
        adoptions, self._to_adopt = self._to_adopt, []
        keys = self._keys
        data = pack(
            (
                "EVALSHA", CLAIM.sha, 4 + len(adoptions) + len(order.keys) + len(order.delayed_keys),
                keys.index, keys.unacked, keys.odd, keys.owners,
                *(adoption.inbox for adoption in adoptions), *order.keys, *order.delayed_keys,
                self.token, self._conf.options.lease_s, limit, self._number, MAX_CLAIM_BYTES,
                len(adoptions), len(order.keys), len(order.delayed_keys),
                *(word for a in adoptions for word in (a.number, a.source.tail, a.source.key)),
                *order.tails, *order.delayed_words,
            )
        )  # fmt: skip
        self._pending.append(Claim(self._number, limit, order, adoptions))
        self._number += limit
        self._claiming = True
        self._wire.write(data)

    def _armed(self) -> int:
        return sum(wait.armed_until is not None for wait in self._waits)

    def _arm(self, room: int) -> None:
        """Block on as many lists as there is room for messages."""
        if self._stopping:
            return
        sources = self._orders[self._turn].sources[: len(self._queues)][: self._conf.options.max_waits]
        armed = {wait.source.key for wait in self._waits if wait.armed_until is not None}
        room -= len(armed)
        for source in sources:
            if room <= 0:
                break
            if source.key not in armed:
                self._block(self._waiting(source))
                room -= 1

    def _block(self, wait: Waiting) -> None:
        now = time.monotonic()
        timeout = self._idle_s
        if self._next_due is not None:
            timeout = max(0.001, min(timeout, self._next_due - now))
        wait.armed_until = now + timeout
        wait.wire.write(pack(("BLMOVE", wait.source.key, wait.inbox, "RIGHT", "LEFT", f"{timeout:.3f}")))

    def _waiting(self, source: Source) -> Waiting:
        for wait in self._waits:
            if wait.source.key == source.key:
                return wait
        wire = self._dial()
        inbox = self._keys.inbox(self.token, source.key)
        wire.call("SADD", self._keys.waits(self.token), source.key)
        wait = Waiting(wire, source, inbox)
        self._waits.append(wait)
        self._poller.watch(wire.fileno())
        return wait

    def _quiet(self, waits: Iterable[Waiting]) -> None:
        """End these waits; what they brought at the last moment is among the ready ones."""
        for wait in list(waits):
            if wait.armed_until is not None:
                self._leases.unblock(wait.wire.client_id)
                for reply in wait.wire.read(1):
                    self._woken(wait, reply)
            self._poller.unwatch(wait.wire.fileno())
            wait.wire.close()
            self._waits.remove(wait)

    def _reorder(self) -> None:
        """Work out the claims' words for each turn."""
        queues, steps = self._queues, self._keys.steps
        if self._conf.options.order == "sorted":
            queues = sorted(queues)
        turns = len(queues) if self._conf.options.order == "round_robin" else 1
        sources = {(queue, step): Source(queue, self._keys.list_key(queue, step)) for queue in queues for step in steps}
        self._orders = []
        for turn in range(max(1, turns)):
            turned = queues[turn:] + queues[:turn]
            ordered = [sources[queue, step] for step in steps for queue in turned]
            delayed = turned if self._conf.options.delay else []
            self._orders.append(
                Order(
                    ordered,
                    [source.key for source in ordered],
                    [source.tail for source in ordered],
                    [self._keys.delayed(queue) for queue in delayed],
                    [word for queue in delayed for word in (self._keys.list_key(queue), self._keys.sep)],
                )
            )
        self._turn = 0
        self._dry = False

    # settling

    def _acknowledging(self, acks: list[bytes], odd: bool) -> tuple[int, bytes]:
        data = pack(("HDEL", self._keys.unacked, *acks)) + pack(("ZREM", self._keys.index, *acks))
        if odd:
            return 3, data + pack(("HDEL", self._keys.odd, *acks))
        return 2, data

    def _settling(
        self, acks: list[bytes], others: list[Any], batch: Sequence[Settlement], publish: Sequence[Payload], joined: Any
    ) -> bytes:
        """The script call that stores results, publishes and acknowledges; see `scripts.SETTLE`."""
        text, joined_words = joined if joined is not None else ("", ())
        script = self._settle_scripts.get(text)
        if script is None:
            script = self._settle_scripts[text] = settle_script(text)
            self._leases.load(script)
        tags = acks + [self._tag % settlement.tag for settlement in batch if settlement.verb != "ack"]
        words: list[Any] = []
        for command in self._producer.commands(publish, self._leases.tables(self._producer.exchanges(publish))):
            words += (len(command), *command)
        keys = [self._keys.index, self._keys.unacked, self._keys.odd]
        return self._script(script, keys, [len(tags), len(acks), len(words), *tags, *words, *joined_words])

    def _ending(self, settlement: Settlement) -> list[Any]:
        """The words by which `scripts.RETURN` ends one delivery that is not acknowledged."""
        source, raw = self._held.pop(settlement.tag)
        self._odd.discard(settlement.tag)
        tag = self._tag % settlement.tag
        if settlement.verb == "dead":
            error = settlement.error.encode("utf-8", "replace")[:MAX_ERROR_BYTES]
            words: list[Any] = ["raw", raw, "reason", settlement.reason, "error", error]
            words += ["attempt", attempt_of(raw)[0], "owner", self._owner]
            return [tag, "dead", self._keys.dead(source.queue), len(words), *words]
        if settlement.started:
            raw = mark_lost(raw)
        if settlement.due is not None and settlement.due > time.time():
            step = next((s for s in self._keys.steps if self._keys.list_key(source.queue, s) == source.key), 0)
            member = self._producer.delayed_member(step, raw)
            return [tag, "delay", self._keys.delayed(source.queue), 2, settlement.due, member]
        return [tag, "next", source.key, 1, raw]

    def _give_back(self, numbers: Sequence[int], *, lost: bool = False) -> None:
        """Return deliveries, the last one first, so that the first is served first."""
        if numbers:
            self.settle([Settlement(number, "requeue", started=lost) for number in reversed(numbers)])
