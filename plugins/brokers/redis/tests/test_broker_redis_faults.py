"""What breaks, and what holds all the same: connections, servers, workers."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from celeriac.exceptions import PublishRejected, PublishUncertain, TransportLost, TransportUnreachable
from celeriac.spec import ExchangeSpec, QueueSpec, Settlement
from celeriac.testing.kit import Bench
from celeriac.testing.services import RedisService, ask
from celeriac_broker_redis import consumer as consumer_module
from celeriac_broker_redis import keys, waits
from celeriac_support_redis.standin import StandIn
from celeriac_support_redis.wire import ReplyError, WireUnreachable, pack

#: Takes two messages, starts waiting for more for as long as it lives, says so, and hangs until it is killed.
VICTIM = """
import sys, time
import celeriac_broker_redis.consumer
from celeriac.spec import QueueSpec
from celeriac.testing.kit import Bench
from celeriac_broker_redis.transport import make_transport
celeriac_broker_redis.consumer.IDLE_S = (600.0, 600.0)
bench, transport = Bench(), make_transport(sys.argv[1], {"broker_transport_options": {"lease": sys.argv[2]}})
consumer = transport.consumer([QueueSpec("celery")], owner="victim", poller=bench, window=8)
taken = bench.take(consumer, 2)
while not consumer._waits.armed:
    consumer.receive(5)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def redis(private_service: Any) -> RedisService:
    """A server to break, whose data survives it."""
    service: RedisService = private_service(RedisService(durable=True))
    return service


def kill_connections(desk: Any, pattern: bytes = b"name=celeriac:") -> int:
    """Cut every connection of consumers, as a network would."""
    wire = desk.transport._wires.take(5.0)
    killed = 0
    for line in wire.call("CLIENT", "LIST").splitlines():
        if pattern in line:
            killed += bool(wire.call("CLIENT", "KILL", "ID", line.split()[0][3:]))
    desk.transport._wires.put_back(wire)
    return killed


def swallow(wire: Any) -> None:
    """Let the network lose what the server answered."""
    assert wire.wait(30.0)
    wire.sock.recv(1 << 20)


# -- connections --------------------------------------------------------------------------------------------


def test_a_cut_connection_loses_nothing_and_repeats_nothing(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    desk.send("held")
    (held,) = desk.receive(consumer, 1)
    desk.idle(consumer)
    assert kill_connections(desk) >= 3
    desk.send("next")
    (following,) = desk.receive(consumer, 1)
    assert (following.head.id, following.redelivered) == ("next", False)
    desk.settle(consumer, [held, following])
    assert server.call("HLEN", "unacked") == 0


def test_a_connection_that_ends_under_a_claim_brings_its_messages_all_the_same(desk: Any, server: Any) -> None:
    desk.send("a", "b", "c")
    consumer = desk.consumer()
    consumer.receive(3)  # the claim is written, and its answer not read
    desk.until(lambda: server.call("HLEN", "unacked") == 3)
    consumer._wire.shutdown()
    found = desk.receive(consumer, 3)
    assert desk.names(found) == ["a", "b", "c"]
    assert not any(delivery.redelivered for delivery in found)
    desk.settle(consumer, found)
    assert server.call("HLEN", "unacked") == 0


def test_an_answer_that_never_arrives_is_looked_up(desk: Any, server: Any) -> None:
    desk.send("a", "b")
    server.call("LPUSH", "celery", b"garbage")
    consumer = desk.consumer()
    consumer.receive(3)
    desk.until(lambda: server.call("ZCOUNT", "unacked_index", "-inf", "(+inf") == 3)
    swallow(consumer._wire)  # swallowed by the network
    kill_connections(desk)
    found = desk.receive(consumer, 3)
    assert [delivery.raw == b"garbage" for delivery in found] == [False, False, True]
    desk.settle(consumer, found)
    assert not any(server.pipeline([("HLEN", "unacked"), ("HLEN", "celeriac.odd"), ("LLEN", "celery")]))


def test_a_message_that_came_at_the_moment_of_the_cut_is_in_the_inbox(patience: None, desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    desk.idle(consumer)
    (wait,) = consumer._waits.lines
    inbox = wait.inbox
    desk.send("a")
    desk.until(lambda: server.call("LLEN", inbox) == 1)
    swallow(wait.wire)
    kill_connections(desk)
    (delivery,) = desk.receive(consumer, 1)
    assert (delivery.head.id, delivery.redelivered) == ("a", False)
    desk.settle(consumer, [delivery])
    assert not any(server.pipeline([("HLEN", "unacked"), ("LLEN", inbox), ("LLEN", "celery")]))


def test_what_a_wait_brought_is_not_forgotten_because_another_connection_broke(
    patience: None, desk: Any, server: Any
) -> None:
    consumer = desk.consumer()
    desk.idle(consumer)
    (wait,) = consumer._waits.lines
    inbox = wait.inbox
    desk.send("a")
    assert wait.wire.wait(30.0)  # it is here, and not read
    hints = consumer._waits._hints
    hints.hear()
    hints.wire.shutdown()
    assert consumer._wire.wait(0) is False
    (delivery,) = desk.receive(consumer, 1)
    assert (delivery.head.id, delivery.redelivered) == ("a", False)
    desk.settle(consumer, [delivery])
    assert not any(server.pipeline([("HLEN", "unacked"), ("LLEN", inbox), ("LLEN", "celery")]))


def test_a_settlement_on_a_cut_connection_is_performed_once(desk: Any, server: Any) -> None:
    desk.send("a", "b")
    consumer = desk.consumer()
    first, second = desk.receive(consumer, 2)
    consumer.settle([Settlement(first.tag)], publish=[desk.payload("after-a")])
    desk.until(lambda: server.call("HLEN", "unacked") == 1)
    swallow(consumer._wire)  # performed, but nobody heard
    kill_connections(desk)
    consumer.settle([Settlement(second.tag)], publish=[desk.payload("after-b")])
    consumer.flush(30)
    assert server.call("HLEN", "unacked") == 0
    assert desk.take(consumer, 2) == ["after-a", "after-b"]
    assert desk.transport.depth("celery") == 0


def test_a_cut_after_half_of_the_answers_to_a_settlement_leaves_no_answer_too_many(desk: Any, server: Any) -> None:
    desk.send("a", "b")
    consumer = desk.consumer()
    first, second = desk.receive(consumer, 2)
    consumer.settle([Settlement(first.tag)])  # two commands
    answers: list[Any] = []
    desk.until(lambda: (answers.extend(consumer._wire.replies()), len(answers) == 2)[1])
    consumer._answered(answers[:1])
    consumer._wire.shutdown()
    desk.send("c", "d")
    assert desk.take(consumer, 2) == ["c", "d"]
    desk.settle(consumer, [second])
    assert server.call("HLEN", "unacked") == 0


def test_a_settlement_that_cannot_even_be_prepared_is_a_loss_of_the_broker(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.send("a")
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)

    def away(*args: Any, **words: Any) -> None:
        raise WireUnreachable("away", "Is it up?")

    monkeypatch.setattr("celeriac_broker_redis.leases.connect", away)
    consumer._leases._wire.shutdown()
    with pytest.raises(TransportLost, match="away"):
        consumer.settle([Settlement(delivery.tag)], publish=[desk.payload("b")])


def test_cut_again_and_again_every_message_is_done_once(desk: Any, server: Any) -> None:
    """Connections are cut at random moments while 300 messages, each with a successor, go through."""
    consumer = desk.consumer()
    rng = random.Random(7)
    over = threading.Event()
    mend, mends = consumer._mend, [0]

    def count(exc: Any) -> None:
        mend(exc)
        mends[0] += 1

    consumer._mend = count

    def cut() -> None:
        while not over.wait(rng.uniform(1.05, 1.3)):
            before = mends[0]
            kill_connections(desk)
            while mends[0] == before and not over.wait(0.01):
                pass  # a loss while it mends, or within a second of that, is the worker's; and it may take its time

    cutter = threading.Thread(target=cut)
    cutter.start()
    done: list[str] = []
    try:
        deadline = time.monotonic() + 8
        sent = 0
        while time.monotonic() < deadline or len(done) < 2 * sent:
            assert time.monotonic() < deadline + 60
            if sent < 300:
                desk.send(f"{sent}")
                sent += 1
            for delivery in consumer.receive(5):
                name = delivery.head.id
                done.append(name)
                follow = [] if name.endswith("+") else [desk.payload(name + "+")]
                consumer.settle([Settlement(delivery.tag)], publish=follow)
            desk.sleepers[consumer].sleep(0.01)
        consumer.flush(30)
    finally:
        over.set()
        cutter.join()
    assert sorted(done) == sorted([f"{n}" for n in range(sent)] + [f"{n}+" for n in range(sent)])
    assert server.call("HLEN", "unacked") == 0


def test_a_busy_consumer_notices_a_cut_and_does_not_spin(desk: Any) -> None:
    consumer = desk.consumer()
    desk.send("a", "b", priority=9)
    held = desk.receive(consumer, 2)
    desk.idle(consumer)
    time.sleep(1.1)
    kill_connections(desk)
    wakes = 0
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        assert consumer.receive(0) == []
        desk.sleepers[consumer].sleep(0.1)
        wakes += 1
    assert wakes < 20
    desk.settle(consumer, held)


def test_a_server_that_forgot_the_scripts_is_told_again(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    desk.send("a")
    (delivery,) = desk.receive(consumer, 1)
    server.call("SCRIPT", "FLUSH")
    consumer.settle([Settlement(delivery.tag)], publish=[desk.payload("b")])
    assert desk.take(consumer, 1) == ["b"]
    time.sleep(1.1)
    server.call("SCRIPT", "FLUSH")
    desk.send("c")
    (delivery,) = desk.receive(consumer, 1)
    assert consumer.renew() == []
    desk.settle(consumer, [delivery], "requeue", started=True)
    assert server.call("HLEN", "unacked") == 0


def test_sending_on_a_connection_that_was_cut_while_idle_works_at_once(desk: Any) -> None:
    desk.send("a")
    desk.transport._wires.idle[0].call("CLIENT", "SETNAME", "sender")
    admin = desk.consumer()
    wire = admin._leases
    for line in wire._call([("CLIENT", "LIST")])[0].splitlines():
        if b"name=sender" in line:
            wire._call([("CLIENT", "KILL", "ID", line.split()[0][3:])])
    desk.send("b")
    assert desk.take(admin, 2) == ["a", "b"]


def test_a_server_that_falls_silent_makes_a_publish_uncertain_in_time(redis: RedisService, desks: Any) -> None:
    desk = desks(redis.url)
    desk.send("a")
    redis.freeze()
    try:
        begun = time.monotonic()
        with pytest.raises(PublishUncertain):
            desk.transport.send([desk.payload("b")], timeout_s=0.5)
        assert time.monotonic() - begun < 30
    finally:
        redis.thaw()


def test_a_consumer_of_a_silent_server_finds_out_and_goes_on(redis: RedisService, desks: Any) -> None:
    desk = desks(redis.url, socket_connect_timeout=4.0)
    consumer = desk.consumer()
    desk.idle(consumer)
    wire = consumer._leases._wire
    wire.address = replace(wire.address, timeout_s=0.5)  # not of those to come, which have to last
    redis.freeze()
    with pytest.raises(TransportLost):
        consumer.renew()
    redis.thaw()
    desk.send("a")
    assert desk.take(consumer, 1) == ["a"]


# -- servers ------------------------------------------------------------------------------------------------


def test_a_restarted_server_is_found_again_with_all_that_was_held(redis: RedisService, desks: Any) -> None:
    desk = desks(redis.url)
    consumer = desk.consumer()
    desk.send("held", "waiting")
    held = desk.receive(consumer, 1)
    redis.restart()
    assert consumer.renew() == []
    (waiting,) = desk.receive(consumer, 1)
    assert (waiting.head.id, waiting.redelivered) == ("waiting", False)
    desk.settle(consumer, [*held, waiting])
    consumer.close()
    assert desk.take(desk.consumer(), 0) == []


def test_while_the_server_is_gone_the_consumer_says_so_and_its_successor_gets_everything(
    redis: RedisService, desks: Any
) -> None:
    desk = desks(redis.url)
    consumer = desk.consumer()
    desk.send("a", "b")
    desk.receive(consumer, 1)
    redis.kill()
    with pytest.raises(TransportLost):
        for _ in range(3):
            consumer.receive(1)
            desk.sleepers[consumer].sleep(0.2)
    begun = time.monotonic()
    consumer.close()
    assert time.monotonic() - begun < 30
    with pytest.raises((TransportUnreachable, TransportLost)):
        desk.consumer()
    redis.start()
    successor = desk.consumer()
    found = desk.receive(successor, 2)
    told = [(one.head.id, one.attempt, one.redelivered, one.spared) for one in found]
    assert told == [("a", 2, True, 1), ("b", 1, False, 0)], "its process lives, so that was no crash"
    desk.settle(successor, found)


def test_a_server_without_its_data_is_no_reason_to_stop(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    desk.send("gone")
    (gone,) = desk.receive(consumer, 1)
    server.call("FLUSHDB")
    with capture_logs() as logs:
        assert [consumer.renew(), consumer.renew()] == [[gone.tag]] * 2
    assert [(line["event"], line["held"]) for line in logs] == [("store.reset", 1)]
    consumer.settle([Settlement(gone.tag)])
    desk.send("new")
    assert desk.take(consumer, 1) == ["new"]


def test_a_server_that_came_back_empty_is_told_of_once(private_service: Any, desks: Any) -> None:
    redis = private_service(RedisService())
    desk = desks(redis.url)
    with capture_logs() as logs:
        desk.consumer()
        desk.consumer(owner="w2")
        redis.kill()
        redis.start()
        desk.consumer(owner="w3").renew()
    assert [line["log_level"] for line in logs if line["event"] == "store.reset"] == ["error"]


def test_two_apps_on_one_server_are_no_server_that_came_back_empty(desk: Any, desks: Any) -> None:
    with capture_logs() as logs:
        for prefix in ("a:", "b:"):
            desks(desk.url, global_keyprefix=prefix).consumer()
    assert "store.reset" not in [entry["event"] for entry in logs]


def test_a_lease_is_renewed_three_times_before_it_ends_here_or_at_celerys(redis_url: str, desks: Any) -> None:
    assert desks(redis_url).consumer().renew_interval_s == 2.0
    assert desks(redis_url, lease=3).consumer().renew_interval_s == 1.0
    assert desks(redis_url, visibility_timeout=4.5).consumer().renew_interval_s == 1.5


def test_a_server_that_became_a_replica_costs_the_consumer_at_once_and_nobody_a_message(
    redis: RedisService, desks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac_broker_redis.consumer.CLOSE_S", 60.0)
    desk = desks(redis.url, socket_timeout=60)
    admin = desk.transport._wires.take(5.0)
    consumer = desk.consumer()
    desk.send("held", "ready")
    (held,) = desk.receive(consumer, 1)
    admin.call("REPLICAOF", "127.0.0.1", "1")  # of one that is away
    consumer.settle([Settlement(held.tag)])
    with pytest.raises(TransportLost, match="READONLY"):
        desk.until(lambda: consumer.receive(2))
    begun = time.monotonic()
    consumer.close()
    with pytest.raises(TransportLost, match="READONLY"):
        desk.consumer()
    assert time.monotonic() - begun < 30, (
        "a worker that waits for answers to what it never asked is late when all is well"
    )
    admin.call("REPLICAOF", "NO", "ONE")
    successor = desk.consumer()
    found = {one.head.id: one.redelivered for one in desk.receive(successor, 2)}
    assert found == {"held": True, "ready": False}


def test_a_replica_that_is_promoted_while_we_connect_anew_costs_nothing(redis: RedisService, desks: Any) -> None:
    desk = desks(redis.url)
    admin = desk.transport._wires.take(5.0)
    consumer = desk.consumer()
    desk.send("held", "ready")
    (held,) = desk.receive(consumer, 1)
    admin.call("REPLICAOF", "127.0.0.1", "1")
    consumer.settle([Settlement(held.tag)])
    assert consumer._wire.wait(30.0)  # the refusal is here, and not read
    admin.call("REPLICAOF", "NO", "ONE")
    (ready,) = desk.receive(consumer, 1)
    assert (ready.head.id, ready.redelivered) == ("ready", False)
    desk.settle(consumer, [ready])
    assert not any(admin.pipeline([("HLEN", "unacked"), ("LLEN", "celery")]))


def test_a_busy_server_is_waited_for_with_all_that_is_held(redis: RedisService, desks: Any) -> None:
    desk = desks(redis.url)
    admin, other = desk.transport._wires.take(5.0), desk.transport._wires.take(5.0)
    admin.call("CONFIG", "SET", "busy-reply-threshold", "1")
    consumer = desk.consumer()
    desk.send("held", "ready")
    (held,) = desk.receive(consumer, 1)
    other.write(pack(("EVAL", "while true do redis.call('PING') end", "0")))
    desk.until(lambda: _is_busy(admin))
    consumer.settle([Settlement(held.tag)])
    for _ in range(3):
        assert consumer.receive(2) == []
        desk.sleepers[consumer].sleep(0.3)
    admin.call("SCRIPT", "KILL")
    (ready,) = desk.receive(consumer, 1)
    assert (ready.head.id, ready.redelivered) == ("ready", False)
    desk.settle(consumer, [ready])
    assert not any(admin.pipeline([("HLEN", "unacked"), ("LLEN", "celery")]))


def test_a_full_server_is_waited_for_by_those_who_have_nothing_to_do(redis: RedisService, desks: Any) -> None:
    desk = desks(redis.url)
    admin = desk.transport._wires.take(1.0)
    desk.send("held")
    waiting, fresh = desk.consumer(), desk.consumer("other")
    (held,) = desk.receive(waiting, 1)
    desk.idle(waiting)
    admin.call("CONFIG", "SET", "maxmemory", "1mb")
    for consumer in (waiting, fresh):
        desk.until(lambda consumer=consumer: consumer.receive(1) == [] and consumer._waits.refused)
        assert consumer.poll_interval_s == 1.0
    desk.settle(waiting, [held])
    admin.call("CONFIG", "SET", "maxmemory", "0")
    desk.send("a")
    desk.send("b", queue="other")
    assert desk.take(waiting, 1) + desk.take(fresh, 1) == ["a", "b"]
    desk.idle(waiting)
    assert admin.call("HLEN", "unacked") == 0


def test_a_worker_that_begins_at_a_full_server_drains_it_and_has_what_dead_ones_held(
    private_service: Any, desks: Any
) -> None:
    desk = desks(private_service(RedisService()).url)
    desk.send("held", "waiting")
    dead = desk.consumer()
    assert desk.names(desk.receive(dead, 1)) == ["held"]
    dead.closed = True  # as one that could not say goodbye
    dead._hang_up()
    dead._leases.abandon()
    admin = desk.transport._wires.take(5.0)
    admin.call("CONFIG", "SET", "maxmemory", "1mb")
    admin.call("DEL", "celeriac.sweep")
    consumer = desk.consumer(QueueSpec("celery", "celery", "direct", "celery"))
    assert desk.take(consumer, 2) == ["held", "waiting"]
    assert consumer.renew() == []
    assert admin.pipeline([("HLEN", "unacked"), ("SCARD", "_kombu.binding.celery")]) == [0, 1]
    admin.call("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize("at_once", [False, True], ids=["refused-too", "taken"])
def test_what_is_settled_under_a_claim_that_is_refused_is_settled_all_the_same(
    patience: None, redis: RedisService, desks: Any, at_once: bool
) -> None:
    """The message came while the consumer waited; the claim should have recorded it."""
    desk = desks(redis.url)
    admin = desk.transport._wires.take(1.0)
    consumer = desk.consumer()
    desk.idle(consumer)
    desk.send("a")
    (delivery,) = desk.receive(consumer, 1)
    admin.call("CONFIG", "SET", "min-replicas-to-write", "1")
    consumer._claim(1)
    assert consumer._wire.wait(30.0)  # the refusal is here, and not read
    if at_once:
        admin.call("CONFIG", "SET", "min-replicas-to-write", "0")
    consumer.settle([Settlement(delivery.tag)], publish=[desk.payload("b")])
    consumer.receive(0)
    admin.call("CONFIG", "SET", "min-replicas-to-write", "0")
    assert desk.take(consumer, 1) == ["b"]
    assert not any(admin.pipeline([("HLEN", "unacked"), ("LLEN", "celery"), ("EXISTS", *consumer_inboxes(consumer))]))


def consumer_inboxes(consumer: Any) -> list[str]:
    found: list[str] = consumer._keys.inboxes(consumer.token, "celery")
    return found


def _is_busy(wire: Any) -> bool:
    try:
        wire.call("PING")
    except ReplyError as exc:
        return exc.code == "BUSY"
    return False


# -- workers ------------------------------------------------------------------------------------------------


def test_a_killed_worker_s_messages_come_back_flagged_and_in_order(redis_url: str, desks: Any, server: Any) -> None:
    desk = desks(redis_url, lease=1.0)
    desk.send("a", "b")
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, redis_url, "1"], stdout=subprocess.PIPE, text=True)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        desk.send("c")  # into its inbox
        desk.until(lambda: server.call("LLEN", "celery") == 0)
    finally:
        victim.kill()
        victim.communicate()
    consumer = desk.consumer()
    found: list[Any] = []
    desk.until(
        lambda: (consumer.renew(), found.extend(desk.receive(consumer, 3 - len(found), within_s=0.2)), len(found) == 3)[
            2
        ]
    )
    assert sorted(desk.names(found)) == ["a", "b", "c"]
    assert [delivery.head.id for delivery in found if delivery.head.id != "c"] == ["a", "b"]
    assert {(delivery.attempt, delivery.redelivered, delivery.spared) for delivery in found} == {(2, True, 0)}
    desk.settle(consumer, found)
    assert server.call("HLEN", "unacked") == 0


def test_however_many_workers_die_at_once_all_they_held_comes_back_at_once(desk: Any, server: Any) -> None:
    dead = [desk.consumer(owner=f"w{n}") for n in range(12)]
    desk.send(*(f"{n}" for n in range(12)))
    for consumer in dead:
        assert len(desk.receive(consumer, 1)) == 1
        consumer.abandon()
        server.call("ZADD", "celeriac.owners", int(server.call("TIME")[0]) - 1, consumer.token)
    survivor = desk.consumer("other")
    server.call("DEL", "celeriac.sweep")
    survivor.renew()
    assert server.pipeline([("LLEN", "celery"), ("HLEN", "unacked")]) == [12, 0]


def test_what_cannot_go_back_to_its_list_costs_nobody_a_lease_and_is_not_lost(desk: Any, server: Any) -> None:
    dead = desk.consumer("lost", "good")
    for queue in ("lost", "good"):
        desk.send(queue, queue=queue)
    desk.receive(dead, 2)
    server.call("SET", "lost", "x")
    survivor = desk.consumer("good")
    dead.abandon()

    def sweep() -> None:
        server.call("ZADD", "celeriac.owners", int(server.call("TIME")[0]) - 1, dead.token)
        server.call("DEL", "celeriac.sweep")
        assert survivor.renew() == []

    sweep()
    assert desk.take(survivor, 1) == ["good"]
    server.call("DEL", "lost")
    sweep()
    assert server.pipeline([("LLEN", "lost"), ("HLEN", "unacked")]) == [1, 0]


def test_a_priority_beyond_all_numbers_goes_back_like_any_other(desk: Any, server: Any) -> None:
    desk.send("a")
    raw = server.call("RPOP", "celery")
    server.call("LPUSH", "celery", re.sub(rb'"priority": *0', b'"priority": 1e999', raw))
    dead = desk.consumer()
    assert len(desk.receive(dead, 1)) == 1
    survivor = desk.consumer("other")
    dead.abandon()
    server.call("ZADD", "celeriac.owners", int(server.call("TIME")[0]) - 1, dead.token)
    server.call("DEL", "celeriac.sweep")
    assert survivor.renew() == []
    assert server.call("LLEN", "celery") == 1
    assert b"Infinity" in server.call("LINDEX", "celery", 0)


def test_what_a_worker_was_handed_after_the_data_were_gone_is_not_lost_with_it(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    consumer._waits.arm(consumer._turns[0], 1, 60.0)
    server.call("FLUSHDB")
    consumer.renew()
    desk.send("a")
    desk.until(lambda: server.call("LLEN", "celery") == 0)
    survivor = desk.consumer("other")
    consumer.abandon()
    server.call("ZADD", "celeriac.owners", int(server.call("TIME")[0]) - 1, consumer.token)
    server.call("DEL", "celeriac.sweep")
    survivor.renew()
    assert server.call("LLEN", "celery") == 1


def test_a_clock_that_was_set_back_does_not_make_a_lease_longer(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    _, words = consumer.stand_in()
    stand_in = StandIn(**words)
    for prove in (lambda: consumer.receive(1), consumer.renew, stand_in.renew):
        now = int(server.call("TIME")[0])
        server.call("ZADD", "celeriac.owners", now + 3600, consumer.token)  # proved an hour from now
        prove()
        desk.until(lambda now=now: float(server.call("ZSCORE", "celeriac.owners", consumer.token)) < now + 1800)
    assert stand_in._wire is not None
    stand_in._wire.close()


def test_a_killed_process_is_noticed_long_before_its_lease_ends(redis_url: str, desks: Any, server: Any) -> None:
    desk = desks(redis_url, lease=60)
    desk.send("a", "b")
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, redis_url, "60"], stdout=subprocess.PIPE, text=True)
    found: list[Any] = []

    def look() -> bool:
        server.call("DEL", "celeriac.sweep")
        consumer.renew()
        found.extend(desk.receive(consumer, 2 - len(found), within_s=0.1))
        return len(found) == 2

    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        consumer = desk.consumer()
        time.sleep(2.2)
        assert not look(), "it is silent, but it lives"
    finally:
        victim.kill()
        victim.communicate()
    desk.until(look, 30.0)
    assert {delivery.attempt for delivery in found} == {2}
    desk.settle(consumer, found)
    assert server.call("HLEN", "celeriac.alive") == 1


def test_a_living_consumer_that_lost_its_connections_loses_nothing_else(
    redis_url: str, desks: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac_broker_redis.leases.SILENCE_S", 0)
    desk, other = desks(redis_url), desks(redis_url)
    desk.send("a")
    consumer, rival = desk.consumer(), other.consumer(owner="w2")
    (held,) = desk.receive(consumer, 1)
    for _ in range(3):
        time.sleep(1.1)
        kill_connections(desk)
        consumer.receive(0)  # the worker was woken by its descriptor
        server.call("DEL", "celeriac.sweep")
        rival.renew()
        assert other.receive(rival, 1, within_s=0.1) == []
    desk.settle(consumer, [held])
    assert server.call("HLEN", "unacked") == 0


def test_a_renewal_over_a_new_connection_says_at_once_how_it_is_known(desk: Any, server: Any) -> None:
    """Else the death of the consumer would be seen only when its lease ends."""
    consumer = desk.consumer()
    assert kill_connections(desk) >= 2
    consumer.renew()
    said = server.call("HGET", "celeriac.alive", consumer.token).split()
    assert int(said[2]) == consumer._leases._wire.client_id


def test_two_sweepers_return_a_message_once(redis_url: str, desks: Any, server: Any) -> None:
    desk = desks(redis_url, lease=0.5)
    desk.send(*[f"t{n}" for n in range(50)])
    lost = desk.consumer()
    assert len(desk.receive(lost, 50)) == 50
    first, second = desk.consumer(owner="w2"), desk.consumer(owner="w3")
    time.sleep(1.6)
    for consumer in (first, second):
        consumer._leases.renew([], [])
    results: list[int] = []

    def sweep(consumer: Any) -> None:
        server_lock = consumer._keys.sweep
        consumer._leases._call([("DEL", server_lock)])  # both at once, as if the lock had expired
        results.append(consumer._leases.sweep())

    threads = [threading.Thread(target=sweep, args=[consumer]) for consumer in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.transport.depth("celery") == 50
    assert server.call("HLEN", "unacked") == 0
    lost.renew()


def test_a_worker_that_slept_too_long_learns_what_it_lost_and_harms_nobody(
    redis_url: str, desks: Any, server: Any
) -> None:
    desk, awake = desks(redis_url, lease=0.5), desks(redis_url)
    desk.send("a")
    sleeper = desk.consumer()
    (old,) = desk.receive(sleeper, 1)
    time.sleep(1.6)
    other = awake.consumer(owner="w2")
    (new,) = desk.until(lambda: (other.renew(), awake.receive(other, 1, within_s=0.1))[1])
    assert sleeper.renew() == [old.tag]
    sleeper.settle([Settlement(old.tag)], publish=[desk.payload("never")])
    sleeper.flush(30)
    desk.until(lambda: other.receive(0) == [] and server.call("HLEN", "unacked") == 1)
    assert desk.transport.depth("celery") == 0
    awake.settle(other, [new])
    assert server.call("HLEN", "unacked") == 0


def test_a_consumer_whose_lease_ended_takes_a_new_one_with_its_next_claim(
    redis_url: str, desks: Any, server: Any
) -> None:
    desk = desks(redis_url, lease=0.5)
    consumer = desk.consumer()
    server.call("DEL", "celeriac.owners")
    desk.send("a")
    desk.receive(consumer, 1)
    assert server.call("ZCARD", "celeriac.owners") == 1


def test_closing_gives_back_the_unstarted_unflagged_and_the_rest_flagged(desk: Any) -> None:
    desk.send("a", "b", "c")
    consumer = desk.consumer()
    started, clean = desk.receive(consumer, 2)
    consumer.stop()
    consumer.settle([Settlement(clean.tag, "requeue")])
    consumer.close()
    successor = desk.consumer()
    found = desk.receive(successor, 3)
    assert {one.head.id: one.attempt for one in found} == {started.head.id: 2, "b": 1, "c": 1}
    desk.settle(successor, found)


def test_nothing_of_a_closed_consumer_stays_behind(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    desk.idle(consumer)
    consumer.renew()
    consumer.close()
    left = set(server.call("KEYS", "*"))
    assert left <= {b"unacked_index", b"celeriac.sweep", b"celeriac.serves.celery"}


def test_the_traces_of_a_dead_owner_are_removed_in_time(redis_url: str, desks: Any, server: Any) -> None:
    desk = desks(redis_url, lease=1.0)
    consumer = desk.consumer()
    server.call("ZADD", "celeriac.owners", time.time() - 60, "f00d")
    server.call("SADD", "celeriac.waits.f00d", "celery")
    server.call("RPUSH", "celeriac.inbox.f00d.2.celery", json.dumps({"headers": {"id": "x"}, "properties": {}}))
    desk.until(lambda: (consumer.renew(), server.call("EXISTS", "celeriac.waits.f00d") == 0)[1])
    assert server.call("ZSCORE", "celeriac.owners", "f00d") is None
    (delivery,) = desk.receive(consumer, 1)
    assert delivery.attempt == 2
    desk.settle(consumer, [delivery])


def test_a_lost_message_is_named_while_the_claim_that_should_record_it_is_on_its_way(
    patience: None, desk: Any, server: Any
) -> None:
    """A worker that was stopped at that very moment wakes up when others have the message."""
    consumer = desk.consumer()
    desk.idle(consumer)
    desk.send("a")
    (delivery,) = desk.receive(consumer, 1)
    (adoption,) = consumer._to_adopt.values()
    assert consumer.renew() == [], "it lies in its inbox"
    server.call("DEL", adoption.inbox)
    consumer._claim(0)
    assert consumer.renew() == [delivery.tag]
    desk.until(lambda: consumer.receive(0) == [] and not consumer._adopting)
    assert consumer.renew() == [delivery.tag]


def test_an_answer_that_nobody_has_read_yet_is_no_silence_of_the_server(desk: Any) -> None:
    """As when the worker itself was stopped for long: its connection is well, and is kept."""
    desk.send("a")
    consumer = desk.consumer()
    consumer.receive(1)  # the claim is written
    assert consumer._wire.wait(30.0)
    consumer._wire.last_heard -= 1000
    consumer.renew()
    desk.take(consumer, 1)
    assert consumer._mended_at == 0.0


def test_notices_are_asked_for_again_when_the_server_had_no_connection_left(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "HINTS_AGAIN_S", 0.1)
    consumer = desk.consumer()
    dial = consumer._waits._dial

    def refuse(protocol: int) -> Any:
        if protocol == 3:
            raise WireUnreachable("Redis refuses us: ERR max number of clients reached.", "")
        return dial(protocol)

    consumer._waits._dial = refuse
    desk.idle(consumer)
    assert consumer._waits._hints is None
    consumer._waits._dial = dial
    desk.until(lambda: consumer.receive(10) == [] and consumer._waits._hints is not None)


def test_what_celerys_workers_left_that_no_queue_takes_does_not_hold_up_the_rest(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    message = {"body": "", "headers": {"id": "x", "task": "t"}, "properties": {"delivery_info": {}}}
    old = time.time() - 100_000
    commands: list[Any] = []
    for n in range(450):
        entry = [message, "nowhere", "x"] if n < 440 else [message, "", "celery"]
        commands += [("HSET", "unacked", f"tag-{n}", json.dumps(entry)), ("ZADD", "unacked_index", old + n, f"tag-{n}")]
    server.pipeline(commands)

    def sweep() -> bool:
        server.call("DEL", consumer._keys.sweep)
        consumer._leases.sweep()
        return bool(desk.transport.depth("celery") == 10)

    desk.until(sweep)
    assert server.call("HLEN", "unacked") == 440, "the others wait for a queue"


# -- a server that has lost its last writes -----------------------------------------------------------------


def lose_since(private_redis: RedisService, during: Any) -> None:
    """The server as a replica that lagged, or its disk, has it: without what `during` wrote."""
    assert ask(private_redis.port, b"SAVE\r\n", enough=5, timeout_s=30) == b"+OK\r\n"
    during()
    private_redis.kill()
    private_redis.restart()


def test_acknowledgements_that_the_server_lost_are_made_up_for_by_another_run(desks: Any, private_service: Any) -> None:
    redis = private_service(RedisService())
    desk = desks(redis.url)
    consumer = desk.consumer()
    desk.send("a", "b", "running")
    *done, running = desk.receive(consumer, 3)
    lose_since(redis, lambda: desk.settle(consumer, done))
    again = desk.receive(consumer, 2)
    assert [(delivery.head.id, delivery.attempt, delivery.spared) for delivery in again] == [("a", 2, 1), ("b", 2, 1)]
    assert consumer.renew() == []
    desk.settle(consumer, [running, *again])
    assert not consumer.receive(3)
    assert ask(redis.port, b"HLEN unacked\r\n", enough=4, timeout_s=30) == b":0\r\n"


def test_a_message_whose_way_out_of_an_inbox_the_server_lost_stays_in_none(desks: Any, private_service: Any) -> None:
    redis = private_service(RedisService())
    desk = desks(redis.url)
    consumer = desk.consumer()
    desk.idle(consumer)
    desk.send("a")
    (done,) = desk.receive(consumer, 1)
    lose_since(redis, lambda: desk.settle(consumer, [done]))
    (again,) = desk.receive(consumer, 1)
    assert (again.head.id, again.attempt, again.spared) == ("a", 2, 1)
    desk.settle(consumer, [again])
    assert b"inbox" not in ask(redis.port, b"KEYS *\r\n", enough=20)


def test_a_message_that_the_server_has_back_in_an_inbox_does_not_go_with_the_one_that_came_after_it(
    desks: Any, private_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "INBOXES", 1)
    monkeypatch.setattr(consumer_module, "ADOPT_S", 3600.0)
    redis = private_service(RedisService())
    desk = desks(redis.url)
    consumer = desk.consumer()
    desk.idle(consumer)
    desk.send("a")
    (first,) = desk.receive(consumer, 1)
    second = []

    def end_the_first_and_take_the_second() -> None:
        desk.settle(consumer, [first])
        desk.idle(consumer)
        desk.send("b")
        second.extend(desk.receive(consumer, 1))

    lose_since(redis, end_the_first_and_take_the_second)
    (again,) = desk.receive(consumer, 1)
    assert (again.head.id, again.attempt) == ("a", 2)
    assert desk.until(lambda: consumer.renew()) == [second[0].tag], "the server has never heard of it"
    desk.settle(consumer, [again])


def test_a_worker_that_finds_its_store_empty_binds_its_queues_anew(desk: Any, server: Any) -> None:
    queue = QueueSpec("bound", "shop", "topic", "order.#")
    consumer = desk.consumer(queue)
    server.call("FLUSHDB")
    with pytest.raises(PublishRejected):
        desk.send("lost", queue="bound", key="order.new", exchange="shop", exchange_type="topic")
    consumer.renew()
    desk.send("a", queue="bound", key="order.new", exchange="shop", exchange_type="topic")
    assert desk.take(consumer, 1) == ["a"]


def test_a_prefix_that_reads_like_a_pattern_is_none(desks: Any, redis_url: str) -> None:
    desk = desks(redis_url, global_keyprefix="app[1]*?:")
    exchange, ears = ExchangeSpec("news", "topic"), Bench()
    listener = desk.transport.listen(exchange, QueueSpec("mine", "news", "topic", "worker.#"), poller=ears)
    desk.transport.broadcast(exchange, [desk.payload("a", key="worker.online", exchange="news", exchange_type="topic")])
    desk.until(lambda: listener.receive(1))
    listener.close()
    desk.transport.declare([QueueSpec("bound", "shop", "direct", "k")])
    desk.send("b", queue="bound", key="k", exchange="shop")
    desk.transport.delete("bound")
    with pytest.raises(PublishRejected):
        desk.send("c", queue="bound", key="k", exchange="shop")
