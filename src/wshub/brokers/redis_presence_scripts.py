"""The scripts with which an engine keeps who is in which room. Each call is one step for all other clients.

A channel has two hashes: its entries by id, and the number of entries of each user. An entry is a mark, the length of
the user's name, a colon, the name, and the data. The mark is a plus if it was the only entry of its user when it came.

A node has a set of its entries: each is an id, a line feed and a channel. A hub has a sorted set with the time of each
node's beat, in milliseconds by the engine's clock. It has a hash with the number of each node's first beat, and an
epoch. The epoch is lost if everything else is.

In a cluster, a slot that moves to another engine may have lost some keys already. Then a script fails at the first
command about one of them. ``TAKE_OVER`` reads from all its keys before it changes any.
"""

from __future__ import annotations

from wshub.brokers.redis_scripts import NEW_EPOCH, Script

__all__ = ["BEAT", "ENTER", "LEAVE", "OWN", "TAKE_OVER"]

_NOW = """
local function engine_time()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

ENTER = Script(
    _NOW
    + """
local node, channel, outcome = ARGV[1], ARGV[2], {}
redis.call('ZADD', KEYS[4], 'NX', engine_time(), node)
for index = 3, #ARGV, 3 do
    local id, user, data = ARGV[index], ARGV[index + 1], ARGV[index + 2]
    local former, mark = redis.call('HGET', KEYS[1], id), '-'
    if former then
        mark = string.sub(former, 1, 1)
    elseif redis.call('HINCRBY', KEYS[2], user, 1) == 1 then
        mark = '+'
    end
    redis.call('HSET', KEYS[1], id, mark .. #user .. ':' .. user .. data)
    redis.call('SADD', KEYS[3], id .. '\\n' .. channel)
    outcome[#outcome + 1] = mark == '+' and 1 or 0
end
return outcome
"""
)
"""Adds entries, and answers for each with 1 if it was the only one of its user when it came.

Keys: the entries, the users, the node's set, the beats.
"""

LEAVE = Script(
    """
local channel, keeps_ms, known_count, outcome = ARGV[1], ARGV[2], tonumber(ARGV[3]), {}
for index = 4, 3 + known_count do
    redis.call('HDEL', KEYS[4], ARGV[index])
end
local has_any, told = false, {}
for index = 4 + known_count, #ARGV, 2 do
    local id, user, is_last = ARGV[index], ARGV[index + 1], 0
    local element = id .. '\\n' .. channel
    if redis.call('HDEL', KEYS[1], id) == 1 then
        if redis.call('HINCRBY', KEYS[2], user, -1) <= 0 then
            redis.call('HDEL', KEYS[2], user)
            is_last = 1
        end
        redis.call('HSET', KEYS[4], element, is_last)
        has_any = true
    elseif redis.call('HGET', KEYS[4], element) ~= '0' and not told[user] then
        is_last = 1 - redis.call('HEXISTS', KEYS[2], user)
    end
    told[user] = told[user] or is_last == 1
    redis.call('SREM', KEYS[3], element)
    outcome[#outcome + 1] = is_last
end
if has_any then
    redis.call('PEXPIRE', KEYS[4], keeps_ms)
end
return outcome
"""
)
"""Removes entries, and answers for each with 1 if it was the last one of its user.

The node may not get the answer. The engine keeps the outcomes, by id and channel, until a later call says that the node
has them, or until they have expired. So the answer to the next attempt is the same, unless the user is there again.

Keys: the entries, the users, the node's set, the outcomes.
"""

BEAT = Script(
    NEW_EPOCH
    + _NOW
    + """
local node, is_leaving, seed, dead_after, sets = ARGV[1], ARGV[2] == '1', ARGV[3], tonumber(ARGV[4]), ARGV[5]
local seen, number = ARGV[6], ARGV[7]
local now = engine_time()
local is_known = 1
-- Some entries of a node with this time were taken over: it stays dead until the others have followed.
if redis.call('ZSCORE', KEYS[1], node) ~= '-1' or redis.call('EXISTS', sets .. node) == 0 then
    if redis.call('HGET', KEYS[2], node) ~= seen then
        is_known = 0
        redis.call('HSET', KEYS[2], node, number)
    end
    redis.call('ZADD', KEYS[1], is_leaving and 0 or now, node)
end
local epoch = redis.call('GET', KEYS[3])
if not epoch then
    epoch = new_epoch(seed)
    redis.call('SET', KEYS[3], epoch)
end
local dead = {}
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - dead_after)) do
    if other ~= node then
        if redis.call('EXISTS', sets .. other) == 1 then
            dead[#dead + 1] = other
        else
            redis.call('ZREM', KEYS[1], other)
            redis.call('HDEL', KEYS[2], other)
        end
    end
end
local kept = is_known == 0 and redis.call('SMEMBERS', sets .. node) or {}
return {is_known, epoch, dead, redis.call('SCARD', sets .. node), kept}
"""
)
"""Notes a beat. Answers with 1 if the node is known, the epoch, the dead nodes that have entries, the number of entries
of the node, and a list. If the node is not known, the list has the elements of its set.

A node is known if it has seen the answer to its first beat. If that is lost, the answer to the next one says the same.

Keys: the beats, the known nodes, the epoch.
"""

TAKE_OVER = Script(
    _NOW
    + """
local node, dead, dead_after, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local sets, entries, outcomes, keeps_ms = ARGV[5], ARGV[6], ARGV[7] .. dead, ARGV[8]
local beat = redis.call('ZSCORE', KEYS[1], dead)
if not beat or tonumber(beat) > engine_time() - dead_after then
    return {}
end
local elements, values = redis.call('SRANDMEMBER', sets .. dead, count), {}
redis.call('EXISTS', sets .. node, outcomes)
for index, element in ipairs(elements) do
    local id, channel = string.match(element, '^([^\\n]*)\\n(.*)$')
    values[index] = redis.call('HGET', entries .. channel, id)
end
redis.call('ZADD', KEYS[1], -1, dead)
local taken = {}
for index, element in ipairs(elements) do
    local id, channel = string.match(element, '^([^\\n]*)\\n(.*)$')
    if values[index] then
        local name = node .. '/' .. id
        redis.call('HDEL', entries .. channel, id)
        redis.call('HSET', entries .. channel, name, values[index])
        redis.call('SADD', sets .. node, name .. '\\n' .. channel)
        redis.call('HSET', outcomes, element, 0)
        taken[#taken + 1] = channel
        taken[#taken + 1] = name
        taken[#taken + 1] = values[index]
    end
    redis.call('SREM', sets .. dead, element)
end
if #taken > 0 then
    redis.call('PEXPIRE', outcomes, keeps_ms)
end
if redis.call('EXISTS', sets .. dead) == 0 then
    redis.call('ZREM', KEYS[1], dead)
    redis.call('HDEL', KEYS[2], dead)
end
return taken
"""
)
"""Makes entries of a dead node those of another one. Answers with channel, id and value of each in turn.

The node may be alive, and remove such an entry. The outcome says that it was not the last one: the other node tells of
the leave.

Keys: the beats, the known nodes.
"""

OWN = Script(
    """
local entries, found = ARGV[1], {}
for _, element in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local id, channel = string.match(element, '^([^\\n]*)\\n(.*)$')
    local value = redis.call('HGET', entries .. channel, id)
    if value then
        found[#found + 1] = channel
        found[#found + 1] = id
        found[#found + 1] = value
    else
        redis.call('SREM', KEYS[1], element)
    end
end
return found
"""
)
"""Answers with channel, id and value of each entry of a node.

Keys: the node's set.
"""
