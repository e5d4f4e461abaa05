"""Messages out: from payloads to the commands that store them. Pure, but for the tag that each message gets."""

from __future__ import annotations

import itertools
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from celeriac.exceptions import PublishRejected
from celeriac.spec.data import Payload, Route
from celeriac.spec.envelope import pack as pack_envelope
from celeriac_broker_redis.keys import Keys, as_pattern
from celeriac_broker_redis.options import Options

Command = tuple[Any, ...]
#: The command that only our scripts know.
DELAY: Final = "DELAY"
#: Messages in one command, at most: a script can pass on about 8,000 words at once.
PIECE: Final = 4000
#: exchange → its bindings: (routing key, pattern, queue)
Tables = dict[str, list[tuple[str, str, str]]]


class Producer:
    """Turns payloads into commands. One for a process; safe for threads."""

    def __init__(self, keys: Keys, options: Options, db: int) -> None:
        self._keys = keys
        self._delay = options.delay
        self._channel = keys.prefix + options.fanout_prefix.replace("{db}", str(db))
        self.renew()

    def renew(self) -> None:
        """Never give a tag that another process gives: called in a forked child."""
        self._next = itertools.count(int.from_bytes(os.urandom(4), "big")).__next__
        self._tag = str(uuid.uuid4())[:24] + "%012x"

    def next_tag(self) -> str:
        """A text that no message has had yet; looks like a uuid."""
        return self._tag % self._next()

    def exchanges(self, payloads: Sequence[Payload]) -> list[str]:
        """Those whose bindings `commands` must know for these payloads."""
        found = {p.route.exchange for p in payloads if p.route.exchange and p.route.exchange_type != "fanout"}
        for exchange in found:
            check_name(exchange)
        return list(found)

    def commands(self, payloads: Sequence[Payload], tables: Tables | None = None) -> list[Command]:
        """The commands that store these payloads: one for each list that gets any, in the order of payloads.

        Those are the server's, but for `DELAY` (see `scripts.SEND`).

        Raises:
            PublishRejected: One goes to an exchange to which no queue is bound that would take it, or has text in it
                that is none (half a surrogate pair, as "\\ud800" in JSON).
        """
        pushes: dict[str, list[bytes]] = {}
        others: list[Command] = []
        now = time.time()
        for payload in payloads:
            route = payload.route
            try:
                raw = pack_envelope(payload, self.next_tag())
            except UnicodeEncodeError as exc:
                queue = route.queue or route.routing_key
                raise PublishRejected(f"a message for {queue!r} cannot be written: {exc}; nothing was sent.") from exc
            if route.exchange_type == "fanout" and route.exchange:
                others.append(("PUBLISH", self._topic(route), raw))
                continue
            step = self._keys.step(payload.properties.get("priority"))
            due = payload.due
            for queue in (route.routing_key,) if not route.exchange else matching(route, tables or {}):
                key = self._keys.list_key(queue, step)
                if due is not None and due > now and self._delay:
                    delayed, serves = self._keys.delayed(queue), self._keys.serves(queue)
                    others.append((DELAY, delayed, serves, key, due, self.delayed_head(step), raw))
                else:
                    pushes.setdefault(key, []).append(raw)
        pieces = ((key, raws[at : at + PIECE]) for key, raws in pushes.items() for at in range(0, len(raws), PIECE))
        return [*(("LPUSH", key, *raws) for key, raws in pieces), *others]

    def delayed_head(self, step: int) -> bytes:
        """What stands before a message in a delayed set: its step, and what makes two equal messages two members."""
        return f"{step}:{self.next_tag()}:".encode()

    def _topic(self, route: Route) -> str:
        return self.channel(route.exchange, route.routing_key)

    def pattern(self, exchange: str, routing_key: str) -> str:
        """For `PSUBSCRIBE`: as `channel`, of a routing key that is a pattern."""
        start = as_pattern(self._channel + exchange)
        return f"{start}/{routing_key}" if routing_key else start

    def channel(self, exchange: str, routing_key: str) -> str:
        """Where kombu publishes what goes to a fanout exchange."""
        return f"{self._channel}{exchange}/{routing_key}" if routing_key else self._channel + exchange


def check_name(name: str) -> None:
    """A name that came in JSON may be no text.

    Raises:
        PublishRejected: It is none.
    """
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise PublishRejected(f"the name {name!r} cannot be written: {exc}; nothing was sent.") from exc


def target(command: Command) -> str | None:
    """The list that gets the message of a command."""
    return command[1] if command[0] == "LPUSH" else command[3] if command[0] == DELAY else None


def matching(route: Route, tables: Tables) -> list[str]:
    """The queues that a message with this route reaches.

    Raises:
        PublishRejected: None.
    """
    match: Callable[[str, str], bool] = _match_topic if route.exchange_type == "topic" else _match_direct
    queues = sorted(
        {q for key, pattern, q in tables.get(route.exchange, ()) if q and match(pattern or key, route.routing_key)}
    )
    if not queues:
        raise PublishRejected(
            f"no queue is bound to the {route.exchange_type} exchange {route.exchange!r} with a key that matches "
            f"{route.routing_key!r}; nothing was sent. Declare the queue, or start a worker that consumes from it."
        )
    return queues


def binding_rows(members: Iterable[bytes], sep: str) -> list[tuple[str, str, str]]:
    """A binding set as rows of routing key, pattern and queue; members of another shape are left out."""
    rows = (member.decode("utf-8", "replace").split(sep) for member in members)
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def topic_pattern(key: str) -> str:
    """kombu's regular expression for a topic binding key."""
    words = {"*": r"[^\.]+", "#": r".*?"}
    return "^" + r"\.".join(words.get(word, word) for word in _escape(key).split(".")) + "$"


def _escape(key: str) -> str:
    """As kombu escapes: everything but letters, digits and `.#*`."""
    return "".join(c if c.isalnum() or c in ".#*" else "\\000" if c == "\000" else "\\" + c for c in key)


def _match_direct(key: str, routing_key: str) -> bool:
    return key == routing_key


def _match_topic(pattern: str, routing_key: str) -> bool:
    try:
        return re.match(pattern if pattern.startswith("^") else topic_pattern(pattern), routing_key) is not None
    except re.error:
        return False  # a binding that some other program wrote; it matches nothing, and must not stop the others
