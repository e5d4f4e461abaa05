"""Sends payloads through a transport, with the queue declared before its first message and a retry policy.

Only what cannot have been stored is sent again here: `PublishUncertain` goes to the caller, who alone can
know whether a second message would do harm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from celeriac.exceptions import PublishUncertain, TransportLost, TransportUnreachable
from celeriac.messaging.routes import REMEMBERED, Router
from celeriac.spec.data import PUBLISH_TRY_HEADER, Payload
from celeriac.spec.transport import OnceTransport, Transport
from celeriac.utils.bounded import Bounded

if TYPE_CHECKING:
    from celeriac.spec.transport import FanoutTransport


class Producer:
    """Sends for one app in one process; safe for threads, since transports are.

    Args:
        transport: Made anew (with the producer) after a fork.
    """

    def __init__(self, transport: Transport, router: Router, conf: Mapping[str, Any]) -> None:
        self._transport = transport
        self._router = router
        self._timeout_s = float(conf.get("publish_timeout") or 10.0)
        self._policy = {
            "max_retries": 3,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 1,
            **(conf["task_publish_retry_policy"] or {}),
        }
        self._retry = bool(conf["task_publish_retry"])
        self._declared: dict[str, bool] = Bounded(REMEMBERED)
        #: Monitors are told of what is sent.
        self.tells_sent = bool(conf["task_send_sent_event"])
        self._usual_pauses = self._pauses(None, None)

    def send(
        self,
        payloads: Sequence[Payload],
        *,
        retry: bool | None = None,
        policy: Mapping[str, Any] | None = None,
        once: tuple[str, float] | None = None,
    ) -> None:
        """Send these, or raise; see `Transport.send` for the errors.

        Args:
            retry, policy: Instead of `task_publish_retry` and `task_publish_retry_policy`.
            once: Key and seconds for `OnceTransport.send_once`; only for a transport with that ability.
        """
        usual = retry is None and policy is None
        for pause_s in self._usual_pauses if usual else self._pauses(retry, policy):
            try:
                for payload in payloads:
                    queue = payload.route.queue
                    if queue and queue not in self._declared:
                        self._declare(queue)
                if self._router.broadcasts:
                    payloads = broadcast(payloads, self._transport, self._router, self._timeout_s)
                if not payloads:
                    return
                if once is None:
                    self._transport.send(payloads, timeout_s=self._timeout_s)
                else:
                    sender = cast(OnceTransport, self._transport)
                    sender.send_once(payloads, key=once[0], keep_s=once[1], timeout_s=self._timeout_s)
                return
            except PublishUncertain as exc:
                exc.payloads = exc.payloads or list(payloads)
                raise
            except (TransportLost, TransportUnreachable):
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def send_again(self, payloads: Sequence[Payload]) -> None:
        """Send what may have been sent already, and say so in it: workers take it for redelivered."""
        for payload in payloads:
            tries = payload.headers.get(PUBLISH_TRY_HEADER)
            payload.headers[PUBLISH_TRY_HEADER] = (tries if type(tries) is int else 1) + 1
        self.send(payloads)

    def _declare(self, queue: str) -> None:
        self._transport.declare(self._router.declarations(queue))
        self._declared[queue] = True

    def _pauses(self, retry: bool | None, policy: Mapping[str, Any] | None) -> Sequence[float | None]:
        """The pause after each attempt; None after the last."""
        if not (self._retry if retry is None else retry):
            return (None,)
        rules = {**self._policy, **policy} if policy else self._policy
        tries = rules["max_retries"]
        count = 100 if tries is None else int(tries)
        start, step, most = rules["interval_start"], rules["interval_step"], rules["interval_max"]
        return [*(min(start + step * index, most) for index in range(count)), None]


def broadcast(
    payloads: Sequence[Payload], transport: Transport, router: Router, timeout_s: float = 10.0
) -> Sequence[Payload]:
    """Send those whose route leads to a `Broadcast` queue to all who listen; returns the others, unsent."""
    others: list[Payload] = []
    for payload in payloads:
        if router.is_broadcast(payload.route):
            exchange = router.broadcast_exchange(payload.route)
            cast("FanoutTransport", transport).broadcast(exchange, [payload], timeout_s=timeout_s)
        else:
            others.append(payload)
    return others
