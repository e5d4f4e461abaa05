"""Several servers, and how many connections there are to them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from celeriac.exceptions import ConnectionsBusy, TransportUnreachable
from celeriac.testing.services import ANSWER_S, RedisService, ask
from celeriac_broker_redis.transport import RedisTransport, make_transport

pytestmark = [pytest.mark.services, pytest.mark.xdist_group("redis")]


def test_a_replica_is_passed_by_and_the_one_in_use_is_left_when_it_becomes_one(
    desks: Any, private_service: Callable[[Any], Any]
) -> None:
    first: RedisService = private_service(RedisService())
    second: RedisService = private_service(RedisService())

    def waiting(server: RedisService) -> int:
        return int(ask(server.port, b"LLEN celery\r\n", timeout_s=ANSWER_S).strip(b": \r\n"))

    ask(first.port, f"REPLICAOF 127.0.0.1 {second.port}\r\n".encode(), timeout_s=ANSWER_S)
    desk = desks(f"{first.url};{second.url}")
    desk.send("one")
    assert waiting(second) == 1, "the first would have refused it"
    ask(first.port, b"REPLICAOF NO ONE\r\n", timeout_s=ANSWER_S)
    before = waiting(first)
    ask(second.port, f"REPLICAOF 127.0.0.1 {first.port}\r\n".encode(), timeout_s=ANSWER_S)
    desk.send("two")
    assert waiting(first) == before + 1


def transport(url: str, **settings: Any) -> RedisTransport:
    made = make_transport(url, settings)
    assert made is not None
    return made


def test_who_wants_one_connection_too_many_waits_for_it_and_no_longer_than_is_set(desk: Any, redis_url: str) -> None:
    one = transport(redis_url, broker_pool_limit=1, broker_pool_acquire_timeout=0.2)
    wire = one._take(5.0)
    with pytest.raises(ConnectionsBusy, match=r"all 1 connections .* in use for 0\.2 s.*raise broker_pool_limit"):
        one.send([desk.payload("refused")])
    one._wires.put_back(wire)
    patient = transport(redis_url, broker_pool_limit=1)
    wire = patient._take(5.0)
    threading.Timer(0.1, patient._wires.put_back, [wire]).start()
    patient.send([desk.payload("waited")])
    wire = patient._take(5.0)
    threading.Timer(0.1, patient._wires.discard, [wire]).start()
    patient.send([desk.payload("had a new one")])
    assert patient.depth("celery") == 2
    assert (patient._wires._count, len(patient._wires.idle)) == (1, 1)


def test_threads_share_what_there_is_and_none_is_lost(desk: Any, redis_url: str) -> None:
    shared = transport(redis_url, broker_pool_limit=2)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                shared.send([desk.payload()])
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert shared.depth("celery") == 400
    assert shared._wires._count == len(shared._wires.idle) <= 2


def test_without_a_limit_there_are_any_number_and_none_is_kept(desk: Any, redis_url: str) -> None:
    free = transport(redis_url, broker_pool_limit=None)
    wires = [free._take(5.0) for _ in range(20)]
    free.send([desk.payload()])
    for wire in wires:
        free._wires.put_back(wire)
    assert (free._wires._count, len(free._wires.idle)) == (0, 0)


def test_a_connection_that_cannot_be_made_takes_no_place() -> None:
    nowhere = transport("redis://127.0.0.1:1", broker_pool_limit=1)
    for _ in range(3):
        with pytest.raises(TransportUnreachable):
            nowhere.depth("celery")
