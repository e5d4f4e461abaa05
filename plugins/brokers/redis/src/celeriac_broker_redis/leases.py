"""The lease of one consumer, and the search for what dead consumers held. Runs in the worker's renewal thread.

It has a connection of its own, so that neither a long claim nor task code can keep a lease from being renewed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any, Final

import structlog

from celeriac.exceptions import PublishRejected
from celeriac.spec.data import Route
from celeriac_broker_redis.attempts import mark_lost, priority_of
from celeriac_broker_redis.keys import Keys
from celeriac_broker_redis.options import Configuration
from celeriac_broker_redis.producer import Tables, binding_rows, matching
from celeriac_broker_redis.scripts import CLAIM, DESPITE_ALL, DISOWN, EMPTY_INBOX, RENEW, RETURN, Script
from celeriac_support_redis.health import parse_info
from celeriac_support_redis.wire import ReplyError, Wire, WireLost, connect

#: A member longer than 64 bytes keeps `unacked_index` a skip list. Below 128 short members it is a packed list, in
#: which Redis reads float scores one after the other: 19.5 µs for each message instead of 0.5 (measured on 7.0).
#: No reader of the index looks as far as its score, +inf.
SENTINEL: Final = "celeriac: this entry keeps the index fast, and stands for no message at all"
SWEEP_LOCK_MS: Final = 2000
SWEEP_BATCH: Final = 200
#: A consumer without a connection counts as dead after a second look so much later, if it gave no sign for so long.
SECOND_LOOK_S: Final = 0.2
SILENCE_S: Final = 2.0
#: For so long after the end of a lease a blocked move may still put a message into an inbox.
FADING_S: Final = 30.0
UNKNOWN_RUN: Final = "-"
NOTHING: Final[Mapping[str, bytes | None]] = MappingProxyType({})


#: The stores, and keys in them, in which this process has put its sentinel.
_in_use: set[tuple[str, str]] = set()


class Leases:
    """Keeps one consumer's lease; looks for those that ended. All methods may be called from any thread."""

    def __init__(self, conf: Configuration, token: str) -> None:
        self._conf = conf
        self._keys = conf.keys
        self._token = token
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._may_look = True
        #: How many abandoned entries are passed over when the next ones are looked at: nobody takes their messages.
        self._passed_over = 0
        #: Why messages could not go back, as it was said last.
        self._problem = b""
        #: The store was found empty: nobody has the bindings of our queues any more.
        self.was_reset = False
        #: The server's number for the consumer's connection for work.
        self.client_id = 0
        #: Names the server's process since its start; `UNKNOWN_RUN` where we may not ask.
        self.run_id = UNKNOWN_RUN

    def open(self, queues: Sequence[str]) -> None:
        """Connect anew, teach the server our scripts, and take the lease."""
        with self._lock:  # an old connection may lead to a server that has nothing to say any more, and answers
            wire, self._wire = self._wire, None
            if wire is not None:
                wire.close()
        self._call([("SCRIPT", "LOAD", script.text) for script in (CLAIM, RETURN, RENEW, EMPTY_INBOX)])
        self.renew([], queues)

    def load(self, script: Script) -> None:
        """Teach the server one more script."""
        self._call([("SCRIPT", "LOAD", script.text)])

    def tables(self, exchanges: Sequence[str]) -> Tables:
        """The bindings of these exchanges."""
        if not exchanges:
            return {}
        found = self._call([("SMEMBERS", self._keys.binding(exchange)) for exchange in exchanges])
        return {
            exchange: binding_rows(members, self._keys.sep) for exchange, members in zip(exchanges, found, strict=True)
        }

    def types(self, keys: Sequence[str]) -> list[str]:
        """What kind each of these keys is; `none` if it is not there."""
        return [kind.decode() for kind in self._call([("TYPE", key) for key in keys])]

    def unblock(self, client_id: int) -> None:
        """End another connection's wait. Where we may not, it ends by itself, within `IDLE_S` of the consumer's."""
        try:
            self._call([("CLIENT", "UNBLOCK", client_id, "ERROR")])
        except ReplyError as exc:
            if exc.code != "NOPERM":
                raise

    def renew(self, tags: Sequence[bytes], queues: Sequence[str], waits: Sequence[str] = ()) -> list[int]:
        """Prove that the consumer lives and serves these queues; the positions of tags that are no longer its own.

        Args:
            waits: The lists that it waits on: where its inboxes are is noted anew when the store lost everything.
        """
        keys = [
            self._keys.index,
            self._keys.owners,
            self._keys.alive,
            *(self._keys.serves(queue) for queue in list(queues)),
        ]
        is_new: int
        lost: list[int]
        numbers = ""
        while numbers != self._numbers():  # once, or once more: the connection may be made anew under way
            numbers = self._numbers()
            words = [self._token, self._conf.options.lease_s, SENTINEL, numbers, *tags]
            is_new, *lost = self._run(RENEW, keys, words)
            self._look_for_reset(bool(is_new), len(lost))
            if is_new and waits:
                self._call([("SADD", self._keys.waits(self._token), *waits)])
        return lost

    def _numbers(self) -> str:
        """By which others see whether this consumer is connected: to which run of the server, and how it numbers us."""
        wire = self._wire
        return f"{self.run_id} {self.client_id} {0 if wire is None else wire.client_id}"

    def _look_for_reset(self, is_new: bool, lost: int) -> None:
        """Say so when the store is empty that was in use (B30): nobody removes the sentinel but who removes all."""
        store = (self._conf.address.store, self._keys.index)
        if is_new and store in _in_use:
            self.was_reset = True
            structlog.get_logger(__name__).error(
                "store.reset",
                store=str(self._conf.address),
                held=lost,
                hint="Its data are gone: flushed, evicted, or restarted without them. Messages that waited are lost.",
            )
        _in_use.add(store)

    def are_gone(self, places: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Which of these messages lie neither in their inbox nor in our records, by (inbox, tag)."""
        # A claim takes them from there to here in one step, so what is not there, and then not here, is elsewhere.
        looks: list[tuple[Any, ...]] = [("LLEN", inbox) for inbox, _ in places]
        looks += [("ZSCORE", self._keys.index, tag) for _, tag in places]
        found = self._call(looks)
        return [not size and score is None for size, score in zip(found, found[len(places) :], strict=False)]

    def end(self) -> None:
        """Give up the lease, after everything was given back."""
        self._forget(self._token)

    def _forget(self, token: str) -> None:
        keys = self._keys
        self._call([("ZREM", keys.owners, token), ("HDEL", keys.alive, token), ("DEL", keys.waits(token))])

    def succeed(self, token: str) -> None:
        """Return what a consumer of this process held, which lost its connection, whatever its lease says. No process
        has died of it, so it is spared."""
        self._run(DESPITE_ALL, [self._keys.odd], ["ZADD", self._keys.owners, self._now() - 1, token])
        self._rescue(token, self._tags_of([token])[token], 0.0, spared=True)

    def make_up(self, known: AbstractSet[bytes], busy: Mapping[str, bytes | None]) -> None:
        """Return what stands under this consumer's token and is none of these tags, and what lies in its inboxes and
        does not belong there (`busy`; None: anything may). No process has died of it, so it is spared."""
        tags = [tag for tag in self._tags_of([self._token])[self._token] if tag not in known]
        returned = self._empty_inboxes(self._token, spared=True, busy=busy) + self._return_all(tags, "", spared=True)
        if returned:
            structlog.get_logger(__name__).error(
                "store.outdated",
                store=str(self._conf.address),
                returned=returned,
                hint="It lacks its last writes: a crash, or a failover to a replica that lagged. Tasks that had ended"
                " are run again; what was sent in that time may be lost.",
            )

    def abandon(self) -> None:
        """Let go of the connection."""
        wire, self._wire, self._lock = self._wire, None, threading.Lock()
        if wire is not None:
            wire.close()

    # the search

    def sweep(self) -> int:
        """Return what consumers held whose lease has ended, and what Celery's workers left; how many that were."""
        keys = self._keys
        if not self._run(DESPITE_ALL, [keys.odd], ["SET", keys.sweep, self._token, "NX", "PX", SWEEP_LOCK_MS]):
            return 0
        now = self._now()
        self._disown_dead(now)
        found = self._call([("ZRANGEBYSCORE", keys.owners, "-inf", now, "WITHSCORES")])[0]
        # All of them, for each stands there until it has faded: a whole host may die at once.
        ended = {token.decode(): float(at) for token, at in zip(found[::2], found[1::2], strict=True)}
        tags = self._tags_of(list(ended))
        returned = sum(self._rescue(token, tags[token], now - at) for token, at in ended.items())
        return returned + self._restore_abandoned(now)

    def _disown_dead(self, now: float) -> None:
        """End the leases of consumers whose connections are all gone: their processes have died.

        One that has merely lost its connections is back in an instant and renews, so each suspect gets a second look;
        and a lease that was renewed lately stands. Where the server shows no connections, leases end by their time.
        """
        if not self._may_look or self.run_id == UNKNOWN_RUN:
            return
        try:
            suspects = self._unconnected()
            if not suspects:
                return
            time.sleep(SECOND_LOOK_S)
            for token in suspects & self._unconnected():
                lately = now - SILENCE_S + self._conf.options.lease_s
                self._run(DISOWN, [self._keys.owners, self._keys.alive], [token, f"{lately:.3f}"])
        except ReplyError:
            self._may_look = False  # forbidden to us, or unknown to this server

    def _unconnected(self) -> set[str]:
        """The tokens of consumers none of whose connections the server knows."""
        found = self._call([("HGETALL", self._keys.alive)])[0]
        numbers: dict[str, set[bytes]] = {}
        for token, said in zip(found[::2], found[1::2], strict=True):
            run, *mine = said.split()
            if run == self.run_id.encode():  # numbers of an earlier run say nothing
                numbers[token.decode()] = set(mine) - {b"0"}
        asked = set().union(*numbers.values())
        if not asked or self._wire is None:
            return set()
        own = b"%d" % self._wire.client_id
        lines = self._call([("CLIENT", "LIST", "ID", own, *asked)])[0].splitlines()
        there = {line.split(b" ", 1)[0].removeprefix(b"id=") for line in lines}
        if own not in there:
            return set()  # something between us and the server has numbers of its own
        return {token for token, mine in numbers.items() if not mine & there}

    def _now(self) -> float:
        seconds, micros = self._call([("TIME",)])[0]
        return int(seconds) + int(micros) / 1_000_000

    def _rescue(self, token: str, tags: Sequence[bytes], gone_s: float, *, spared: bool = False) -> int:
        """Return what one dead consumer held."""
        returned = self._empty_inboxes(token, spared) + self._return_all(tags, token, spared=spared)
        if not returned and gone_s > FADING_S:
            self._forget(token)
        return returned

    def _tags_of(self, tokens: Sequence[str]) -> dict[str, list[bytes]]:
        """All that is recorded under each of these tokens, the oldest first."""
        numbers: dict[str, dict[int, bytes]] = {token: {} for token in tokens}
        pattern = f"{tokens[0]}:*" if len(tokens) == 1 else "*:*"
        cursor: bytes = b"0"
        while tokens:
            cursor, found = self._call([("ZSCAN", self._keys.index, cursor, "MATCH", pattern, "COUNT", 1000)])[0]
            for tag in found[::2]:
                token, _, number = tag.decode("utf-8", "replace").rpartition(":")
                if token in numbers:
                    numbers[token][int(number)] = tag
            if cursor == b"0":
                break
        return {token: [tag for _, tag in sorted(own.items())] for token, own in numbers.items()}

    def _empty_inboxes(self, token: str, spared: bool, busy: Mapping[str, bytes | None] = NOTHING) -> int:
        returned = 0
        for source in self._call([("SMEMBERS", self._keys.waits(token))])[0]:
            inboxes = self._keys.inboxes(token, source.decode())
            for inbox, found in zip(inboxes, self._call([("LRANGE", inbox, 0, -1) for inbox in inboxes]), strict=True):
                raws = [raw for raw in found if inbox not in busy or busy[inbox] not in (None, raw)]
                if raws:
                    words = [word for raw in raws for word in (raw, mark_lost(raw, spared=spared))]
                    self._note(self._run(EMPTY_INBOX, [inbox, source], words))
                    returned += len(raws)
        return returned

    def _restore_abandoned(self, now: float) -> int:
        """As kombu does for Celery's workers: return what they have held for longer than the visibility timeout.

        What goes to an exchange that leads to no list stays, until one does. It must not stand before the others: so
        each look goes on where the last one ended, and begins anew when it has seen all.
        """
        oldest = now - self._conf.options.visibility_timeout_s
        limit = ("LIMIT", self._passed_over, SWEEP_BATCH)
        tags = self._call([("ZRANGEBYSCORE", self._keys.index, 0, oldest, *limit)])[0]
        returned = self._return(tags, "", f"{oldest:.6f}") if tags else 0
        self._passed_over = self._passed_over + len(tags) - returned if len(tags) == SWEEP_BATCH else 0
        return returned

    def _return_all(self, tags: Sequence[bytes], token: str, *, spared: bool) -> int:
        pieces = [tags[at : at + SWEEP_BATCH] for at in range(0, len(tags), SWEEP_BATCH)]
        return sum(self._return(piece, token, "", spared=spared) for piece in pieces)

    def _return(self, tags: Sequence[bytes], token: str, oldest: str, *, spared: bool = False) -> int:
        """Send entries back to their lists, flagged, if they are still as abandoned as they were."""
        keys = self._keys
        entries, odds = self._call([("HMGET", keys.unacked, *tags), ("HMGET", keys.odd, *tags)])
        words: list[Any] = []
        for tag, entry, odd in reversed(list(zip(tags, entries, odds, strict=True))):
            targets, raw = self._targets(entry, odd, spared)
            if targets:
                words += (tag, "next", targets[0], len(targets), raw, *targets[1:])
            elif entry is None and odd is None:
                self._call([("ZREM", keys.index, tag)])
        if not words:
            return 0
        sent, problem = self._run(RETURN, [keys.index, keys.unacked, keys.odd], [token, keys.owners, oldest, *words])
        self._note(problem)
        return int(sent)

    def _note(self, problem: bytes) -> None:
        """Say, but not again and again, that messages cannot go back."""
        if problem and problem != self._problem:
            self._problem = problem
            structlog.get_logger(__name__).error(
                "queue.unwritable",
                error=problem.decode("utf-8", "replace"),
                hint="What dead workers held of this queue stays in the hash unacked. Move the key that is no list.",
            )

    def _targets(self, entry: bytes | None, odd: bytes | None, spared: bool) -> tuple[list[str], bytes]:
        """The lists where an entry's message belongs, and how it looks when it goes back."""
        if entry is None and odd is None:
            return [], b""
        if entry is None:
            key, raw = origin(self._keys, entry, odd)
            return [key], raw
        try:
            message, exchange, routing_key = json.loads(entry)
            if not (isinstance(exchange or "", str) and isinstance(routing_key, str)):
                return [], entry
        except (ValueError, TypeError, RecursionError):
            key, raw = origin(self._keys, entry, odd)
            return [key] if key else [], raw
        raw = mark_lost(json.dumps(message).encode("utf-8"), spared=spared)
        step = self._keys.step(priority_of(raw))
        return [self._keys.list_key(queue, step) for queue in self._queues(exchange, routing_key)], raw

    def _queues(self, exchange: str, routing_key: str) -> list[str]:
        if not exchange:
            return [routing_key]
        found = self._call([("SMEMBERS", self._keys.binding(exchange))])[0]
        rows = binding_rows(found, self._keys.sep)
        for kind in ("direct", "topic"):
            try:
                return matching(Route(routing_key, exchange, kind), {exchange: rows})
            except PublishRejected:
                continue
        return []

    # the connection

    def _run(self, script: Script, keys: Sequence[Any], words: Sequence[Any]) -> Any:
        try:
            return self._call([("EVALSHA", script.sha, len(keys), *keys, *words)])[0]
        except ReplyError as exc:
            if exc.code != "NOSCRIPT":
                raise
        return self._call([("EVAL", script.text, len(keys), *keys, *words)])[0]

    def _call(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Commands that may be performed twice; a connection that broke is replaced once."""
        with self._lock:
            wire = self._wire
            if wire is not None:
                try:
                    return wire.pipeline(commands)
                except WireLost:
                    wire.close()
                except ReplyError as exc:
                    if not exc.is_elsewhere:
                        raise
                    wire.close()
            self._wire = None
            wire = connect(self._conf.address, name=f"celeriac:{self._token}")
            self.run_id = _run_of(wire)
            self._wire = wire
            return wire.pipeline(commands)


def _run_of(wire: Wire) -> str:
    try:
        info = wire.call("INFO", "server").decode("utf-8", "replace")
    except ReplyError as exc:
        if exc.code != "NOPERM":  # to Redis it is a dangerous command, as all that tell of other clients
            raise
        return UNKNOWN_RUN
    return parse_info(info).get("run_id", UNKNOWN_RUN)


def origin(keys: Keys, entry: bytes | None, odd: bytes | None) -> tuple[str, bytes]:
    """The list from which one of our own entries came ("" if it cannot be told), and its message, byte for byte."""
    if odd is not None:
        size, _, rest = odd.partition(b":")
        return rest[: int(size)].decode(), rest[int(size) :]
    raw, _, tail = (entry or b"")[1:-1].rpartition(b', "", ')
    try:
        queue = json.loads(tail)
    except ValueError:
        return "", raw
    return keys.list_key(queue, keys.step(priority_of(raw))), raw
