"""What one message costs this plugin's Python, step by step, without a server: `python steps.py`.

Prints microseconds a message, the best of several rounds, on Celery's message for `add(2, 3)`.
"""

from __future__ import annotations

import socket
import sys
import time
import uuid
from collections.abc import Callable
from struct import pack
from typing import Any

from celeriac.spec import Payload, Route
from celeriac_broker_amqp import message, methods
from celeriac_broker_amqp.link import Link
from celeriac_broker_amqp.publisher import make_item

COUNT = 1000
ROUNDS = 15
BODY = b'[[2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


def make_payload() -> Payload:
    task_id = str(uuid.uuid4())
    headers = {
        "lang": "py", "task": "proj.add", "id": task_id, "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": task_id, "parent_id": None,
        "argsrepr": "(2, 3)", "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": False,
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    properties = {"correlation_id": task_id, "reply_to": str(uuid.uuid4()), "delivery_mode": 2, "priority": 0}
    return Payload(BODY, "application/json", "utf-8", headers, properties, Route("celery"))


def frame_delivery(tag: int, payload: Payload) -> bytes:
    method = b"\x00\x3c\x00\x3c" + methods.short_text("w1@host-1.1") + pack(">QB", tag, 0) + b"\x00\x06celery"
    return b"".join(
        (
            methods.frame(methods.METHOD, 1, method),
            methods.frame(methods.HEADER, 1, message.pack_header(payload)),
            methods.frame(methods.BODY, 1, payload.body),
        )
    )


def measure(what: str, step: Callable[[], Any]) -> None:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - started)
    sys.stdout.write(f"{what:<50}{best / COUNT * 1e6:8.2f} µs\n")


def main() -> None:
    payloads = [make_payload() for _ in range(COUNT)]
    stream = b"".join(frame_delivery(tag, payload) for tag, payload in enumerate(payloads, 1))
    chunks = [stream[at : at + 131072] for at in range(0, len(stream), 131072)]
    ours, _theirs = socket.socketpair()
    link = Link(ours, frame_max=131072, heartbeat_s=0, server={}, where="nowhere", timeout_s=1.0)

    def cut() -> None:
        link.deliveries.clear()
        for chunk in chunks:
            link._cut(link._rest + chunk if link._rest else chunk)

    measure("send: header table and properties", lambda: [make_item(payload) for payload in payloads])
    measure("receive: cut frames", cut)
    records = [record for _, _, _, record in link.deliveries]
    assert len(records) == COUNT
    measure("receive: read the head", lambda: [message.scan(record) for record in records])
    measure("settle: a frame of basic.ack", lambda: [methods.ack(1, tag, False) for tag in range(COUNT)])
    measure("slot: read the whole message", lambda: [message.unpack(record) for record in records])
    try:
        from amqp.serialization import dumps, loads
    except ImportError:
        return
    tables = [dumps("F", [payload.headers]) for payload in payloads]
    measure("py-amqp: write the header table", lambda: [dumps("F", [payload.headers]) for payload in payloads])
    measure("py-amqp: read the header table", lambda: [loads("F", table, 0) for table in tables])


if __name__ == "__main__":
    main()
