"""Why there is no result: a worker tells the client, over the broker, that it keeps results elsewhere.

A client says in each message where it looks for results (header `x-celeriac-results`). A worker that keeps them
elsewhere, or not at all, runs the task and sends a notice to the client's reply queue: a result document with the
failure `BackendMismatch`. Who waits for the result looks there now and then, and is told instead of waiting for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from celeriac import states
from celeriac.exceptions import BackendMismatch, OperationalError
from celeriac.messaging import failures
from celeriac.messaging.protocol import read_call
from celeriac.spec.data import Head, Payload, Route, Settlement, reply_queue_spec
from celeriac.spec.transport import Transport
from celeriac.utils.ids import uuid

RESULTS_HEADER: Final = "x-celeriac-results"
#: The `task` header of a notice, so that one that strays into a worker is refused by name.
NOTICE: Final = "celeriac.notice"
REMEMBERED: Final = 1000
READ_S: Final = 0.25


def make_notice(codec: Any, task_id: str, reply_to: str, *, worker: str, keeps: str, wanted: str) -> Payload:
    """The message that tells a client that the results of this worker are elsewhere.

    Args:
        keeps: Where this worker keeps results (a masked URL); empty: nowhere.
        wanted: Where the client looks.
    """
    where = f"keeps results in {keeps}" if keeps else "keeps no results (its result_backend is not set)"
    text = (
        f"the task was run by {worker}, which {where}, while this app looks for them in {wanted}: no result will come. "
        f"Start the worker and the client with the same result_backend; is an old worker still running?"
    )
    document: dict[str, Any] = {
        "task_id": task_id,
        "status": states.FAILURE,
        "result": failures.describe(BackendMismatch(text)),
        "traceback": None,
        "children": [],
    }
    serializer = codec.serializer("json")
    return Payload(
        serializer.dumps([[document], {}, {}]),
        serializer.content_type,
        serializer.content_encoding,
        {"task": NOTICE, "id": task_id, "lang": "py"},
        {"correlation_id": task_id, "delivery_mode": 1, "priority": 0, "mandatory": False},
        Route(reply_to, "", "direct", reply_to),
    )


class NoticeBox:
    """The notices that came for this process.

    Args:
        transport, reply_queue, codec: Asked for at each look, so that they are right after a fork.
    """

    def __init__(
        self, transport: Callable[[], Transport], reply_queue: Callable[[], str], codec: Callable[[], Any]
    ) -> None:
        self._transport = transport
        self._reply_queue = reply_queue
        self._codec = codec
        self._lock = threading.Lock()
        self._found: dict[str, BaseException] = {}

    def look(self, task_id: str) -> BaseException | None:
        """Why no result of this task will come, if a worker has said so."""
        with self._lock:
            if task_id not in self._found:
                try:
                    self._fetch()
                except OperationalError:
                    return None  # the broker is away: then nobody can tell
            return self._found.pop(task_id, None)

    def _fetch(self) -> None:
        transport, queue = self._transport(), self._reply_queue()
        if transport.depth(queue) == 0:
            return
        consumer = transport.consumer(
            [reply_queue_spec(queue)], owner=f"notices/{uuid()}", poller=_NoPoller(), window=50
        )
        try:
            deadline = time.monotonic() + READ_S
            while time.monotonic() < deadline:
                for delivery in consumer.receive(50):
                    self._read(transport, delivery.raw, delivery.head)
                    consumer.settle([Settlement(delivery.tag)])
                    deadline = min(deadline, time.monotonic() + 0.05)
                time.sleep(0.005)
            consumer.flush(1.0)
        finally:
            consumer.close()

    def _read(self, transport: Transport, raw: bytes, head: Any) -> None:
        if not isinstance(head, Head) or head.task != NOTICE:
            return
        try:
            args = read_call(transport.unpack(raw), self._codec())[0]
            error = failures.rebuild(args[0]["result"])
        except (ValueError, KeyError, IndexError, TypeError):
            return  # not a notice after all; nothing is owed to whoever sent it
        if error is not None:
            self._found[head.id] = error
        while len(self._found) > REMEMBERED:
            self._found.pop(next(iter(self._found)))


class _NoPoller:
    """For a consumer that is asked at a pace of its reader's own."""

    def watch(self, fd: int) -> None:
        """Nobody sleeps on it."""

    def unwatch(self, fd: int) -> None:
        """Nobody slept on it."""
