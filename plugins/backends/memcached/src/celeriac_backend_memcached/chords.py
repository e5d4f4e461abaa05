"""Chords in a cache, which knows no transactions: each step is one atomic verb of the server, and may be repeated.

A chord has a *head*, replaced by compare-and-swap, a body, and a value for each part. Which parts came is in lists of
names that only grow (`append`), and a counter tells when to read them: it counts whatever comes, also twice, so it is
never too low for parts whose messages were acknowledged. Who finds it high enough reads the lists, and the set of names
decides; the claim is in the head.

Open chords stand in an index, with the time of the next look at each: so a look costs one exchange while none is due.
Times are unix seconds of the clock of the server that has the head.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct
from pymemcache.exceptions import MemcacheServerError

from celeriac.exceptions import BackendLost, BackendStoreError
from celeriac.spec import DONE_S, OVERDUE_S, Chord, ChordClaim, ChordPart
from celeriac_backend_memcached.servers import Cache

PREFIX: Final = "celeriac-chord-"
INDEX_KEYS: Final = [f"celeriac-chords-{n:x}" for n in range(16)]
NAME_BYTES: Final = 12
#: The names of parts are spread over so many lists, for a value has a bounded size.
LISTS: Final = 8
MOST_PARTS: Final = 500_000
READ_AT_ONCE: Final = 500
#: How often what others changed meanwhile is looked at again, before the store counts as away.
CAS_TRIES: Final = 1000
NEVER: Final = float(1 << 40)


class Head(Struct):
    """What is known of a chord."""

    group: str
    size: int | None = None
    patience_s: float = 0.0
    overdue: float = NEVER
    token: str = ""
    claimed: float = 0.0
    done: bool = False


def _needed_s(head: Head) -> float:
    """For so long parts of it may come."""
    return 0.0 if head.size is None or head.done else head.patience_s + OVERDUE_S


_pack: Final = msgspec.msgpack.Encoder().encode
_read_head: Final = msgspec.msgpack.Decoder(Head).decode
_read_part: Final = msgspec.msgpack.Decoder(tuple[int | None, bytes]).decode


class Keys:
    """The keys of one chord, by its id as a key takes it."""

    def __init__(self, fitting: str) -> None:
        self.fitting = fitting
        self.head = PREFIX + fitting
        self.body = f"{PREFIX}body-{fitting}"
        self.news = f"{PREFIX}news-{fitting}"
        self.count = f"{PREFIX}count-{fitting}"
        self.lists = [f"{PREFIX}list-{n}-{fitting}" for n in range(LISTS)]
        self.index = INDEX_KEYS[hashlib.sha256(fitting.encode()).digest()[0] % len(INDEX_KEYS)]

    def part(self, name: bytes) -> str:
        return f"{PREFIX}{name.hex()}-{self.fitting}"


class Chords:
    """The chords of one cache.

    Args:
        fitting: An id as a key takes it.
        expire: Until when a chord is kept, as the server understands it; at least so many seconds.
        failed: What is kept of a part that is too big for the server.
    """

    def __init__(
        self,
        cache: Cache,
        fitting: Callable[[str], str],
        expire: Callable[[float], int],
        failed: Callable[[ChordPart, Exception], bytes],
    ) -> None:
        self._cache = cache
        self._fitting = fitting
        self._expire = expire
        self._failed = failed

    def open(self, chords: Sequence[Chord]) -> None:
        for chord in chords:
            if chord.size > MOST_PARTS:
                raise BackendStoreError(
                    f"memcached backend: a chord of {chord.size} parts; here one may have {MOST_PARTS}"
                )
        keys = {chord.group: self._keys(chord.group) for chord in chords}
        heads = self._heads(keys)
        for chord in chords:
            known = heads.get(chord.group)
            if known is None or (known.size is None and not known.done):
                self._open(keys[chord.group], chord)

    def join(self, parts: Sequence[ChordPart], claim_s: float) -> list[ChordClaim]:
        by_group: dict[str, list[ChordPart]] = {}
        for part in parts:
            by_group.setdefault(part.group, []).append(part)
        keys = {group: self._keys(group) for group in by_group}
        heads = self._heads(keys)
        by_group = {group: own for group, own in by_group.items() if group not in heads or not heads[group].done}
        expire = self._kept(max(map(_needed_s, heads.values()), default=0.0))
        self._keep([(keys[group], part) for group, own in by_group.items() for part in own], expire)
        claims = []
        for group, own in by_group.items():
            known = heads.get(group)
            claim = self._arrived(keys[group], group, own, None if known is None else known.size, claim_s, expire)
            if claim is not None:
                claims.append(claim)
        return claims

    def grow(self, group: str) -> None:
        def larger(head: Head | None) -> Head | None:
            if head is None or head.done or head.size is None:
                return None
            head.size += 1
            return head

        self._change(self._keys(group), larger)

    def close(self, claims: Sequence[ChordClaim]) -> None:
        for claim in claims:
            keys = self._keys(claim.group)

            def ended(head: Head | None, claim: ChordClaim = claim) -> Head | None:
                if head is None or head.done or head.token != claim.token:
                    return None
                return Head(claim.group, done=True)

            if self._change(keys, ended) is not None:
                names = self._names(keys)
                self._redate(keys.index, {keys.fitting: None})
                self._cache.delete_many([*map(keys.part, names), *keys.lists, keys.count, keys.news, keys.body])

    def overdue(self, limit: int, claim_s: float) -> list[ChordClaim]:
        claims: list[ChordClaim] = []
        for index, text in self._cache.get_many(INDEX_KEYS).items():
            now = self._cache.now(index)
            due = [fitting for fitting, when in _read_index(text).items() if when <= now]
            dates: dict[str, float | None] = {}
            for fitting in due[: limit - len(claims)]:
                dates[fitting], claim = self._look(Keys(fitting), claim_s)
                if claim is not None:
                    claims.append(claim)
            if dates:
                self._redate(index, dates)
        return claims

    # how it is done

    def _keys(self, group: str) -> Keys:
        return Keys(self._fitting(group))

    def _heads(self, keys: Mapping[str, Keys]) -> dict[str, Head]:
        found = self._cache.get_many([one.head for one in keys.values()])
        return {group: _read_head(found[one.head]) for group, one in keys.items() if one.head in found}

    def _open(self, keys: Keys, chord: Chord) -> None:
        """Body, index, head: with the head it is open."""
        due = self._cache.now(keys.head) + chord.patience_s

        def opened(head: Head | None) -> Head | None:
            if head is not None and (head.done or head.size is not None):
                return None
            return Head(chord.group, chord.size, chord.patience_s, due)

        try:
            self._cache.set(keys.body, chord.body, self._kept(chord.patience_s + OVERDUE_S))
        except MemcacheServerError as exc:  # parts bring it too; without it nobody can say that the chord is overdue
            if not is_too_large(exc):
                raise
        self._append(keys.index, _line(keys.fitting, due), 0)
        self._change(keys, opened)

    def _kept(self, needed_s: float) -> int:
        """Until when, if it is needed for so long."""
        until = self._expire(0.0)
        return until and self._expire(needed_s)  # 0: for ever

    def _keep(self, parts: Sequence[tuple[Keys, ChordPart]], expire: int) -> None:
        """The values of parts, and when the last one came."""
        values = {keys.part(_name(part)): _pack((part.index, part.data)) for keys, part in parts}
        news = {keys.news: str(self._cache.now(keys.head)).encode() for keys, _ in parts}
        try:
            self._cache.set_many({**values, **news}, expire)
        except MemcacheServerError:
            for keys, part in parts:
                self._keep_one(keys, part, expire)
            self._cache.set_many(news, expire)

    def _keep_one(self, keys: Keys, part: ChordPart, expire: int) -> None:
        key = keys.part(_name(part))
        try:
            self._cache.set(key, _pack((part.index, part.data)), expire)
        except MemcacheServerError as exc:
            if not is_too_large(exc):
                raise
            self._cache.set(key, _pack((part.index, self._failed(part, exc))), expire)

    def _arrived(
        self, keys: Keys, group: str, parts: Sequence[ChordPart], size: int | None, claim_s: float, expire: int
    ) -> ChordClaim | None:
        """Parts whose values are kept have come."""
        names = [_name(part) for part in parts]
        self._append(keys.lists[names[0][0] % LISTS], b"".join(names), expire)
        come = self._count(keys, len(names), expire)
        if size is None:  # it may have been opened meanwhile
            head = self._heads({group: keys}).get(group)
            size = None if head is None else head.size
        if size is None or come < size or len(self._names(keys)) < size:
            return None
        return self._claim(keys, claim_s)

    def _claim(self, keys: Keys, claim_s: float, *, only_overdue: bool = False) -> ChordClaim | None:
        """The claim on a chord that is complete or overdue; with no token while another has it, None if it is over."""
        now, token = self._cache.now(keys.head), uuid.uuid4().hex
        held: list[ChordClaim] = []

        def claimed(head: Head | None) -> Head | None:
            held.clear()
            if head is None or head.done or (only_overdue and self._due(keys, head) > now):
                return None
            if head.claimed > now:
                held.append(ChordClaim(head.group, "", head.claimed - now))
                return None
            head.token, head.claimed = token, now + claim_s
            head.overdue = head.claimed  # if its holder dies
            return head

        head = self._change(keys, claimed)
        if head is None:
            return held[0] if held else None
        parts = sorted(self._parts(keys), key=lambda part: 1 << 62 if part[0] is None else part[0])
        body = self._cache.get_many([keys.body]).get(keys.body, b"")
        return ChordClaim(head.group, token, 0.0, head.size or 0, parts, body)

    def _look(self, keys: Keys, claim_s: float) -> tuple[float | None, ChordClaim | None]:
        """At a chord whose time in the index has come: when to look again (None: no more), and a claim if it is
        overdue."""
        head = self._heads({"": keys}).get("")
        if head is None or head.done:
            return None, None
        due, now = self._due(keys, head), self._cache.now(keys.head)
        if due > now:
            return due, None
        claim = self._claim(keys, claim_s, only_overdue=True)
        return now + claim_s, claim if claim is not None and claim.token else None

    def _due(self, keys: Keys, head: Head) -> float:
        if head.token:
            return head.overdue
        news = self._cache.get_many([keys.news]).get(keys.news)
        return head.overdue if news is None else max(head.overdue, float(news) + head.patience_s)

    def _names(self, keys: Keys) -> set[bytes]:
        """Of the parts that came."""
        lists = self._cache.get_many(keys.lists).values()
        return {text[at : at + NAME_BYTES] for text in lists for at in range(0, len(text), NAME_BYTES)}

    def _parts(self, keys: Keys) -> Iterator[tuple[int | None, bytes]]:
        names = sorted(self._names(keys))
        for at in range(0, len(names), READ_AT_ONCE):
            found = self._cache.get_many([keys.part(name) for name in names[at : at + READ_AT_ONCE]])
            yield from map(_read_part, found.values())

    def _change(self, keys: Keys, change: Callable[[Head | None], Head | None]) -> Head | None:
        """Replace a head by what `change` makes of it; None if that wants nothing changed."""
        for _ in range(CAS_TRIES):
            data, mark = self._cache.gets(keys.head)
            head = change(None if data is None else _read_head(data))
            if head is None:
                return None
            expire = self._expire(DONE_S) if head.done else self._kept(_needed_s(head))
            if data is None:
                if self._cache.add(keys.head, _pack(head), expire):
                    return head
            elif self._cache.cas(keys.head, _pack(head), mark, expire):
                return head
        raise _others(keys.head)

    def _append(self, key: str, data: bytes, expire: int) -> None:
        for _ in range(CAS_TRIES):
            if self._cache.append(key, data) or self._cache.add(key, data, expire):
                return
        raise _others(key)

    def _count(self, keys: Keys, more: int, expire: int) -> int:
        for _ in range(CAS_TRIES):
            come = self._cache.incr(keys.count, more)
            if come is not None:
                return come
            if self._cache.add(keys.count, str(more).encode(), expire):
                return more
        raise _others(keys.count)

    def _redate(self, index: str, dates: Mapping[str, float | None]) -> None:
        """When to look at these chords again; None: no more."""
        for _ in range(CAS_TRIES):
            text, mark = self._cache.gets(index)
            known = {} if text is None else _read_index(text)
            for fitting, when in dates.items():
                if when is None:
                    known.pop(fitting, None)
                elif fitting in known:
                    known[fitting] = when
            made = b"".join(_line(fitting, when) for fitting, when in known.items())
            if text is None or self._cache.cas(index, made, mark, 0):
                return
        raise _others(index)


def is_too_large(exc: Exception) -> bool:
    """The server refuses a value for its size."""
    return "too large" in str(exc)


def _name(part: ChordPart) -> bytes:
    """A part's name: it is known by its task and its place."""
    text = f"{part.index} {part.task_id}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:NAME_BYTES]


def _line(fitting: str, when: float) -> bytes:
    return f"{when:.3f} {fitting}\n".encode()


def _read_index(text: bytes) -> dict[str, float]:
    pairs = (line.split(" ", 1) for line in text.decode().splitlines())
    return {fitting: float(when) for when, fitting in pairs}


def _others(key: str) -> BackendLost:
    return BackendLost(f"memcached backend: {key} was changed by others {CAS_TRIES} times in a row")
