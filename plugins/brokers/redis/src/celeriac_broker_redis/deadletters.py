"""Messages set aside: reading, giving back and dropping the entries of their streams. Called by `transport`.

An entry's id is the stream's own, which begins with the server's time in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celeriac.spec.data import DeadBox, DeadLetter
from celeriac.spec.envelope import renew
from celeriac_broker_redis.attempts import mark_new, priority_of
from celeriac_broker_redis.keys import Keys
from celeriac_broker_redis.scripts import DEAD_BOXES, TAKE_DEAD, Script

#: Entries read or moved in one command.
PIECE = 500
Ask = Callable[[Sequence[tuple[Any, ...]]], list[Any]]
Run = Callable[[Script, Sequence[str], Sequence[Any]], Any]


def dead_boxes(keys: Keys, ask: Ask, run: Run, queues: Sequence[str]) -> list[DeadBox]:
    known = ask([("HKEYS", keys.dropped)])[0]
    names = list(dict.fromkeys([*queues, *sorted(name.decode("utf-8", "surrogateescape") for name in known)]))
    if not names:
        return []
    found = run(DEAD_BOXES, [keys.dropped, *map(keys.dead, names)], names)
    return [DeadBox(name, count, dropped) for name, (count, dropped) in zip(names, found, strict=True)]


def browse_dead(keys: Keys, ask: Ask, queue: str, after: str, limit: int) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    while len(letters) < limit:
        start = f"({after}" if _is_id(after) else "-"
        wanted = min(limit - len(letters), PIECE)
        found = ask([("XRANGE", keys.dead(queue), start, "+", "COUNT", wanted)])[0]
        letters += [_read(queue, id, words) for id, words in found]
        if len(found) < wanted:
            break
        after = letters[-1].id
    return letters


def requeue_dead(keys: Keys, ask: Ask, run: Run, queue: str, ids: Sequence[str]) -> int:
    count = 0
    ids = list(filter(_is_id, ids))
    for at in range(0, len(ids), PIECE):
        piece = ids[at : at + PIECE]
        words: list[Any] = []
        for found in ask([("XRANGE", keys.dead(queue), id, id) for id in piece]):
            for id, fields in found:
                letter = _read(queue, id, fields)
                raw = renew(mark_new(letter.raw))
                words += (letter.id, keys.list_key(queue, keys.step(priority_of(raw))), raw)
        if words:
            count += run(TAKE_DEAD, [keys.dead(queue)], words)
    return count


def drop_dead(keys: Keys, run: Run, queue: str, ids: Sequence[str]) -> int:
    words = [(id, "", "") for id in ids if _is_id(id)]
    pieces = (words[at : at + PIECE] for at in range(0, len(words), PIECE))
    return sum(run(TAKE_DEAD, [keys.dead(queue)], [word for three in piece for word in three]) for piece in pieces)


def _is_id(text: str) -> bool:
    """Whether Redis would take it for the id of an entry: two numbers of at most 20 digits."""
    parts = text.split("-")
    return len(parts) == 2 and all(part.isascii() and part.isdecimal() and int(part) < 2**64 for part in parts)


def _read(queue: str, id: bytes, words: Sequence[bytes]) -> DeadLetter:
    fields = dict(zip(words[::2], words[1::2], strict=False))

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    attempt = text(b"attempt")
    return DeadLetter(
        id.decode(),
        queue,
        fields.get(b"raw", b""),
        text(b"reason"),
        text(b"error"),
        int(attempt) if attempt.isdecimal() else 1,
        text(b"owner"),
        int(id.partition(b"-")[0]) / 1000,
    )
