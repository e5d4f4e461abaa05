"""What follows from tasks: a delivery is acknowledged when all that follows from it is safe, whatever was refused."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from struct import pack
from typing import Any

import pytest

from celeriac.exceptions import (
    ImproperlyConfigured,
    PublishRejected,
    PublishUncertain,
    TransportLost,
    TransportUnreachable,
)
from celeriac.spec import Head, QueueSpec, Route, Settlement
from celeriac.testing.services import RabbitMQService
from celeriac_broker_amqp import followers as module
from celeriac_broker_amqp import message, topology
from celeriac_broker_amqp.deadletters import bury_unroutable, read_letter
from celeriac_broker_amqp.followers import Followers
from celeriac_broker_amqp.holding import Terms
from celeriac_broker_amqp.link import Link
from celeriac_broker_amqp.publisher import Publisher, make_item, record_of
from celeriac_broker_amqp.topology import QueueAway
from celeriac_broker_amqp.transport import AmqpTransport

OPEN_OK = b"\x00\x14\x00\x0b\0\0\0\0"
SELECT_OK = b"\x00\x55\x00\x0b"
BLOCKED = b"\x00\x0a\x00\x3c\x05alarm"
UNBLOCKED = b"\x00\x0a\x00\x3d"


def frame(channel: int, payload: bytes) -> bytes:
    return pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"


class Wire:
    """A publisher, and the broker's end of its connection, on which the test says what a broker would."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.say(1, OPEN_OK)
        self.say(1, SELECT_OK)
        self.link = Link(ours, frame_max=131072, heartbeat_s=0, server={}, where="here", timeout_s=1.0)
        self.publisher = Publisher(self.link, QueueSpec, "quorum")

    def say(self, channel: int, method: bytes) -> None:
        self.theirs.sendall(frame(channel, method))

    def take(self, sequence: int) -> None:
        self.say(1, b"\x00\x3c\x00\x50" + pack(">QB", sequence, 0))

    def refuse(self, sequence: int) -> None:
        self.say(1, b"\x00\x3c\x00\x78" + pack(">QB", sequence, 0))


class NoPoller:
    def watch(self, fd: int) -> None: ...

    def unwatch(self, fd: int) -> None: ...


@pytest.fixture
def wires() -> Iterator[list[Wire]]:
    made = [Wire(), Wire()]
    yield made
    for wire in made:
        wire.link.drop()
        wire.theirs.close()


@pytest.fixture
def followers(wires: list[Wire]) -> Followers:
    fresh = iter(wires)
    return Followers(lambda: next(fresh).publisher, NoPoller(), "me", Terms(0.0))


def items(tools: Any, count: int) -> list[Any]:
    return [make_item(tools.payload("q")) for _ in range(count)]


def test_a_refusal_meets_its_own_message_after_the_broker_was_blocked(
    wires: list[Wire], followers: Followers, tools: Any
) -> None:
    wire = wires[0]
    followers.hold([1], items(tools, 1))
    wire.take(1)
    assert followers.release() == [1]
    wire.say(0, BLOCKED)
    assert followers.release() == []
    followers.hold([2], items(tools, 3))  # which waits until the broker reads again
    wire.say(0, UNBLOCKED)
    assert followers.release() == []
    followers.hold([3], items(tools, 1))
    wire.refuse(2)
    assert followers.release() == []
    assert followers.release() == [], "what follows from the third was refused"
    assert followers.count == 2


def test_a_refusal_meets_its_own_message_on_another_channel_than_the_one_before(
    wires: list[Wire], followers: Followers, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = wires
    followers.hold([1], items(tools, 1))
    followers.hold([2], items(tools, 3))
    monkeypatch.setattr(module, "REFUSED_WAIT_S", 60.0)
    for sequence in (1, 2, 3):
        old.refuse(sequence)
    old.take(4)
    assert followers.release() == []
    followers._held[0].retry_at = 0.0  # the first may be tried again now
    assert followers.release() == []
    assert followers._publisher is new.publisher
    followers.hold([3], items(tools, 4))
    last = new.publisher.last
    for sequence in range(1, last + 1):
        if sequence != last - 3:
            new.take(sequence)
    new.refuse(last - 3)  # the first of the four
    assert 3 not in followers.release()
    assert 3 not in followers.release()


def test_a_confirm_that_is_here_counts_however_late_it_is_looked_for(wires: list[Wire], tools: Any) -> None:
    """Else a call that was taken would be reported as uncertain by a process that was held up."""
    wire, late = wires[0], time.monotonic() - 1.0
    wire.take(1)
    wire.publisher.send(items(tools, 1), late)
    with pytest.raises(PublishUncertain, match="did not confirm 1"):
        wire.publisher.send(items(tools, 1), late)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({f"h{number}": number for number in range(300)}, id="many"),
        pytest.param({"text": "x" * 65_000}, id="beyond what is read"),
        pytest.param({"text": "x" * 130_400}, id="as large as a frame"),
    ],
)
def test_what_no_queue_takes_is_set_aside_whatever_its_headers_are(headers: dict[str, Any], tools: Any) -> None:
    record = record_of(make_item(tools.payload("q", **headers)))
    item = bury_unroutable("NO_ROUTE", record, "me", 131_064)
    assert len(item.header) <= 131_064
    letter = read_letter("q", record_of(item))
    assert letter.id
    assert (letter.reason, letter.raw) == ("unroutable", record)


def test_a_call_for_later_whose_headers_leave_no_room_is_refused(tools: Any) -> None:
    many = {f"h{number}": number for number in range(300)}
    with pytest.raises(PublishRejected, match="headers"):
        make_item(tools.payload("q", due=9e9, **many))
    assert message.scan(record_of(make_item(tools.payload("q", **many))))


def test_what_the_broker_refuses_is_set_aside_and_costs_neither_the_link_nor_what_was_out_with_it(
    transport: AmqpTransport, listen: Any, tools: Any
) -> None:
    transport.send([tools.payload("q") for _ in range(4)])
    listener = listen(transport, tools.spec("q"))
    first, second, third, fourth = listener.take(4)
    listener.consumer.settle([Settlement(first.tag)], publish=[tools.payload("next", id="1")])
    listener.consumer.flush(30.0)
    lost, strange = tools.payload("next", id="lost"), tools.payload("next", id="odd", properties={"expiration": "abc"})
    lost.route = Route("next", "nowhere")
    listener.consumer.settle([Settlement(second.tag)], publish=[lost, tools.payload("next", id="2")])
    listener.consumer.settle([Settlement(third.tag)], publish=[strange, tools.payload("next", id="3")])
    listener.consumer.settle([Settlement(fourth.tag)], publish=[tools.payload("next", id="4")])
    listener.consumer.flush(30.0)
    letters = transport.browse_dead("next")
    assert [letter.reason for letter in letters] == ["unsendable"] * 2
    assert "no exchange 'nowhere'" in letters[0].error
    assert "invalid expiration 'abc'" in letters[1].error
    assert [transport.unpack(letter.raw).headers["id"] for letter in letters] == ["lost", "odd"]
    told = {payload.headers["id"]: why for payload, why in listener.consumer.unsent()}
    assert sorted(told) == ["lost", "odd"]
    assert "no exchange 'nowhere'" in told["lost"]
    came = [delivery.head for delivery in listen(transport, tools.spec("next")).take(4)]
    assert [head.id for head in came if isinstance(head, Head)] == ["1", "2", "3", "4"]
    listener.stay_empty(0.2)
    assert transport.depth("q") == 0


def test_of_what_is_larger_than_the_broker_takes_it_is_told_before_anything_is_done_once_that_is_known(
    transport: AmqpTransport,
    listen: Any,
    tools: Any,
    rabbitmq_service: RabbitMQService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("celeriac_broker_amqp.consumer.CLOSE_TIMEOUT_S", 0.5)  # for what is lost
    transport.send([tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    (delivery,) = listener.take(1)
    large = tools.payload("next", body=bytes(20_000))
    tools.evaluate(rabbitmq_service, "application:set_env(rabbit, max_message_size, 10000)")
    try:
        with pytest.raises(TransportLost, match="larger than configured max size 10000"):
            listener.consumer.settle([Settlement(delivery.tag)], publish=[large])
            listener.consumer.flush(30.0)
        listener.consumer.close()
        listener = listen(transport, tools.spec("q"))
        (delivery,) = listener.take(1)
        with pytest.raises(PublishRejected, match="20000 bytes"):
            listener.consumer.settle([Settlement(delivery.tag)], publish=[large])
        listener.consumer.settle([Settlement(delivery.tag, "dead", reason="what follows from it has nowhere to go")])
        listener.consumer.flush(30.0)
    finally:
        tools.evaluate(rabbitmq_service, "application:set_env(rabbit, max_message_size, 134217728)")
    assert transport.depth("celeriac.dead.q") == 1


def test_what_cannot_be_set_aside_for_want_of_a_queue_is_held_until_there_is_one(
    transport: AmqpTransport,
    listen: Any,
    tools: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(link: Link, spec: QueueSpec) -> None:  # as the broker does to a user who may not
        raise ImproperlyConfigured(f"the broker user may not declare queue {spec.name!r}")

    transport.send([tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    (delivery,) = listener.take(1)
    monkeypatch.setattr(module, "NO_PLACE_WAIT_S", 0.05)
    with monkeypatch.context() as refusing:
        refusing.setattr(topology, "declare", refuse)
        listener.consumer.settle([Settlement(delivery.tag, "dead", reason="crash")])
        followers = listener.consumer._followers
        tools.wait_until(lambda: listener.consumer.receive(0) or followers.retry_in_s is not None, "it is held")
        sent = followers._publisher.link.bytes_sent
        listener.consumer.receive(0)
        assert followers._publisher.link.bytes_sent - sent < 2_000, "a try at a time"
    listener.consumer.flush(30.0)
    assert [letter.reason for letter in transport.browse_dead("q")] == ["crash"]


@pytest.mark.parametrize("wait_s", [0, 5])
def test_what_follows_waits_for_a_queue_that_cannot_be_used_now(
    transport: AmqpTransport, listen: Any, tools: Any, monkeypatch: pytest.MonkeyPatch, wait_s: int
) -> None:
    def refuse(link: Link, spec: QueueSpec) -> None:  # as the broker does while the queue's node is down
        raise QueueAway(
            f"queue {spec.name!r} cannot be declared now: 404 NOT_FOUND - home node is down or inaccessible"
        )

    transport.send([tools.payload("q"), tools.payload("q")])
    listener = listen(transport, tools.spec("q"))
    first, second = listener.take(2)
    monkeypatch.setattr(module, "NO_PLACE_WAIT_S", 0.05)
    with monkeypatch.context() as refusing:
        refusing.setattr(topology, "declare", refuse)
        follower = tools.payload("next", due=time.time() + wait_s if wait_s else None)
        listener.consumer.settle([Settlement(first.tag)], publish=[follower])
        followers = listener.consumer._followers
        tools.wait_until(lambda: listener.consumer.receive(0) or followers.retry_in_s is not None, "it is held", 30.0)
        with pytest.raises(PublishRejected, match="home node"):
            transport.send([tools.payload("nowhere")])
        listener.consumer.settle([Settlement(second.tag)])
    listener.consumer.flush(30.0)
    assert transport.depth("q") == 0
    tools.wait_until(lambda: transport.depth("next") == 1, "it has come", 30.0)


def test_an_idle_connection_that_somebody_closes_costs_nothing(
    wires: list[Wire], followers: Followers, tools: Any
) -> None:
    old, new = wires
    followers.hold([1], items(tools, 1))
    old.take(1)
    assert followers.release() == [1]
    old.theirs.close()  # as a load balancer does
    assert followers.release() == []
    followers.hold([2], items(tools, 1))
    new.take(1)
    assert followers.release() == [2]
    followers.hold([3], items(tools, 1))
    new.theirs.close()
    with pytest.raises(TransportLost):
        followers.release()


def test_what_follows_is_held_as_long_as_there_is_no_second_connection(
    wires: list[Wire], tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNREACHABLE_WAIT_S", 0.0)
    limit = TransportUnreachable("RabbitMQ allows no more connections.", url="amqp://", hint="")
    answers: list[TransportUnreachable | Publisher] = [limit, limit, wires[0].publisher]

    def open_publisher() -> Publisher:
        answer = answers.pop(0)
        if isinstance(answer, TransportUnreachable):
            raise answer
        return answer

    followers = Followers(open_publisher, NoPoller(), "me", Terms(0.0))
    followers.hold([1], items(tools, 1))
    assert followers.release() == []
    assert (followers.count, followers.stuck_count) == (1, 1)
    assert followers.retry_in_s is not None
    assert followers.release() == []
    wires[0].take(1)
    assert followers.release() == [1]
    assert not answers


def test_what_was_out_when_the_link_ended_is_never_taken_for_safe(
    wires: list[Wire], followers: Followers, tools: Any
) -> None:
    too_large = b"message size 5 is larger than configured max size 4"
    refusal = b"\x00\x14\x00\x28" + pack(">HB", 406, len(too_large)) + too_large + bytes(4)
    followers.hold([1], items(tools, 1))
    for wire in wires:
        wire.say(1, refusal)
    with pytest.raises(TransportLost, match="larger than"):
        followers.release()
    with pytest.raises(TransportLost, match="larger than"):
        followers.hold([2], items(tools, 1))
    with pytest.raises(TransportLost, match="larger than"):
        followers.release()
