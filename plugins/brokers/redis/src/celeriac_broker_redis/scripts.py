"""The steps that must be atomic, as Lua for the server.

A script that fails in the middle keeps what it did before, so each is written to leave a message in one place at
least, whatever goes wrong at whichever line. A server over its memory limit refuses the first growing write of
a script, but none after a write that frees: hence the empty `HDEL` (or `XDEL`) with which some begin, so that a full
server can be drained.
"""

from __future__ import annotations

import hashlib
from typing import Final

#: Messages are copied in pieces of so many: a bound for Lua's stack, and for what passes the byte limit by surprise.
CHUNK: Final = 64


class Script:
    """A Lua script and the name by which the server knows it once it has seen it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()  # the server's choice of digest, not a matter of safety


#: Moves what is due, takes up what the consumer was handed while it waited, and takes more, in one step.
#:
#: KEYS: index, unacked, odd, owners, then A inboxes, L lists in the order of preference, and D delayed sets.
#: ARGV: token, lease in seconds, limit, number of the first tag, byte limit, A, L, D,
#:       then A × (tag number, entry's tail, list), L × (entry's tail), D × (the queue's first list, separator).
#: Returns: milliseconds until the next delayed message is due or -1; error text or ""; then a group for each list that
#: gave something: its position, and its messages in order. The messages have consecutive tag numbers.
CLAIM: Final = Script(
    """
local index, unacked, odd, owners = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, limit, number, room = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local inboxes, lists, delays = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local stamp, now = time[1], time[1] + time[2] / 1000000
local problem = ''
redis.call('HDEL', odd, '')
redis.call('ZADD', owners, stamp + ARGV[2], token)

local function record(list, tail, raws, first)
  local fields, odds, scores = {}, {}, {}
  for i = 1, #raws do
    local raw, tag = raws[i], token .. ':' .. (first + i - 1)
    if string.byte(raw, 1) == 123 and string.byte(raw, -1) == 125 then
      fields[#fields + 1] = tag
      fields[#fields + 1] = '[' .. raw .. tail
    else
      odds[#odds + 1] = tag
      odds[#odds + 1] = #list .. ':' .. list .. raw
    end
    scores[#scores + 1] = stamp
    scores[#scores + 1] = tag
  end
  local done = redis.pcall('ZADD', index, unpack(scores))
  if type(done) ~= 'table' and #fields > 0 then done = redis.pcall('HSET', unacked, unpack(fields)) end
  if type(done) ~= 'table' and #odds > 0 then done = redis.pcall('HSET', odd, unpack(odds)) end
  if type(done) == 'table' then
    for i = #raws, 1, -1 do redis.call('RPUSH', list, raws[i]) end
    problem = 'what is held: ' .. done.err
    return false
  end
  return true
end

local next_due = -1
for d = 1, delays do
  local at = 7 + 3 * inboxes + lists + 2 * d
  local key, list, sep = KEYS[4 + inboxes + lists + d], ARGV[at], ARGV[at + 1]
  local first, soonest = redis.pcall('ZRANGE', key, 0, 0, 'WITHSCORES'), 0
  if first.err then
    problem = key .. ': ' .. first.err
  elseif first[2] and tonumber(first[2]) <= now then
    local due = redis.call('ZRANGEBYSCORE', key, '-inf', string.format('%.6f', now), 'LIMIT', 0, 256)
    local moved = {}
    for i = 1, #due do
      local step, rest = string.match(due[i], '^(%d+):[^:]*:()')
      local target = step == '0' and list or list .. sep .. (step or '')
      local done = step and redis.pcall('LPUSH', target, string.sub(due[i], rest)) or {err = 'no message: ' .. key}
      if type(done) == 'number' then
        moved[#moved + 1] = due[i]
      else
        problem, soonest = target .. ': ' .. done.err, 1000
      end
    end
    if #moved > 0 then redis.call('ZREM', key, unpack(moved)) end
    first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  end
  if first[2] then
    local wait = math.max(soonest, math.ceil((first[2] - now) * 1000))
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

for a = 1, inboxes do
  local raw = redis.call('RPOP', KEYS[4 + a])
  if raw then record(ARGV[8 + 3 * a], ARGV[7 + 3 * a], {raw}, tonumber(ARGV[6 + 3 * a])) end
end

local out = {next_due, problem}
local count, bytes = 0, 0
for l = 1, lists do
  local list, tail, group = KEYS[4 + inboxes + l], ARGV[8 + 3 * inboxes + l], nil
  while count < limit and bytes < room do
    local want = math.min(limit - count, 64)
    local raws = redis.pcall('RPOP', list, want)
    if not raws then break end
    if raws.err then problem = list .. ': ' .. raws.err; break end
    if not record(list, tail, raws, number + count) then break end
    if not group then
      group = {l}
      out[#out + 1] = group
    end
    local size = #group
    for i = 1, #raws do
      group[size + i] = raws[i]
      bytes = bytes + #raws[i]
    end
    count = count + #raws
    if #raws < want then break end
  end
  if count >= limit or bytes >= room then break end
end
out[2] = problem
return out
"""
)

#: Removes all that waits in a queue, or nothing if one of its keys is no queue's. KEYS: its delayed set, its lists.
#: Returns: how many messages that were.
PURGE: Final = Script(
    """
local count = redis.call('ZCARD', KEYS[1])
for i = 2, #KEYS do count = count + redis.call('LLEN', KEYS[i]) end
redis.call('UNLINK', unpack(KEYS))
return count
"""
)

#: How long and how many messages that were set aside are kept.
DEAD_KEPT_S: Final = 7 * 24 * 3600
DEAD_KEPT: Final = 10_000
FORGET_OLD: Final = f"""
local function forget_old(stream, counts, queue)
  local oldest = (redis.call('TIME')[1] - {DEAD_KEPT_S}) .. '000'
  local dropped = redis.call('XTRIM', stream, 'MINID', oldest) + redis.call('XTRIM', stream, 'MAXLEN', {DEAD_KEPT})
  redis.call('HINCRBY', counts, queue, dropped)
end
"""

#: What is kept of messages that were set aside. KEYS: count of dropped ones, then streams. ARGV: their queues.
#: Returns: for each its length, and how many were dropped.
DEAD_BOXES: Final = Script(
    FORGET_OLD
    + """
local out = {}
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then forget_old(KEYS[i], KEYS[1], ARGV[i - 1]) end
  out[#out + 1] = {redis.call('XLEN', KEYS[i]), tonumber(redis.call('HGET', KEYS[1], ARGV[i - 1]) or 0)}
end
return out
"""
)

#: Takes messages that were set aside, each only if it is still there. KEYS: stream. ARGV: for each its id, then the
#: list it goes to and the message, or "" and "" to drop it. Returns: how many.
TAKE_DEAD: Final = Script(
    """
local taken = 0
redis.call('XDEL', KEYS[1], '0-0')
for i = 1, #ARGV, 3 do
  if #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) == 1 then
    if ARGV[i + 1] ~= '' then redis.call('LPUSH', ARGV[i + 1], ARGV[i + 2]) end
    redis.call('XDEL', KEYS[1], ARGV[i])
    taken = taken + 1
  end
end
return taken
"""
)

#: Sends held messages elsewhere, each only if it is still held: first there, then away from here.
#:
#: KEYS: index, unacked, odd. ARGV: the token of an owner whose lease must have ended or "", the key of owners, the
#: score at or below which an entry counts as abandoned or "", then for each: tag, verb, target key, number of words,
#: words. Verbs: `next` (words: message, more targets) makes it the next to be served, `delay` (due, member), `dead`
#: (the key of the count of dropped ones, the queue, then fields and values).
#: What cannot go to its target, whose key is of another kind, stays held.
#: Returns: how many were sent; error text or "".
RETURN: Final = Script(
    FORGET_OLD
    + """
local index, unacked, odd = KEYS[1], KEYS[2], KEYS[3]
if ARGV[1] ~= '' then
  local ends = redis.call('ZSCORE', ARGV[2], ARGV[1])
  if ends and tonumber(ends) > tonumber(redis.call('TIME')[1]) then return {0, ''} end
end
redis.call('HDEL', odd, '')
local sent, problem, at = 0, '', 4
while ARGV[at] do
  local tag, verb, target, words = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local held = redis.call('HEXISTS', unacked, tag) == 1 or redis.call('HEXISTS', odd, tag) == 1
  if held and ARGV[3] ~= '' then
    local score = redis.call('ZSCORE', index, tag)
    held = not score or tonumber(score) <= tonumber(ARGV[3])
  end
  if held then
    local done
    if verb == 'next' then
      done = redis.pcall('RPUSH', target, ARGV[at + 4])
      for more = at + 5, at + 3 + words do
        if type(done) == 'number' then redis.pcall('RPUSH', ARGV[more], ARGV[at + 4]) end
      end
    elseif verb == 'delay' then done = redis.pcall('ZADD', target, ARGV[at + 4], ARGV[at + 5])
    else
      done = redis.pcall('XADD', target, '*', unpack(ARGV, at + 6, at + 3 + words))
      if type(done) ~= 'table' then forget_old(target, ARGV[at + 4], ARGV[at + 5]) end
    end
    if type(done) == 'table' then
      problem = target .. ': ' .. done.err
    else
      redis.call('HDEL', unacked, tag)
      redis.call('HDEL', odd, tag)
      redis.call('ZREM', index, tag)
      sent = sent + 1
    end
  end
  at = at + 4 + words
end
return {sent, problem}
"""
)

#: Sends what lies in an inbox back to its list, as the next to be served.
#: KEYS: inbox, list. ARGV: the messages as they lie there and as they shall be sent, in pairs.
#: Returns: error text or "".
EMPTY_INBOX: Final = Script(
    """
redis.call('LREM', KEYS[1], 1, '')
for i = 1, #ARGV, 2 do
  if redis.call('LPOS', KEYS[1], ARGV[i]) then
    local done = redis.pcall('RPUSH', KEYS[2], ARGV[i + 1])
    if type(done) == 'table' then return KEYS[2] .. ': ' .. done.err end
    redis.call('LREM', KEYS[1], 1, ARGV[i])
  end
end
return ''
"""
)

#: Renews a lease and the time of everything held under it, so that neither we nor kombu's peers take it for abandoned;
#: and says which queues are served.
#:
#: KEYS: index, owners, alive, keys that say so. ARGV: token, lease in seconds, sentinel, numbers of connections, tags.
#: Returns: 1 if the sentinel was not there, else 0; then the positions (from 0) of tags that are held no longer.
RENEW: Final = Script(
    """
local stamp = redis.call('TIME')[1]
redis.call('ZREM', KEYS[2], '')
redis.call('ZADD', KEYS[2], stamp + ARGV[2], ARGV[1])
local lost = {redis.call('ZADD', KEYS[1], '+inf', ARGV[3])}
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
for i = 4, #KEYS do redis.call('SET', KEYS[i], '1', 'EX', 3600) end
for from = 5, #ARGV, 1000 do
  local to = math.min(from + 999, #ARGV)
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(ARGV, from, to))
  local renewed = {}
  for i = 1, to - from + 1 do
    if scores[i] then
      renewed[#renewed + 1] = stamp
      renewed[#renewed + 1] = ARGV[from + i - 1]
    else
      lost[#lost + 1] = from + i - 6
    end
  end
  if #renewed > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(renewed)) end
end
return lost
"""
)

#: One command of a publish. A message for later is kept in a set where workers of ours will move it on; where none
#: serves the queue it goes to its list at once, for Celery's workers keep such messages themselves.
PERFORM: Final = """
local function perform(from, size)
  if ARGV[from] ~= 'DELAY' then
    redis.call(unpack(ARGV, from, from + size - 1))
  elseif redis.call('EXISTS', ARGV[from + 2]) == 1 then
    redis.call('ZADD', ARGV[from + 1], ARGV[from + 4], ARGV[from + 5] .. ARGV[from + 6])
  else
    redis.call('LPUSH', ARGV[from + 3], ARGV[from + 6])
  end
end
"""

#: Performs one small command even on a full server, for a worker that may not begin there drains nothing.
#: KEYS: odd. ARGV: the command.
DESPITE_ALL: Final = Script("redis.call('HDEL', KEYS[1], '') return redis.call(unpack(ARGV))")

#: Ends a lease that was not renewed lately.
#: KEYS: owners, alive. ARGV: token, the end that a lease renewed lately would have at least.
DISOWN: Final = Script(
    """
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) < tonumber(ARGV[2]) then
  redis.call('HDEL', KEYS[2], ARGV[1])
  if ends then redis.call('ZADD', KEYS[1], redis.call('TIME')[1] - 1, ARGV[1]) end
end
"""
)

#: What a settled batch does, in the one safe order; nothing at all when none of it is held any more.
#: `joined` is a result backend's part: the body of a Lua function of the table ARGV and the index of its first word.
#:
#: KEYS: index, unacked, odd, inboxes of messages to acknowledge that are not recorded. ARGV: number of tags (0 without
#: inboxes: unconditional), number of those to acknowledge, number of words of what to publish, whether a message among
#: them is odd (1) or none (0); then tags (those to acknowledge first), words to publish, words of `joined`.
#: Words to publish: as those of `SEND`.
SETTLE: Final = """
local function joined(ARGV, first)
%s
end
%s
local index, unacked, odd = KEYS[1], KEYS[2], KEYS[3]
local tags, acks, words = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local held = tags == 0 and #KEYS == 3
for i = 4, #KEYS do held = held or redis.call('EXISTS', KEYS[i]) == 1 end
local body = 5 + tags
for i = 5, 4 + tags do
  if held then break end
  held = redis.call('HEXISTS', unacked, ARGV[i]) == 1 or redis.call('HEXISTS', odd, ARGV[i]) == 1
end
if not held then return 0 end
if #ARGV >= body + words then joined(ARGV, body + words) end
local at = body
while at < body + words do
  perform(at + 1, tonumber(ARGV[at]))
  at = at + 1 + ARGV[at]
end
for from = 5, 4 + acks, 1000 do
  local to = math.min(from + 999, 4 + acks)
  redis.call('HDEL', unacked, unpack(ARGV, from, to))
  redis.call('ZREM', index, unpack(ARGV, from, to))
  if ARGV[4] == '1' then redis.call('HDEL', odd, unpack(ARGV, from, to)) end
end
for i = 4, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
"""


#: Stores messages in several lists, or in none.
#: ARGV: for each command its number of words, then the command: `LPUSH list message …`, `PUBLISH channel message`, or
#: `DELAY set serves list due head message`, where the set's member is head and message.
SEND: Final = Script(
    PERFORM
    + """
local at, wrong = 1, nil
local function check(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then wrong = 'WRONGTYPE ' .. key .. ' holds a ' .. found end
end
while ARGV[at] do
  if ARGV[at + 1] == 'LPUSH' then check(ARGV[at + 2], 'list')
  elseif ARGV[at + 1] == 'DELAY' then check(ARGV[at + 2], 'zset') check(ARGV[at + 4], 'list') end
  if wrong then return redis.error_reply(wrong) end
  at = at + 1 + tonumber(ARGV[at])
end
at = 1
while ARGV[at] do
  perform(at + 1, tonumber(ARGV[at]))
  at = at + 1 + ARGV[at]
end
return 1
"""
)


#: As `SEND`, unless a message with this key was sent before; the last of its commands notes the key.
#: KEYS: the key. Returns 0 if it was there.
SEND_ONCE: Final = Script("if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end\n" + SEND.text)


def settle_script(joined: str = "") -> Script:
    """The script that settles, with a result backend's part in it."""
    return Script(SETTLE % (joined, PERFORM))
