"""What Redis does in one step. Each script touches one key, so it runs on a cluster too.

The hash of a session has the sealed records as ``k:<scope>:<provider>``, what is known about them as
``c:<scope>:<provider>``, and ``_``: ``<sid>|<created>|<seen>|<owner>``, times in milliseconds. One
field, since each that a read asks for costs as much as decrypting. An ended one has ``_``: ``-``.

What is known about a record is its verdict, or ``null``, and once it was used the members that follow
it in the record's JSON: ``,"usage_count":<n>,"last_used_at":"<t>","counted":"<ticket>"``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

#: What a guarded script answers instead of doing its work.
REFUSED, ENDED = 0, -1
#: What it answers when it has; ``CREATED`` if the hash is new.
DONE, CREATED = 1, 2
#: What an adoption answers that left the identity's own record.
KEPT = 3
#: What is left of a session that has ended.
DEAD = b"-"


@dataclass(frozen=True)
class Script:
    """A Lua script and the name under which Redis keeps it."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # SHA-1 is how Redis names scripts; it protects nothing.
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


# ARGV: sid, identity, now, ttl, max_age (milliseconds), then what the script itself wants.
_GUARD = """
local key, sid, identity = KEYS[1], ARGV[1], ARGV[2]
local now, ttl, max_age = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local meta = redis.call('HGET', key, '_')
local held, created, owner = nil, ARGV[3], ''
if meta then
  held, created, owner = string.match(meta, '^(.-)|(%d+)|%d+|(.*)$')
  if held ~= sid then return 0 end
end
if (owner ~= '' and owner ~= identity) or now - tonumber(created) >= max_age then
  redis.call('DEL', key)
  redis.call('HSET', key, '_', '-')
  redis.call('PEXPIRE', key, ttl)
  return -1
end
local function seen(new_owner)
  redis.call('HSET', key, '_', sid .. '|' .. created .. '|' .. ARGV[3] .. '|' .. new_owner)
  redis.call('PEXPIRE', key, math.min(ttl, tonumber(created) + max_age - now))
end
"""

#: Also: record field, record, verdict field, verdict or nothing.
WRITE = Script(
    _GUARD
    + """
redis.call('HSET', key, ARGV[6], ARGV[7])
if ARGV[9] == '' then redis.call('HDEL', key, ARGV[8])
else redis.call('HSET', key, ARGV[8], ARGV[9]) end
seen(identity)
return meta and 1 or 2
"""
)

#: Also: pairs of a record field and its verdict field. Answers the record fields that were there.
CLEAR = Script(
    _GUARD
    + """
local cleared = {}
for i = 6, #ARGV, 2 do
  if redis.call('HDEL', key, ARGV[i]) == 1 then cleared[#cleared + 1] = ARGV[i] end
  redis.call('HDEL', key, ARGV[i + 1])
end
return cleared
"""
)

#: Also: the visitor's record and verdict fields, the identity's, record, what a record of its version
#: holds, and something to replace what the identity has.
ADOPT = Script(
    _GUARD
    + """
local left = redis.call('HGET', key, ARGV[6])
if not left or not string.find(left, ARGV[11], 1, true) then return 0 end
if ARGV[12] == '' and redis.call('HEXISTS', key, ARGV[8]) == 1 then return 3 end
local known = redis.call('HGET', key, ARGV[7])
redis.call('HDEL', key, ARGV[6], ARGV[7], ARGV[9])
redis.call('HSET', key, ARGV[8], ARGV[10])
if known then redis.call('HSET', key, ARGV[9], known) end
seen(identity)
return 1
"""
)

#: Also: record field, record, what a record of its version holds, and what it must not hold or nothing.
EXCHANGE = Script(
    _GUARD
    + """
local before = redis.call('HGET', key, ARGV[6])
if not before or not string.find(before, ARGV[8], 1, true) then return 0 end
if ARGV[9] ~= '' and string.find(before, ARGV[9], 1, true) then return 0 end
redis.call('HSET', key, ARGV[6], ARGV[7])
seen(identity)
return 1
"""
)

#: Also: record field, verdict field, what a record of the version holds.
DISCARD = Script(
    _GUARD
    + """
local record = redis.call('HGET', key, ARGV[6])
if not record or not string.find(record, ARGV[8], 1, true) then return 0 end
redis.call('HDEL', key, ARGV[6], ARGV[7])
return 1
"""
)

#: ARGV: verdict, what a record of its version holds, what verdicts hold that it leaves as they are or nothing,
#: and pairs of a record field and its verdict field.
#: The version alone decides, so a verdict ends no session and keeps none alive.
VERDICT = Script("""
for i = 4, #ARGV, 2 do
  local record = redis.call('HGET', KEYS[1], ARGV[i])
  if record and string.find(record, ARGV[2], 1, true) then
    local known = redis.call('HGET', KEYS[1], ARGV[i + 1]) or ''
    local found = string.match(known, '"verdict":"[%a_]+"')
    if found and string.find(ARGV[3], found, 1, true) then return 0 end
    local uses = string.match(known, ',"usage_count":.*$') or ''
    redis.call('HSET', KEYS[1], ARGV[i + 1], ARGV[1] .. uses)
    return 1
  end
end
return 0
""")

#: ARGV: uses, the last time, ticket, what a record of the version holds, and those pairs.
COUNT = Script("""
local read = '^(.*),"usage_count":(%d+),"last_used_at":"(.*)","counted":"(.*)"$'
local write = '%s,"usage_count":%d,"last_used_at":"%s","counted":"%s"'
for i = 5, #ARGV, 2 do
  local record = redis.call('HGET', KEYS[1], ARGV[i])
  if record and string.find(record, ARGV[4], 1, true) then
    local known = redis.call('HGET', KEYS[1], ARGV[i + 1]) or 'null'
    local verdict, uses, last, ticket = string.match(known, read)
    if ticket == ARGV[3] then return 0 end
    if not last or last < ARGV[2] then last = ARGV[2] end
    uses = (uses or 0) + ARGV[1]
    known = string.format(write, verdict or known, uses, last, ARGV[3])
    redis.call('HSET', KEYS[1], ARGV[i + 1], known)
    return 1
  end
end
return 0
""")

#: Lets the lifetime slide.
TOUCH = Script(
    _GUARD
    + """
if not meta then return 0 end
seen(owner)
return 1
"""
)

#: ARGV: old sid, new sid, now, ttl. Makes the hash where there is none, so that a first write still
#: under way is refused under the old sid.
RENEW = Script("""
local meta = redis.call('HGET', KEYS[1], '_')
if not meta then
  redis.call('HSET', KEYS[1], '_', ARGV[2] .. '|' .. ARGV[3] .. '|' .. ARGV[3] .. '|')
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return 1
end
local held, rest = string.match(meta, '^(.-)(|.*)$')
if held ~= ARGV[1] and held ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], '_', ARGV[2] .. rest)
return 1
""")

#: ARGV: ttl. Answers the sid that was valid.
END = Script("""
local meta = redis.call('HGET', KEYS[1], '_')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '_', '-')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return meta and string.match(meta, '^(.-)|')
""")

#: On a map entry. ARGV: fresh ref, dead ref or nothing, ttl. Answers the ref that counts.
ESTABLISH = Script("""
local ref = redis.call('GET', KEYS[1])
if ref and ref ~= ARGV[2] then return ref end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
""")

#: On a canary. ARGV: text, whether to replace (1 or 0). Answers the text that counts.
CANARY = Script("""
local held = redis.call('GET', KEYS[1])
if held and ARGV[2] == '0' then return held end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
""")

#: On a map entry. ARGV: ref, ttl. Keeps the entry as long as the session, without replacing
#: another. Answers 1 if it had expired and was made anew.
KEEP = Script("""
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 0
""")

#: On a map entry. ARGV: ref. Deletes the entry if it still leads there.
FORGET = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")
