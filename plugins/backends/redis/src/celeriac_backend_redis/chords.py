"""Chords and saved groups under Celery's keys, so that chords of a mixed fleet are joined by either side's workers.

For a group `g` there are, under the key of the saved group (`celery-taskset-meta-g`) and a suffix:

======  ============================================================================================================
`.j`    the parts as they came, each `[1, task_id, state, result]`: a sorted set by index, or a list
`.d`    `task_id:index` of the parts that count already
`.s`    how many parts are expected, `.t` how many more were added
`.c`    the claim: a token while the body is sent, then `done`
`.b`    ours: what to call and how patiently to wait, for a chord that never completes
======  ============================================================================================================

Open chords stand in one sorted set by the time when they are overdue, which is ours too.

Source: Celery 5.7's chords on Redis, as seen on the wire.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from celeriac.spec import DONE_S, OVERDUE_S, Chord, ChordClaim, ChordPart
from celeriac_backend_redis.scripts import Script

GROUP_KEY: Final = "celery-taskset-meta-"
OVERDUE_KEY: Final = "celeriac-chords"
PARTS_AT_ONCE: Final = 1000


#: Shared beginnings: ARGV 1 is the sorted set of open chords, 2 the lifetime in seconds (0: for ever).
COMMON: Final = """
local call, open, lifetime = redis.call, ARGV[1], ARGV[2]
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local function keep(key)
  if lifetime == '0' then return end
  local needed = call('HGET', key .. '.b', 'patience')  -- for so long parts may come
  local kept = math.max(tonumber(lifetime), needed and math.ceil(needed + OVERDUE_S) or 0)
  kept = string.format('%d', kept)
  for _, suffix in ipairs({'.j', '.t', '.s', '.d', '.b', ''}) do call('EXPIRE', key .. suffix, kept) end
end
""".replace("OVERDUE_S", f"{OVERDUE_S:.0f}")
#: How a claim is given: `{group key, token, size, body, parts}`, or `{group key, '', milliseconds}` to the others.
#: Asked again with the same token (the first answer was lost on its way), it is given again.
CLAIM: Final = """
local function claim(key, token, ms)
  if not call('SET', key .. '.c', token, 'NX', 'PX', ms) and call('GET', key .. '.c') ~= token then
    return {key, '', math.max(0, call('PTTL', key .. '.c'))}
  end
  call('ZADD', open, 'XX', string.format('%.3f', now + ms / 1000), key)
  local size = (tonumber(call('GET', key .. '.s')) or 0) + (tonumber(call('GET', key .. '.t')) or 0)
  local parts
  if call('TYPE', key .. '.j').ok == 'list' then
    parts = {}
    for i, data in ipairs(call('LRANGE', key .. '.j', 0, -1)) do
      parts[2 * i - 1], parts[2 * i] = data, ''
    end
  else
    parts = call('ZRANGE', key .. '.j', 0, -1, 'WITHSCORES')
  end
  return {key, token, size, call('HGET', key .. '.b', 'body') or '', parts}
end
"""
#: ARGV from 3: for each chord its group key, size, body, patience in seconds.
OPEN: Final = Script(
    COMMON
    + """
for i = 3, #ARGV, 4 do
  local key, size, body, patience = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if call('GET', key .. '.c') ~= 'done' and call('SET', key .. '.s', size, 'NX') then
    call('HSET', key .. '.b', 'body', body, 'patience', patience)
    call('ZADD', open, string.format('%.3f', now + patience), key)
  end
  keep(key)
end
"""
)
#: ARGV: 3 milliseconds of a claim, 4 a token, 5 as what parts are kept, `zset` (in order) or `list`, unless there
#: are some that somebody with another `result_chord_ordered` keeps otherwise; then for each part its group key,
#: `task_id:index`, score, data. Returns claims.
JOIN: Final = Script(
    COMMON
    + CLAIM
    + """
local seen, keys = {}, {}
for i = 6, #ARGV, 4 do
  local key = ARGV[i]
  if seen[key] == nil then
    seen[key] = false
    if call('GET', key .. '.c') ~= 'done' then
      local kind = call('TYPE', key .. '.j').ok
      seen[key] = kind == 'none' and ARGV[5] or kind
      keys[#keys + 1] = key
    end
  end
  if seen[key] and call('SISMEMBER', key .. '.d', ARGV[i + 1]) == 0 then
    if seen[key] == 'zset' then call('ZADD', key .. '.j', ARGV[i + 2], ARGV[i + 3])
    else call('RPUSH', key .. '.j', ARGV[i + 3]) end
    call('SADD', key .. '.d', ARGV[i + 1])
  end
end
local claims = {}
for _, key in ipairs(keys) do
  keep(key)
  local patience = call('HGET', key .. '.b', 'patience')
  if patience then call('ZADD', open, 'XX', 'GT', string.format('%.3f', now + patience), key) end
  local size, extra = call('GET', key .. '.s'), call('GET', key .. '.t') or 0
  local count = call(seen[key] == 'zset' and 'ZCARD' or 'LLEN', key .. '.j')
  if size and count >= size + extra then claims[#claims + 1] = claim(key, ARGV[4], ARGV[3]) end
end
return claims
"""
)
#: ARGV: 3 the group key, 4 a task id, which is noted so that a repetition changes nothing.
GROW: Final = Script(
    COMMON
    + """
if call('HSETNX', ARGV[3] .. '.b', 'more:' .. ARGV[4], '') == 1 then call('INCR', ARGV[3] .. '.t') end
keep(ARGV[3])
"""
)
#: ARGV: 3 how long the end is remembered; then for each claim its group key and token.
CLOSE: Final = Script(
    COMMON
    + """
for i = 4, #ARGV, 2 do
  local key = ARGV[i]
  if call('GET', key .. '.c') == ARGV[i + 1] then
    call('DEL', key .. '.j', key .. '.t', key .. '.s', key .. '.d', key .. '.b')
    call('SET', key .. '.c', 'done', 'EX', ARGV[3])
    call('ZREM', open, key)
  end
end
"""
)
#: ARGV: 3 milliseconds of a claim, 4 a token, 5 how many at most. Returns claims. What Celery's workers have ended, or
#: time, is taken from the set.
OVERDUE: Final = Script(
    COMMON
    + CLAIM
    + """
local claims = {}
for _, key in ipairs(call('ZRANGEBYSCORE', open, '-inf', string.format('%.3f', now), 'LIMIT', 0, ARGV[5])) do
  if call('GET', key .. '.c') == 'done' or call('EXISTS', key .. '.s') == 0 then
    call('DEL', key .. '.b')
    call('ZREM', open, key)
  else
    local made = claim(key, ARGV[4], ARGV[3])
    if made[2] ~= '' then claims[#claims + 1] = made
    else call('ZADD', open, string.format('%.3f', now + made[3] / 1000), key) end
  end
end
return claims
"""
)


class RedisChords:
    """The chords and groups of one store.

    Args:
        ask: Performs one command that may be performed twice.
        run: Runs a script that may be run twice, with these words.
        prefix: What stands before every key.
        lifetime_s: Of a chord without news, 0 for ever; `group_lifetime_s` of a saved group.
        ordered: Parts are kept in the order of the header rather than as they come (`result_chord_ordered`).
    """

    def __init__(
        self,
        ask: Callable[[tuple[Any, ...]], Any],
        run: Callable[[Script, Sequence[Any]], Any],
        prefix: str,
        lifetime_s: int,
        group_lifetime_s: int,
        ordered: bool,
    ) -> None:
        self._ask = ask
        self._run = run
        self._prefix = (prefix + GROUP_KEY).encode()
        self._common: tuple[Any, ...] = ((prefix + OVERDUE_KEY).encode(), lifetime_s)
        self._group_lifetime_s = group_lifetime_s
        self._kind = "zset" if ordered else "list"

    def open(self, chords: Sequence[Chord]) -> None:
        words: list[Any] = []
        for chord in chords:
            words += (self._key(chord.group), chord.size, chord.body, f"{chord.patience_s:.3f}")
        self._run(OPEN, [*self._common, *words])

    def join(self, parts: Sequence[ChordPart], claim_s: float) -> list[ChordClaim]:
        claims: dict[str, ChordClaim] = {}
        for at in range(0, len(parts), PARTS_AT_ONCE):
            words: list[Any] = []
            for part in parts[at : at + PARTS_AT_ONCE]:
                tag = f"{part.task_id}:{'' if part.index is None else part.index}"
                words += (self._key(part.group), tag, "+inf" if part.index is None else part.index, part.data)
            head = (*self._common, int(claim_s * 1000), uuid.uuid4().hex, self._kind)
            for claim in self._claims(self._run(JOIN, [*head, *words])):
                if claim.token or claim.group not in claims:  # a later chunk finds the claim of an earlier one held
                    claims[claim.group] = claim
        return list(claims.values())

    def grow(self, group: str, task_id: str) -> None:
        self._run(GROW, [*self._common, self._key(group), task_id])

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        words = [word for claim in claims for word in (self._key(claim.group), claim.token)]
        self._run(CLOSE, [*self._common, int(DONE_S), *words])

    def overdue(self, limit: int, claim_s: float) -> list[ChordClaim]:
        return self._claims(self._run(OVERDUE, [*self._common, int(claim_s * 1000), uuid.uuid4().hex, limit]))

    def save_group(self, group_id: str, data: bytes) -> None:
        lifetime = ("EX", self._group_lifetime_s) if self._group_lifetime_s else ()
        self._ask(("SET", self._key(group_id), data, *lifetime))

    def load_group(self, group_id: str) -> bytes | None:
        data: bytes | None = self._ask(("GET", self._key(group_id)))
        return data

    def delete_group(self, group_id: str) -> None:
        self._ask(("DEL", self._key(group_id)))

    def _key(self, group: str) -> bytes:
        return self._prefix + group.encode("utf-8", "surrogatepass")

    def _claims(self, replies: Sequence[Any]) -> list[ChordClaim]:
        claims = []
        for key, token, number, *more in replies:
            group = key[len(self._prefix) :].decode()
            if not token:
                claims.append(ChordClaim(group, "", number / 1000))
                continue
            body, flat = more
            parts = [(_index(flat[i + 1]), flat[i]) for i in range(0, len(flat), 2)]
            claims.append(ChordClaim(group, token.decode(), 0.0, number, parts, body))
        return claims


def _index(score: bytes) -> int | None:
    return None if score in (b"", b"inf") else int(float(score))
