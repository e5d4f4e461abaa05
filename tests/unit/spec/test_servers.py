"""Which of several servers is connected to next."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import ImproperlyConfigured, TransportUnreachable
from celeriac.spec.servers import Servers, split_urls

URLS = ["amqp://me:secret@a", "amqp://b", "amqp://c"]


class Net:
    """Three servers, some of them down."""

    def __init__(self, strategy: Any = None) -> None:
        self.servers = Servers(URLS, {"broker_failover_strategy": strategy})
        self.down: set[str] = set()
        self.asked = ""

    def connect(self, down: str = "") -> str:
        """Connect while these are down; in which order they were asked."""
        self.down, self.asked = set(down), ""
        self.servers.connect(self._connect)
        return self.asked

    def _connect(self, place: int) -> str:
        name = "abc"[place]
        self.asked += name
        if name in self.down:
            raise TransportUnreachable(f"{name} is down.")
        return name


def test_the_one_in_use_stays_until_it_cannot_be_reached_and_then_the_first_comes_first() -> None:
    net = Net()
    assert [net.connect(), net.connect("ab"), net.connect(), net.connect("c")] == ["a", "abc", "c", "ca"]


def test_round_robin_goes_on_in_the_ring() -> None:
    net = Net("round-robin")
    assert [net.connect("a"), net.connect("b"), net.connect("c"), net.connect("ab")] == ["ab", "bc", "ca", "abc"]


def test_shuffle_takes_any_of_the_others_once() -> None:
    random.seed(7)
    asked = set()
    for _ in range(50):
        asked.add(Net("shuffle").connect("abc"[:1]))
    assert asked == {"ab", "ac"}


def test_a_function_gives_the_order_as_for_kombu() -> None:
    made = []

    def backwards(urls: list[str]) -> Iterator[str]:
        made.append(urls)
        return iter(urls[::-1])

    net = Net(backwards)
    assert net.connect("a") == "ab", "the first that it gives, c, is skipped"
    assert net.connect("b") == "ba"
    assert net.connect("a") == "ab", "it had come to its end, and was made anew"
    assert made == [URLS, URLS]


def test_when_none_can_be_reached_all_say_why_and_no_password_is_said() -> None:
    net = Net()
    with pytest.raises(TransportUnreachable, match="None of 3 servers can be reached: a is down; b is down; c is down"):
        net.connect("abc")
    assert "secret" not in net.servers.url + repr(net.servers)
    assert net.connect() == "a"


def test_a_strategy_that_makes_no_sense_says_what_would() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'randomly'. Give one of round-robin, shuffle, a function"):
        Net("randomly")
    for wrong in (lambda urls: ["amqp://elsewhere", "amqp://elsewhere"], lambda urls: []):
        with pytest.raises(ImproperlyConfigured, match=r"it must give URLs of amqp://me:\*\*\*@a; amqp://b; amqp://c"):
            Net(wrong).connect("a")


def test_one_url_is_one_server_and_its_error_stays_as_it_is() -> None:
    servers = Servers(split_urls(" amqp://b ;"), {})

    def down(place: int) -> None:
        raise TransportUnreachable("b is down.")

    with pytest.raises(TransportUnreachable, match=r"^b is down\.$"):
        servers.connect(down)


def test_urls_of_several_kinds_and_of_a_file_are_refused() -> None:
    for urls, words in (
        (["redis://a", "amqp://b"], "are for different brokers"),
        ("sqlite:///a.db;sqlite:///b.db", "an SQLite broker is one file"),
        (["redis://a/0", "redis://b/1"], "the same database number in each"),
    ):
        with pytest.raises(ImproperlyConfigured, match=words):
            Celery(broker=urls, set_as_current=False).make_transport()
