"""Sending: confirmed, or an error that says what is known; queues made when a message finds them missing."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from celeriac.exceptions import (
    ConnectionsBusy,
    ImproperlyConfigured,
    PublishRejected,
    PublishUncertain,
    TransportLost,
    TransportUnreachable,
)
from celeriac.spec import QueueSpec, Route
from celeriac.testing.faults import FaultProxy
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp import celeriac_make_transport
from celeriac_broker_amqp.transport import AmqpTransport


def test_the_hook_makes_a_transport_for_its_own_urls_only() -> None:
    assert celeriac_make_transport("redis://localhost", {}) is None
    transport = celeriac_make_transport("amqp://user:secret@nowhere.invalid//", {})
    assert transport is not None
    transport.close()


def test_a_url_without_sense_is_refused_with_its_password_masked() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        celeriac_make_transport("amqp://user:secret@host:port/v", {})
    assert "secret" not in str(caught.value)


def test_a_message_to_a_queue_that_does_not_exist_makes_the_queue_as_celery_would(
    transport: AmqpTransport, rabbitmq_service: RabbitMQService, amqp_url: str, tools: Any
) -> None:
    transport.send([tools.payload("fresh")])
    assert transport.depth("fresh") == 1
    vhost = amqp_url.rsplit("/", 1)[1]
    queue = rabbitmq_service.api("GET", f"queues/{vhost}/fresh")
    assert (queue["durable"], queue["auto_delete"], queue["arguments"]) == (True, False, {})
    exchange = rabbitmq_service.api("GET", f"exchanges/{vhost}/fresh")
    assert (exchange["type"], exchange["durable"]) == ("direct", True)
    bindings = rabbitmq_service.api("GET", f"bindings/{vhost}/e/fresh/q/fresh")
    assert [binding["routing_key"] for binding in bindings] == ["fresh"]


def test_many_messages_to_missing_queues_all_arrive(transport: AmqpTransport, tools: Any) -> None:
    transport.send([tools.payload(f"m{number % 3}") for number in range(60)])
    assert [transport.depth(f"m{number}") for number in range(3)] == [20, 20, 20]
    transport.delete("m1")
    transport.send([tools.payload("m1"), tools.payload("m0")])
    assert [transport.depth(f"m{number}") for number in range(3)] == [21, 1, 20]


def test_a_queue_of_another_type_is_simply_used(open_transport: Callable[..., AmqpTransport], tools: Any) -> None:
    open_transport().declare([tools.spec("q", x_queue_type="quorum")])
    other = open_transport()
    other.send([tools.payload("q")])
    assert other.depth("q") == 1


def test_declaring_a_queue_that_is_different_names_both_and_says_what_to_do(
    transport: AmqpTransport, tools: Any
) -> None:
    transport.declare([tools.spec("q", x_max_priority=10)])
    transport.declare([tools.spec("q", x_max_priority=10)])
    with pytest.raises(ImproperlyConfigured, match=r"x-max-priority.*5.*10") as caught:
        transport.declare([tools.spec("q", x_max_priority=5)])
    assert "task_queue_max_priority" in str(caught.value)
    transport.send([tools.payload("q")])
    assert transport.purge("q") == 1


def test_a_message_that_no_queue_takes_is_refused_and_named(transport: AmqpTransport, tools: Any) -> None:
    transport.declare([QueueSpec("t", exchange="topics", exchange_type="topic", routing_key="a.*")])
    good, bad = tools.payload("t"), tools.payload("t")
    good.route = Route("a.b", "topics", "topic", "t")
    bad.route = Route("b.b", "topics", "topic", "t")
    transport.send([good])
    with pytest.raises(PublishRejected, match=r"1 of 2 .*NO_ROUTE.*'topics'.*'b\.b'"):
        transport.send([good, bad])
    assert transport.depth("t") == 2


def test_a_message_that_may_be_dropped_is(transport: AmqpTransport, tools: Any) -> None:
    transport.send([tools.payload("gone", properties={"mandatory": False})])
    assert transport.depth("gone") == 0


def test_an_unknown_exchange_is_an_error_and_the_next_send_works(transport: AmqpTransport, tools: Any) -> None:
    lost = tools.payload("q")
    lost.route = Route("key", "nowhere", "topic", "q")
    with pytest.raises(PublishRejected, match="NOT_FOUND"):
        transport.send([lost])
    with pytest.raises(PublishUncertain, match="NOT_FOUND"):
        transport.send([tools.payload("other"), lost])
    transport.send([tools.payload("q")])
    assert transport.depth("q") == 1


def test_a_full_queue_refuses(transport: AmqpTransport, tools: Any) -> None:
    transport.declare([tools.spec("full", **{"x-max-length": 2, "x-overflow": "reject-publish"})])
    transport.send([tools.payload("full"), tools.payload("full")])
    with pytest.raises(PublishRejected, match="refused 3 of 3") as caught:
        transport.send([tools.payload("full") for _ in range(3)])
    assert not caught.value.task_ids, "all of them"
    assert transport.depth("full") == 2


def test_what_was_refused_is_sent_over_another_channel_the_next_time(transport: AmqpTransport, tools: Any) -> None:
    transport.declare([tools.spec("full", **{"x-max-length": 1, "x-overflow": "reject-publish"})])
    transport.send([tools.payload("full")])
    (before,) = transport._idle
    with pytest.raises(PublishRejected):
        transport.send([tools.payload("full")])
    assert before not in transport._idle, "after the death of a queue's leader it may refuse everything for ever"
    transport.purge("full")
    transport.send([tools.payload("full")])
    assert transport.depth("full") == 1


def test_B5_of_several_messages_those_that_were_refused_are_named(transport: AmqpTransport, tools: Any) -> None:
    transport.declare([tools.spec("full", **{"x-max-length": 1, "x-overflow": "reject-publish"}), tools.spec("free")])
    transport.send([tools.payload("full")])
    sent = [tools.payload(queue) for queue in ("free", "full", "free", "full")]
    with pytest.raises(PublishRejected, match="refused 2 of 4") as caught:
        transport.send(sent)
    assert sorted(caught.value.task_ids) == sorted([sent[1].headers["id"], sent[3].headers["id"]])
    assert transport.depth("free") == 2
    lost = tools.payload("q")
    lost.route = Route("key", "amq.direct", "direct", "q")
    with pytest.raises(PublishRejected, match="1 of 2") as caught:
        transport.send([tools.payload("free"), lost])
    assert caught.value.task_ids == [lost.headers["id"]]


def test_large_bodies_travel_in_several_frames(transport: AmqpTransport, listen: Any, tools: Any) -> None:
    listener = listen(transport, tools.spec("big"))
    sizes = [0, 1, 131064, 131065, 400_000, 5_000_000]
    transport.send([tools.payload("big", body=os.urandom(size)) for size in sizes])
    bodies = [transport.unpack(delivery.raw).body for delivery in listener.take(len(sizes))]
    assert [len(body) for body in bodies] == sizes


def test_headers_beyond_a_frame_are_refused_before_anything_is_written(transport: AmqpTransport, tools: Any) -> None:
    with pytest.raises(PublishRejected, match="headers of"):
        transport.send([tools.payload("q", huge="x" * 200_000)])
    assert transport.depth("q") == 0


def test_names_beyond_amqps_are_refused_and_long_ones_work(transport: AmqpTransport, tools: Any) -> None:
    with pytest.raises(PublishRejected, match="255"):
        transport.send([tools.payload("q" * 256)])
    transport.send([tools.payload("q" * 255), tools.payload("q" * 255, due=time.time() + 60)], timeout_s=30)
    assert transport.depth("q" * 255) == 2


def test_threads_send_side_by_side(open_transport: Callable[..., AmqpTransport], tools: Any) -> None:
    transport = open_transport(broker_pool_limit=3)
    transport.declare([tools.spec("q")])
    errors = []

    def work() -> None:
        try:
            for _ in range(10):
                transport.send([tools.payload("q"), tools.payload("q")])
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert transport.depth("q") == 160


def test_a_child_process_sends_on_a_connection_of_its_own(transport: AmqpTransport, tools: Any) -> None:
    transport.send([tools.payload("q")])
    inode = os.fstat(transport._idle[0].link.fileno()).st_ino
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            transport.send([tools.payload("q")])
            mine = os.fstat(transport._idle[0].link.fileno()).st_ino
            status = 0 if mine != inode else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    transport.send([tools.payload("q")])
    assert os.fstat(transport._idle[0].link.fileno()).st_ino == inode
    assert transport.depth("q") == 3


def test_ping_names_the_broker(transport: AmqpTransport) -> None:
    assert transport.ping(30.0).startswith("RabbitMQ 3.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("guest:guest", "guest:wr0ng"), "refused user 'guest'"),
        (lambda url: url.rsplit("/", 1)[0] + "/nowhere", "virtual host 'nowhere'"),
        (lambda url: "amqp://guest:guest@127.0.0.1:1//", "refused the connection"),
        (lambda url: "amqp://guest:guest@nowhere.invalid//", "is not known"),
        (lambda url: url.replace("amqp://", "amqps://"), "TLS"),
    ],
)
def test_a_broker_that_cannot_be_reached_is_told_apart(
    open_transport: Callable[..., AmqpTransport], amqp_url: str, change: Callable[[str], str], words: str
) -> None:
    transport = open_transport(change(amqp_url), broker_connection_timeout=30.0)
    with pytest.raises(TransportUnreachable, match=words) as caught:
        transport.ping(30.0)
    assert "wr0ng" not in str(caught.value)


def test_a_silent_host_is_given_up_in_time(open_transport: Callable[..., AmqpTransport], tools: Any) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        transport = open_transport(f"amqp://127.0.0.1:{deaf.getsockname()[1]}//", broker_connection_timeout=0.5)
        started = time.monotonic()
        with pytest.raises(TransportUnreachable, match="did not answer in time"):
            transport.send([tools.payload("q")])
        assert time.monotonic() - started < 30.0


def test_who_wants_one_connection_too_many_waits_no_longer_than_is_set(
    open_transport: Callable[..., AmqpTransport], tools: Any
) -> None:
    transport = open_transport(broker_pool_limit=1, broker_pool_acquire_timeout=0.2)
    transport.declare([tools.spec("q")])

    def send_another(publisher: Any) -> None:
        transport.send([tools.payload("q")])

    with pytest.raises(ConnectionsBusy, match=r"all 1 connections .* in use for 0\.2 s.*raise broker_pool_limit"):
        transport._use_publisher(send_another, time.monotonic() + 30)
    free = open_transport(broker_pool_limit=0)
    free._use_publisher(lambda publisher: free.send([tools.payload("q")]), time.monotonic() + 30)
    assert free._idle == [], "none is kept"
    assert free.depth("q") == 1


def test_client_and_consumer_go_to_the_next_server_and_stay_there(
    open_transport: Callable[..., AmqpTransport], rabbitmq_service: RabbitMQService, listen: Any, tools: Any
) -> None:
    second = rabbitmq_service.fresh_url()
    with FaultProxy(rabbitmq_service.fresh_url()) as first:
        transport = open_transport(f"{first.url};{second}")
        there = listen(transport, tools.spec("q"))
        first.refuse()
        first.cut()
        with pytest.raises(TransportLost):
            there.take(1)
        transport.send([tools.payload("q", "at.second")])
        (delivery,) = listen(transport, tools.spec("q")).take(1)
        assert delivery.head.task == "at.second"
        assert open_transport(second).depth("q") == 0, "it is received there"
        first.heal()
        transport.send([tools.payload("p")])
        assert open_transport(second).depth("p") == 1, "the one in use stays in use"


def test_alternates_are_tried_in_turn(open_transport: Callable[..., AmqpTransport], amqp_url: str, tools: Any) -> None:
    transport = open_transport(f"amqp://guest:guest@127.0.0.1:1//;{amqp_url}")
    transport.send([tools.payload("q")])
    assert transport.depth("q") == 1


def test_times_in_a_url_do_no_harm(amqp_url: str, open_transport: Callable[..., AmqpTransport], tools: Any) -> None:
    transport = open_transport(f"{amqp_url}?connect_timeout=3&heartbeat=30")
    transport.send([tools.payload("q")])
    assert transport._idle[0].link.heartbeat_s == 0, "nobody would send them"
