"""What follows from tasks: a delivery is acknowledged when all that follows from it is safe, whatever was refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from struct import pack
from typing import Any

import pytest

from celeriac.exceptions import PublishRejected
from celeriac.spec import QueueSpec
from celeriac_broker_amqp import followers as module
from celeriac_broker_amqp import message
from celeriac_broker_amqp.deadletters import bury_unroutable, read_letter
from celeriac_broker_amqp.followers import Followers
from celeriac_broker_amqp.link import Link
from celeriac_broker_amqp.publisher import Publisher, make_item, record_of

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
    return Followers(lambda: next(fresh).publisher, NoPoller(), "me")


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
