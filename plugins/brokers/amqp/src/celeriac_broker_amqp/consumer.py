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
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct

from celeriac.exceptions import PublishRejected, TransportLost, TransportUnreachable
from celeriac.spec import Delivery, Payload, Poller, QueueSpec, Route, Settlement
from celeriac_broker_amqp import message, methods, topology
from celeriac_broker_amqp.link import Channel, ChannelClosed, Link
from celeriac_broker_amqp.methods import METHOD, frame
from celeriac_broker_amqp.publisher import Item, Publisher, make_item

CHANNEL: Final = 1
CLOSE_TIMEOUT_S: Final = 2.0
PUBLISH_TIMEOUT_S: Final = 10.0
#: Windows up to this are asked for as they are, so that nobody hoards long tasks; wider ones belong to short
#: tasks, and are asked for several times over, so that the next ones are here when these are done.
FAIR_WINDOW: Final = 32
AHEAD: Final = 4
MAX_PREFETCH: Final = 1024
#: A window that has been narrower for so long stays so.
SHRINK_AFTER_S: Final = 1.0
TAGS_KEPT: Final = 16
#: With so much unread in memory the socket is left alone until the worker has caught up.
MAX_READY_BYTES: Final = 64 * 1024 * 1024
#: Messages due sooner than this wait here, others at the broker; and at most so many of them.
HOLD_S: Final = 2.0
HOLD_COUNT: Final = 1000
#: How long to wait before a publish that the broker refused is tried again.
REFUSED_WAIT_S: Final = 1.0
MAX_ERROR_CHARS: Final = 8192
#: How the exchange begins through which a delayed message came, whichever level was its last.
_DELAYED: Final = b"celery_delayed_"

_log = logging.getLogger("celeriac.broker.amqp")


class _Subscription(Struct):
    """A queue we consume from.

    Attributes:
        tags: Its consumer tags, the current one last; deliveries under an older one may still be on their way.
    """

    spec: QueueSpec
    tags: list[str]
    ready: deque[tuple[int, int, bytes]]


class _Held(Struct):
    """Acknowledgements that wait until what they follow from is safe.

    Attributes:
        first, last: The sequence number of the first of `items`; the one that must be confirmed.
        retry: Items that the broker refused, to be published again at `retry_at` (monotonic).
    """

    tags: list[int]
    items: list[Item]
    first: int = 0
    last: int = 0
    retry: list[Item] = []
    retry_at: float = 0.0


class AmqpConsumer:
    """An open consumer.

    Args:
        link: A fresh link of its own; closed with the consumer.
        open_publisher: Makes the publisher for what must be safe before an acknowledgement; called once, when
            first needed.
        declare: Declares a queue on a link.
    """

    def __init__(
        self,
        link: Link,
        *,
        owner: str,
        poller: Poller,
        window: int,
        open_publisher: Callable[[], Publisher],
        declare: Callable[[Link, QueueSpec], None],
    ) -> None:
        self._link = link
        self._owner = owner
        self._poller = poller
        self._open_publisher = open_publisher
        self._declare = declare
        self._publisher: Publisher | None = None
        self._channel: Channel = link.open_channel(CHANNEL)
        self._max_header_bytes = link.frame_max - methods.FRAME_OVERHEAD_BYTES
        self._prefetch = _choose_prefetch(window)
        self._prefetch_told = 0
        self._shrink_to = 0
        self._shrink_at: float | None = None
        self._numbers = itertools.count(1)
        self._subscriptions: dict[str, _Subscription] = {}
        self._by_tag: dict[bytes, _Subscription] = {}
        self._turn = 0
        self._ready_bytes = 0
        self._is_paused = False
        self._owned: dict[int, Delivery] = {}  # handed out, not settled
        self._waiting: list[tuple[float, int, Delivery]] = []  # a heap by due time
        self._held: list[_Held] = []
        self._low = 0  # all tags up to here are settled at the broker
        self._settled: set[int] = set()  # those above it that are
        self._stopped = False
        self._closed = False
        poller.watch(link.fileno())

    # -- queues -----------------------------------------------------------------------------------------------

    def subscribe(self, queue: QueueSpec) -> None:
        if queue.name in self._subscriptions:
            return
        self._declare(self._link, queue)
        subscription = self._subscriptions[queue.name] = _Subscription(queue, [], deque())
        self._consume(subscription)

    def unsubscribe(self, queue: str) -> None:
        subscription = self._subscriptions.pop(queue, None)
        if subscription is not None:
            self._cancel(subscription)
            self._give_back(subscription)
            self._forget_tags(subscription)

    def resize(self, window: int) -> None:
        wanted = _choose_prefetch(window)
        self._shrink_at = self._shrink_at if wanted < self._prefetch else None
        if wanted > self._prefetch and (wanted <= FAIR_WINDOW or wanted >= self._prefetch * 2):
            self._widen(wanted)
        elif wanted < self._prefetch and (wanted <= FAIR_WINDOW or wanted <= self._prefetch // 2):
            # Giving back hundreds of messages is dear, and a window narrows at every hiccup: see whether it stays so.
            self._shrink_to = wanted
            self._shrink_at = self._shrink_at or time.monotonic() + SHRINK_AFTER_S

    def _widen(self, prefetch: int) -> None:
        """Ask for more at once: a new consumer for each queue, without waiting for an answer."""
        self._prefetch = self._prefetch_told = prefetch
        out = [frame(METHOD, CHANNEL, methods.limit_prefetch(prefetch))]
        for subscription in self._subscriptions.values():
            out.append(frame(METHOD, CHANNEL, methods.cancel(subscription.tags[-1], wait=False)))
            out.append(frame(METHOD, CHANNEL, methods.consume(subscription.spec.name, self._new_tag(subscription))))
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
        self._call(methods.consume(subscription.spec.name, tag), methods.BASIC_CONSUME_OK)

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
        self._call(methods.cancel(subscription.tags[-1]), methods.BASIC_CANCEL_OK)
        self._take_arrived()
        self._forget_tags(subscription)

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
            out.append(methods.reject(CHANNEL, tag))
            self._note_settled(tag)
        if out:
            self._link.send(b"".join(out))

    # -- receiving --------------------------------------------------------------------------------------------

    def receive(self, limit: int) -> list[Delivery]:
        self._pump()
        if self._publisher is not None:
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
        if self._shrink_at is not None and not self._stopped and time.monotonic() >= self._shrink_at:
            self._shrink()
        link.beat()

    def _take_arrived(self) -> None:
        link = self._link
        if not link.deliveries:
            return
        arrived, link.deliveries = link.deliveries, []
        by_tag = self._by_tag
        for consumer_tag, tag, redelivered, record in arrived:
            by_tag[consumer_tag].ready.append((tag, redelivered, record))
            self._ready_bytes += len(record)

    def _consume_anew(self) -> None:
        """The broker cancelled a consumer: its queue was deleted, or moved to another node."""
        cancelled, self._channel.cancelled = self._channel.cancelled, []
        for tag in cancelled:
            subscription = self._by_tag.get(tag.encode())
            if subscription is None or subscription.tags[-1] != tag or self._stopped:
                continue
            _log.warning("Queue %s is gone from %s; declaring it anew.", subscription.spec.name, self._link.where)
            self._declare(self._link, subscription.spec)
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
            if redelivered or marks is not None:
                lost, returns = (0, 0) if marks is None else (marks.lost, marks.returns)
                delivery.attempt = 1 + lost + (returns or redelivered)
                delivery.redelivered = delivery.attempt > 1
                if marks is not None and marks.due is not None and self._must_wait(delivery, marks.due):
                    continue
            owned[tag] = delivery
            out.append(delivery)

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
        return out

    @property
    def poll_interval_s(self) -> float | None:
        """None, or how soon the next message held here is due, or a refused publish is to be tried again.

        Changes from call to call.
        """
        moments = [held.retry_at - time.monotonic() for held in self._held if held.retry]
        if self._waiting:
            moments.append(self._waiting[0][0] - time.time())
        return max(min(moments), 0.001) if moments else None

    # -- settling ---------------------------------------------------------------------------------------------

    def settle(self, batch: Sequence[Settlement], *, publish: Sequence[Payload] = (), joined: Any = None) -> None:
        acks: list[int] = []
        returns: list[int] = []
        items = [self._make_follower(payload) for payload in publish]
        owned = self._owned
        for settlement in batch:
            delivery = owned.pop(settlement.tag, None)
            if delivery is None:
                continue  # no longer ours
            if settlement.verb == "ack":
                acks.append(settlement.tag)
            elif settlement.verb == "dead":
                items.append(self._bury(delivery, settlement))
                acks.append(settlement.tag)
            elif settlement.due is None:
                returns.append(settlement.tag)
            else:
                delayed = self._delay(delivery, settlement)
                if delayed is not None:
                    items.append(delayed)
                    acks.append(settlement.tag)
        if returns:
            self._link.send(b"".join([methods.reject(CHANNEL, tag) for tag in returns]))
            for tag in returns:
                self._note_settled(tag)
        if items:
            self._hold(acks, items)
        elif acks:
            self._acknowledge(acks)
        if self._held:
            self._release()

    def _acknowledge(self, tags: list[int]) -> None:
        """Acknowledge: one number for the tags finished without a gap, one each for the stragglers."""
        for tag in tags:
            self._settled.add(tag)
        self._advance()
        low = self._low
        stragglers = [tag for tag in tags if tag > low]
        out = [methods.ack(CHANNEL, tag, False) for tag in stragglers]
        if len(stragglers) < len(tags):
            out.append(methods.ack(CHANNEL, max(tag for tag in tags if tag <= low), True))
        self._link.send(b"".join(out))

    def _note_settled(self, tag: int) -> None:
        self._settled.add(tag)
        self._advance()

    def _advance(self) -> None:
        settled, low = self._settled, self._low + 1
        while low in settled:
            settled.remove(low)
            low += 1
        self._low = low - 1

    def _make_follower(self, payload: Payload) -> Item:
        """A message that follows from a task; as a dead letter if it can never be sent as it is."""
        try:
            item = make_item(payload)
            if len(item.header) <= self._max_header_bytes:
                return item
            problem = f"headers of {len(item.header)} bytes"
        except PublishRejected as exc:
            problem = str(exc)
        _log.error("A message that follows from a task cannot be sent and is set aside: %s", problem)
        reason = {
            "x-celeriac-reason": "unsendable",
            "x-celeriac-error": problem[:MAX_ERROR_CHARS],
            "x-celeriac-headers": repr(payload.headers)[:MAX_ERROR_CHARS],
            "x-celeriac-time": time.time(),
            "x-celeriac-owner": self._owner,
        }
        name = topology.dead_queue(payload.route.routing_key or payload.route.exchange)
        return make_item(Payload(payload.body, "application/data", "binary", reason, {}, Route(name)))

    def _bury(self, delivery: Delivery, settlement: Settlement) -> Item:
        """The delivery as a dead letter: the same bytes, with the reason among the headers."""
        reason = {
            "x-celeriac-reason": settlement.reason,
            "x-celeriac-error": settlement.error[:MAX_ERROR_CHARS],
            "x-celeriac-queue": delivery.queue,
            message.LOST_HEADER: delivery.attempt - (0 if settlement.started else 1),
            "x-celeriac-time": time.time(),
            "x-celeriac-owner": self._owner,
        }
        route = Route(topology.dead_queue(delivery.queue))
        try:
            _, _, header, body = message.split_record(delivery.raw)
            header = message.with_headers(header, reason)
            if len(header) <= self._max_header_bytes:
                return Item(route, header, body)
        except ValueError as exc:
            _log.debug("A dead letter of %s is kept whole, for its headers cannot be read: %s", delivery.queue, exc)
        return Item(route, message.with_headers(message.bare_header(delivery.raw), reason), delivery.raw)

    def _delay(self, delivery: Delivery, settlement: Settlement) -> Item | None:
        """The delivery on its way to the delay queues; None if it waits here instead."""
        due = settlement.due or 0.0
        route = Route(delivery.queue)
        if due - time.time() < HOLD_S and len(self._waiting) < HOLD_COUNT:
            self._keep(delivery, settlement)
            return None
        lost = delivery.attempt - (0 if settlement.started else 1)
        try:
            headers = message.unpack(delivery.raw).headers
            _, _, header, body = message.split_record(delivery.raw)
            header = message.with_due(header, due, headers, {message.LOST_HEADER: lost} if lost else {})
            methods.short_text(message.delay_key(0, delivery.queue))
        except ValueError as exc:  # unreadable, or its queue has a name too long to be delayed: held here
            _log.debug("A message of %s waits here, for the broker cannot hold it: %s", delivery.queue, exc)
            self._keep(delivery, settlement)
            return None
        return Item(route, header, body, True, due)

    def _keep(self, delivery: Delivery, settlement: Settlement) -> None:
        if settlement.started:
            delivery.attempt += 1
            delivery.redelivered = True
        heapq.heappush(self._waiting, (settlement.due or 0.0, delivery.tag, delivery))

    # -- what must be safe first ------------------------------------------------------------------------------

    def _hold(self, tags: list[int], items: list[Item]) -> None:
        """Publish, and acknowledge when that is safe."""
        publisher = self._publisher
        if publisher is None:
            try:
                publisher = self._publisher = self._open_publisher()
            except TransportUnreachable as exc:
                self._link.lost = TransportLost(str(exc))
                raise self._link.lost from exc
            self._poller.watch(publisher.link.fileno())
        held = _Held(tags, items)
        self._held.append(held)
        self._publish(publisher, held, items)

    def _publish(self, publisher: Publisher, held: _Held, items: list[Item]) -> None:
        if publisher.link.blocked:  # it would not read us; acknowledgements go through all the same
            held.retry, held.retry_at = items, time.monotonic() + REFUSED_WAIT_S
            return
        held.items, held.retry = items, []
        held.first = publisher.last + 1
        held.last = publisher.write(items, time.monotonic() + PUBLISH_TIMEOUT_S)

    def _release(self) -> None:
        """Acknowledge what waited for publishes that are safe now."""
        publisher = self._publisher
        if publisher is None:
            return
        publisher.absorb()
        if publisher.refused:
            self._take_refusals(publisher)
        if publisher.unroutable:
            self._take_unroutable(publisher)
        if not self._held:
            return
        now = time.monotonic()
        safe: list[int] = []
        waiting = []
        for held in self._held:
            if held.retry and held.retry_at <= now:
                self._publish(publisher, held, held.retry)
            if held.retry or not publisher.is_settled(held.last):
                waiting.append(held)
            else:
                safe.extend(held.tags)
        self._held = waiting
        if safe:
            self._acknowledge(safe)

    def _take_refusals(self, publisher: Publisher) -> None:
        """Full queues: what they refused is tried again, and its deliveries stay ours until it is taken."""
        refused, publisher.refused = publisher.refused, []
        _log.warning("%d message(s) were refused by a full queue at %s; trying again.", len(refused), self._link.where)
        for sequence in refused:
            for held in self._held:
                if held.first <= sequence < held.first + len(held.items):
                    held.retry = [*held.retry, held.items[sequence - held.first]]
                    held.retry_at = time.monotonic() + REFUSED_WAIT_S
                    break
            else:
                raise self._lose("a message that follows from a task was refused on its second way")

    def _take_unroutable(self, publisher: Publisher) -> None:
        """Messages that follow from a task and that no queue takes are set aside, for a person to look at."""
        unroutable, publisher.unroutable = publisher.unroutable, []
        items = []
        for text, record in unroutable:
            exchange, routing_key, header, body = message.split_record(record)
            error = f"{text} for exchange {exchange!r}, routing key {routing_key!r}"
            _log.error("A message that follows from a task found no queue and is set aside: %s", error)
            reason = {"x-celeriac-reason": "unroutable", "x-celeriac-error": error, "x-celeriac-time": time.time()}
            name = topology.dead_queue(routing_key or exchange)
            items.append(Item(Route(name), message.with_headers(header, reason), body))
        last = publisher.write(items, time.monotonic() + PUBLISH_TIMEOUT_S)
        for held in self._held:  # one of them it was; which one, a returned message does not say
            held.last = last

    def flush(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._held:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._publisher is None:
                raise self._lose(f"{len(self._held)} batches were not confirmed within {timeout_s:g} s")
            self._publisher.absorb(min(left_s, self.poll_interval_s or left_s))
            self._release()
        # Answered in turn: what went out before is known to the broker when this is.
        left_s = max(deadline - time.monotonic(), 0.05)
        try:
            self._link.call(self._channel, methods.FLOW, methods.CHANNEL_FLOW_OK, left_s)
        except ChannelClosed as exc:
            raise self._lose(exc) from exc

    # -- life -------------------------------------------------------------------------------------------------

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
        if waiting:
            self._link.send(b"".join([methods.reject(CHANNEL, tag) for _, tag, _ in waiting]))
            for _, tag, _ in waiting:
                self._note_settled(tag)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.stop()
            self.flush(CLOSE_TIMEOUT_S)
        except TransportLost as exc:
            _log.debug("The broker takes back by itself what was unsettled: %s", exc)
        links = [self._link] if self._publisher is None else [self._publisher.link, self._link]
        for link in links:
            if link.fileno() >= 0:
                self._poller.unwatch(link.fileno())
            link.close()

    def drop(self) -> None:
        """Let go in a forked child: nothing is said, and the poller, which is the parent's too, is left alone."""
        self._closed = self._stopped = True
        self._link.drop()
        if self._publisher is not None:
            self._publisher.link.drop()

    def _lose(self, why: ChannelClosed | str) -> TransportLost:
        """The channel is of no more use, and all that is unsettled goes back."""
        said = f"RabbitMQ at {self._link.where} closed the consumer's channel: {why}"
        self._link.lost = TransportLost(said if isinstance(why, ChannelClosed) else f"{why} ({self._link.where})")
        return self._link.lost


def _choose_prefetch(window: int) -> int:
    return window if window <= FAIR_WINDOW else min(window * AHEAD, max(MAX_PREFETCH, window))
