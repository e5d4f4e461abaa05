"""What the machine and the plain client libraries can do with no task queue at all: the last row of each broker.

A script for the `raw` venv: `limits.py BROKER URL N` prints one line of JSON with the figures a setup would have.

    redis      enqueue: one LPUSH a round trip; bulk: 100 LPUSHes a write; drain: LMPOP of 100; round trip: PING
               (all on a bare socket, packed by hand, read by hiredis)
    rabbitmq   enqueue: py-amqp's basic_publish, unconfirmed; drain: its basic_consume with one ack for 50 messages
    sqlite     enqueue: one row a transaction; bulk: 100 rows; drain: claim 100 (UPDATE … RETURNING), then delete them
    loop       drain: decode a JSON message and call a function, nothing else
"""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from statistics import median
from urllib.parse import urlsplit

BATCH = 100
BODY = json.dumps(
    {
        "body": "W1tdLCB7fSwgeyJjYWxsYmFja3MiOiBudWxsLCAiZXJyYmFja3MiOiBudWxsLCAiY2hhaW4iOiBudWxsfV0=",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "bench.noop", "id": "0" * 36, "root_id": "0" * 36, "retries": 0, "eta": None},
        "properties": {"delivery_tag": "0" * 36, "delivery_info": {"exchange": "", "routing_key": "bench"}},
    }
).encode()


def redis(url: str, n: int) -> dict[str, float]:
    """A list of messages of about 700 bytes."""
    import hiredis

    parts = urlsplit(url)
    push = _pack(("LPUSH", "limits", BODY))
    pop = _pack(("LMPOP", "1", "limits", "RIGHT", "COUNT", str(BATCH)))
    ping = _pack(("PING",))
    reader = hiredis.Reader()
    with closing(socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask(packed: bytes, replies: int) -> None:
            connection.sendall(packed)
            while replies:
                if reader.gets() is False:
                    reader.feed(connection.recv(262144))
                else:
                    replies -= 1

        latencies = [_time(ask, ping, 1) for _ in range(500)]
        singles = max(500, n // 10)
        return {
            "roundtrip_p50_ms": 1000 * median(latencies),
            "enqueue_per_s": singles / _time(ask, push, 1, times=singles),
            "bulk_per_s": n / _time(ask, push * BATCH, BATCH, times=n // BATCH),
            "drain_per_s": n / _time(ask, pop, 1, times=n // BATCH),
        }


def rabbitmq(url: str, n: int) -> dict[str, float]:
    """A durable queue, persistent messages."""
    import amqp

    parts = urlsplit(url)
    address = f"{parts.hostname}:{parts.port}"
    with amqp.Connection(address, userid="guest", password="guest", virtual_host=parts.path[1:] or "/") as connection:
        channel = connection.channel()
        channel.queue_declare("limits", durable=True, auto_delete=False)

        def publish() -> None:
            for _ in range(n):
                message = amqp.Message(BODY, content_type="application/json", delivery_mode=2)
                channel.basic_publish(message, routing_key="limits")
            channel.queue_declare("limits", passive=True)  # answered after everything before it

        seen = 0

        def take(message: amqp.Message) -> None:
            nonlocal seen
            seen += 1
            if seen % 50 == 0 or seen == n:
                channel.basic_ack(message.delivery_tag, multiple=True)

        def consume() -> None:
            channel.basic_qos(0, 1000, False)
            channel.basic_consume("limits", callback=take)
            while seen < n:
                connection.drain_events()

        return {"enqueue_per_s": n / _time(publish), "drain_per_s": n / _time(consume)}


def sqlite(url: str, n: int) -> dict[str, float]:
    """A table of messages in WAL mode, synchronous=NORMAL."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        connection.execute("create table limits (id integer primary key, body blob, owner text)")
        connection.execute("create index waiting on limits (id) where owner is null")
        insert = "insert into limits (body) values (?)"

        def insert_batch() -> None:
            connection.execute("begin immediate")
            connection.executemany(insert, [(BODY,)] * BATCH)
            connection.execute("commit")

        def claim_batch() -> None:
            rows = connection.execute(
                "update limits set owner = 'me' where id in "
                "(select id from limits where owner is null order by id limit ?) returning id, body",
                (BATCH,),
            ).fetchall()
            connection.execute("begin immediate")
            connection.executemany("delete from limits where id = ?", [(row[0],) for row in rows])
            connection.execute("commit")

        singles = max(500, n // 10)
        figures = {
            "enqueue_per_s": singles / _time(connection.execute, insert, (BODY,), times=singles),
            "bulk_per_s": n / _time(insert_batch, times=n // BATCH),
        }
        figures["drain_per_s"] = n / _time(claim_batch, times=n // BATCH)
        return figures


def loop(url: str, n: int) -> dict[str, float]:
    """One core, no broker."""

    def noop() -> None:
        pass

    def work() -> None:
        for _ in range(n):
            message = json.loads(BODY)
            message["headers"]["task"]
            noop()

    return {"drain_per_s": n / _time(work)}


def _pack(words: tuple[str | bytes, ...]) -> bytes:
    import hiredis

    return bytes(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub allows one word only


def _time(work: Callable[..., object], *arguments: object, times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work(*arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    _, broker, url, count = sys.argv
    print(json.dumps({"redis": redis, "rabbitmq": rabbitmq, "sqlite": sqlite, "loop": loop}[broker](url, int(count))))
