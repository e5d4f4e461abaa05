"""The consumer: receives pushed messages and settles them. Used by the worker's one thread, `renew` excepted.

RabbitMQ pushes up to the prefetch count of each queue; what the worker has no room for yet waits here, unacknowledged.
Acknowledgements go out once a batch, by one number for all that are finished without a gap. Messages that must be
safe first (retries, callbacks, dead letters, delays) go out on a second connection with confirms, and the
acknowledgements that depend on them wait for those, each batch for its own.

A dead worker's messages come back by themselves: they belong to the connection.

Source: AMQP 0-9-1, basic.*; RabbitMQ's per-consumer prefetch, confirms and consumer cancellation.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct

from celeriac.exceptions import PublishRejected, TransportLost
from celeriac.spec import Delivery, Payload, Poller, QueueSpec, Route, Settlement
from celeriac_broker_amqp import delays, message, methods, topology
from celeriac_broker_amqp.deadletters import bury, forward, make_follower
from celeriac_broker_amqp.followers import Followers, mark_again
from celeriac_broker_amqp.holding import Holding, Nook, Terms, make_nook_spec
from celeriac_broker_amqp.link import Channel, ChannelClosed, Link
from celeriac_broker_amqp.message import UNMARKED, Marks
from celeriac_broker_amqp.methods import METHOD, frame
from celeriac_broker_amqp.publisher import Item, Publisher

CHANNEL: Final = 1
CLOSE_TIMEOUT_S: Final = 2.0
#: Windows up to this are asked for as they are, so that nobody hoards long tasks; wider ones belong to short
#: tasks, and are asked for several times over, so that the next ones are here when these are done.
FAIR_WINDOW: Final = 32
AHEAD: Final = 4
MAX_PREFETCH: Final = 1024
#: AMQP has two bytes for it.
LARGEST_PREFETCH: Final = 65535
#: A window that has been narrower for so long stays so.
SHRINK_AFTER_S: Final = 1.0
TAGS_KEPT: Final = 16
#: With so much unread in memory the socket is left alone until the worker has caught up.
MAX_READY_BYTES: Final = 64 * 1024 * 1024
#: Messages due sooner than this wait here, others at the broker; and at most so many of them.
HOLD_S: Final = 2.0
HOLD_COUNT: Final = 1000
#: RabbitMQ 4 drops what came back to a quorum queue oftener than this, unless the queue says otherwise.
DELIVERY_LIMIT: Final = 20
#: How often a queue that cannot be used now is asked for again.
AWAY_WAIT_S: Final = 2.0
#: Which queue it is that RabbitMQ will not let us consume.
_QUEUE: Final = re.compile(r"queue '(.+)' in vhost '")
#: How the exchange begins through which a delayed message came, whichever level was its last.
_DELAYED: Final = (delays.PREFIX.encode(), topology.DELAYED_PREFIX.encode())

_log = logging.getLogger("celeriac.broker.amqp")


class _Subscription(Struct):
    """A queue we consume from.

    Attributes:
        tags: Its consumer tags, the current one last; deliveries under an older one may still be on their way.
        worn_at: What came back so often is published anew, lest RabbitMQ drop it; None: never.
    """

    spec: QueueSpec
    tags: list[str]
    ready: deque[tuple[int, int, bytes]]
    worn_at: int | None


class _Away(Struct):
    """A queue that cannot be used now. `is_told`: so it was said."""

    spec: QueueSpec
    why: topology.QueueAway
    is_told: bool = False


class Settled:
    """Which delivery tags are settled.

    One may be held for hours while millions behind it are settled: those are known by their first and last only.

    Attributes:
        low: All tags up to here are.
    """

    __slots__ = ("_firsts", "_lasts", "low")

    def __init__(self) -> None:
        self.low = 0
        self._lasts: dict[int, int] = {}  # of each run above: first tag → last
        self._firsts: dict[int, int] = {}  # and last → first

    def add(self, tags: Sequence[int]) -> None:
        """Some more, each for the first time."""
        tags = sorted(tags)
        if tags[-1] - tags[0] == len(tags) - 1:
            self._add_run(tags[0], tags[-1])
            return
        first = last = tags[0]
        for tag in tags[1:]:
            if tag != last + 1:
                self._add_run(first, last)
                first = tag
            last = tag
        self._add_run(first, last)

    def _add_run(self, first: int, last: int) -> None:
        behind = self._lasts.pop(last + 1, None)
        if behind is not None:
            last = behind
        if first == self.low + 1:
            self.low = last
            if behind is not None:
                del self._firsts[behind]
        else:
            first = self._firsts.pop(first - 1, first)
            self._lasts[first], self._firsts[last] = last, first


class AmqpConsumer:
    """An open consumer.

    Args:
        link: A fresh link of its own; closed with the consumer.
        open_publisher: Makes the publisher for what must be safe before an acknowledgement; called once, when
            first needed.
        declare: Declares a queue on a link; returns where it sends dead letters itself, if it does.
        terms: What is known about the broker; learned from here.
    """

    def __init__(
        self,
        link: Link,
        *,
        owner: str,
        poller: Poller,
        window: int,
        open_publisher: Callable[[], Publisher],
        declare: Callable[[Link, QueueSpec], Route | None],
        terms: Terms,
    ) -> None:
        self._link = link
        self._terms = terms
        self._owner = owner
        self._poller = poller
        self._declare = declare
        self._followers = Followers(open_publisher, poller, owner, terms)
        self._channel: Channel = link.open_channel(CHANNEL)
        self._max_header_bytes = link.frame_max - methods.FRAME_OVERHEAD_BYTES
        self._window = window
        self._kept = 0  # how many of those in `_waiting` are held because the broker cannot hold them
        self._stuck = 0  # nearly, how many of those whose tasks are done wait for what follows from them to be taken
        self._prefetch = _choose_prefetch(window)
        self._prefetch_told = 0
        self._asked = 0  # consumers that the broker was asked to open
        self._wider = 0  # the prefetch count to ask for once it has opened them
        self._shrink_to = 0
        self._shrink_at: float | None = None
        self._numbers = itertools.count(1)
        self._subscriptions: dict[str, _Subscription] = {}
        self._by_tag: dict[bytes, _Subscription | Nook] = {}
        self._away: dict[str, _Away] = {}
        self._away_at = 0.0  # monotonic, when they are asked for again
        self._turn = 0
        self._ready_bytes = 0
        self._is_paused = False
        self._owned: dict[int, Delivery] = {}  # handed out, not settled
        self._waiting: list[tuple[float, int, Delivery]] = []  # a heap by due time
        self._settled = Settled()  # at the broker
        self._ways: dict[str, Route] = {}  # of queues that say themselves where their dead letters go
        self._rejected: set[int] = set()  # tags of such dead letters, as long as they wait for what follows from them
        self._newest = 0  # the last tag that came
        self._holding = Holding(
            terms,
            self._open_nook,
            lambda items: self._followers.hold([], items),
            self._acknowledge,
            self._return_copy,
            self._max_header_bytes,
        )
        self._stopped = False
        self._closed = False
        poller.watch(link.fileno())

    # -- queues -----------------------------------------------------------------------------------------------

    def subscribe(self, queue: QueueSpec) -> None:
        if queue.name in self._subscriptions or self._stopped:
            return
        try:
            if queue.name in self._terms.barred:
                topology.try_consuming(self._link, queue.name)
                self._terms.barred.discard(queue.name)
            way = self._declare(self._link, queue)
        except topology.QueueAway as exc:
            self._await(queue, exc)
            return
        if self._away.pop(queue.name, None) is not None:
            _log.info("Queue %s at %s can be used again.", queue.name, self._link.where)
        if way is not None:
            self._ways[queue.name] = way
        worn_at = _choose_worn_at(queue, way)
        subscription = self._subscriptions[queue.name] = _Subscription(queue, [], deque(), worn_at)
        self._consume(subscription)

    def _await(self, queue: QueueSpec, exc: topology.QueueAway) -> None:
        """Ask for this queue again until it can be used."""
        known = self._away.get(queue.name)
        self._away[queue.name] = _Away(queue, exc, known is not None and known.is_told)
        self._away_at = time.monotonic() + AWAY_WAIT_S

    def go_on_without(self) -> None:
        """Say which queues cannot be used now.

        Raises:
            TransportLost: None of them can, and who consumes nothing is not to be taken for ready.
        """
        for name, away in self._away.items():
            if not self._subscriptions:
                self._link.lost = away.why
                raise away.why
            if not away.is_told:
                away.is_told = True
                _log.error(
                    "Nothing is taken from queue %s for now, which is asked for again every %g s: %s",
                    name,
                    AWAY_WAIT_S,
                    away.why,
                )

    def unsubscribe(self, queue: str) -> None:
        self._away.pop(queue, None)
        subscription = self._subscriptions.pop(queue, None)
        if subscription is not None:
            self._cancel(subscription)
            self._give_back(subscription)
            self._forget_tags(subscription)

    def resize(self, window: int) -> None:
        self._window = window
        if self._stopped:
            return
        # With what is held here for long, in few steps, for each costs a new consumer.
        wanted = _choose_prefetch(1 << (window + self._kept - 1).bit_length() if self._kept else window)
        if self._stuck:
            wanted = min(wanted + (1 << self._stuck.bit_length()), LARGEST_PREFETCH)
        self._wider = 0
        self._shrink_at = self._shrink_at if wanted < self._prefetch else None
        if wanted > self._prefetch and (wanted <= FAIR_WINDOW or wanted >= self._prefetch * 2):
            self._widen(wanted)
        elif wanted < self._prefetch and (wanted <= FAIR_WINDOW or wanted <= self._prefetch // 2):
            # Giving back hundreds of messages is dear, and a window narrows at every hiccup: see whether it stays so.
            self._shrink_to = wanted
            self._shrink_at = self._shrink_at or time.monotonic() + SHRINK_AFTER_S

    def _widen(self, prefetch: int) -> None:
        """Ask for more at once: a new consumer for each queue, without waiting for an answer.

        One at a time: RabbitMQ's channel crashes (541) if a consumer is cancelled before it has said that it is open.
        """
        self._wider = 0
        if self._channel.opened < self._asked:
            self._wider = prefetch
            return
        self._prefetch = self._prefetch_told = prefetch
        out = [frame(METHOD, CHANNEL, methods.limit_prefetch(prefetch))]
        for subscription in self._subscriptions.values():
            out.append(frame(METHOD, CHANNEL, methods.cancel(subscription.tags[-1], wait=False)))
            out.append(frame(METHOD, CHANNEL, methods.consume(subscription.spec.name, self._new_tag(subscription))))
            self._asked += 1
        self._link.send(b"".join(out))

    def _shrink(self) -> None:
        """Hold less, and give back what waits here: the new prefetch count would know nothing of it."""
        self._prefetch, self._shrink_at = self._shrink_to, None
        for subscription in self._subscriptions.values():
            self._cancel(subscription)
            self._give_back(subscription)
            self._consume(subscription)

    def _consume(self, subscription: _Subscription) -> None:
        """Have the queue's messages pushed."""
        if self._prefetch_told != self._prefetch:
            self._call(methods.limit_prefetch(self._prefetch), methods.BASIC_QOS_OK)
            self._prefetch_told = self._prefetch
        tag = self._new_tag(subscription)
        self._asked += 1
        self._call(methods.consume(subscription.spec.name, tag), methods.BASIC_CONSUME_OK)

    def _open_nook(self, queue: str, consumer: str) -> Nook | None:
        """See `Holding`: what comes from that queue was held here already, so there is no limit for it."""
        known = self._subscriptions.get(queue)
        spec = make_nook_spec(QueueSpec(queue) if known is None else known.spec, consumer)
        topology.declare(self._link, spec)
        if topology.is_consumed(self._link, spec.name):
            return None
        self._prefetch_told = 0
        self._call(methods.limit_prefetch(0), methods.BASIC_QOS_OK)
        nook = Nook(spec, [spec.name], deque())
        self._by_tag[spec.name.encode()] = nook
        self._asked += 1
        self._call(methods.consume(spec.name, spec.name), methods.BASIC_CONSUME_OK)
        return nook

    def _return_copy(self, tag: int) -> None:
        """See `Holding`."""
        self._link.send(methods.reject(CHANNEL, tag))
        self._note_settled(tag)

    def _new_tag(self, subscription: _Subscription) -> str:
        """A new consumer tag, for the prefetch count of an old one is fixed. Deliveries under the old ones may still
        be on their way, so the last few are remembered."""
        tag = f"{self._owner[:200]}.{next(self._numbers)}"
        subscription.tags.append(tag)
        self._by_tag[tag.encode()] = subscription
        if len(subscription.tags) > TAGS_KEPT:
            self._by_tag.pop(subscription.tags.pop(0).encode())
        return tag

    def _cancel(self, subscription: _Subscription) -> None:
        """Have nothing more pushed; what was on its way is in `ready` afterwards."""
        if not subscription.tags:
            return  # the link was lost before anything was
        self._await_opened()
        self._call(methods.cancel(subscription.tags[-1]), methods.BASIC_CANCEL_OK)
        self._take_arrived()
        self._forget_tags(subscription)

    def _await_opened(self) -> None:
        """Until the broker has opened what it was asked to: see `_widen`."""
        patience_s = self._link.timeout_s
        deadline = time.monotonic() + patience_s
        while self._channel.opened < self._asked and self._channel.closed is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._lose(f"a consumer was not opened within {patience_s:g} s")
            self._link.pump(left_s)

    def _forget_tags(self, subscription: _Subscription) -> None:
        for tag in subscription.tags:
            self._by_tag.pop(tag.encode(), None)
        subscription.tags.clear()

    def _call(self, request: bytes, reply: int) -> None:
        try:
            self._link.call(self._channel, request, reply)
        except ChannelClosed as exc:
            raise self._lose(exc) from exc

    def _give_back(self, subscription: _Subscription) -> None:
        """Put back what waits here."""
        ready = subscription.ready
        out = []
        while ready:
            tag, _, record = ready.pop()
            self._ready_bytes -= len(record)
            out.append(methods.give_back(CHANNEL, tag))
            self._note_settled(tag)
        if out:
            self._link.send(b"".join(out))

    def _hold_on(self, last: int) -> None:
        """The broker will not let us hold what came up to this tag for much longer."""
        place = self._holding.place
        for delivery in [*self._owned.values(), *(delivery for _, _, delivery in self._waiting)]:
            if place.get(delivery.tag, delivery.tag) <= last:
                self._holding.hold(delivery, _lost(delivery) + 1, started=True)
        out = []
        for subscription in self._subscriptions.values():
            ready = subscription.ready
            while ready and ready[0][0] <= last:
                tag, _, record = ready.popleft()
                self._ready_bytes -= len(record)
                out.append(methods.give_back(CHANNEL, tag))
                self._note_settled(tag)
        if out:
            self._link.send(b"".join(out))

    # -- receiving --------------------------------------------------------------------------------------------

    def receive(self, limit: int) -> list[Delivery]:
        self._pump()
        self._release()
        if self._stopped or limit <= 0:
            return []
        out = self._take_due(limit) if self._waiting else []
        if len(self._subscriptions) == 1:
            for subscription in self._subscriptions.values():
                self._hand_out(subscription, limit - len(out), out)
        else:
            self._hand_out_in_turn(limit, out)
        return out

    def _pump(self) -> None:
        """Read what has arrived, and see to what the broker has to say."""
        link = self._link
        if self._is_paused:
            if self._ready_bytes > MAX_READY_BYTES // 2:
                return
            self._is_paused = False
            self._poller.watch(link.fileno())
        while link.pump():
            self._take_arrived()
            if self._ready_bytes > MAX_READY_BYTES:
                self._is_paused = True
                self._poller.unwatch(link.fileno())
                break
        self._take_arrived()
        channel = self._channel
        if channel.closed is not None:
            raise self._lose(channel.closed)
        channel.replies.clear()  # to what was asked without waiting
        if channel.cancelled:
            self._consume_anew()
        if self._away and not self._stopped:
            if time.monotonic() >= self._away_at:
                for away in list(self._away.values()):
                    self.subscribe(away.spec)
            self.go_on_without()
        if self._wider and not self._stopped:
            self._widen(self._wider)
        if self._shrink_at is not None and not self._stopped and time.monotonic() >= self._shrink_at:
            self._shrink()
        last = self._holding.overdue(self._newest)
        if last is not None:
            self._hold_on(last)
        if self._holding.is_used:
            for delivery in self._holding.arrived():
                heapq.heappush(self._waiting, (0.0, delivery.tag, delivery))
        link.beat()

    def _take_arrived(self) -> None:
        link = self._link
        if not link.deliveries:
            return
        arrived, link.deliveries = link.deliveries, []
        self._newest = arrived[-1][1]
        by_tag = self._by_tag
        worn: list[tuple[int, Item]] = []
        for consumer_tag, tag, redelivered, record in arrived:
            try:
                source = by_tag[consumer_tag]
                if redelivered and (item := _renew(source, record)) is not None:
                    worn.append((tag, item))
                    continue
                source.ready.append((tag, redelivered, record))
            except KeyError:  # under a consumer tag long forgotten: somebody else may have it
                link.send(methods.give_back(CHANNEL, tag))
                self._note_settled(tag)
                continue
            self._ready_bytes += len(record)
        if worn:
            self._followers.hold([tag for tag, _ in worn], [item for _, item in worn])

    def _consume_anew(self) -> None:
        """The broker cancelled a consumer: its queue was deleted, or moved to another node."""
        cancelled, self._channel.cancelled = self._channel.cancelled, []
        for tag in cancelled:
            subscription = self._by_tag.get(tag.encode())
            if not isinstance(subscription, _Subscription) or subscription.tags[-1] != tag or self._stopped:
                continue
            name = subscription.spec.name
            _log.warning("Queue %s is gone from %s; declaring it anew.", name, self._link.where)
            try:
                self._declare(self._link, subscription.spec)
            except topology.QueueAway as exc:
                del self._subscriptions[name]
                self._give_back(subscription)  # what its node has on disk comes again
                self._forget_tags(subscription)
                self._await(subscription.spec, exc)
                continue
            self._ways.pop(name, None)  # what is here from the old one can go nowhere by itself
            self._consume(subscription)

    def _hand_out_in_turn(self, limit: int, out: list[Delivery]) -> None:
        """Equal turns: the queue that begins moves on by one each time."""
        subscriptions = list(self._subscriptions.values())
        count = len(subscriptions)
        self._turn += 1
        while len(out) < limit:
            waiting = [one for place in range(count) if (one := subscriptions[(self._turn + place) % count]).ready]
            if not waiting:
                return
            share = max((limit - len(out)) // len(waiting), 1)
            for subscription in waiting:
                self._hand_out(subscription, min(share, limit - len(out)), out)

    def _hand_out(self, subscription: _Subscription, count: int, out: list[Delivery]) -> None:
        ready, name, owned = subscription.ready, subscription.spec.name, self._owned
        for _ in range(min(count, len(ready))):
            tag, redelivered, record = ready.popleft()
            self._ready_bytes -= len(record)
            if record.startswith(_DELAYED, 1):
                record = message.with_route(record, name)
            head, marks = message.scan(record)
            delivery = Delivery(tag, record, head, name)
            if (redelivered or marks is not None) and self._keeps_back(delivery, redelivered, marks or UNMARKED):
                continue
            owned[tag] = delivery
            out.append(delivery)

    def _keeps_back(self, delivery: Delivery, redelivered: int, marks: Marks) -> bool:
        """Note on a delivery what its way so far says, and whether nobody is to have it yet: it is not due, or it is a
        suspect, of which a copy must come first."""
        # That it came again is not counted besides: it may have been given back.
        delivery.attempt = 1 + max(marks.lost, 1 if marks.returns or redelivered else 0)
        delivery.redelivered, delivery.spared = delivery.attempt > 1, marks.spared
        if marks.due is not None and self._must_wait(delivery, marks.due):
            return True
        return (
            delivery.redelivered
            and self._holding.wants(marks.lost - marks.spared)
            and self._holding.hold(delivery, marks.lost + 1, started=False)
        )

    def _must_wait(self, delivery: Delivery, due: float) -> bool:
        """Hold a message that is due in a moment: the delay queues count whole seconds."""
        if not 0 < due - time.time() < HOLD_S or len(self._waiting) >= HOLD_COUNT:
            return False
        heapq.heappush(self._waiting, (due, delivery.tag, delivery))
        return True

    def _take_due(self, limit: int) -> list[Delivery]:
        out: list[Delivery] = []
        now = time.time()
        while self._waiting and self._waiting[0][0] <= now and len(out) < limit:
            delivery = heapq.heappop(self._waiting)[2]
            self._owned[delivery.tag] = delivery
            out.append(delivery)
        if self._kept > len(self._waiting):
            self._kept = len(self._waiting)
            self.resize(self._window)
        return out

    @property
    def poll_interval_s(self) -> float | None:
        """None, or how soon the next message held here is due, or what was refused is to be tried again.

        Changes from call to call.
        """
        moments = [] if self._followers.retry_in_s is None else [self._followers.retry_in_s]
        if self._away:
            moments.append(self._away_at - time.monotonic())
        if self._waiting:
            moments.append(self._waiting[0][0] - time.time())
        return max(min(moments), 0.001) if moments else None

    # -- settling ---------------------------------------------------------------------------------------------

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        acks: list[int] = []
        returns: list[int] = []
        unsent: list[tuple[Payload, str]] = []
        items = [make_follower(payload, self._owner, self._max_header_bytes, unsent) for payload in publish]
        largest_bytes = self._terms.largest_bytes
        if largest_bytes and (size := max((len(item.body) for item in items), default=0)) > largest_bytes:
            raise PublishRejected(f"a message of {size} bytes was not sent: {self._link.where} takes {largest_bytes}")
        self._followers.tell_unsent(unsent)
        owned = self._owned
        for settlement in batch:
            delivery = owned.pop(settlement.tag, None)
            if delivery is None:
                continue  # no longer ours
            if settlement.verb == "ack":
                acks.append(settlement.tag)
            elif settlement.verb == "dead":
                letter = self._bury(delivery, settlement)
                if letter is not None:
                    items.append(letter)
                acks.append(settlement.tag)
            elif settlement.due is None:
                again = self._count(delivery, settlement) if settlement.started else self._put_back(delivery)
                if again is None:
                    returns.append(settlement.tag)
                else:
                    items.append(again)
                    acks.append(settlement.tag)
            else:
                delayed = self._delay(delivery, settlement)
                if delayed is not None:
                    items.append(delayed)
                    acks.append(settlement.tag)
        if self._holding.is_used:
            acks = [self._holding.settled(tag) for tag in acks]
            returns = [self._holding.settled(tag) for tag in returns]
        if returns:
            self._link.send(b"".join([methods.give_back(CHANNEL, tag) for tag in returns]))
            for tag in returns:
                self._note_settled(tag)
        if items:
            self._followers.hold(acks, items)
        elif acks:
            self._acknowledge(acks)
        self._release()

    def _release(self) -> None:
        """Acknowledge what waited for messages that are safe now."""
        if self._followers.is_used:
            safe = self._followers.release()
            if safe:
                self._acknowledge(safe)
            stuck = min(self._followers.stuck_count, HOLD_COUNT)
            if stuck.bit_length() != self._stuck.bit_length():
                self._stuck = stuck
                self.resize(self._window)  # they take no place of those that can run, lest a full queue stay full

    def _acknowledge(self, tags: list[int]) -> None:
        """Acknowledge: one number for the tags finished without a gap, one each for the stragglers."""
        self._settled.add(tags)
        if self._rejected:
            tags = self._reject(tags)
        low = self._settled.low
        stragglers = [tag for tag in tags if tag > low]
        out = [methods.ack(CHANNEL, tag, False) for tag in stragglers]
        if len(stragglers) < len(tags):
            out.append(methods.ack(CHANNEL, max(tag for tag in tags if tag <= low), True))
        self._link.send(b"".join(out))

    def _reject(self, tags: list[int]) -> list[int]:
        """Have RabbitMQ set aside those of these tags that are dead letters; returns the others."""
        dead = self._rejected.intersection(tags)
        self._rejected -= dead
        self._link.send(b"".join([methods.reject(CHANNEL, tag) for tag in sorted(dead)]))
        return [tag for tag in tags if tag not in dead]

    def _bury(self, delivery: Delivery, settlement: Settlement) -> Item | None:
        """A delivery on its way to where it is set aside; None if RabbitMQ itself brings it there."""
        way = self._ways.get(delivery.queue)
        if way is None:
            return bury(delivery, settlement, self._owner, self._max_header_bytes)
        if delivery.tag in self._holding.place:
            return forward(delivery, way)
        self._rejected.add(delivery.tag)
        return None

    def _note_settled(self, tag: int) -> None:
        self._settled.add((tag,))

    def _count(self, delivery: Delivery, settlement: Settlement) -> Item | None:
        """A delivery whose task was lost, published anew with that counted in it, for RabbitMQ's own flag says but
        once or not. None if it cannot be read, and so never ran."""
        try:
            _, _, header, body = message.split_record(delivery.raw)
            header = message.with_headers(header, _counts(delivery, settlement), message.DEATH_HEADERS)
        except ValueError:
            return None
        return Item(Route(delivery.queue), header, body)

    def _put_back(self, delivery: Delivery) -> Item | None:
        """A delivery that is held by a copy, published anew; None for others, which are simply rejected.

        To RabbitMQ it is new then: that it came again before must stand in the message.
        """
        if delivery.tag not in self._holding.place:
            return None
        _, _, header, body = message.split_record(delivery.raw)
        item = Item(Route(delivery.queue), message.with_headers(header, {}, message.DEATH_HEADERS), body)
        return mark_again(item) if delivery.redelivered else item

    def _delay(self, delivery: Delivery, settlement: Settlement) -> Item | None:
        """The delivery on its way to the delay queues; None if it waits here instead."""
        due = settlement.due or 0.0
        route = Route(delivery.queue)
        is_soon = due - time.time() < HOLD_S and len(self._waiting) < HOLD_COUNT
        if is_soon or self._followers.cannot_delay:
            self._keep(delivery, settlement)
            return None
        try:
            headers = message.unpack(delivery.raw).headers
            _, _, header, body = message.split_record(delivery.raw)
            header = message.with_due(header, due, headers, _counts(delivery, settlement))
            delays.check_queue(delivery.queue)
        except ValueError as exc:  # unreadable, or its queue has a name for which nothing can be delayed: held here
            _log.debug("A message of %s waits here, for the broker cannot hold it: %s", delivery.queue, exc)
            self._keep(delivery, settlement)
            return None
        return Item(route, header, body, True, due)

    def _keep(self, delivery: Delivery, settlement: Settlement) -> None:
        if settlement.started:
            delivery.attempt += 1
            delivery.redelivered = True
            delivery.spared += settlement.spared
        due = settlement.due or 0.0
        heapq.heappush(self._waiting, (due, delivery.tag, delivery))
        if due - time.time() >= HOLD_S and not self._stopped:
            self._kept += 1
            self.resize(self._window)  # it takes no place of those that can run

    def unsent(self) -> list[tuple[Payload, str]]:
        """See `TellsUnsent`."""
        return self._followers.take_unsent()

    def flush(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._followers.count:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._lose(f"{self._followers.count} batches were not confirmed within {timeout_s:g} s")
            self._followers.wait(left_s)
            self._release()
        # Answered in turn: what went out before is known to the broker when this is.
        left_s = max(deadline - time.monotonic(), 0.05)
        try:
            self._link.call(self._channel, methods.FLOW, methods.CHANNEL_FLOW_OK, left_s)
        except ChannelClosed as exc:
            raise self._lose(exc) from exc

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def renew_interval_s(self) -> float:
        """A third of the heartbeat: one is sent even while the worker's own thread runs a task."""
        heartbeat_s = self._link.heartbeat_s
        return min(5.0, heartbeat_s / 3) if heartbeat_s else 5.0

    def renew(self) -> list[Any]:
        self._link.beat()
        return []

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for subscription in self._subscriptions.values():
            self._cancel(subscription)
            self._give_back(subscription)
        waiting, self._waiting = self._waiting, []
        unstarted = [delivery for _, _, delivery in waiting] + self._holding.unsettled_moves()
        if unstarted:
            self._owned.update((delivery.tag, delivery) for delivery in unstarted)
            self.settle([Settlement(delivery.tag, "requeue") for delivery in unstarted])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.stop()
            self.settle([Settlement(tag, "requeue", started=True) for tag in list(self._holding.place)])
            self.flush(CLOSE_TIMEOUT_S)
            for queue in self._holding.queues():
                topology.delete(self._link, queue)
        except TransportLost as exc:
            _log.debug("The broker takes back by itself what was unsettled: %s", exc)
        self._followers.close()
        if self._link.fileno() >= 0:
            self._poller.unwatch(self._link.fileno())
        self._link.close()
        self._holding.leave()

    def drop(self) -> None:
        """Let go in a forked child: nothing is said, and the poller, which is the parent's too, is left alone."""
        self._closed = self._stopped = True
        self._link.drop()
        self._followers.drop()

    def _lose(self, why: ChannelClosed | str) -> TransportLost:
        """The channel is of no more use, and all that is unsettled goes back."""
        if self._terms.learn(str(why)):
            _log.warning(
                "%s lets a message be held for %g s (consumer_timeout), and a task here took longer. From now on such "
                "messages are held by copies.",
                self._link.where,
                self._terms.limit_s,
            )
        if isinstance(why, ChannelClosed) and (named := _QUEUE.search(why.text)) and named[1] in self._subscriptions:
            self._terms.barred.add(named[1])
        said = f"RabbitMQ at {self._link.where} closed the consumer's channel: {why}"
        self._link.lost = TransportLost(said if isinstance(why, ChannelClosed) else f"{why} ({self._link.where})")
        return self._link.lost


def _counts(delivery: Delivery, settlement: Settlement) -> dict[str, int]:
    """What the message says of deliveries lost when it is published anew to end this one."""
    lost = delivery.attempt - (0 if settlement.started else 1)
    spared = delivery.spared + (settlement.started and settlement.spared)
    said = {message.LOST_HEADER: lost, message.SPARED_HEADER: spared}
    return {name: count for name, count in said.items() if count}


def _lost(delivery: Delivery) -> int:
    """How many deliveries were lost for certain before this one."""
    marks = message.scan(delivery.raw)[1]
    return 0 if marks is None else marks.lost


def _choose_worn_at(spec: QueueSpec, way: Route | None) -> int | None:
    """How often a message may have come back to this queue before it is published anew.

    A quorum queue counts returns, also of what no task had yet: of what a worker had asked for when it stopped or died.
    One that has both a limit of its own and a place for what is beyond it is left to do as it says.
    """
    limit = spec.arguments.get("x-delivery-limit", DELIVERY_LIMIT)
    if type(limit) is not int or limit < 0 or (way is not None and "x-delivery-limit" in spec.arguments):
        return None
    return max(min(limit, DELIVERY_LIMIT) // 2, 1)


def _renew(source: _Subscription | Nook, record: bytes) -> Item | None:
    """A message that came back so often that RabbitMQ will soon drop it, as it is published anew; None for others."""
    if not isinstance(source, _Subscription) or source.worn_at is None:
        return None
    marks = message.scan(record)[1]
    if marks is None or marks.returns < source.worn_at:
        return None
    return _anew(source.spec.name, record)


def _anew(queue: str, record: bytes) -> Item | None:
    """A message that came again, published anew, which to RabbitMQ is another: that it came before must stand in it.
    None if it cannot be read."""
    try:
        _, _, header, body = message.split_record(record)
        return mark_again(Item(Route(queue), message.with_headers(header, {}, message.DEATH_HEADERS), body))
    except ValueError:
        return None


def _choose_prefetch(window: int) -> int:
    return window if window <= FAIR_WINDOW else min(window * AHEAD, max(MAX_PREFETCH, window), LARGEST_PREFETCH)
