"""Every verb, on a real server, with the keys that it leaves there."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from celeriac.exceptions import (
    CeleriacWarning,
    ImproperlyConfigured,
    PublishRejected,
    TransportLost,
    TransportUnreachable,
)
from celeriac.spec import Malformed, QueueSpec, Route, Settlement
from celeriac_broker_redis.attempts import attempt_of, mark_lost, mark_new
from celeriac_broker_redis.keys import Keys
from celeriac_broker_redis.options import Options, configure
from celeriac_broker_redis.sources import MOST_MADE, Turns
from celeriac_broker_redis.transport import RedisTransport

# -- sending ------------------------------------------------------------------------------------------------


def test_messages_of_one_list_are_one_command_and_stand_in_order(desk: Any, server: Any) -> None:
    desk.send("a", "b", "c")
    stored = [json.loads(raw) for raw in server.call("LRANGE", "celery", 0, -1)]
    assert [message["headers"]["id"] for message in stored] == ["c", "b", "a"]
    assert stored[0]["properties"]["delivery_info"] == {"exchange": "", "routing_key": "celery"}
    tags = {message["properties"]["delivery_tag"] for message in stored}
    assert len(tags) == 3
    assert all(len(tag) == 36 for tag in tags)


def test_priorities_go_to_the_lists_of_their_steps(desk: Any, server: Any) -> None:
    for priority in range(10):
        desk.send(f"p{priority}", priority=priority)
    sizes = [server.call("LLEN", key) for key in ("celery", "celery\x06\x163", "celery\x06\x166", "celery\x06\x169")]
    assert sizes == [3, 3, 3, 1]
    assert desk.transport.depth("celery") == 10


def test_priority_steps_and_separator_are_as_configured(desks: Any, redis_url: str, server: Any) -> None:
    desk = desks(redis_url, priority_steps=[0, 5], sep=":")
    desk.send("low", priority=4)
    desk.send("high", priority=9)
    assert [server.call("LLEN", key) for key in ("celery", "celery:5")] == [1, 1]
    assert desk.take(desk.consumer(), 2) == ["low", "high"]


def test_a_batch_for_several_lists_is_stored_as_a_whole_or_not_at_all(desk: Any, server: Any) -> None:
    server.pipeline([("SET", "broken", "not a list"), ("SET", "celeriac.serves.celery", "1")])
    batch = [desk.payload("good"), desk.payload("later", due=time.time() + 60), desk.payload("bad", queue="broken")]
    with pytest.raises(PublishRejected, match="WRONGTYPE"):
        desk.transport.send(batch)
    assert sorted(server.call("KEYS", "*")) == [b"broken", b"celeriac.serves.celery"]
    desk.transport.send(batch[:2])
    server.call("SCRIPT", "FLUSH")
    desk.transport.send(batch[:2])
    assert desk.transport.depth("celery") == 2
    assert server.call("ZCARD", "celeriac.delayed.celery") == 2


def test_a_batch_in_which_a_delayed_message_has_no_list_to_go_to_is_not_stored(desk: Any, server: Any) -> None:
    server.call("SET", "celery", "x")
    with pytest.raises(PublishRejected, match="WRONGTYPE celery holds a string"):
        desk.transport.send([desk.payload("now", queue="q"), desk.payload("later", due=time.time() + 60)])
    assert server.call("EXISTS", "q") == 0


def test_a_full_server_refuses_messages_and_can_still_be_drained(private_service: Any, desks: Any) -> None:
    from celeriac.testing.services import RedisService

    redis = private_service(RedisService())
    desk = desks(redis.url)
    consumer = desk.consumer()
    desk.send(*[f"t{n}" for n in range(20)])
    admin = desk.transport._wires.take(1.0)
    admin.call("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(PublishRejected, match="OOM"):
        desk.send("one more")
    assert len(desk.take(consumer, 20)) == 20
    admin.call("CONFIG", "SET", "maxmemory", "0")


def test_a_message_for_a_fanout_exchange_is_published_on_its_channel(desk: Any, server: Any) -> None:
    server.write(b"PSUBSCRIBE /*\r\n")
    server.read(1)
    desk.send("bare", exchange="celery.pidbox", exchange_type="fanout", key="")
    desk.send("keyed", exchange="celeryev", exchange_type="fanout", key="worker.heartbeat")
    news = server.read(2)
    db = str(desk.transport._conf.address.db).encode()
    assert [item[2] for item in news] == [b"/" + db + b".celery.pidbox", b"/" + db + b".celeryev/worker.heartbeat"]
    assert json.loads(news[1][3])["headers"]["id"] == "keyed"


def test_a_named_direct_exchange_reaches_the_queues_bound_by_that_key(desk: Any) -> None:
    desk.transport.declare([QueueSpec("video", "media", "direct", "v"), QueueSpec("audio", "media", "direct", "a")])
    desk.send("film", exchange="media", key="v")
    assert (desk.transport.depth("video"), desk.transport.depth("audio")) == (1, 0)
    with pytest.raises(PublishRejected, match="'media'"):
        desk.send("text", exchange="media", key="t")


def test_bindings_look_as_kombu_writes_them(desk: Any, server: Any) -> None:
    desk.transport.declare(
        [
            QueueSpec("celery", "celery", "direct", "celery"),
            QueueSpec("logs", "topics", "topic", "log.*.#"),
            QueueSpec("brief", "topics", "topic", "x", arguments={"x-expires": 1000}),
        ]
    )
    assert server.call("SMEMBERS", "_kombu.binding.celery") == [b"celery\x06\x16\x06\x16celery"]
    rows = set(server.call("SMEMBERS", "_kombu.binding.topics"))
    assert rows == {b"log.*.#\x06\x16^log\\.[^\\.]+\\..*?$\x06\x16logs", b"x\x06\x16^x$\x06\x16brief"}
    assert server.call("SCARD", "_kombu.binding_permanent.topics") == 1


def test_every_key_has_the_global_prefix(desks: Any, redis_url: str, server: Any) -> None:
    desk = desks(redis_url, global_keyprefix="mine:")
    desk.send("a")
    desk.send("b", priority=5)
    desk.send("c", due=time.time() + 60)
    consumer = desk.consumer(QueueSpec("celery", "celery", "direct", "celery"))
    desk.receive(consumer, 2)
    desk.idle(consumer)
    consumer.renew()
    keys = server.call("KEYS", "*")
    assert keys
    assert all(key.startswith(b"mine:") for key in keys), keys


# -- receiving ----------------------------------------------------------------------------------------------


def test_what_is_held_stands_in_kombus_records(desk: Any, server: Any) -> None:
    desk.send("a")
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)
    ((tag, entry),) = zip(*[iter(server.call("HGETALL", "unacked"))] * 2, strict=True)
    message, exchange, routing_key = json.loads(entry)
    assert (message, exchange, routing_key) == (json.loads(delivery.raw), "", "celery")
    assert abs(float(server.call("ZSCORE", "unacked_index", tag)) - time.time()) < 5
    desk.settle(consumer, [delivery])
    assert server.call("HLEN", "unacked") == 0
    assert server.call("ZCOUNT", "unacked_index", "-inf", "(+inf") == 0


def test_a_message_that_comes_while_waiting_is_taken_up_too(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    desk.idle(consumer)
    desk.send("a")
    (delivery,) = desk.receive(consumer, 1)
    desk.until(lambda: consumer.receive(0) == [] and server.call("HLEN", "unacked") == 1)
    assert not server.call("KEYS", "celeriac.inbox.*")
    desk.settle(consumer, [delivery])
    assert server.call("HLEN", "unacked") == 0


def test_the_index_stays_a_skip_list(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    assert server.call("OBJECT", "ENCODING", "unacked_index") == b"skiplist"
    server.call("DEL", "unacked_index")
    consumer.renew()
    assert server.call("OBJECT", "ENCODING", "unacked_index") == b"skiplist"


def test_the_same_bytes_twice_are_two_deliveries(desk: Any, server: Any) -> None:
    desk.send("twin")
    server.call("LPUSH", "celery", *server.call("LRANGE", "celery", 0, -1))
    consumer = desk.consumer()
    first, second = desk.receive(consumer, 2)
    assert first.raw == second.raw
    assert server.call("HLEN", "unacked") == 2
    desk.settle(consumer, [first])
    assert server.call("HLEN", "unacked") == 1


@pytest.mark.parametrize("raw", [b"", b"\xff\x00garbage", b"[]", b" {}", b"{not json}", b'{"headers": 1}', b"\n:7:x"])
def test_garbage_is_delivered_as_malformed_and_set_aside_whole(desk: Any, server: Any, raw: bytes) -> None:
    server.call("LPUSH", "celery", raw)
    desk.send("good")
    consumer = desk.consumer()
    bad, good = desk.receive(consumer, 2)
    assert (bad.raw, type(bad.head)) == (raw, Malformed)
    desk.settle(consumer, [bad], "dead", reason="malformed", error="what?")
    desk.settle(consumer, [good])
    ((_, fields),) = server.call("XRANGE", "celeriac.dead.celery", "-", "+")
    dead = dict(zip(fields[::2], fields[1::2], strict=True))
    assert dead == {
        b"raw": raw, b"reason": b"malformed", b"error": b"what?", b"attempt": b"1", b"owner": b"w1@here"
    }  # fmt: skip
    assert not any(server.pipeline([("HLEN", "unacked"), ("HLEN", "celeriac.odd")]))


@pytest.mark.parametrize("raw", [b"", b"\xff\x00garbage", b" {}"])
def test_what_kombu_could_not_read_never_stands_in_its_records(desk: Any, server: Any, raw: bytes) -> None:
    server.call("LPUSH", "celery", raw)
    consumer = desk.consumer()
    desk.receive(consumer, 1)
    assert server.pipeline([("HLEN", "unacked"), ("HLEN", "celeriac.odd")]) == [0, 1]
    consumer.close()
    assert server.call("LRANGE", "celery", 0, -1) == [raw]


def test_a_queue_of_the_wrong_type_does_not_stop_the_others(desk: Any, server: Any) -> None:
    server.call("SET", "broken", "not a list")
    desk.send("a", "b")
    consumer = desk.consumer("broken", "celery")
    assert desk.take(consumer, 2) == ["a", "b"]


@pytest.mark.parametrize(("order", "expected"), [("priority", "bbaa"), ("sorted", "aabb"), ("round_robin", "baba")])
def test_queues_are_served_in_the_configured_order(desks: Any, redis_url: str, order: str, expected: str) -> None:
    desk = desks(redis_url, queue_order_strategy=order)
    desk.send("1", "2", queue="a")
    desk.send("1", "2", queue="b")
    consumer = desk.consumer("b", "a")
    assert "".join(desk.receive(consumer, 1)[0].queue for _ in range(4)) == expected


def test_an_idle_consumer_hears_at_once_of_every_list(
    desks: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac_broker_redis.consumer.IDLE_S", (20.0, 20.0))  # so rarely it asks by turns
    desk = desks(redis_url, max_waits=1)
    consumer = desk.consumer("celery", "other")
    rounds = []
    for _ in range(4):  # a busy machine may be late, but hardly each time
        waits = []
        for more in ({"priority": 9}, {"queue": "other"}, {"priority": 3, "queue": "other"}, {"wait": 0.2}):
            desk.idle(consumer)
            due = time.time() + more.pop("wait", 0)  # type: ignore[operator]
            desk.send("x", due=due, **more)
            desk.settle(consumer, desk.receive(consumer, 1, room=10))
            waits.append(time.time() - due)
        rounds.append(waits)
        if max(waits) < 5.0:
            return
    pytest.fail(f"it asked by turns: {rounds}")


def test_where_the_server_gives_no_notice_every_list_is_asked_by_turns(private_service: Any, desks: Any) -> None:
    from celeriac.testing.services import RedisService

    redis = private_service(RedisService())
    admin = desks(redis.url).transport._wires.take(5.0)
    admin.call("ACL", "SETUSER", "simple", "on", ">secret", "~*", "&*", "+@all", "-client|tracking")
    desk = desks(redis.url.replace("redis://", "redis://simple:secret@"))
    consumer = desk.consumer()
    for priority in (9, 6):
        desk.idle(consumer)
        desk.send("x", priority=priority)
        assert len(desk.receive(consumer, 1)) == 1


def test_a_user_who_may_ask_for_nothing_dangerous_is_served_all_the_same(
    desks: Any, redis_url: str, server: Any
) -> None:
    server.call("ACL", "SETUSER", "careful", "on", ">secret", "~*", "&*", "+@all", "-@dangerous")
    try:
        desk = desks(redis_url.replace("redis://", "redis://careful:secret@"))
        assert desk.transport.ping(30.0) == "Redis"
        assert [f.level for f in desk.transport.diagnose(longest_task_s=None, timeout_s=30.0)] == ["note"]
        consumer = desk.consumer()
        desk.send("a", "b")
        (first, _second) = desk.receive(consumer, 2)
        desk.settle(consumer, [first])
        assert consumer.renew() == []
        desk.idle(consumer)
        server.call("CLIENT", "KILL", "ID", consumer._wire.client_id)
        desk.idle(consumer)  # over connections of its own again
        consumer.close()
        assert consumer.clean
        assert server.call("LLEN", "celery") == 1
        desk.transport.purge("celery")
    finally:
        server.call("ACL", "DELUSER", "careful")


def test_more_queues_than_one_may_wait_on_are_all_served(desks: Any, redis_url: str) -> None:
    desk = desks(redis_url, max_waits=2)
    queues = [f"q{n}" for n in range(6)]
    consumer = desk.consumer(*queues)
    desk.idle(consumer)
    for queue in reversed(queues):
        desk.send(queue, queue=queue)
    assert sorted(desk.take(consumer, 6)) == queues


def test_a_thousand_queues_have_equal_turns_of_which_few_are_kept() -> None:
    queues = [f"q{n}" for n in range(1000)]
    turns = Turns(Keys(), Options(), queues)
    assert [turns[at].sources[0].queue for at in range(len(turns))] == queues
    assert turns[999].keys[:2] == ["q999", "q0"]
    assert turns[999].delayed_words[:4] == ["q999", "\x06\x16", "q0", "\x06\x16"]
    assert len(turns._made) <= MOST_MADE


def test_an_idle_consumer_has_no_more_connections_than_lists_that_it_may_wait_on(desks: Any, redis_url: str) -> None:
    consumer = desks(redis_url, max_waits=2).consumer(*(f"q{n}" for n in range(6)))
    for order in consumer._turns:
        consumer._waits.arm(order, 10, 1.0)
    assert len(consumer._waits.lines) == consumer._waits.armed == 2


def test_an_idle_consumer_never_takes_more_than_it_was_asked_for(desk: Any) -> None:
    queues = [f"q{n}" for n in range(4)]
    consumer = desk.consumer(*queues)
    desk.until(lambda: not consumer.receive(1) and consumer._waits.armed == 1)
    for queue in queues:
        desk.send("x", queue=queue)
    assert len(desk.receive(consumer, 1)) == 1
    time.sleep(0.3)
    assert consumer.receive(0) == []
    assert sum(desk.transport.depth(queue) for queue in queues) == 3


def test_a_smaller_window_gives_back_what_was_asked_for_in_advance(desk: Any) -> None:
    desk.send("a", "b", "c")
    consumer = desk.consumer()
    assert consumer.receive(3) == []  # the claim is on its way
    (kept,) = desk.until(lambda: consumer.receive(1))
    consumer.flush(30)
    assert desk.transport.depth("celery") == 2
    desk.settle(consumer, [kept])
    assert desk.take(consumer, 2) == ["b", "c"]


def test_a_claim_of_big_messages_ends_before_its_limit(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac_broker_redis.consumer.MAX_CLAIM_BYTES", 1_000_000)
    big = desk.payload("big")
    big.body = b"x" * 50_000
    desk.transport.send([big] * 200)
    consumer = desk.consumer()
    found = desk.until(lambda: consumer.receive(200))
    assert len(found) == 64
    desk.settle(consumer, found)
    assert len(desk.receive(consumer, 136)) == 136


# -- settling -----------------------------------------------------------------------------------------------


def test_a_late_settlement_changes_nothing(desk: Any, server: Any) -> None:
    desk.send("a")
    consumer = desk.consumer()
    (old,) = desk.receive(consumer, 1)
    desk.settle(consumer, [old], "requeue")
    (new,) = desk.receive(consumer, 1)
    for verb in ("ack", "requeue", "dead"):
        desk.settle(consumer, [old], verb)
    assert server.call("HLEN", "unacked") == 1
    assert desk.transport.depth("celery") == 0
    desk.settle(consumer, [new])
    assert server.call("HLEN", "unacked") == 0


def test_a_settlement_of_what_was_taken_away_publishes_nothing(desk: Any, server: Any) -> None:
    desk.send("a")
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)
    server.call("DEL", "unacked")  # as if another had taken it
    consumer.settle([Settlement(delivery.tag)], publish=[desk.payload("next")])
    consumer.flush(30)
    assert desk.transport.depth("celery") == 0


def test_tags_of_an_earlier_consumer_mean_nothing_to_the_next(desk: Any) -> None:
    desk.send("a")
    first = desk.consumer()
    (old,) = desk.receive(first, 1)
    first.close()
    second = desk.consumer()
    (new,) = desk.receive(second, 1)
    assert new.tag != old.tag
    desk.settle(second, [old])
    assert desk.take(second, 0) == []
    second.close()
    assert desk.transport.depth("celery") == 1


def test_results_messages_and_acknowledgement_are_one_step(desk: Any, server: Any) -> None:
    desk.send("a", "b")
    consumer = desk.consumer()
    first, second = desk.receive(consumer, 2)
    joined = ("redis.call('SET', ARGV[first], ARGV[first + 1])", [b"result", b"42"])
    publish = [desk.payload("next"), desk.payload("urgent", priority=9), desk.payload("later", due=time.time() + 60)]
    consumer.settle([Settlement(first.tag), Settlement(second.tag, "requeue")], publish=publish, joined=joined)
    consumer.flush(30)
    assert server.call("GET", "result") == b"42"
    assert sorted(desk.take(consumer, 3)) == ["b", "next", "urgent"]
    assert server.call("ZCARD", "celeriac.delayed.celery") == 1


def test_what_cannot_be_published_is_not_acknowledged(desk: Any, server: Any) -> None:
    from celeriac.exceptions import TransportLost

    desk.send("a", "b")
    consumer = desk.consumer()
    delivery, other = desk.receive(consumer, 2)
    consumer.settle([Settlement(other.tag)], publish=[desk.payload("first", queue="broken")])
    consumer.flush(30)
    server.call("SET", "broken", "no list any more")
    consumer.settle([Settlement(delivery.tag)], publish=[desk.payload("next", queue="broken")])
    with pytest.raises(TransportLost, match="WRONGTYPE"):
        consumer.flush(30)
    assert server.call("HLEN", "unacked") == 1
    consumer.close()


def test_what_was_set_aside_stays_there_if_its_queue_s_key_is_something_else(desk: Any, server: Any) -> None:
    consumer = desk.consumer()
    desk.send("a")
    desk.settle(consumer, desk.receive(consumer, 1), "dead", reason="crash")
    (letter,) = desk.transport.browse_dead("celery")
    server.call("SET", "celery", "another program's")
    with pytest.raises(TransportLost, match="WRONGTYPE"):
        desk.transport.requeue_dead("celery", [letter.id])
    assert desk.transport.browse_dead("celery") == [letter]
    server.call("DEL", "celery")
    assert desk.transport.requeue_dead("celery", [letter.id]) == 1
    assert desk.take(consumer, 1) == ["a"]


def test_a_settlement_that_a_full_server_refuses_is_offered_again(private_service: Any, desks: Any) -> None:
    from celeriac.testing.services import RedisService

    redis = private_service(RedisService())
    desk = desks(redis.url)
    desk.send("a")
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)
    admin = desk.transport._wires.take(1.0)
    admin.call("CONFIG", "SET", "maxmemory", "1mb")
    consumer.settle([Settlement(delivery.tag)], publish=[desk.payload("next")])
    time.sleep(0.2)
    assert consumer.receive(10) == []
    assert admin.call("HLEN", "unacked") == 1
    admin.call("CONFIG", "SET", "maxmemory", "0")
    consumer.flush(30)
    assert desk.take(consumer, 1) == ["next"]


def test_the_attempt_travels_in_the_message() -> None:
    headers = b'{"id": "x", "stamps": [], "n": 12345678901234567890}'
    raw = b'{"body": "", "headers": %b, "properties": {"delivery_info": {}}}' % headers
    once = mark_lost(raw)
    twice = mark_lost(once)
    assert [attempt_of(message) for message in (raw, once, twice)] == [(1, False, 0), (2, True, 0), (3, True, 0)]
    spared = mark_lost(mark_lost(once, spared=True), spared=True)
    assert [attempt_of(message) for message in (spared, mark_lost(spared))] == [(4, True, 2), (5, True, 2)]
    assert json.loads(mark_new(spared))["headers"] == json.loads(raw)["headers"]
    kept = json.loads(twice)["headers"]
    assert kept.pop("x-celeriac-attempt") == 3
    assert kept == {"id": "x", "stamps": [], "n": 12345678901234567890, "redelivered": True}
    assert json.loads(twice)["properties"]["delivery_info"] == {"redelivered": True}
    half = mark_lost(raw.replace(b'"x"', rb'"\udcff"'))
    assert [attempt_of(message) for message in (half, mark_lost(half))] == [(2, True, 0), (3, True, 0)]
    assert mark_lost(b"garbage") == b"garbage"
    odd = b'{"\xdf": 1, "headers": {"redelivered": true}}'
    assert mark_new(odd) == mark_lost(odd) == odd


def test_a_message_that_only_mentions_redelivery_is_on_its_first_delivery(desk: Any) -> None:
    payload = desk.payload("a")
    payload.headers["note"] = '"redelivered"'
    payload.headers["redelivered_by"] = "post"
    desk.transport.send([payload])
    (delivery,) = desk.receive(desk.consumer(), 1)
    assert (delivery.attempt, delivery.redelivered) == (1, False)


# -- delays -------------------------------------------------------------------------------------------------


def test_where_no_worker_of_ours_serves_the_queue_a_delayed_message_waits_for_celerys(desk: Any, server: Any) -> None:
    desk.send("later", due=time.time() + 60, priority=3)
    assert server.call("LLEN", "celery\x06\x163") == 1
    consumer = desk.consumer()
    consumer.close()
    desk.send("later", due=time.time() + 60)
    assert server.pipeline([("LLEN", "celery"), ("ZCARD", "celeriac.delayed.celery")]) == [0, 1]
    assert 3500 < server.call("TTL", "celeriac.serves.celery") <= 3600


def test_a_delayed_message_keeps_its_priority(desk: Any, server: Any) -> None:
    desk.consumer().close()
    desk.send("later", due=time.time() + 0.3, priority=9)
    assert desk.transport.depth("celery") == 0
    consumer = desk.consumer()
    assert desk.names(desk.receive(consumer, 1)) == ["later"]
    ((_, entry),) = zip(*[iter(server.call("HGETALL", "unacked"))] * 2, strict=True)
    assert json.loads(entry)[0]["properties"]["priority"] == 9


def test_due_messages_come_in_the_order_of_their_times_behind_what_is_there(desk: Any) -> None:
    desk.consumer().close()
    now = time.time()
    for name, wait in (("c", 0.3), ("a", 0.1), ("b", 0.2)):
        desk.send(name, due=now + wait)
    time.sleep(0.5)
    desk.send("d")
    assert desk.take(desk.consumer(), 4) == ["d", "a", "b", "c"]


def test_without_the_option_delay_messages_go_out_at_once(desks: Any, redis_url: str) -> None:
    desk = desks(redis_url, delay=False)
    assert "delay" not in desk.transport.abilities
    desk.send("now", due=time.time() + 60)
    assert desk.take(desk.consumer(), 1) == ["now"]


def test_a_worker_without_the_option_delay_passes_on_what_others_have_sent_for_later(desk: Any, desks: Any) -> None:
    other = desks(f"{desk.url}?delay=false")
    assert "delay" not in other.transport.abilities
    consumer = other.consumer()
    desk.send("later", due=time.time() + 0.1)
    assert other.take(consumer, 1) == ["later"]


# -- queues, options and life -------------------------------------------------------------------------------


def test_purge_and_delete_reach_every_list_of_a_queue(desk: Any, server: Any) -> None:
    desk.consumer().close()
    for priority in (0, 3, 6, 9):
        desk.send("x", "y", priority=priority)
    desk.send("later", due=time.time() + 60)
    assert desk.transport.purge("celery") == 9
    desk.transport.declare([QueueSpec("celery", "celery", "direct", "celery"), QueueSpec("b", "celery", "direct", "b")])
    desk.send("z")
    desk.transport.delete("celery")
    assert server.call("SMEMBERS", "_kombu.binding.celery") == [b"b\x06\x16\x06\x16b"]
    assert server.call("EXISTS", "celery") == 0


def test_what_is_no_queue_is_not_purged(desk: Any, server: Any) -> None:
    server.call("HSET", "celery", "a", "b")
    with pytest.raises(TransportLost, match="WRONGTYPE"):
        desk.transport.purge("celery")
    assert server.call("EXISTS", "celery") == 1


def test_an_unknown_option_is_said_aloud_and_kombus_are_not(redis_url: str) -> None:
    with pytest.warns(CeleriacWarning, match="visibilty_timeout"):
        configure(redis_url, {"broker_transport_options": {"visibilty_timeout": 5, "max_connections": 10}})
    with pytest.warns(CeleriacWarning, match="know ssl_min_version "):
        configure(f"rediss{redis_url[5:]}", {"broker_use_ssl": {"min_version": "TLSv1.3", "ca_certs": "ca.pem"}})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"visibility_timeout": "soon"}, "visibility_timeout"),
        ({"priority_steps": [0, 11]}, "priority_steps"),
        ({"queue_order_strategy": "random"}, "round_robin"),
        ({"socket_timeout": -1}, "socket_timeout"),
        ({"socket_keepalive_options": {"TCP_KEEPIDEL": 60}}, "socket_keepalive_options"),
        ({"delay": "perhaps"}, "delay"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(redis_url: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=word):
        configure(redis_url, {"broker_transport_options": options})


def test_a_url_may_carry_options(redis_url: str) -> None:
    assert configure(f"{redis_url}?visibility_timeout=7", {}).options.visibility_timeout_s == 7


def test_threads_send_side_by_side(desk: Any) -> None:
    import threading

    threads = [threading.Thread(target=desk.send, args=[f"{n}-{i}" for i in range(50)]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(desk.take(desk.consumer(), 400))) == 400


def test_a_forked_child_sends_on_a_connection_of_its_own(desk: Any) -> None:
    desk.send("parent")
    wire = desk.transport._wires.idle[0]
    pid = os.fork()
    if pid == 0:
        try:
            desk.send("child")
            os._exit(0 if desk.transport._wires.idle[0].client_id != wire.client_id else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    desk.send("parent again")
    assert desk.transport._wires.idle[0] is wire
    assert desk.take(desk.consumer(), 3) == ["parent", "child", "parent again"]


def test_nobody_there_is_one_sentence_with_what_to_do(desks: Any, unused_port: int) -> None:
    desk = desks(f"redis://:secret@127.0.0.1:{unused_port}/0")
    with pytest.raises(TransportUnreachable, match="Is the server running") as caught:
        desk.send("a")
    assert "secret" not in str(caught.value)


def test_a_message_without_a_route_to_a_list_goes_where_its_key_says(desk: Any) -> None:
    payload = desk.payload("a")
    payload.route = Route("other", queue="celery")
    desk.transport.send([payload])
    assert desk.transport.depth("other") == 1


def test_what_has_nowhere_to_go_leaves_the_delivery_as_it_was(desk: Any, server: Any) -> None:
    desk.send("a")
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)
    lost = desk.payload("next", exchange="nowhere", key="x")
    with pytest.raises(PublishRejected, match="no queue is bound"):
        consumer.settle([Settlement(delivery.tag)], publish=[lost])
    desk.settle(consumer, [delivery])
    assert server.call("HLEN", "unacked") == 0


def test_a_follow_up_to_a_key_that_is_no_list_leaves_the_delivery_as_it_was(desk: Any, server: Any) -> None:
    server.call("SET", "cache", "x")
    desk.send("a", "b")
    consumer = desk.consumer()
    first, second = desk.receive(consumer, 2)
    follow_ups = [desk.payload("good", queue="next"), desk.payload("bad", queue="cache")]
    with pytest.raises(PublishRejected, match="'cache' holds a string"):
        consumer.settle([Settlement(first.tag), Settlement(second.tag)], publish=follow_ups)
    assert server.pipeline([("LLEN", "next"), ("HLEN", "unacked")]) == [0, 2]
    consumer.settle([Settlement(first.tag)], publish=follow_ups[:1])
    desk.settle(consumer, [second])
    assert server.pipeline([("LLEN", "next"), ("HLEN", "unacked")]) == [1, 0]


def test_a_queue_whose_key_is_no_list_holds_up_no_other(desk: Any, server: Any) -> None:
    consumer = desk.consumer("bad", "good")
    desk.send("first", queue="bad", due=time.time() + 60)
    desk.send("urgent", queue="bad", priority=3, due=time.time() + 60)
    for member in server.call("ZRANGE", "celeriac.delayed.bad", 0, -1):
        server.call("ZADD", "celeriac.delayed.bad", 1, member)  # which makes them due
    server.call("SET", "bad", "x")
    assert desk.take(consumer, 1) == ["urgent"]
    desk.send("other", queue="good")
    assert desk.take(consumer, 1) == ["other"]
    server.call("DEL", "bad")
    assert desk.take(consumer, 1) == ["first"]
    assert server.pipeline([("LLEN", "bad\x06\x163"), ("EXISTS", "celeriac.delayed.bad")]) == [0, 0]


HALF = json.loads('"\\ud800"')


@pytest.mark.parametrize(
    "more",
    [
        {"queue": HALF},
        {"exchange": HALF},
        {"exchange": HALF, "exchange_type": "fanout"},
        {"key": HALF, "exchange": "e"},
    ],
)
def test_a_follow_up_whose_name_is_no_text_leaves_the_delivery_as_it_was(
    desk: Any, server: Any, more: dict[str, Any]
) -> None:
    desk.send("a")
    consumer = desk.consumer()
    (delivery,) = desk.receive(consumer, 1)
    with pytest.raises(PublishRejected, match="ud800"):
        consumer.settle([Settlement(delivery.tag)], publish=[desk.payload("next", **more)])
    desk.settle(consumer, [delivery])
    assert server.call("HLEN", "unacked") == 0


def test_a_queue_whose_name_is_no_text_is_not_declared(desk: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="ud800"):
        desk.transport.declare([QueueSpec(HALF)])


def test_a_server_that_is_away_is_told_without_what_led_to_the_try() -> None:
    transport = RedisTransport(configure("redis://localhost:1/0", {}))
    with pytest.raises(TransportUnreachable) as refused:
        transport.ping(1.0)
    error: BaseException | None = refused.value
    met = []
    while error is not None:
        met.append(type(error))
        error = error.__cause__ or error.__context__
    assert IndexError not in met
    assert ConnectionRefusedError in met
