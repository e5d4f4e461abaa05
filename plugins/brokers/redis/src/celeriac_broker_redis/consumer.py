"""The consumer: claims, waits, settles, over one connection for work and one for each list it waits on.

Whatever leaves a list is recorded in the same step under a tag of this consumer (`scripts.CLAIM`), or, for a message
that came while it waited, in an inbox, where it is settled or from which a claim takes it up before long. Claims travel
ahead: `receive` writes one and returns; when the answer is there, the worker is woken and calls again. A settlement is
written at once, so it is on its way before the claim that follows it.

A connection that breaks loses nothing, for all that was under way can be done again or looked up: a tag is settled
once, however often that is asked, and what a claim took stands under the tags that it chose. So the consumer connects
anew and goes on; only when that fails at once does it raise `TransportLost`.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import structlog
from msgspec import Struct

from celeriac.exceptions import PublishRejected, TransportLost
from celeriac.spec.data import Delivery, Payload, QueueSpec, Settlement
from celeriac.spec.envelope import read_head
from celeriac.spec.transport import Poller
from celeriac_broker_redis.attempts import MARK, attempt_of, mark_lost
from celeriac_broker_redis.leases import UNKNOWN_RUN, Leases, origin
from celeriac_broker_redis.options import Configuration
from celeriac_broker_redis.producer import Producer, target
from celeriac_broker_redis.scripts import CLAIM, RETURN, Script, settle_script
from celeriac_broker_redis.sources import Order, Source, Turns
from celeriac_broker_redis.waits import REFUSALS, Line, News, Waits
from celeriac_support_redis.standin import address_words
from celeriac_support_redis.wire import ReplyError, Wire, WireLost, connect, pack

T = TypeVar("T")

MAX_CLAIM: Final = 1000
MAX_CLAIM_BYTES: Final = 8 * 1024 * 1024
MAX_ERROR_BYTES: Final = 8 * 1024
#: How soon an idle consumer looks where nothing wakes it (a further priority step, a delayed message): at first, and at
#: the latest.
IDLE_S: Final = (0.1, 1.0)
CLOSE_S: Final = 5.0
#: How often to look for dead consumers.
LOOK_S: Final = 2.0
#: A second loss within so long is the worker's to deal with: it backs off, we do not.
MEND_INTERVAL_S: Final = 1.0
#: After how long a settlement is offered again that the server refuses for now: at first, and at the latest.
REFUSED_S: Final = (0.2, 2.0)
#: Errors after which a new connection may do: the server was restarted or told to forget our scripts, or it is a
#: replica now, and the address may lead to another one that is not.
RECONNECT: Final = {
    "NOSCRIPT": "the server has forgotten our scripts",
    "READONLY": "the server takes no writes: it is a replica now",
    "MASTERDOWN": "the server is a replica without a master",
    "LOADING": "the server is loading its data",
    "MOVED": "another node of the cluster has the keys now",
    "CLUSTERDOWN": "no node of the cluster has the keys now",
    "UNBLOCKED": "the server is a replica now",
}
#: A message that came while waiting is recorded among the others when its task has not ended after so long.
ADOPT_S: Final = 0.005
#: Each consumer of a transport numbers its deliveries from another multiple of this, so that a tag of an old one means
#: nothing to a new one. Lua writes whole numbers below 10**14 as they are.
NUMBERS: Final = 10**11
NUMBERINGS: Final = 900
#: A queue that cannot be read is told of as often.
TELL_S: Final = 60.0
#: So many lists to which follow-ups went are remembered.
MOST_LISTS: Final = 1000


class Adoption(Struct, frozen=True):
    """A message that came while waiting: handed out under this number, and recorded nowhere but in its inbox."""

    number: int
    source: Source
    inbox: str


class Claim(Struct, frozen=True):
    """A claim on its way; its messages get consecutive numbers from `number` on."""

    number: int
    limit: int
    order: Order
    adoptions: list[Adoption]


class Settled(Struct, frozen=True):
    """A settlement on its way: how many replies it gets, its bytes, what it removes from inboxes, the tags that it
    settles, and whether it is to be offered again whatever the answer: what it settles was not recorded yet."""

    replies: int
    data: bytes
    adoptions: list[Adoption]
    tags: list[bytes]
    again: bool = False


class RedisConsumer:
    """See `celeriac.spec.Consumer`. Made by the transport, with its queues declared.

    Args:
        serial: Tells this consumer from the transport's others.
        declare: Writes the bindings of queues.
    """

    def __init__(
        self,
        conf: Configuration,
        producer: Producer,
        queues: Sequence[QueueSpec],
        *,
        owner: str,
        poller: Poller,
        serial: int,
        declare: Callable[[Sequence[QueueSpec]], None],
    ) -> None:
        self._conf = conf
        self._keys = conf.keys
        self._producer = producer
        self._owner = owner
        self._poller = poller
        self._specs = {queue.name: queue for queue in queues}
        self._declare = declare
        self._queues = list(self._specs)
        self._turns = Turns(conf.keys, conf.options, self._queues)
        self._turn = 0
        self.token = secrets.token_hex(6)
        self._tag = (self.token + ":%d").encode()
        self._number = serial % NUMBERINGS * NUMBERS
        #: number → (source, raw) of what was handed out and is not settled
        self._held: dict[int, tuple[Source, bytes]] = {}
        self._odd: set[int] = set()
        #: Handed out and not recorded yet; and those of them for which no claim is on its way.
        self._adopting: dict[int, Adoption] = {}
        self._to_adopt: dict[int, Adoption] = {}
        self._adopt_at = 0.0
        self._ready: list[Delivery] = []
        self._pending: deque[Claim | Settled] = deque()
        #: How many replies to the first of them are here already.
        self._replied = 0
        self._error: ReplyError | None = None
        self._claiming = 0
        #: The last claim found less than it asked for: wait rather than ask again.
        self._dry = False
        self._idle_s = IDLE_S[0]
        self._next_due: float | None = None
        #: Why a queue could not be read, and when to say so again.
        self._problem = b""
        self._tell_at = 0.0
        #: Lists to which a follow-up may go: they were looked at.
        self._lists: set[str] = set()
        self._refused: list[Settled] = []
        self._refused_s = REFUSED_S[0]
        self._offer_at = 0.0
        #: The server refuses to write: nothing is claimed before this moment. 0: it does not.
        self._claim_at = 0.0
        self._mended_at = 0.0
        self._stopping = False
        self._broken = False
        self.closed = False
        #: Whether `close` could tell the server.
        self.clean = False
        self._settle_scripts: dict[str, Script] = {}
        self._waits = Waits(conf.keys, self.token, poller, self._dial, conf.options.max_waits)
        self._leases = Leases(conf, self.token)
        self._wire = self._dial()
        poller.watch(self._wire.fileno())
        self._leases.client_id = self._wire.client_id
        self._leases.open(self._queues)
        #: Which run of which server has numbered our connections.
        self._run_id = self._leases.run_id

    # receiving

    @property
    def poll_interval_s(self) -> float | None:
        """Descriptors wake the worker; it also asks now and then, and so finds out when the server fell silent."""
        is_waiting = self._waits.lines and not self._waits.refused
        return 5.0 if is_waiting and not self._refused and not self._claim_at else IDLE_S[1]

    def receive(self, limit: int) -> list[Delivery]:
        """See `Consumer.receive`."""
        try:
            self._hear()
            self._ask(limit)
        except WireLost as exc:
            self._mend(exc)
            self._attempt(lambda: self._ask(limit))
        ready = self._ready
        if not ready:
            return []
        self._ready = []
        if len(ready) > limit:
            self._give_back([delivery.tag for delivery in ready[limit:]])
            del ready[limit:]
        return ready

    def subscribe(self, queue: QueueSpec) -> None:
        """See `Consumer.subscribe`. The transport's `declare` writes the binding."""
        if queue.name not in self._queues:
            self._specs[queue.name] = queue
            self._queues.append(queue.name)
            self._reorder()

    def unsubscribe(self, queue: str) -> None:
        """See `Consumer.unsubscribe`."""
        if queue in self._queues:
            self._queues.remove(queue)
            del self._specs[queue]
            self._reorder()
            self._attempt(lambda: self._end_waits([line for line in self._waits.lines if line.source.queue == queue]))

    def _reorder(self) -> None:
        self._turns = Turns(self._keys, self._conf.options, self._queues)
        self._turn = 0
        self._dry = False

    def resize(self, window: int) -> None:
        """Nothing to do: each claim says how many."""

    # settling

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        """See `Consumer.settle`."""
        acks: list[bytes] = []
        odd = False
        others: list[Settlement] = []
        adopted: list[Adoption] = []
        words = self._words(publish) if publish else []  # first: what cannot be sent leaves all as it was
        held, tag = self._held, self._tag
        for settlement in batch:
            number = settlement.tag
            if settlement.verb != "ack":
                if number in held:
                    others.append(settlement)
            elif held.pop(number, None) is not None:
                if number in self._to_adopt:
                    adopted.append(self._to_adopt.pop(number))
                    del self._adopting[number]
                else:
                    acks.append(tag % number)
                if number in self._odd:
                    self._odd.discard(number)
                    odd = True
        if others and self._to_adopt:
            self._attempt(lambda: self._claim(0))
        if publish or joined is not None:
            if acks or adopted or others or not batch:
                self._post(Settled(1, self._settling(acks, odd, adopted, others, words, joined), adopted, acks))
        elif acks or adopted:
            self._post(self._acknowledging(acks, odd, adopted))
        if others:
            tags = [tag % settlement.tag for settlement in others]
            self._post(Settled(1, self._ending(others), [], tags))

    def flush(self, timeout_s: float) -> None:
        """See `Consumer.flush`."""
        deadline = time.monotonic() + timeout_s
        while self._refused or any(type(entry) is Settled for entry in self._pending):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TransportLost(f"{self._conf.address} did not take the last settlements within {timeout_s} s.")
            self._attempt(lambda left=left: self._listen(left))  # type: ignore[misc]

    def _listen(self, timeout_s: float) -> None:
        self._offer_again()
        self._wire.wait(min(timeout_s, REFUSED_S[0]))
        self._hear()

    def _acknowledging(self, acks: list[bytes], odd: bool, adopted: list[Adoption]) -> Settled:
        """The commonest settlement, without a script."""
        keys = self._keys
        commands: list[tuple[Any, ...]] = []
        if acks:
            commands = [("HDEL", keys.unacked, *acks), ("ZREM", keys.index, *acks)]
            if odd:
                commands.append(("HDEL", keys.odd, *acks))
        if adopted:
            commands.append(("DEL", *(adoption.inbox for adoption in adopted)))
        return Settled(len(commands), b"".join(map(pack, commands)), adopted, acks)

    def _words(self, publish: Sequence[Payload]) -> list[Any]:
        """What has these messages sent, in words for `scripts.SETTLE`; raises as `Producer.commands`."""
        words: list[Any] = []
        exchanges = self._producer.exchanges(publish)
        tables = self._aside(lambda: self._leases.tables(exchanges)) if exchanges else None
        commands = self._producer.commands(publish, tables)
        new = [key for key in map(target, commands) if key and key not in self._lists]
        if new:
            self._look_at(new)
        for command in commands:
            words += (len(command), *command)
        return words

    def _look_at(self, keys: Sequence[str]) -> None:
        """A key that is no list would end a settlement in the middle, each time anew: so each is looked at once.

        Raises:
            PublishRejected: One is none.
        """
        for key, kind in zip(keys, self._aside(lambda: self._leases.types(keys)), strict=True):
            if kind not in ("list", "none"):
                raise PublishRejected(
                    f"the key {key!r} holds a {kind}, so no message can wait there; nothing was sent."
                )
        if len(self._lists) > MOST_LISTS:
            self._lists.clear()
        self._lists.update(keys)

    def _settling(
        self,
        acks: list[bytes],
        odd: bool,
        adopted: list[Adoption],
        others: list[Settlement],
        words: list[Any],
        joined: Any,
    ) -> bytes:
        """The script call that stores results, publishes and acknowledges; see `scripts.SETTLE`."""
        text, joined_words = joined if joined is not None else ("", ())
        script = self._settle_scripts.get(text)
        if script is None:
            script = self._settle_scripts[text] = settle_script(text)
            self._aside(lambda: self._leases.load(script))
        tags = acks + [self._tag % settlement.tag for settlement in others]
        sizes = (len(tags), len(acks), len(words), int(odd))
        keys = (*self._records, *(adoption.inbox for adoption in adopted))
        return self._script(script, keys, [*sizes, *tags, *words, *joined_words])

    def _ending(self, settlements: Sequence[Settlement]) -> bytes:
        """The script call that sends messages elsewhere; see `scripts.RETURN`."""
        words: list[Any] = ["", "", ""]
        for settlement in settlements:
            source, raw = self._held.pop(settlement.tag)
            self._odd.discard(settlement.tag)
            words += (self._tag % settlement.tag, *self._end(settlement, source, raw))
        return self._script(RETURN, self._records, words)

    def _end(self, settlement: Settlement, source: Source, raw: bytes) -> tuple[Any, ...]:
        """Verb, target, number of words, and words."""
        if settlement.verb == "dead":
            why = ("reason", _cut(settlement.reason), "error", _cut(settlement.error))
            fields = ("raw", raw, *why, "attempt", attempt_of(raw)[0], "owner", self._owner)
            counted = (self._keys.dropped, source.queue)
            return ("dead", self._keys.dead(source.queue), len(fields) + 2, *counted, *fields)
        if settlement.started:
            raw = mark_lost(raw, spared=settlement.spared)
        if settlement.due is not None and settlement.due > time.time():
            member = self._producer.delayed_head(source.step) + raw
            return ("delay", self._keys.delayed(source.queue), 2, settlement.due, member)
        return ("next", source.key, 1, raw)

    def _give_back(self, numbers: Sequence[int], *, lost: bool = False) -> None:
        """Return deliveries, the last one first, so that the first is served first."""
        if numbers:
            self.settle([Settlement(number, "requeue", started=lost) for number in reversed(numbers)])

    @property
    def _records(self) -> tuple[str, str, str]:
        return (self._keys.index, self._keys.unacked, self._keys.odd)

    def _script(self, script: Script, keys: Sequence[Any], words: Sequence[Any]) -> bytes:
        return pack(("EVALSHA", script.sha, len(keys), *keys, *words))

    def _post(self, settled: Settled) -> None:
        """Write a settlement."""
        self._pending.append(settled)
        try:
            self._wire.write(settled.data)
        except WireLost as exc:
            self._mend(exc)  # which writes again all that is pending

    def _was_settled(self, entry: Settled) -> None:
        """All its replies are here. One that the server refuses for now is kept; see `_check` for other errors."""
        error, self._error = self._error, None
        if error is None and entry.again:
            self._refused.append(Settled(entry.replies, entry.data, entry.adoptions, entry.tags))
            return
        if error is None:
            self._refused_s = REFUSED_S[0]
            for adoption in entry.adoptions:
                self._waits.release(adoption.source, adoption.inbox)
            return
        if error.code not in REFUSALS:
            self._pending.appendleft(entry)  # for `_catch_up`
            self._check(error)
        self._refused.append(entry)
        self._offer_at = time.monotonic() + self._refused_s
        self._refused_s = min(self._refused_s * 2, REFUSED_S[1])

    def _offer_again(self) -> None:
        """Write the refused settlements again, when it is time, and after what they settle is recorded."""
        if self._refused and time.monotonic() >= self._offer_at:
            if self._to_adopt:
                self._claim(0)
            refused, self._refused = self._refused, []
            self._pending.extend(refused)
            self._wire.write(b"".join(entry.data for entry in refused))

    # living and ending

    @property
    def renew_interval_s(self) -> float:
        """A third of our lease, or of the time after which Celery's workers give back what they see; and often enough
        that a dead consumer is found within five seconds, for that is looked for after each renewal."""
        return min(LOOK_S, self._conf.options.lease_s / 3, self._conf.options.visibility_timeout_s / 3)

    def renew(self) -> list[Any]:
        """See `Consumer.renew`. Also looks after consumers that are gone. Called from a thread of its own."""
        try:
            held = [number for number in list(self._held) if number not in self._adopting]
            waits = [line.source.key for line in list(self._waits.lines)]
            positions = self._leases.renew([self._tag % number for number in held], self._queues, waits)
            if self._leases.was_reset:
                self._leases.was_reset = False
                self._declare(list(self._specs.values()))
            lost = [held[position] for position in positions if held[position] in self._held]
            lost += self._lost_unrecorded()
            self._sweep()
        except (WireLost, ReplyError) as exc:
            raise TransportLost(f"{exc}.") from exc
        if self._pending and self._wire.is_silent(2 * self._conf.address.timeout_s):
            self._wire.shutdown()  # now the worker's descriptor says so
        return lost

    def _sweep(self) -> None:
        try:
            self._leases.sweep()
        except WireLost:
            raise
        except Exception:  # what others have left, and can be anything, is no reason to doubt our own lease
            structlog.get_logger(__name__).exception("sweep.failed", store=str(self._conf.address))

    def stand_in(self) -> tuple[str, dict[str, Any]]:
        """See `Consumer.renew`."""
        options, keys = self._conf.options, self._keys
        return "celeriac_support_redis.standin:StandIn", {
            "address": address_words(self._conf.address),
            "token": self.token,
            "owners": keys.owners,
            "index": keys.index,
            "lease_s": options.lease_s,
            "look_s": options.visibility_timeout_s / 3,
        }

    def _lost_unrecorded(self) -> list[int]:
        """Deliveries not known to be recorded yet, which are neither that nor in their inbox any more. A claim that
        records them may be on its way."""
        waiting = list(self._adopting.values())
        places = [(adoption.inbox, self._tag % adoption.number) for adoption in waiting]
        gone = self._leases.are_gone(places) if places else []
        numbers = [adoption.number for adoption, is_gone in zip(waiting, gone, strict=True) if is_gone]
        # What was recorded or settled meanwhile is none of these.
        return [number for number in numbers if number in self._adopting and number in self._held]

    def inherit(self, gone: Sequence[RedisConsumer]) -> None:
        """Return what consumers held that are gone: those of this process that could not say goodbye, and any others.

        Raises:
            WireLost, ReplyError: As they say.
        """
        for old in gone:
            self._leases.succeed(old.token)
        self._leases.sweep()

    def stop(self) -> None:
        """See `Consumer.stop`."""
        if not self._stopping:
            self._stopping = True
            self._attempt(self._end_claims)
            ready, self._ready = self._ready, []
            self._give_back([delivery.tag for delivery in ready])

    def close(self) -> None:
        """See `Consumer.close`. What cannot be given back now comes back when the lease ends."""
        if self.closed:
            return
        try:
            if self._broken:
                raise TransportLost("it is gone already.")
            self.stop()
            self._give_back(list(self._held), lost=True)
            self.flush(CLOSE_S)
            self._leases.end()
            self.clean = True
        except (TransportLost, WireLost, ReplyError):
            pass  # the server cannot be told; our next consumer returns the messages, or others when the lease ends
        self.closed = True
        self._hang_up()
        self._leases.abandon()

    def abandon(self) -> None:
        """In a forked child: forget the descriptors without a word to server or poller."""
        self.closed = self.clean = True
        self._wire.close()
        self._waits.abandon()
        self._leases.abandon()

    def _end_claims(self) -> None:
        self._end_waits(self._waits.lines)
        deadline = time.monotonic() + self._conf.address.timeout_s
        while self._claiming:
            if not self._wire.wait(deadline - time.monotonic()):
                raise WireLost(f"{self._conf.address} did not answer in time")
            self._hear()
        if self._to_adopt:
            self._claim(0)

    # hearing

    def _hear(self) -> None:
        """Read whatever has arrived, without waiting; on every connection, for one that was closed keeps waking us."""
        replies = self._wire.replies()
        if replies:
            self._answered(replies)
        try:
            for news in self._waits.hear():
                self._woken(news)
        except ReplyError as exc:
            self._check(exc)

    def _answered(self, replies: list[Any]) -> None:
        pending, at = self._pending, 0
        while at < len(replies):
            entry = pending[0]
            if type(entry) is Claim:
                pending.popleft()
                self._claimed(entry, replies[at])
                at += 1
                continue
            assert type(entry) is Settled
            got = replies[at : at + entry.replies - self._replied]
            at += len(got)
            self._replied += len(got)
            for reply in got:
                if isinstance(reply, ReplyError):
                    self._error = reply
            if self._replied == entry.replies:
                pending.popleft()
                self._replied = 0
                self._was_settled(entry)

    def _claimed(self, claim: Claim, reply: Any) -> None:
        self._claiming -= 1
        if isinstance(reply, ReplyError):
            if reply.code in REFUSALS:  # nothing was done
                self._to_adopt.update({adoption.number: adoption for adoption in claim.adoptions})
                self._claim_at = time.monotonic() + REFUSED_S[0]
                if any(adoption.number not in self._held for adoption in claim.adoptions):
                    self._settle_after_all()
                return
            self._pending.appendleft(claim)  # for `_catch_up`
            self._check(reply)
        for adoption in claim.adoptions:
            self._adopting.pop(adoption.number, None)
            self._waits.release(adoption.source, adoption.inbox)
        self._next_due = time.monotonic() + reply[0] / 1000 if reply[0] >= 0 else None
        if reply[1]:
            self._tell(reply[1])
        number, size = claim.number, 0
        for group in reply[2:]:
            size += self._deliver(claim.order.sources[group[0] - 1], group[1:], number)
            number += len(group) - 1
        got = number - claim.number
        if claim.limit:
            self._dry = got < claim.limit and size < MAX_CLAIM_BYTES
        if got:
            self._idle_s = IDLE_S[0]

    def _tell(self, problem: bytes) -> None:
        """Say that a queue cannot be read: each claim finds that anew, which a minute's worth of lines need not."""
        now = time.monotonic()
        if problem != self._problem or now >= self._tell_at:
            self._problem, self._tell_at = problem, now + TELL_S
            error = problem.decode("utf-8", "replace")
            structlog.get_logger(__name__).error("queue.unreadable", queues=self._queues, error=error)

    def _settle_after_all(self) -> None:
        """A message was settled while the claim that should have recorded it was on its way, and then was refused: what
        we wrote since may have found nothing to settle."""
        for at, entry in enumerate(self._pending):
            if type(entry) is Settled:
                self._pending[at] = Settled(entry.replies, entry.data, entry.adoptions, entry.tags, True)

    def _deliver(self, source: Source, raws: list[bytes], number: int) -> int:
        """Make deliveries of messages with consecutive numbers; returns their bytes."""
        held, queue, append = self._held, source.queue, self._ready.append
        size = 0
        for raw in raws:
            held[number] = (source, raw)
            delivery = Delivery(number, raw, read_head(raw), queue)
            if MARK in raw:
                delivery.attempt, delivery.redelivered, delivery.spared = attempt_of(raw)
            if raw[:1] != b"{" or raw[-1:] != b"}":
                self._odd.add(number)
            append(delivery)
            size += len(raw)
            number += 1
        return size

    def _woken(self, news: News) -> None:
        """A wait ended. One message is no reason to claim: the list was empty before it, and is waited for again."""
        if news.raw is not None and news.source is not None:
            self._idle_s = IDLE_S[0]
            self._dry = self._dry and not self._to_adopt
            self._adopt(news.source, news.inbox, news.raw)
            return
        self._dry = False
        if not news.changed:
            self._idle_s = min(self._idle_s * 2, IDLE_S[1])

    def _adopt(self, source: Source, inbox: str, raw: bytes) -> None:
        """Deliver a message that lies in an inbox."""
        number = self._number
        self._number += 1
        self._adopting[number] = self._to_adopt[number] = Adoption(number, source, inbox)
        self._adopt_at = time.monotonic() + ADOPT_S
        self._deliver(source, [raw], number)

    def _check(self, error: ReplyError) -> None:
        """An error that ends this connection.

        Raises:
            WireLost: One that a new connection may mend, see `RECONNECT`.
            TransportLost: Any other.
        """
        if error.code in RECONNECT:
            raise WireLost(RECONNECT[error.code]) from error
        raise self._lost(f"{self._conf.address} answered: {error}") from error

    # asking

    def _ask(self, limit: int) -> None:
        """Claim up to what is missing, or wait if the lists were empty a moment ago."""
        self._offer_again()
        if self._claiming or (self._claim_at and time.monotonic() < self._claim_at):
            return
        self._claim_at = 0.0
        room = 0 if self._stopping or self._refused else limit - len(self._ready) - self._waits.armed
        if not self._dry or self._is_time():
            if room > 0 or self._to_adopt:
                self._claim(min(max(room, 0), MAX_CLAIM))
        elif room > 0:
            self._wait(room)

    def _is_time(self) -> bool:
        """Something is to be done that a wait does not do: move a message that is due, or record one handed out."""
        now = time.monotonic()
        return (self._next_due is not None and now >= self._next_due) or (
            bool(self._to_adopt) and now >= self._adopt_at
        )

    def _claim(self, limit: int) -> None:
        order = self._turns[self._turn]
        self._turn = (self._turn + 1) % len(self._turns)
        adoptions = list(self._to_adopt.values())
        self._to_adopt.clear()
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
        self._claiming += 1
        self._wire.write(data)

    def _wait(self, room: int) -> None:
        """Be woken by the next message, and when it is time to look for others."""
        timeout_s = self._idle_s
        if self._next_due is not None:
            timeout_s = max(0.001, min(timeout_s, self._next_due - time.monotonic()))
        try:
            self._waits.arm(self._turns[self._turn], room, timeout_s)
        except ReplyError as exc:
            self._check(exc)

    def _end_waits(self, lines: Sequence[Line]) -> None:
        try:
            for news in self._waits.end(lines, self._leases.unblock):
                self._woken(news)
        except ReplyError as exc:
            self._check(exc)

    # connections, and mending them

    def _dial(self, protocol: int = 2) -> Wire:
        return connect(self._conf.address, protocol=protocol, name=f"celeriac:{self.token}")

    def _hang_up(self) -> tuple[list[int], list[Line]]:
        """Let go of all connections but the lease's; the server's numbers for them, and the lines that were blocked."""
        if self._wire.fileno() >= 0:
            self._poller.unwatch(self._wire.fileno())
        self._wire.close()
        numbers, blocked = self._waits.hang_up()
        return [self._wire.client_id, *numbers], blocked

    def _lost(self, why: object) -> TransportLost:
        """The error that ends this consumer. What its connections still say is out of step with what was asked."""
        self._broken = True
        return TransportLost(f"{why}.")

    def _aside(self, ask: Callable[[], T]) -> T:
        """Ask something on the lease's connection, which is made anew once if it broke."""
        try:
            return ask()
        except (WireLost, ReplyError) as exc:
            raise self._lost(exc) from exc

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do it; if the connection breaks, mend it and do it once more."""
        try:
            act()
            return
        except WireLost as exc:
            self._mend(exc)
        try:
            act()
        except WireLost as exc:
            raise self._lost(exc) from exc

    def _mend(self, exc: WireLost) -> None:
        """Connect anew, and go on where the old connections stopped.

        Raises:
            TransportLost: It cannot be done now.
        """
        now = time.monotonic()
        if now - self._mended_at < MEND_INTERVAL_S:
            raise self._lost(exc) from exc
        self._mended_at = now
        old, blocked = self._hang_up()
        try:
            self._wire = self._dial()
            self._poller.watch(self._wire.fileno())
            self._leases.client_id = self._wire.client_id
            self._leases.open(self._queues)
            for script in self._settle_scripts.values():
                self._leases.load(script)
            # What we wrote on the old connections may still be on its way: not after this. An error says that one is
            # gone already, or that we may not; then we have closed it, which is the next best. After a restart or a
            # failover these numbers are other clients'.
            run_id, self._run_id = self._run_id, self._leases.run_id
            is_same = run_id == self._run_id != UNKNOWN_RUN
            if is_same:
                self._wire.write(b"".join(pack(("CLIENT", "KILL", "ID", client_id)) for client_id in old))
                self._wire.read(len(old))
            self._catch_up(blocked, may_lack=not is_same)
        except (WireLost, ReplyError) as again:
            raise self._lost(again) from exc
        structlog.get_logger(__name__).warning("transport.reopened", reason=str(exc))

    def _catch_up(self, blocked: Sequence[Line], *, may_lack: bool) -> None:
        """Find what claims and waits brought while nobody heard, and settle again what may not have been.

        Args:
            may_lack: The server may not have our last writes, though it confirmed them.
        """
        pending, self._pending, self._error = self._pending, deque(), None
        self._claiming, self._replied, self._dry = 0, 0, False
        for entry in pending:
            if type(entry) is Claim:
                self._look_up(entry)
        if may_lack:
            self._make_up(pending, blocked)
        for line in blocked:
            raws = self._wire.call("LRANGE", line.inbox, 0, 0)
            if raws:
                self._adopt(line.source, line.inbox, raws[0])
            else:
                self._waits.release(line.source, line.inbox)
        if self._to_adopt:
            self._claim(0)  # before their settlements, which may be among the following
        settled = [entry for entry in pending if type(entry) is Settled]
        self._pending.extend(settled)
        self._wire.write(b"".join(entry.data for entry in settled))

    def _make_up(self, pending: Iterable[Claim | Settled], blocked: Sequence[Line]) -> None:
        """What the server shows as ours, and we know nothing of, was settled, and that is lost with all that went with
        it: a result, follow-ups. So it goes back."""
        # What may lie in an inbox; None: anything.
        busy: dict[str, bytes | None] = {each.inbox: self._held[each.number][1] for each in self._adopting.values()}
        if self._run_id == UNKNOWN_RUN:  # a wait that a mere cut has ended may just have got its message
            busy.update((line.inbox, None) for line in blocked)
        settled = [entry for entry in (*pending, *self._refused) if type(entry) is Settled]
        busy.update((adoption.inbox, None) for entry in settled for adoption in entry.adoptions)
        known = {self._tag % number for number in self._held}.union(*(entry.tags for entry in settled))
        self._leases.make_up(known, busy)

    def _look_up(self, claim: Claim) -> None:
        """Deliver what a claim took, if it was performed; note the adoptions that were not."""
        numbers = [*(adoption.number for adoption in claim.adoptions), *range(claim.number, claim.number + claim.limit)]
        if not numbers:
            return
        tags = [self._tag % number for number in numbers]
        entries, odds = self._wire.pipeline([("HMGET", self._keys.unacked, *tags), ("HMGET", self._keys.odd, *tags)])
        adoptions = {adoption.number: adoption for adoption in claim.adoptions}
        sources = {source.key: source for source in claim.order.sources}
        for number, entry, odd in zip(numbers, entries, odds, strict=True):
            recorded = entry is not None or odd is not None
            if number in adoptions:
                adoption = adoptions[number]
                if recorded:
                    self._adopting.pop(number, None)
                    self._waits.release(adoption.source, adoption.inbox)
                else:
                    self._to_adopt[number] = adoption
            elif recorded:
                key, raw = origin(self._keys, entry, odd)
                self._deliver(sources.get(key, claim.order.sources[0]), [raw], number)


def _cut(text: str) -> bytes:
    """Text of a task's, which may be long, and may have lone surrogates (of a file name that is no UTF-8)."""
    return text.encode("utf-8", "backslashreplace")[:MAX_ERROR_BYTES]
