"""RabbitMQ (AMQP 0-9-1) broker for celeriac."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celeriac.spec import Transport, hookimpl

CELERIAC_API = (1, 0)
SCHEMES = ("amqp://", "amqps://", "pyamqp://")


@hookimpl
def celeriac_make_transport(url: str, settings: Mapping[str, Any]) -> Transport | None:
    if not url.startswith(SCHEMES):
        return None
    from celeriac_broker_amqp.transport import AmqpTransport

    return AmqpTransport(url, settings)
