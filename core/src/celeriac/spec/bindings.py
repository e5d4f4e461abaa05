"""Which queues a message reaches: AMQP's exchange types, for transports that keep the bindings themselves.

Pure functions; the memory and SQLite transports call them.

Source: AMQP 0-9-1, section 3.1.3 (exchange types).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

EXCHANGE_TYPES: Final = ("direct", "topic", "fanout")


def binds(exchange_type: str, binding_key: str, routing_key: str) -> bool:
    """Does a binding with this key take messages sent with that routing key?

    In a topic's binding key `*` stands for one word and `#` for any number of words, none included; words are
    separated by dots.
    """
    if exchange_type == "fanout":
        return True
    if exchange_type == "topic":
        return _matches(binding_key.split("."), routing_key.split(".") if routing_key else ())
    return binding_key == routing_key


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Wildcards by words; remembers only the last `#`, so its time is bounded by the product of the lengths."""
    at = word = 0
    last_hash, resume = -1, 0
    while word < len(words):
        if at < len(pattern) and pattern[at] == "#":
            last_hash, resume = at, word
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", words[word]):
            at += 1
            word += 1
        elif last_hash >= 0:  # let the last `#` take one word more
            resume += 1
            at, word = last_hash + 1, resume
        else:
            return False
    return all(rest == "#" for rest in pattern[at:])
