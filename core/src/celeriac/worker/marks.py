"""What a worker counts about a message, written into the message: so it holds for other workers, and over restarts.

A message that goes back with a mark is sent anew with one more header, and the old delivery acknowledged behind it; its
body and its other headers stay as they are. Called by `consumer` and `endings`, for messages that are unusual already.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from celeriac.spec.data import (
    PUBLISH_TRY_HEADER,
    RETURNS_HEADER,
    UNKNOWN_SINCE_HEADER,
    Delivery,
    Payload,
    Route,
)

if TYPE_CHECKING:
    from celeriac.spec.transport import Transport


class Story:
    """What the headers of one message say about its way so far. A message that cannot be read has none.

    Attributes:
        returns: How often it was given back.
        unknown_since: When a worker first found its task unknown; None for never.
        retries: Which try of its task it is: 0 for the first.
    """

    def __init__(self, transport: Transport, delivery: Delivery) -> None:
        self._queue = delivery.queue
        self._payload: Payload | None = None
        headers: dict[str, Any] = {}
        try:
            self._payload = transport.unpack(delivery.raw)
            headers = self._payload.headers
        except Exception:
            pass  # its head could be read, which is all that is certain; it is judged by what the broker says
        returns, retries, since = (headers.get(name) for name in (RETURNS_HEADER, "retries", UNKNOWN_SINCE_HEADER))
        self.returns = returns if type(returns) is int and returns > 0 else 0
        self.retries = retries if type(retries) is int and retries > 0 else 0
        self.unknown_since = float(since) if isinstance(since, (int, float)) else None

    def returned_again(self) -> Payload | None:
        """The message with one more return counted; None if it cannot be read."""
        count = self.returns + 1
        return self._marked({RETURNS_HEADER: count, PUBLISH_TRY_HEADER: count + 1}, None)

    def found_unknown(self, now: float, due: float) -> Payload | None:
        """The message with the time noted at which its task was not known here, for `due`."""
        return self._marked({UNKNOWN_SINCE_HEADER: now}, due)

    @property
    def counts_tries(self) -> bool:
        """Its headers say which try it is; those of protocol 1 do not."""
        return self._payload is not None and bool(self._payload.headers.get("task"))

    def retried(self, eta: datetime) -> Payload | None:
        """The next try of the same call, for that time; None if it cannot be read."""
        again = self._marked({"retries": self.retries + 1, "eta": eta.isoformat()}, eta.timestamp())
        if again is not None:
            for name in (RETURNS_HEADER, UNKNOWN_SINCE_HEADER):
                again.headers.pop(name, None)
        return again

    def _marked(self, marks: dict[str, Any], due: float | None) -> Payload | None:
        payload = self._payload
        if payload is None:
            return None
        return Payload(
            payload.body,
            payload.content_type,
            payload.content_encoding,
            {**payload.headers, **marks},
            payload.properties,
            Route(self._queue),
            due,
        )


def is_same_call(transport: Transport, one: Delivery, other: Delivery) -> bool:
    """Whether two deliveries of one id are of the same message: a retry has the id too, and so has a callback that was
    sent twice. What brokers and workers have counted about it does not matter."""
    try:
        first, second = transport.unpack(one.raw), transport.unpack(other.raw)
    except Exception:  # one cannot be read
        return False
    names = ("id", "task", "retries")
    return first.body == second.body and all(first.headers.get(name) == second.headers.get(name) for name in names)
