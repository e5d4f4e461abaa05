"""The signals around a message: `before_task_publish`, whose receivers may change it, and `after_task_publish`.

Called by `app/sending.py` for what a program sends, and by the slot for what follows from a run (retries, callbacks).
The latter is sent by the worker right after, so there `after_task_publish` means: it was handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celeriac import signals
from celeriac.messaging.notices import NOTICE
from celeriac.messaging.seal import Seal
from celeriac.spec.data import Payload


def announce_before(payloads: Sequence[Payload], seal: Seal | None, retry_policy: Any = None) -> None:
    """Send `before_task_publish` for each of them, and seal what receivers may have changed."""
    for payload in payloads:
        if payload.headers["task"] == NOTICE:
            continue
        more = {"properties": payload.properties, "declare": [], "retry_policy": retry_policy}
        _announce(signals.before_task_publish, payload, **more)
        if seal is not None:
            seal.put_on(payload)


def announce_after(payloads: Sequence[Payload]) -> None:
    """Send `after_task_publish` for each of them."""
    for payload in payloads:
        if payload.headers["task"] != NOTICE:
            _announce(signals.after_task_publish, payload)


def _announce(signal: signals.Signal, payload: Payload, **more: Any) -> None:
    signal.send(
        sender=payload.headers["task"],
        body=payload.body,
        exchange=payload.route.exchange,
        routing_key=payload.route.routing_key,
        headers=payload.headers,
        **more,
    )
