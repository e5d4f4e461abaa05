"""Where an idle consumer waits: blocked on lists, a connection each, and listening for changes of all the others.

A blocked move hands over the next message of a list and records it in the consumer's inbox in one step, so a lone
message is here with the answer. It can watch but one list; of the others (further priority steps, more queues than
there may be connections, delayed messages) the server tells when they change: `CLIENT TRACKING` sends one notice for
each key that was asked about. A notice may be lost, and some servers have no tracking; so nothing waits more than a
second.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct

from celeriac.spec.transport import Poller
from celeriac_broker_redis.keys import Keys
from celeriac_broker_redis.sources import Order, Source
from celeriac_support_redis.wire import PushNotification, ReplyError, Wire, WireLost, WireUnreachable, pack

#: So much later than it should an answer may come before the connection counts as dead.
GRACE_S: Final = 5.0
#: Errors with which a server refuses to write for the time being.
REFUSALS: Final = frozenset({"OOM", "MISCONF", "BUSY", "NOREPLICAS", "TRYAGAIN", "ASK"})
#: So long after one of them there is no waiting but looking again: claims are what a full server performs.
REST_S: Final = 1.0
#: A connection for hints that is not to be had is tried for again after so long.
HINTS_AGAIN_S: Final = 30.0

Dial = Callable[[int], Wire]


class News(Struct, frozen=True):
    """Why a wait ended.

    Attributes:
        raw: The message that came, which now lies alone in `inbox`; None if the time was over or a list has changed.
        changed: It was a change.
    """

    source: Source | None = None
    inbox: str = ""
    raw: bytes | None = None
    changed: bool = False


class Line:
    """A connection that blocks on one list.

    Attributes:
        inbox: While it blocks, where the message will be put.
        overdue_at: While it blocks, when it should have been answered at the latest.
    """

    __slots__ = ("inbox", "overdue_at", "source", "wire")

    def __init__(self, wire: Wire, source: Source) -> None:
        self.wire = wire
        self.source = source
        self.inbox = ""
        self.overdue_at: float | None = None


class Hints:
    """A connection on which the server tells that keys have changed."""

    __slots__ = ("_asked", "_expected", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._asked: tuple[str, ...] = ()
        #: For each answer to come: whether it is news that the keys exist.
        self._expected: deque[bool] = deque()

    def ask(self, lists: list[str], others: list[str]) -> None:
        """Have a notice sent when one of these changes, unless that is arranged already."""
        asked = (*lists, "", *others)
        if asked == self._asked:
            return
        self._asked = asked
        data = b""
        for keys in (lists, others):
            if keys:
                data += pack(("EXISTS", *keys))
                self._expected.append(keys is lists)
        self.wire.write(data)

    def hear(self) -> bool:
        """Whether something has changed since it was asked about, or was in one of the lists already."""
        changed = False
        for reply in self.wire.replies():
            if isinstance(reply, PushNotification):
                self._asked = ()
                changed = True
            elif isinstance(reply, ReplyError):
                raise WireLost(f"{self.wire.address} answered: {reply}") from reply
            elif self._expected.popleft() and reply:
                changed = True
        return changed


class Waits:
    """All waiting of one consumer.

    Args:
        dial: Makes a connection that speaks this version of the protocol.
        most: How many lists to block on at once.
    """

    def __init__(self, keys: Keys, token: str, poller: Poller, dial: Dial, most: int) -> None:
        self._keys = keys
        self._token = token
        self._poller = poller
        self._dial = dial
        self._most = most
        self._hints: Hints | None = None
        #: Before this moment no connection for hints is tried for.
        self._hint_at = 0.0
        #: list → inboxes that hold nothing and are not waited for
        self._free: dict[str, deque[str]] = {}
        self._trouble: WireLost | ReplyError | None = None
        self.lines: list[Line] = []
        #: The server does not let us wait, as a full one; until when we do not try.
        self.refused = False
        self._rest_until = 0.0
        #: What is no list → until when it is neither waited on nor listened for.
        self._no_list: dict[str, float] = {}

    @property
    def armed(self) -> int:
        """How many messages may come without another word from us."""
        return sum(line.overdue_at is not None for line in self.lines)

    def arm(self, order: Order, room: int, timeout_s: float) -> None:
        """Block on as many lists as there is room for messages, and listen for changes of the others.

        Raises:
            WireLost: A connection broke, or none was to be had.
            ReplyError: The server forbids it.
        """
        blocked = {line.source.key for line in self.lines if line.overdue_at is not None}
        if self._no_list:
            now = time.monotonic()
            self._no_list = {key: until for key, until in self._no_list.items() if until > now}
            blocked |= self._no_list.keys()
        for source in order.sources[: order.first]:
            if room > 0 and not self.refused and source.key not in blocked and self._block(source, timeout_s):
                blocked.add(source.key)
                room -= 1
        if self._hints is not None or time.monotonic() >= self._hint_at:
            self._listen([key for key in order.keys if key not in blocked], order.delayed_keys)

    def hear(self) -> list[News]:
        """What has come, without waiting.

        Raises:
            WireLost: A connection broke, or the server fell silent.
            ReplyError: The server's own words, if they are neither a message nor the end of a wait.
        """
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble
        news: list[News] = []
        if self.refused and time.monotonic() >= self._rest_until:
            self.refused = False
            news.append(News())
        try:
            for line in self.lines:
                replies = line.wire.replies()
                if not replies and line.overdue_at is not None and time.monotonic() > line.overdue_at:
                    raise WireLost(f"{line.wire.address} fell silent")
                for reply in replies:
                    news += self._ended(line, reply)
            if self._hints is not None and self._hints.hear():
                news.append(News(changed=True))
        except (WireLost, ReplyError) as exc:
            if not news:
                raise
            self._trouble = exc  # for the next call: a message that came before it lies in its inbox, and must be known
        return news

    def release(self, source: Source, inbox: str) -> None:
        """This inbox is empty again."""
        self._free[source.key].append(inbox)

    def end(self, lines: Sequence[Line], unblock: Callable[[int], None]) -> list[News]:
        """End these waits; what they brought at the last moment.

        Args:
            unblock: Ends the wait of the connection with this number at the server.
        Raises:
            WireLost, ReplyError: As in `hear`.
        """
        news: list[News] = []
        for line in list(lines):
            if line.overdue_at is not None:
                unblock(line.wire.client_id)
                for reply in line.wire.read(1):
                    news += self._ended(line, reply)
            self._close(line.wire)
            self.lines.remove(line)
        return news

    def hang_up(self) -> tuple[list[int], list[Line]]:
        """Let go of all connections.

        Returns:
            The server's numbers for them, and the lines that were blocked: their inboxes may have got a message.
        """
        wires = [line.wire for line in self.lines] + ([self._hints.wire] if self._hints is not None else [])
        for wire in wires:
            self._close(wire)
        lines, self.lines, self._hints, self._trouble = self.lines, [], None, None
        return [wire.client_id for wire in wires], [line for line in lines if line.overdue_at is not None]

    def abandon(self) -> None:
        """In a forked child: the same, without a word to the poller."""
        for line in self.lines:
            line.wire.close()
        if self._hints is not None:
            self._hints.wire.close()

    def _rest(self) -> None:
        self.refused, self._rest_until = True, time.monotonic() + REST_S

    def _block(self, source: Source, timeout_s: float) -> bool:
        """False when all inboxes are taken: then it is time to claim; when the server refuses; or when we wait on as
        many other lists as we may."""
        line = self._line(source)
        if line is None:
            return False
        free = self._free[source.key]
        if not free:
            return False
        line.inbox = free.popleft()
        line.overdue_at = time.monotonic() + timeout_s + GRACE_S
        line.wire.write(pack(("BLMOVE", line.source.key, line.inbox, "RIGHT", "LEFT", f"{timeout_s:.3f}")))
        return True

    def _line(self, source: Source) -> Line | None:
        for line in self.lines:
            if line.source.key == source.key:
                return line
        if len(self.lines) >= self._most:
            return None
        wire = self._dial(2)
        try:
            wire.call("SADD", self._keys.waits(self._token), source.key)
        except ReplyError as exc:
            wire.close()
            if exc.code not in REFUSALS:
                raise
            self._rest()
            return None
        if source.key not in self._free:
            self._free[source.key] = deque(self._keys.inboxes(self._token, source.key))
        line = Line(wire, source)
        self.lines.append(line)
        self._poller.watch(wire.fileno())
        return line

    def _ended(self, line: Line, reply: Any) -> list[News]:
        line.overdue_at = None
        if isinstance(reply, bytes):
            return [News(line.source, line.inbox, reply)]
        self.release(line.source, line.inbox)
        if reply is None:
            return [News()]
        if reply.code in REFUSALS:
            self._rest()
        elif reply.code == "WRONGTYPE":  # which a claim tells of
            self._no_list[line.source.key] = time.monotonic() + REST_S
        elif reply.code != "UNBLOCKED":
            raise reply
        return []

    def _listen(self, lists: list[str], others: list[str]) -> None:
        if self._hints is None:
            if not lists and not others:
                return
            try:
                wire = self._dial(3)
            except WireUnreachable:  # it has no connection left, or is an older server, which never will
                self._hint_at = time.monotonic() + HINTS_AGAIN_S
                return
            try:
                wire.call("CLIENT", "TRACKING", "ON")
            except (ReplyError, WireLost) as exc:
                wire.close()
                if isinstance(exc, WireLost):
                    raise
                self._hint_at = math.inf  # it is forbidden: everything is asked by turns
                return
            self._hints = Hints(wire)
            self._poller.watch(wire.fileno())
        self._hints.ask(lists, others)

    def _close(self, wire: Wire) -> None:
        if wire.fileno() >= 0:
            self._poller.unwatch(wire.fileno())
        wire.close()
