"""The amqp transport: what the kernel asks for. Sends through a few publishers; consumers have links of their own.

Connections are opened when first needed and kept: each sending thread takes an idle publisher, or opens another
one up to `broker_pool_limit`. Without a limit none is kept.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from celeriac.exceptions import (
    ConnectionsBusy,
    ImproperlyConfigured,
    OperationalError,
    PublishRejected,
    PublishUncertain,
    TransportLost,
    TransportUnreachable,
)
from celeriac.spec import DeadBox, DeadLetter, ExchangeSpec, Head, Malformed, Payload, Poller, QueueSpec, Route
from celeriac.spec.diagnosis import Finding
from celeriac_broker_amqp import deadletters, delays, health, message, methods, topology
from celeriac_broker_amqp.connector import Connector
from celeriac_broker_amqp.consumer import AmqpConsumer
from celeriac_broker_amqp.holding import Terms, limit_of
from celeriac_broker_amqp.link import ChannelClosed, Link
from celeriac_broker_amqp.listener import AmqpListener, declare_exchange
from celeriac_broker_amqp.publisher import Item, Publisher, make_item

#: A worker that vanished with its host is noticed after two of these.
CONSUMER_HEARTBEAT_S: Final = 6.0
#: Making the delay queues, which is done once in the life of a broker, may take so long.
DELAYS_TIMEOUT_S: Final = 30.0
#: Where there are no delay queues, they are not looked for again for so long.
NO_DELAYS_S: Final = 2.0
SEND_TIMEOUT_S: Final = 10.0
#: A publisher that is to be blocked hears of it at once; so long its message is waited for.
ALARM_S: Final = 2.0

Result = TypeVar("Result")

_log = logging.getLogger("celeriac.broker.amqp")


class AmqpTransport:
    """A RabbitMQ broker.

    Args:
        url: `amqp://`, `amqps://` or `pyamqp://`; several, separated by semicolons, are alternates: see `Servers`.
        settings: Read are broker_connection_timeout, broker_use_ssl, broker_heartbeat, broker_login_method,
            broker_pool_limit, broker_pool_acquire_timeout, broker_failover_strategy, broker_transport_options,
            broker_native_delayed_delivery_queue_type,
            task_default_queue_type, task_queue_max_priority.
    Raises:
        ImproperlyConfigured: The URL makes no sense.
    """

    abilities = frozenset(
        {
            "browse_dead",
            "crashes",
            "dead_letter",
            "delay",
            "depth",
            "diagnose",
            "durable",
            "fanout",
            "lease",
            "priority",
            "purge",
            "shared",
            "spares",
        }
    )
    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._connector = Connector(url, settings)
        self._timeout_s = self._connector.timeout_s
        heartbeat = settings.get("broker_heartbeat", 120)
        self._heartbeat_s = min(float(heartbeat), CONSUMER_HEARTBEAT_S) if heartbeat else 0.0
        self._limit = int(settings.get("broker_pool_limit", 10) or 0)
        patience_s = settings.get("broker_pool_acquire_timeout")
        self._patience_s = float("inf") if patience_s is None else float(patience_s)
        self._delay_queue_type = settings.get("broker_native_delayed_delivery_queue_type") or "quorum"
        self._queue_arguments = _default_arguments(settings)
        self._consumer_timeout = (settings.get("broker_transport_options") or {}).get("consumer_timeout")
        self._terms: Terms | None = None
        self._known: dict[str, QueueSpec] = {}
        self._consumed: set[str] = set()
        self._no_delays_until = 0.0  # no delay queue has ever been made
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._idle: list[Publisher] = []
        self._slots = threading.Semaphore(self._limit)
        self._consumers: weakref.WeakSet[AmqpConsumer] = weakref.WeakSet()
        self._listeners: weakref.WeakSet[AmqpListener] = weakref.WeakSet()
        self._exchanges: set[str] = set()  # those that broadcasts have found in place

    # -- sending ----------------------------------------------------------------------------------------------

    def send(self, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        if not payloads:
            return
        deadline = time.monotonic() + timeout_s
        items = [make_item(payload) for payload in payloads]
        self._use_publisher(lambda publisher: publisher.send(items, deadline), deadline)

    def _use_publisher(self, use: Callable[[Publisher], Result], deadline: float) -> Result:
        """Have `use` done by an idle publisher, or by a fresh one if that has died since."""
        if self._pid != os.getpid():
            self.after_fork()
        if self._limit and not self._slots.acquire(blocking=False):
            patience_s = min(self._patience_s, max(deadline - time.monotonic(), 0.0))
            if not self._slots.acquire(timeout=patience_s):
                raise ConnectionsBusy(self._limit, round(patience_s, 3))
        try:
            publisher = self._take_idle()
            if publisher is not None:
                before = publisher.link.bytes_sent
                try:
                    return self._use(publisher, use)
                except TransportLost:
                    if publisher.link.bytes_sent != before:
                        raise
                    # It had died unnoticed and nothing went out: a new one may do it.
            return self._use(self._open_publisher(deadline), use)
        finally:
            if self._limit:
                self._slots.release()

    def _use(self, publisher: Publisher, use: Callable[[Publisher], Result]) -> Result:
        try:
            result = use(publisher)
        except PublishRejected:
            if publisher.was_refused:
                # By a full queue, or by one whose leader has died: then this channel may be refused for ever (seen with
                # RabbitMQ 3.10 and quorum queues), while a new one is not.
                publisher.link.drop()
            else:
                self._keep(publisher)  # the broker said no in good order
            raise
        except BaseException:  # whatever it was, half a frame may be out
            publisher.link.drop()
            raise
        self._keep(publisher)
        return result

    def _keep(self, publisher: Publisher) -> None:
        if self._limit:
            self._idle.append(publisher)
        else:
            publisher.link.close()

    def _take_idle(self) -> Publisher | None:
        """An idle publisher that has not heard of its own end."""
        while True:
            try:
                publisher = self._idle.pop()
            except IndexError:
                return None
            try:
                publisher.absorb()
                return publisher
            except TransportLost:
                publisher.link.drop()

    def _open_publisher(self, deadline: float) -> Publisher:
        link = self._connector.open("celeriac publisher", heartbeat_s=0.0, deadline=deadline)
        try:
            return Publisher(link, self._find_queue, self._delay_queue_type)
        except BaseException:
            link.drop()
            raise

    def _find_queue(self, name: str) -> QueueSpec:
        """What to declare for a queue of this name."""
        known = self._known.get(name)
        if known is not None:
            return known
        spec = topology.default_queue(name)
        if spec.arguments or not self._queue_arguments:
            return spec
        return QueueSpec(name, exchange=spec.exchange, routing_key=spec.routing_key, arguments=self._queue_arguments)

    # -- receiving --------------------------------------------------------------------------------------------

    def consumer(self, queues: Sequence[QueueSpec], *, owner: str, poller: Poller, window: int) -> AmqpConsumer:
        if self._pid != os.getpid():
            self.after_fork()
        deadline = time.monotonic() + self._timeout_s
        link = self._connector.open(f"celeriac {owner}", heartbeat_s=self._heartbeat_s, deadline=deadline)
        if self._terms is None:
            self._terms = Terms(limit_of(link.server, self._consumer_timeout))
        consumer: AmqpConsumer | None = None
        try:
            consumer = AmqpConsumer(
                link,
                owner=owner,
                poller=poller,
                window=window,
                open_publisher=lambda: self._open_publisher(time.monotonic() + self._timeout_s),
                declare=self._declare_consumed,
                terms=self._terms,
            )
            for queue in queues:
                consumer.subscribe(queue)
            consumer.go_on_without()
        except BaseException:
            link.drop()
            if consumer is not None:
                consumer.close()
            raise
        self._consumers.add(consumer)
        return consumer

    def _declare_consumed(self, link: Link, spec: QueueSpec) -> Route | None:
        """Declare a queue for a consumer; returns where it sends dead letters itself, if it does.

        One that was ours before is consumed as it is: a queue that somebody made anew, and differently, must not end a
        running worker.
        """
        if spec.arguments.get("x-queue-type") == "stream":
            raise ImproperlyConfigured(
                f"queue {spec.name!r} is declared as a stream. Of a stream RabbitMQ gives a worker only what comes "
                "while it is connected, and takes nothing back, so calls would be lost. Make it a quorum queue: "
                "x-queue-type in the queue_arguments of task_queues."
            )
        was_ours = spec.name in self._consumed and not (spec.auto_delete or spec.exclusive)
        is_gone = was_ours and topology.depth(link, spec.name) is None
        is_same = False
        try:
            is_same = topology.declare(link, spec)
        except ImproperlyConfigured:
            if spec.name not in self._consumed:
                raise
        if is_gone:  # B30
            _log.error(
                "Queue %s, which was consumed here before, was not there any more at %s: whatever waited in it is "
                "lost. It was removed, or the server has lost its data or is another one. It was made anew.",
                spec.name,
                link.where,
            )
        topology.bind_for_celery(link, spec, self._delay_queue_type, time.monotonic() + DELAYS_TIMEOUT_S)
        if spec.exchange or not spec.auto_delete:  # else it is for replies, which nobody delays
            self._bind_again(link, spec.name)
        self._known[spec.name] = spec
        self._consumed.add(spec.name)
        return topology.own_dead_letters(link, spec) if is_same else None

    def _bind_again(self, link: Link, queue: str) -> None:
        """Let delayed messages out into a queue that may have been made anew."""
        if time.monotonic() >= self._no_delays_until and not delays.bind_again(link, queue):
            self._no_delays_until = time.monotonic() + NO_DELAYS_S

    # -- broadcasts -------------------------------------------------------------------------------------------

    def broadcast(self, exchange: ExchangeSpec, payloads: Sequence[Payload], *, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        items = [make_item(payload) for payload in payloads]
        for item in items:
            item.mandatory = False

        def send(publisher: Publisher) -> None:
            if exchange.name not in self._exchanges:
                declare_exchange(publisher.link, exchange)
                self._exchanges.add(exchange.name)
            publisher.send(items, deadline)

        try:
            self._use_publisher(send, deadline)
        except OperationalError as exc:
            if not _is_missing(exc) or exchange.name not in self._exchanges:
                raise  # nobody hears anything twice (B31)
            # A broker that was started anew has no transient exchanges.
            self._exchanges.discard(exchange.name)
            self._use_publisher(send, deadline)

    def listen(self, exchange: ExchangeSpec, queue: QueueSpec, *, poller: Poller) -> AmqpListener:
        if self._pid != os.getpid():
            self.after_fork()
        deadline = time.monotonic() + self._timeout_s
        link = self._connector.open(f"celeriac {queue.name}", heartbeat_s=self._heartbeat_s, deadline=deadline)
        try:
            listener = AmqpListener(link, exchange, queue, poller)
        except BaseException:
            link.drop()
            raise
        self._listeners.add(listener)
        return listener

    # -- queues -----------------------------------------------------------------------------------------------

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        for spec in queues:
            self._with_link(lambda link, spec=spec: topology.declare(link, spec))  # type: ignore[misc]
            self._known[spec.name] = spec

    def delete(self, queue: str) -> None:
        self._with_link(lambda link: topology.delete(link, queue))

    def purge(self, queue: str) -> int:
        """Drop the waiting messages. Those still in the delay queues, which all queues share, stay."""
        return self._with_link(lambda link: topology.purge(link, queue))

    def depth(self, queue: str) -> int:
        return self._with_link(lambda link: topology.depth(link, queue)) or 0

    def _with_link(self, use: Callable[[Link], Result]) -> Result:
        deadline = time.monotonic() + self._timeout_s
        return self._use_publisher(lambda publisher: use(publisher.link), deadline)

    # -- what was set aside -----------------------------------------------------------------------------------

    def dead_boxes(self, queues: Sequence[str]) -> list[DeadBox]:
        """See `DeadLetters.dead_boxes`. RabbitMQ neither lists queues nor counts what expires."""
        return [DeadBox(queue, self.depth(topology.dead_queue(queue)), None) for queue in dict.fromkeys(queues)]

    def browse_dead(self, queue: str, *, after: str = "", limit: int = 100) -> list[DeadLetter]:
        """See `DeadLetters.browse_dead`. While this reads, nobody else sees them."""

        def publish(items: Sequence[Item]) -> None:
            deadline = time.monotonic() + SEND_TIMEOUT_S
            self._use_publisher(lambda publisher: publisher.send(items, deadline), deadline)

        with self._looking() as link:
            return deadletters.browse(link, queue, after, limit, publish)

    def requeue_dead(self, queue: str, ids: Sequence[str]) -> int:
        def take(publisher: Publisher) -> int:
            with self._looking() as link:  # one for each publisher, for what the other had read is back only then
                return deadletters.take(link, publisher, queue, ids, SEND_TIMEOUT_S)

        return self._use_publisher(take, time.monotonic() + self._timeout_s)

    def drop_dead(self, queue: str, ids: Sequence[str]) -> int:
        with self._looking() as link:
            return deadletters.take(link, None, queue, ids, self._timeout_s)

    @contextmanager
    def _looking(self) -> Iterator[Link]:
        """A link of its own, for what is read and not settled goes back when it is closed."""
        link = self._connector.open(
            "celeriac dead letters", heartbeat_s=0.0, deadline=time.monotonic() + self._timeout_s
        )
        try:
            yield link
        finally:
            link.close()

    # -- messages ---------------------------------------------------------------------------------------------

    def read_head(self, raw: bytes) -> Head | Malformed:
        return message.scan(raw)[0]

    def unpack(self, raw: bytes) -> Payload:
        return message.unpack(raw)

    # -- life -------------------------------------------------------------------------------------------------

    def ping(self, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s

        def ask(publisher: Publisher) -> str:
            with topology.scratch(publisher.link):
                server = publisher.link.server
                return f"{server.get('product', 'AMQP')} {server.get('version', '')} at {publisher.link.where}"

        try:
            return self._use_publisher(ask, deadline)
        except TransportLost as exc:
            raise TransportUnreachable(str(exc), url=self._connector.url, hint="Is it up?") from exc

    def diagnose(self, *, longest_task_s: float | None, timeout_s: float) -> list[Finding]:
        """See `Diagnoses.diagnose`. RabbitMQ tells of an alarm only those who publish: an empty message goes out that
        no queue wants."""
        deadline = time.monotonic() + timeout_s
        try:
            publisher = self._open_publisher(deadline)
        except TransportLost as exc:
            raise TransportUnreachable(str(exc), url=self._connector.url, hint="Is it up?") from exc
        try:
            nobody = Route(f"celeriac.doctor.{uuid.uuid4()}")
            empty = Payload(b"", "application/octet-stream", "binary", {}, {"mandatory": False}, nobody)
            with suppress(PublishRejected, PublishUncertain):
                publisher.send([make_item(empty)], min(deadline, time.monotonic() + ALARM_S))
            server = publisher.link.server
            version, product = str(server.get("version", "")), str(server.get("product", ""))
            url, blocked = self._connector.url, publisher.link.blocked
            return list(health.judge(version, product, url, blocked, longest_task_s))
        finally:
            publisher.link.close()

    def after_fork(self) -> None:
        for publisher in self._idle:
            publisher.link.drop()
        for consumer in list(self._consumers):
            consumer.drop()
        for listener in list(self._listeners):
            listener.drop()
        if self._terms is not None:
            self._terms.spare_ids.clear()  # they are the parent's
        self._reset()

    def close(self) -> None:
        if self._pid != os.getpid():
            self.after_fork()  # the connections are the parent's to close
        while self._idle:
            self._idle.pop().link.close()


def _is_missing(exc: BaseException) -> bool:
    """Whether an exchange did not exist, so that nothing was taken."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, ChannelClosed):
        cause = cause.__cause__
    return cause is not None and cause.code == methods.NOT_FOUND


def _default_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of Celery's default queues, for one that must be made in passing."""
    arguments: dict[str, Any] = {}
    if (settings.get("task_default_queue_type") or "classic") != "classic":
        arguments["x-queue-type"] = settings["task_default_queue_type"]
    if settings.get("task_queue_max_priority") is not None:
        arguments["x-max-priority"] = settings["task_queue_max_priority"]
    return arguments
