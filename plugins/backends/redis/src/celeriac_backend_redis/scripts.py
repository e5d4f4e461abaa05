"""How a state is written: conditionally, for all of a batch in one step."""

from __future__ import annotations

import hashlib
from typing import Final

#: ARGV, for each state: key, rank (2 SUCCESS, 1 another final state, 0 not final), seconds to keep or 0, bytes.
#: Most keys are new, so that is tried first. A stored success is never replaced, and a final state only by a final one;
#: whoever listens on the channel of the key's own name gets the bytes. What is compressed counts as a success: only
#: successes are compressed here. Runs as a script of its own, and inside the redis broker's settlement.
STORE: Final = """
for i = 1, #ARGV, 4 do
  local key, rank, ttl, data = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local written
  if ttl == '0' then written = redis.call('SET', key, data, 'NX')
  else written = redis.call('SET', key, data, 'EX', ttl, 'NX') end
  if not written then
    local old, standing = redis.call('GET', key), 0
    if string.sub(old, 1, 19) == '\\0celery-compressed\\0' then
      standing = 2
    else
      local at = string.find(string.sub(old, 1, 96), 'status', 1, true)
      local near = at and string.sub(old, at + 6, at + 24) or string.match(old, '\\nstatus: (%u+)') or ''
      if string.find(near, 'SUCCESS', 1, true) then standing = 2
      elseif string.find(near, 'FAILURE', 1, true) or string.find(near, 'REVOKED', 1, true) then standing = 1 end
    end
    if standing == 0 or (standing == 1 and rank ~= '0') then
      if ttl == '0' then written = redis.call('SET', key, data) else written = redis.call('SETEX', key, ttl, data) end
    end
  end
  if written then redis.call('PUBLISH', key, data) end
end
"""
STORE_SHA: Final = hashlib.sha1(STORE.encode()).hexdigest()  # the server's choice of digest, not a matter of safety
