"""How a state is written: conditionally, for all of a batch in one step."""

from __future__ import annotations

import hashlib
from typing import Final


class Script:
    """A Lua script and the name by which the server knows it once it has seen it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()  # the server's choice of digest, not a matter of safety


#: The body of a function that reads its words from the table ARGV, beginning at `first`: runs of states that have rank
#: (2 SUCCESS, 1 another final state, 0 not final) and lifetime (in seconds, 0 for ever) in common, each run as rank,
#: lifetime, how many states, then key and bytes of each.
#:
#: Most keys are new, so that is tried first. A stored success is never replaced, and a final state only by a final one;
#: whoever listens on the channel of the key's own name gets the bytes. What is compressed counts as a success: only
#: successes are compressed here. Runs as a script of its own, and inside the redis broker's settlement.
_STORE: Final = """
local call = redis.call
local function standing(old)
  if string.sub(old, 1, 19) == '\\0celery-compressed\\0' then return 2 end
  local at = string.find(string.sub(old, 1, 96), 'status', 1, true)
  local near = at and string.sub(old, at + 6, at + 24) or string.match(old, '\\nstatus: (%%u+)') or ''
  if string.find(near, 'SUCCESS', 1, true) then return 2 end
  return (string.find(near, 'FAILURE', 1, true) or string.find(near, 'REVOKED', 1, true)) and 1 or 0
end
local at, last = first, #ARGV
while at < last do
  local rank, ttl, stop = ARGV[at], ARGV[at + 1], at + 2 + %(step)d * ARGV[at + 2]
  for i = at + 3, stop, %(step)d do
    local key, data, written = ARGV[i], ARGV[i + 1], false
    if ttl == '0' then written = call('SET', key, data, 'NX')
    else written = call('SET', key, data, 'EX', ttl, 'NX') end
    if not written then
      local old = standing(call('GET', key))
      if old == 0 or (old == 1 and rank ~= '0'%(unless)s) then
        if ttl == '0' then written = call('SET', key, data) else written = call('SETEX', key, ttl, data) end
      end
    end
    if written then
      call('PUBLISH', key, data)%(then)s
    end
  end
  at = stop + 1
end
"""
#: Inside the redis broker's settlement: who stores has the message.
STORE: Final = _STORE % {"step": 2, "unless": "", "then": ""}
#: As a script of its own. First comes the length of the keys' prefix; two words more for each state are when the
#: message of its run was received, '' if unknown, and what to remember of that, '' for nothing: a final state then
#: keeps those out who received the message earlier (R13).
STORE_ALONE: Final = Script(
    """local first = 2
local function fence(key) return string.sub(key, 1, ARGV[1]) .. 'celeriac-fence-' .. string.sub(key, ARGV[1] + 1) end
local function stale(key, received)
  local at = received ~= '' and redis.call('GET', fence(key))
  return at and tonumber(received) < tonumber(at)
end
"""
    + _STORE
    % {
        "step": 4,
        "unless": " and not stale(key, ARGV[i + 2])",
        "then": """
      if ARGV[i + 3] ~= '' then
        if ttl == '0' then call('SET', fence(key), ARGV[i + 3]) else call('SETEX', fence(key), ttl, ARGV[i + 3]) end
      end""",
    }
)
