"""Moves messages from broker to broker and from queue to queue. `celeriac migrate` is a front of `migrate_tasks`.

::

    migrate_tasks("redis://old", "amqp://new", app=app, ack_messages=True)
    move(lambda body, message: "slow" if message.task == "proj.slow" else None, app=app, queues=["celery"])

A message is taken from its queue, sent, and only then acknowledged where it was: whenever this is cut short, it is in
one place or in both, never in none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, structs

from celeriac.exceptions import CeleriacError, OperationalError
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import Delivery, Head, Payload, QueueSpec, Settlement
from celeriac.utils.ids import uuid

if TYPE_CHECKING:
    from celeriac.app.base import Celery
    from celeriac.spec.transport import Consumer, Transport

#: How many messages are taken, sent and acknowledged at once.
BATCH: Final = 200
NAP_S: Final = 0.05
RENEW_S: Final = 5.0

_log = logging.getLogger("celeriac.migrate")

Progress = Callable[["State", "Movable"], Any]
Choose = Callable[["Movable"], "str | None"]


class State(Struct):
    """How far it has come: messages sent, messages left where they were, and how many there were about at the start."""

    count: int = 0
    filtered: int = 0
    total_apx: int = 0

    @property
    def strtotal(self) -> str:
        """The total as text; `?` if it is not known."""
        return str(self.total_apx) if self.total_apx else "?"


class Movable:
    """A message that may be moved.

    Attributes:
        payload: All of it.
        queue: Where it waits.
        id, task: Of the call; empty for a message that cannot be read.
    """

    def __init__(self, app: Celery, delivery: Delivery, payload: Payload) -> None:
        self._app = app
        self.payload = payload
        self.queue = delivery.queue
        head = delivery.head
        self.id = head.id if isinstance(head, Head) else ""
        self.task = head.task if isinstance(head, Head) else ""

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers."""
        return self.payload.headers

    @property
    def properties(self) -> dict[str, Any]:
        """Its properties."""
        return self.payload.properties

    @property
    def body(self) -> Any:
        """`(args, kwargs, embed)`, decoded; None if it cannot be."""
        try:
            args, kwargs, embed, _ = read_call(self.payload, self._app.codec)
        except (CeleriacError, ValueError, TypeError, KeyError):
            return None
        return args, kwargs, embed


class _Nap:
    """The poller of a consumer that is asked in a loop."""

    def watch(self, fd: int) -> None:
        """It is asked anyway."""

    def unwatch(self, fd: int) -> None:
        """It is asked anyway."""


class _Renewals(threading.Thread):
    """Keeps what a consumer holds, however long the other broker takes: what stays is held until the end."""

    def __init__(self, consumer: Consumer) -> None:
        super().__init__(name="celeriac-migrate-renewals", daemon=True)
        self._consumer = consumer
        self._every_s: float = min(RENEW_S, getattr(consumer, "renew_interval_s", RENEW_S))
        self._end = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._end.wait(self._every_s):
            try:
                self._consumer.renew()
            except OperationalError as exc:  # who receives meets the same, and raises it
                _log.debug("not renewed: %s", exc)

    def stop(self) -> None:
        """Keep nothing any more."""
        self._end.set()
        self.join()


def migrate_tasks(
    source: str,
    dest: str,
    *,
    app: Celery,
    queues: Sequence[str] | Mapping[str, str] | None = None,
    tasks: Iterable[str] | None = None,
    limit: int | None = None,
    timeout: float = 1.0,
    ack_messages: bool = False,
    forever: bool = False,
    on_message: Progress | None = None,
    state: State | None = None,
) -> State:
    """Send what waits on one broker to another.

    Args:
        source, dest: URLs.
        queues: Of these queues only; a mapping gives them other names over there. None: all the app knows.
        tasks: Only calls of these tasks; the others stay.
        timeout: Ends when so many seconds brought no message, unless `forever`.
        ack_messages: Remove them at the source. Otherwise they are copied.
        on_message: Called after each that was sent.
    """
    names = list(queues or app.router.queues)
    renamed = dict(queues) if isinstance(queues, Mapping) else {}
    wanted = set(tasks) if tasks else None
    first, second = app.make_transport(source), app.make_transport(dest)
    try:
        second.declare([app.router.spec(renamed.get(name, name)) for name in names])
        return _run(
            app,
            first,
            second,
            names,
            lambda one: renamed.get(one.queue, one.queue) if wanted is None or one.task in wanted else None,
            limit=limit,
            timeout_s=timeout,
            ack=ack_messages,
            forever=forever,
            on_message=on_message,
            state=state,
        )
    finally:
        first.close()
        second.close()


def move(
    predicate: Callable[[Any, Movable], Any],
    *,
    app: Celery,
    queues: Sequence[str] | None = None,
    source: Sequence[str] | str | None = None,
    transform: Callable[[Any], Any] | None = None,
    limit: int | None = None,
    timeout: float = 1.0,
    callback: Progress | None = None,
) -> State:
    """Move messages to another queue of the same broker.

    Args:
        predicate: Called with the decoded body and the message; returns the queue (a name, or an object with one), or
            None or False for a message that stays.
        queues, source: Look through these; None: all the app knows.
        transform: Makes a queue of what the predicate returns.
    """
    names = [source] if isinstance(source, str) else list(source or queues or app.router.queues)

    def choose(one: Movable) -> str | None:
        answer = predicate(one.body, one)
        if not answer:
            return None
        answer = transform(answer) if transform is not None else answer
        return answer if isinstance(answer, str) else str(answer.name)

    transport = app.make_transport()
    try:
        return _run(
            app, transport, transport, names, choose, limit=limit, timeout_s=timeout, ack=True, on_message=callback
        )
    finally:
        transport.close()


def move_task_by_id(task_id: str, dest: Any, **options: Any) -> State:
    """Move the call with this id to the queue `dest`. Options: as for `move`."""
    return move_by_idmap({task_id: dest}, **options)


def move_by_idmap(map: Mapping[str, Any], **options: Any) -> State:
    """Move calls by their ids: id → queue. Ends when all were found. Options: as for `move`."""
    return move(lambda body, message: map.get(message.id), limit=options.pop("limit", None) or len(map), **options)


def move_by_taskmap(map: Mapping[str, Any], **options: Any) -> State:
    """Move calls by their tasks: name → queue. Options: as for `move`."""
    return move(lambda body, message: map.get(message.task), **options)


def republish(app: Celery, message: Movable, queue: str) -> None:
    """Send a message as it is to another queue of the app's broker."""
    app.transport.send([structs.replace(message.payload, route=app.router.direct(queue))])


def task_id_eq(task_id: str, body: Any, message: Movable) -> bool:
    """For `functools.partial` and `move`: whether this is the call."""
    return message.id == task_id


def task_id_in(ids: Iterable[str], body: Any, message: Movable) -> bool:
    """Likewise: whether it is one of these."""
    return message.id in ids


def filter_status(state: State, message: Movable, **_: Any) -> str:
    """A line about the message that was just sent."""
    return f"{state.count}/{state.strtotal} {message.task}[{message.id}]"


def _run(
    app: Celery,
    first: Transport,
    second: Transport,
    names: Sequence[str],
    choose: Choose,
    *,
    limit: int | None,
    timeout_s: float,
    ack: bool,
    forever: bool = False,
    on_message: Progress | None = None,
    state: State | None = None,
) -> State:
    state = state if state is not None else State()
    specs: list[QueueSpec] = app.router.select(names)
    if "depth" in first.abilities:
        state.total_apx = sum(first.depth(name) for name in names)
    # What stays is held until the end, so that it is not handed out again and again.
    window = max(1000, 2 * state.total_apx)
    consumer = first.consumer(specs, owner=f"migrate/{uuid()}", poller=_Nap(), window=window)
    renewals = _Renewals(consumer)
    renewals.start()
    staying: list[Settlement] = []
    quiet_since = time.monotonic()
    try:
        while limit is None or state.count < limit:
            room = BATCH if limit is None else min(BATCH, limit - state.count)
            taken = consumer.receive(room)
            if not taken:
                if not forever and time.monotonic() - quiet_since > timeout_s:
                    break
                time.sleep(NAP_S)
                continue
            quiet_since = time.monotonic()
            gone: list[Settlement] = []
            sent: list[Movable] = []
            payloads: list[Payload] = []
            for delivery in taken:
                one, queue = _choose(app, first, delivery, choose)
                if one is None or queue is None:
                    state.filtered += 1
                    staying.append(Settlement(delivery.tag, "requeue"))
                    continue
                payloads.append(structs.replace(one.payload, route=app.router.direct(queue)))
                sent.append(one)
                gone.append(Settlement(delivery.tag))
            if payloads:
                second.send(payloads)
            if ack:
                consumer.settle(gone)
            else:
                staying += [Settlement(one.tag, "requeue") for one in gone]
            for one in sent:
                state.count += 1
                if on_message is not None:
                    on_message(state, one)
    finally:
        try:
            consumer.stop()
            consumer.settle(staying)
            consumer.flush(10.0)
        finally:
            renewals.stop()
            consumer.close()
    return state


def _choose(app: Celery, transport: Transport, delivery: Delivery, choose: Choose) -> tuple[Movable | None, str | None]:
    try:
        payload = transport.unpack(delivery.raw)
    except ValueError:  # no message; it stays for a worker to set aside
        return None, None
    one = Movable(app, delivery, payload)
    return one, choose(one)
