"""The rpc backend: a result is a message to the queue of whoever called. Called by core, from any thread.

Works on every transport. Results are not kept anywhere: the client that made the call can read them, while it lives.

Source: Celery 5.7's rpc backend; the queue and the message are the same, so both kinds of client and worker mix.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from celeriac.exceptions import (
    BackendLost,
    BackendUnreachable,
    ContentDisallowed,
    OperationalError,
    TransportUnreachable,
    Unsupported,
)
from celeriac.spec import Delivery, Document, Host, Payload, Route, Serializer, StoredResult
from celeriac.spec.results import SERIALIZERS, AcceptedResults, ResultCompression
from celeriac.states import FAILURE
from celeriac_backend_rpc import stored
from celeriac_backend_rpc.mailbox import Mailbox

ABILITIES: Final = frozenset({"push", "replies", "shared"})
#: AMQP allows no longer queue name, so nobody can be listening on one.
MAX_QUEUE_BYTES: Final = 255
#: … and of the id that a reply names.
MAX_ID_BYTES: Final = 255
#: The header of a message that names the compression of its body, as in Celery's.
COMPRESSION: Final = "compression"
#: The `task` header of core's notice that a worker keeps results elsewhere.
NOTICE: Final = "celeriac.notice"

_log = logging.getLogger("celeriac.backend.rpc")


class RpcBackend:
    """See `celeriac.spec.ResultBackend`.

    Args:
        settings: Read are result_serializer, result_accept_content, accept_content, result_compression and
            result_persistent.
    """

    abilities = ABILITIES
    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self._url = url
        self._host = host
        self._own_serializer: str = settings.get("result_serializer") or "json"
        self._accepted = AcceptedResults(settings)
        self._compression = ResultCompression(settings)
        self._delivery_mode = 2 if settings.get("result_persistent") else 1
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._mailbox = Mailbox(self._host, self._read)

    # -- documents --------------------------------------------------------------------------------------------

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        body = self._compression.pack(serializer.dumps(document), document.get("status"))
        return stored.join(serializer.content_type, serializer.content_encoding, body)

    def decode(self, data: bytes) -> Document:
        """Read a document, of any serializer that results may have.

        Raises:
            ValueError: Not a document.
            ContentDisallowed: Its serializer is not among those accepted.
        """
        content_type, _, body = stored.split(data)
        name = SERIALIZERS.get(content_type) or self._own_serializer
        self._accepted.check(name, content_type)
        document = self._host.serializer(name).loads(self._compression.unpack(body))
        if not isinstance(document, dict):
            raise ValueError(f"a result is a {type(document).__name__}, not a document")
        return document

    # -- the worker's half ------------------------------------------------------------------------------------

    def store(self, batch: Sequence[StoredResult]) -> None:
        """Send the answers. One whose client has gone is dropped, which is what the client chose.

        Raises:
            BackendLost: The broker cannot take them now; some may have been sent.
        """
        payloads = [self._make_reply(result) for result in batch if self._has_reader(result)]
        if not payloads:
            return
        try:
            self._host.transport().send(payloads)
        except OperationalError as exc:
            raise BackendLost(f"rpc: {len(payloads)} result(s) could not be sent to their clients: {exc}") from exc

    def _has_reader(self, result: StoredResult) -> bool:
        if not result.reply_to:
            return False
        if len(result.reply_to.encode("utf-8", "surrogatepass")) > MAX_QUEUE_BYTES:
            _log.warning("The result of %s was dropped: no queue can have the name to reply to.", result.task_id)
            return False
        if len(result.task_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            # The broker would refuse it each time, and the worker would take that for a store that is away.
            _log.warning("The result of %.255s… was dropped: no reply can carry so long an id.", result.task_id)
            return False
        return True

    def _make_reply(self, result: StoredResult) -> Payload:
        """The message. Its property `mandatory` False tells the transport that nobody to take it is no error."""
        content_type, content_encoding, data = stored.split(result.data)
        compression, body = self._compression.split(data)
        headers = {COMPRESSION: compression} if compression else {}
        queue = result.reply_to or ""
        properties = {
            "correlation_id": result.task_id,
            "delivery_mode": self._delivery_mode,
            "priority": 0,
            "mandatory": False,
        }
        return Payload(body, content_type, content_encoding, headers, properties, Route(queue, queue=queue))

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        raise Unsupported("rpc backend: answers cannot ride in a broker's transaction")

    # -- the client's half ------------------------------------------------------------------------------------

    def expect(self, task_ids: Sequence[str]) -> None:
        """See to it that the reply queue exists before the call is sent.

        Raises:
            OperationalError: The broker cannot be reached; the call cannot be sent either.
        """
        self._own_mailbox().declare()

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        return self._own_mailbox().take(task_ids)

    def watch(self, task_ids: Sequence[str]) -> RpcWatch:
        watch = RpcWatch(self._own_mailbox())
        watch.add(task_ids)
        return watch

    def forget(self, task_ids: Sequence[str]) -> None:
        self._own_mailbox().forget(task_ids)

    def cleanup(self) -> int:
        """Nothing to do: nothing is kept."""
        return 0

    def _own_mailbox(self) -> Mailbox:
        if self._pid != os.getpid():
            self._begin()
        return self._mailbox

    def _read(self, delivery: Delivery) -> tuple[str, str, bytes] | None:
        """What a reply says: (task id, state, stored form). Anything else in the queue is dropped with a word."""
        try:
            payload = self._host.transport().unpack(delivery.raw)
            body = self._compression.join(str(payload.headers.get(COMPRESSION) or ""), payload.body)
            data = stored.join(payload.content_type, payload.content_encoding, body)
            if payload.headers.get("task") == NOTICE:
                data = self._open_notice(payload)
            task_id = payload.properties.get("correlation_id")
            try:
                state = self.decode(data).get("status")
            except ContentDisallowed:
                state = FAILURE  # an end all the same: whoever waits for it is told why it cannot be read
            if isinstance(task_id, str) and isinstance(state, str):
                return task_id, state, data
            problem: object = f"a reply to {task_id!r} with state {state!r}"
        except Exception as exc:  # any bytes may stand in a queue (B26), and what unpacks them has errors of its own
            problem = exc
        _log.warning("Something in the reply queue is no reply and was dropped: %s", problem)
        return None

    def _open_notice(self, payload: Payload) -> bytes:
        """The document that a worker with another result backend sends, as it travels in an ordinary call."""
        serializer = self._host.serializer("json")
        ((document,), _, _) = serializer.loads(payload.body)
        return self.encode(document, serializer)

    # -- life -------------------------------------------------------------------------------------------------

    def ping(self, timeout_s: float) -> str:
        try:
            return f"replies over {self._host.transport().ping(timeout_s)}"
        except TransportUnreachable as exc:
            raise BackendUnreachable(f"rpc: {exc}", url=self._url) from exc

    def after_fork(self) -> None:
        """The parent's replies stay the parent's; the transport drops the consumer."""
        self._begin()

    def close(self) -> None:
        if self._pid == os.getpid():
            self._mailbox.close()
        self._begin()


class RpcWatch:
    """See `celeriac.spec.Watch`."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._news: deque[tuple[str, bytes]] = deque()
        self._ids: set[str] = set()

    def add(self, ids: Sequence[str]) -> None:
        fresh = [task_id for task_id in dict.fromkeys(ids) if task_id not in self._ids]
        self._ids.update(fresh)
        self._mailbox.add_waiter(fresh, self._news)

    def discard(self, ids: Sequence[str]) -> None:
        known = [task_id for task_id in ids if task_id in self._ids]
        self._ids.difference_update(known)
        self._mailbox.remove_waiter(known, self._news)

    def wait(self, timeout_s: float) -> list[tuple[str, bytes]]:
        news = self._news
        self._mailbox.wait(news, timeout_s)
        out = []
        while news:
            task_id, data = news.popleft()
            if task_id in self._ids:
                out.append((task_id, data))
        return out

    def close(self) -> None:
        self.discard(list(self._ids))
