"""Is this RabbitMQ fit for our messages? Judged from what AMQP tells: the server's version, its login, its alarms.

Neither AMQP nor the management API (that of 3.10 was asked) tells `consumer_timeout`; what its default is follows from
the version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote, urlsplit

from celeriac.spec.diagnosis import Finding

OLDEST: Final = (3, 8)
#: From this version on a channel is closed whose consumer holds a message for longer than `consumer_timeout`.
LIMITS_CONSUMERS: Final = (3, 8, 15)
CONSUMER_TIMEOUT_S: Final = 1800.0
LOCAL: Final = ("127.", "localhost", "::1", "")


def judge(version: str, product: str, url: str, blocked: str, longest_task_s: float | None) -> Iterator[Finding]:
    """What is unsafe about such a server.

    Args:
        blocked: Why it takes no messages now; empty if it does.
        longest_task_s: As in `Diagnoses.diagnose`.
    """
    numbers = tuple(int(part) for part in version.split("-")[0].split(".")[:3] if part.isdigit())
    is_rabbit = product == "RabbitMQ" and len(numbers) >= 2
    if is_rabbit and numbers < OLDEST:
        yield Finding("error", "version", f"The server is RabbitMQ {version}.", "Upgrade to 3.8 or newer.")
    if is_rabbit and numbers >= LIMITS_CONSUMERS and (longest_task_s is None or longest_task_s >= CONSUMER_TIMEOUT_S):
        longest = "some tasks have no time limit" if longest_task_s is None else f"tasks may run {longest_task_s:g} s"
        yield Finding(
            "note",
            "consumer timeout",
            f"RabbitMQ {version} takes a message back from a worker that holds it for longer than consumer_timeout, "
            f"and {longest}. A copy holds it in time, if that is {CONSUMER_TIMEOUT_S:g} s (the default) or more.",
            'If it is less here, say so: broker_transport_options = {"consumer_timeout": SECONDS}. For the pool solo, '
            "which cannot do it while its task runs, raise it in rabbitmq.conf (milliseconds).",
        )
    if blocked:
        yield Finding(
            "error",
            "alarm",
            f"The server takes no messages now: {blocked}.",
            "See rabbitmqctl list_alarms: memory above vm_memory_high_watermark, or disk below disk_free_limit.",
        )
    parts = urlsplit(url.split(";")[0])
    host = (parts.hostname or "").lower()
    if not any(host.startswith(local) if local else not host for local in LOCAL):
        if unquote(parts.username or "guest") == "guest":
            yield Finding(
                "warning",
                "access",
                f"The broker at {host} is used as guest, the account that everybody knows.",
                "Make a user of your own (rabbitmqctl add_user, set_permissions) and delete guest.",
            )
        elif parts.scheme not in ("amqps", "pyamqps"):
            yield Finding(
                "note", "access", f"What goes to {host} is not encrypted.", "Use amqps:// where the network is shared."
            )
