"""Deliveries held by a copy: in a queue of this consumer's own, where RabbitMQ's two shortcomings do not reach them.

A message that is held for longer than `consumer_timeout` costs the channel, and its task runs again. And nothing counts
how many workers a message has killed: a classic queue says «redelivered» of whatever was handed out before, a clean
return too. Both are mended in the same way. The message is published into a queue of ours; when the copy has come from
there, the first delivery is acknowledged, and the copy is what we hold. That starts the clock anew. And the copy
carries the count that will be right if we die with it: then it is ready again in our queue, which nobody reads,
expires, and goes by RabbitMQ's own dead-lettering to where it came from. If we do not die, nobody sees it.

Between its coming and the acknowledgement there are two of it: whoever is killed in that moment leaves both.

Who uses a consumer knows nothing of this: a delivery keeps its tag. Called by `consumer`, from its thread.

Source: RabbitMQ's consumer timeout, message expiry, dead-letter exchanges.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Struct

from celeriac.exceptions import ImproperlyConfigured
from celeriac.spec import Delivery, Malformed, QueueSpec, Route
from celeriac_broker_amqp import message, topology
from celeriac_broker_amqp.publisher import Item

#: After the end of its consumer a held message is back in its queue when it has been held for so long.
BACK_MS: Final = 2_000
#: Long after its last message has gone back, a queue of a dead consumer goes too.
GONE_MS: Final = 3_600_000
#: The copy comes at once. If it has not come after so long, the delivery is held as it is.
PATIENCE_S: Final = 10.0
#: Of messages that came again one is held by a copy in so long; those that were lost for certain always are.
GAP_S: Final = 2.0
#: From this version on the server limits how long a message may be held, by default to half an hour.
DEFAULT_LIMIT_S: Final = 1800.0
_LIMIT: Final = re.compile(r"timed out.*?(\d+) ?ms")
_LARGEST: Final = re.compile(r"larger than configured max size (\d+)")

_log = logging.getLogger("celeriac.broker.amqp")


class Terms(Struct):
    """What all consumers of a transport know about their broker.

    Attributes:
        limit_s: How long it lets a message be held; 0: for ever.
        refused: It will not have queues of ours: nothing is held by a copy.
        largest_bytes: The largest body that it takes; 0: not known.
        spare_ids: Names by which consumers that have ended had queues of their own, for those that come after them: a
            link that is lost again and again must not leave queues behind each time.
        barred: Queues that it would not let us consume, which costs a channel with all that is held on it: they are
            tried on another one first.
    """

    limit_s: float
    refused: bool = False
    largest_bytes: int = 0
    spare_ids: list[str] = []
    barred: set[str] = set()

    def learn(self, said: str) -> bool:
        """The broker has closed a channel with these words; True if it was over time, of which it tells how much."""
        found = _LIMIT.search(said)
        if found is None or "acknowledg" not in said:
            return False
        self.limit_s = max(int(found[1]) / 1000, 0.1)
        return True

    def learn_size(self, said: str) -> bool:
        """The broker has refused a message with these words; True if it was too large, of which nothing was known."""
        found = _LARGEST.search(said)
        if found is None or self.largest_bytes == int(found[1]):
            return False
        self.largest_bytes = int(found[1])
        return True


class Nook(Struct):
    """A queue of ours for messages of another one, and what has come from it; as the consumer has its subscriptions."""

    spec: QueueSpec
    tags: list[str]
    ready: deque[tuple[int, int, bytes]]


class _Move(Struct):
    """On its way into a nook. `started`: its user has it already."""

    delivery: Delivery
    started: bool
    ends_at: float


class Holding:
    """What one consumer holds by copies.

    Args:
        open_nook: Declares such a queue and consumes from it, without a prefetch count; None if another does that.
        publish: Sends with confirms.
        acknowledge: Of the consumer's channel.
        reject: Has RabbitMQ dead-letter what came by this tag.

    Attributes:
        place: tag of a delivery → tag of the copy that is held instead.
    """

    def __init__(
        self,
        terms: Terms,
        open_nook: Callable[[str, str], Nook | None],
        publish: Callable[[list[Item]], None],
        acknowledge: Callable[[list[int]], None],
        reject: Callable[[int], None],
        max_header_bytes: int,
    ) -> None:
        self._terms = terms
        self._open_nook = open_nook
        self._publish = publish
        self._acknowledge = acknowledge
        self._reject = reject
        self._max_header_bytes = min(max_header_bytes, message.MAX_HEADER_BYTES)  # a larger one nobody reads
        self._ids: list[str] = []  # in the names of its queues
        self._seal = f"{secrets.token_hex(4)}."  # on its copies
        self._nooks: dict[str, Nook] = {}
        self._moves: dict[int, _Move] = {}
        self._judged_at = 0.0
        self._marks: deque[tuple[float, int]] = deque()  # when the tags up to this one had come
        self._mark_at = 0.0
        self.place: dict[int, int] = {}

    @property
    def is_used(self) -> bool:
        """Something is or was held by a copy."""
        return bool(self._nooks)

    # -- suspects -------------------------------------------------------------------------------------------

    def wants(self, lost: int) -> bool:
        """Whether a delivery that came again is to be held by a copy before anybody has it.

        Whoever kills workers is the oldest that its worker had, so it comes first in the end: of what merely came again
        one in `GAP_S` will do, and a backlog that a dead worker leaves is not copied.
        """
        if self._terms.refused:
            return False
        now = time.monotonic()
        if not lost and now - self._judged_at < GAP_S:
            return False
        self._judged_at = now
        return True

    def hold(self, delivery: Delivery, lost: int, *, started: bool) -> bool:
        """Begin to hold a delivery by a copy; False if it cannot be.

        Args:
            lost: What the copy is to say of deliveries lost.
        """
        if type(delivery.head) is Malformed:
            return False  # no task ever ran
        try:
            _, _, header, body = message.split_record(delivery.raw)
            extra = {message.LOST_HEADER: lost, message.HELD_HEADER: f"{self._seal}{delivery.tag}"}
            header = message.with_headers(header, extra, message.DEATH_HEADERS)
        except ValueError:
            return False  # it cannot be read
        if delivery.tag in self._moves:
            return True
        nook = self._nook(delivery.queue) if len(header) <= self._max_header_bytes else None
        if nook is None:
            return False
        self._moves[delivery.tag] = _Move(delivery, started, time.monotonic() + PATIENCE_S)
        self._publish([Item(Route(nook.spec.name), header, body, mandatory=False)])
        return True

    def arrived(self) -> Iterator[Delivery]:
        """Take up the copies that have come; yields what nobody has had yet, and may have now."""
        for nook in self._nooks.values():
            while nook.ready:
                tag, _, record = nook.ready.popleft()
                yield from self._take_up(tag, record)
        if self._moves:
            now = time.monotonic()
            for tag, move in list(self._moves.items()):
                if move.ends_at < now:
                    del self._moves[tag]
                    if not move.started:
                        yield move.delivery

    def _take_up(self, tag: int, record: bytes) -> Iterator[Delivery]:
        try:
            said = message.unpack(record).headers.get(message.HELD_HEADER)
        except ValueError:  # no copy of ours
            said = None
        if type(said) is not str or not said.startswith(self._seal):  # of a consumer that had this queue before us
            self._reject(tag)  # back to where it came from
            return
        move = self._moves.pop(int(said.removeprefix(self._seal)), None)
        if move is None:  # its delivery has been settled meanwhile
            self._acknowledge([tag])
            return
        origin = move.delivery.tag
        self._acknowledge([self.place.get(origin, origin)])
        self.place[origin] = tag
        if not move.started:
            yield move.delivery

    def settled(self, tag: int) -> int:
        """A delivery ends: the tag by which the broker knows it."""
        self._moves.pop(tag, None)
        return self.place.pop(tag, tag)

    def unsettled_moves(self) -> list[Delivery]:
        """What nobody has had yet, to be given back: its copy is dropped when it comes."""
        moves, self._moves = self._moves, {}
        return [move.delivery for move in moves.values() if not move.started]

    # -- what is held for long ------------------------------------------------------------------------------

    def overdue(self, last: int) -> int | None:
        """Now and then: the last tag that came so long ago that it must not be held any longer; else None.

        Args:
            last: The newest tag of all.
        """
        limit_s, now = self._terms.limit_s, time.monotonic()
        if not limit_s or now < self._mark_at:
            return None
        self._mark_at = now + limit_s / 16
        marks, overdue = self._marks, None
        while marks and now - marks[0][0] >= limit_s * 0.4:
            overdue = marks.popleft()[1]
        marks.append((now, last))
        return overdue

    # -- the queues -----------------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        """Those of ours, as long as nothing is held in them."""
        return [] if self.place or self._moves else [nook.spec.name for nook in self._nooks.values()]

    def leave(self) -> None:
        """The consumer has ended: another may have its queues."""
        self._terms.spare_ids += self._ids
        self._ids = []

    def _nook(self, queue: str) -> Nook | None:
        nook = self._nooks.get(queue)
        if nook is None and not self._terms.refused:
            try:
                nook = self._nooks[queue] = self._open(queue)
            except ImproperlyConfigured as exc:
                self._terms.refused = True
                _log.warning(
                    "RabbitMQ will not have queues of this worker's own, celeriac.held.… (%s), so tasks longer than "
                    "consumer_timeout run again, and what kills whole workers is not counted.",
                    exc,
                )
        return nook

    def _open(self, queue: str) -> Nook:
        if not self._ids and self._terms.spare_ids:
            self._ids.append(self._terms.spare_ids.pop(0))
        for name in self._ids:
            nook = self._open_nook(queue, name)
            if nook is not None:
                return nook  # else the broker has yet to notice that the one before us is gone, and gives it copies
        self._ids.append(secrets.token_hex(6))
        nook = self._open_nook(queue, self._ids[-1])
        assert nook is not None
        return nook


def make_nook_spec(origin: QueueSpec, consumer: str) -> QueueSpec:
    """A queue for copies of messages from another, held by one consumer. It is replicated if that one is."""
    name = f"celeriac.held.{consumer}.{origin.name}".encode("utf-8", "surrogatepass")[: topology.MAX_NAME_BYTES]
    arguments: dict[str, Any] = {
        "x-message-ttl": BACK_MS,
        "x-expires": GONE_MS,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": origin.name,
    }
    if origin.arguments.get("x-queue-type") == "quorum":
        arguments["x-queue-type"] = "quorum"
        arguments["x-dead-letter-strategy"] = "at-least-once"
        arguments["x-overflow"] = "reject-publish"
    return QueueSpec(name.decode("utf-8", "ignore"), arguments=arguments)


def limit_of(server: dict[str, Any], option: Any) -> float:
    """How long such a server lets a message be held, in seconds: as the option says, else by default."""
    if option is not None:
        return float(option)
    numbers = tuple(int(part) for part in str(server.get("version", "")).split("-")[0].split(".")[:3] if part.isdigit())
    return DEFAULT_LIMIT_S if server.get("product") == "RabbitMQ" and numbers >= (3, 8, 15) else 0.0
