"""Exchange types: which binding takes which message."""

from __future__ import annotations

import time

import pytest

from celeriac.spec.bindings import binds


@pytest.mark.parametrize(
    ("binding_key", "routing_key", "taken"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("*", "", False),
        ("*.b.#", "a.b", True),
        ("*.b.#", "b", False),
        ("#.z", "z", True),
        ("#.z", "a.b.z", True),
        ("#.z", "a.bz", False),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.z.c.z", True),
        ("a", "a.", False),
        ("a+b", "a+b", True),
        ("a.b", "a1b", False),
    ],
)
def test_a_topic_takes_words_by_its_wildcards(binding_key: str, routing_key: str, taken: bool) -> None:
    assert binds("topic", binding_key, routing_key) is taken


def test_a_direct_exchange_takes_its_own_key_and_a_fanout_takes_all() -> None:
    assert binds("direct", "a.*", "a.*")
    assert not binds("direct", "a.*", "a.b")
    assert binds("fanout", "a", "b")


def test_a_hostile_binding_key_costs_no_more_than_its_length() -> None:
    started = time.process_time()
    assert not binds("topic", ".".join(["#"] * 200) + ".x", ".".join(["a"] * 500))
    assert time.process_time() - started < 10.0
