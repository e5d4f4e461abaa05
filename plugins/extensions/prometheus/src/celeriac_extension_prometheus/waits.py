"""When a call was sent: Celery's messages do not say it, so a header does, for who wants to know."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from celeriac import signals

HEADER: Final = "x-celeriac-sent-at"


def stamp_sends() -> None:
    """Have every call that this process sends from now on say when: the header `x-celeriac-sent-at`, unix time.

    Workers with the extension do it by themselves; a program calls it once, where it makes its app.
    """
    signals.before_task_publish.connect(_stamp, weak=False, dispatch_uid="celeriac_extension_prometheus")


def _stamp(headers: dict[str, Any], **_: Any) -> None:
    headers[HEADER] = time.time()


def ready_at(headers: Mapping[str, Any]) -> float | None:
    """When a call could have run: when it was sent, or its eta if that is later. None if it does not say."""
    sent_at = headers.get(HEADER)
    if not isinstance(sent_at, (int, float)):
        return None
    eta = headers.get("eta")
    if not isinstance(eta, str):
        return float(sent_at)
    try:
        return max(float(sent_at), datetime.fromisoformat(eta.replace("Z", "+00:00")).timestamp())
    except ValueError:
        return float(sent_at)
