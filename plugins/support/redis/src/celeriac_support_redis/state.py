"""Shared state in Redis: what the broker and the result store of celeriac both offer (`SharedState`).

==============================  ====  ==========================================================
`celeriac.state.<space>`        hash  key → `version expires value`; an empty `expires` is never
`celeriac.state.<space>.ends`   zset  key → server time at which it expires
`celeriac.state.versions`       hash  space → version of its latest write
==============================  ====  ==========================================================

The clock is the server's. Each verb is one script, hence one step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from celeriac.spec import Change, Entry, Snapshot
from celeriac_support_redis.wire import ReplyError

#: Performs one command and returns its reply; a `ReplyError` is returned too, other errors are the plugin's own.
Ask = Callable[[tuple[Any, ...]], Any]

#: Expired entries removed by one write: a bound for how long it may take.
EXPIRED_PER_WRITE: Final = 1_000

#: KEYS: entries, ends, versions. ARGV: space, G, C, then G × (key, version), C × (key, "1" or "" to remove, ttl or "",
#: value). A full server still lets entries be removed and changed: the first write frees. Returns the version or "".
_WRITE: Final = f"""
local entries, ends, versions, space = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local time = redis.call('TIME')
local now, at = time[1] + time[2] / 1000000, 4
redis.call('HDEL', entries, '')
local gone = redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, {EXPIRED_PER_WRITE})
for _, key in ipairs(gone) do
  redis.call('HDEL', entries, key)
  redis.call('ZREM', ends, key)
end
for _ = 1, tonumber(ARGV[2]) do
  local found, version = redis.call('HGET', entries, ARGV[at]), '0'
  if found then
    local seen, expires = string.match(found, '^(%d+) ([%d.]*) ')
    if expires == '' or tonumber(expires) > now then version = seen end
  end
  if version ~= ARGV[at + 1] then return '' end
  at = at + 2
end
local version = math.max(tonumber(redis.call('HGET', versions, space) or 0) + 1, time[1] * 1000000 + time[2])
local text = string.format('%.0f', version)
redis.call('HSET', versions, space, text)
for _ = 1, tonumber(ARGV[3]) do
  local key = ARGV[at]
  if ARGV[at + 1] == '' then
    redis.call('HDEL', entries, key)
    redis.call('ZREM', ends, key)
  else
    local expires = ''
    if ARGV[at + 2] == '' then
      redis.call('ZREM', ends, key)
    else
      expires = string.format('%.6f', now + ARGV[at + 2])
      redis.call('ZADD', ends, expires, key)
    end
    redis.call('HSET', entries, key, text .. ' ' .. expires .. ' ' .. ARGV[at + 3])
  end
  at = at + 4
end
return text
"""
#: KEYS: entries, versions. ARGV: space, "all" or "some", keys. Returns: version, now, then keys and entries by turns.
_READ: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local found = {redis.call('HGET', KEYS[2], ARGV[1]) or '0', string.format('%.6f', now)}
local function add(key, entry)
  local expires = string.match(entry, '^%d+ ([%d.]*) ')
  if expires == '' or tonumber(expires) > now then
    found[#found + 1] = key
    found[#found + 1] = entry
  end
end
if ARGV[2] == 'all' then
  local flat = redis.call('HGETALL', KEYS[1])
  for i = 1, #flat, 2 do add(flat[i], flat[i + 1]) end
else
  for i = 3, #ARGV do
    local entry = redis.call('HGET', KEYS[1], ARGV[i])
    if entry then add(ARGV[i], entry) end
  end
end
return found
"""
_SHA: Final = {script: hashlib.sha1(script.encode()).hexdigest() for script in (_WRITE, _READ)}  # the server's choice


class RedisState:
    """See `celeriac.spec.SharedState`.

    Args:
        ask: See `Ask`. Safe for threads, if the state shall be.
        refused: What to raise when the server answers with an error.
        prefix: Before all keys.
    """

    def __init__(self, ask: Ask, refused: Callable[[ReplyError], Exception], prefix: str = "") -> None:
        self._ask = ask
        self._refused = refused
        self._prefix = f"{prefix}celeriac.state."

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        words: list[Any] = [space, len(given), len(changes)]
        for key, version in given.items():
            words += (key, version)
        for change in changes:
            removed = change.value is None
            ttl = "" if change.ttl_s is None else repr(float(change.ttl_s))
            words += (change.key, "" if removed else "1", ttl, b"" if removed else change.value)
        entries = self._prefix + space
        reply = self._run(_WRITE, [entries, f"{entries}.ends", f"{self._prefix}versions"], words)
        return int(reply) if reply else None

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        words = [space, "all"] if keys is None else [space, "some", *dict.fromkeys(keys)]
        version, now, *flat = self._run(_READ, [self._prefix + space, f"{self._prefix}versions"], words)
        entries = {key.decode(): _entry(data) for key, data in zip(flat[::2], flat[1::2], strict=True)}
        return Snapshot(int(version), float(now), entries)

    def version(self, space: str) -> int:
        return int(self._checked(self._ask(("HGET", f"{self._prefix}versions", space))) or 0)

    def _run(self, script: str, keys: Sequence[str], words: Sequence[Any]) -> Any:
        reply = self._ask(("EVALSHA", _SHA[script], len(keys), *keys, *words))
        if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
            reply = self._ask(("EVAL", script, len(keys), *keys, *words))
        return self._checked(reply)

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, ReplyError):
            raise self._refused(reply) from reply
        return reply


def _entry(data: bytes) -> Entry:
    version, expires, value = data.split(b" ", 2)
    return Entry(value, int(version), float(expires) if expires else None)
