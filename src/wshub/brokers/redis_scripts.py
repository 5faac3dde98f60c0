"""The scripts with which an engine keeps histories. Each call is one step for all other clients of the engine.

A channel has two keys:

- a stream of its envelopes. The entry of offset 7 has the id 7-0. Its field ``d`` is the envelope, ``c`` is the bytes
  of all envelopes before it, and ``p`` is the mark of the envelope at offset 6.
- a hash of its position. ``e`` is the epoch, and ``o`` the offset of the newest envelope. ``m`` is its mark. ``s`` is
  the offset behind which the epoch began, 0 if it is missing. ``b`` is the bytes of all envelopes ever. ``k`` is the
  ``c`` of an entry that was the oldest one lately.

Without the hash, the stream says nothing: it is deleted, and a new epoch begins.

An engine that has lost its last writes goes on in the same epoch, and gives the same offsets to other envelopes. A node
that has received one of the lost envelopes knows its mark. When it reads, the mark is compared with what follows its
position: the ``p`` of the next entry, or ``m``. If they differ, a new epoch begins behind the newest envelope. What is
stored stays.
"""

from __future__ import annotations

import hashlib

from wshub.brokers.history_store import IDEMPOTENCY_SECONDS

__all__ = ["NEW_EPOCH", "READ", "Script", "publish_script"]


class Script:
    """A script, and the digest that calls it once the engine has it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.digest = hashlib.sha1(self.text).hexdigest().encode()


# Eight letters that no earlier epoch of the channel has: from the engine's time, the caller's seed and the name.
NEW_EPOCH = """
local function new_epoch(seed)
    local time = redis.call('TIME')
    local digest = redis.sha1hex(seed .. time[1] .. '.' .. time[2] .. KEYS[1])
    return (string.gsub(string.sub(digest, 1, 8), '%d', function(digit) return string.char(113 + digit % 10) end))
end
"""

STORE_AND_PUBLISH = (
    NEW_EPOCH
    + """
local size, max_bytes, ttl, position_ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local seed, channel, envelope = ARGV[5], ARGV[6], ARGV[7]
if KEYS[3] then
    local known = redis.call('HMGET', KEYS[3], 'o', 'e')
    if known[1] then
        return {tonumber(known[1]), known[2], 1, 0}
    end
end
local position = redis.call('HMGET', KEYS[2], 'e', 'b', 'k', 'm')
local epoch, total, kept_from = position[1], tonumber(position[2] or 0), tonumber(position[3] or 0)
if not epoch then
    redis.call('DEL', KEYS[1])
    epoch = new_epoch(seed)
    redis.call('HSET', KEYS[2], 'e', epoch, 'o', 0)
end
local offset = redis.call('HINCRBY', KEYS[2], 'o', 1)
local id = string.format('%.0f-0', offset)
redis.call('XADD', KEYS[1], 'MAXLEN', size, id, 'c', string.format('%.0f', total), 'd', envelope, 'p',
    epoch == position[1] and position[4] or '')
total = total + #envelope
if total - kept_from > max_bytes then
    while true do
        local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
        kept_from = tonumber(oldest[2][2])
        if oldest[1] == id or total - kept_from <= max_bytes then
            break
        end
        redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - 1)
    end
end
local mark = #envelope < 16 and '' or string.sub(envelope, 5, 16)
redis.call('HSET', KEYS[2], 'b', string.format('%.0f', total), 'k', string.format('%.0f', kept_from), 'm', mark)
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], position_ttl)
local receivers = redis.call('PUBLISH', channel, struct.pack('<BI8I8', 193, offset, offset - 1) .. epoch .. envelope)
if KEYS[3] then
    redis.call('HSET', KEYS[3], 'o', offset, 'e', epoch)
    redis.call('PEXPIRE', KEYS[3], KEY_TTL)
end
"""
)

READ = Script(
    NEW_EPOCH
    + """
local position_ttl, seed, since, since_epoch = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local limit, max_bytes, reverse = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local is_own, mark = ARGV[8] == '1', ARGV[9]
local position = redis.call('HMGET', KEYS[2], 'e', 'o', 'm', 's')
local epoch, offset, newest, start = position[1], tonumber(position[2] or 0), position[3] or '', position[4] or '0'
if not epoch then
    redis.call('DEL', KEYS[1], KEYS[2])
    epoch, offset, newest, start = new_epoch(seed), 0, '', '0'
    redis.call('HSET', KEYS[2], 'e', epoch, 'o', 0)
    redis.call('PEXPIRE', KEYS[2], position_ttl)
elseif is_own and epoch == since_epoch then
    local own, known = tonumber(since), ''
    if own == offset then
        known = newest
    elseif own < offset and mark ~= '' then
        local id = string.format('%.0f-0', own + 1)
        local following = redis.call('XRANGE', KEYS[1], id, id)[1]
        known = following and following[2][6] or ''
    end
    if own > offset or (known ~= '' and mark ~= '' and known ~= mark) then
        epoch, start = new_epoch(seed), string.format('%.0f', offset)
        redis.call('HSET', KEYS[2], 'e', epoch, 's', start)
    end
end
local gap = ''
local first, last = '-', '+'
if since ~= '' then
    if since_epoch ~= epoch or tonumber(since) > offset then
        gap = 'epoch'
        first = '(' .. start .. '-0'
    elseif reverse then
        -- No entry is before the first offset, and the engine takes no end there.
        if tonumber(since) <= 0 then
            limit = 0
        end
        last = '(' .. since .. '-0'
    else
        first = '(' .. since .. '-0'
        local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
        local oldest_offset = oldest and tonumber(string.match(oldest[1], '%d+')) or offset + 1
        if tonumber(since) + 1 < oldest_offset then
            gap = 'trimmed'
        end
    end
end
local found, bytes = {}, 0
if not (reverse and gap ~= '') then
    while #found < 2 * limit do
        local count = math.min(64, limit - #found / 2)
        local entries
        if reverse then
            entries = redis.call('XREVRANGE', KEYS[1], last, first, 'COUNT', count)
        else
            entries = redis.call('XRANGE', KEYS[1], first, last, 'COUNT', count)
        end
        for _, entry in ipairs(entries) do
            bytes = bytes + #entry[2][4]
            if #found > 0 and bytes > max_bytes then
                return {offset, epoch, gap, found, newest}
            end
            found[#found + 1] = string.match(entry[1], '%d+')
            found[#found + 1] = entry[2][4]
            if reverse then
                last = '(' .. entry[1]
            else
                first = '(' .. entry[1]
            end
        end
        if #entries < count then
            break
        end
    end
end
return {offset, epoch, gap, found, newest}
"""
)
"""Answers with the offset and the epoch of the newest envelope, the gap, offsets and envelopes in turn, and the mark of
the newest envelope.

A channel without a position gets one, so that a reader has a position before anybody has published.
"""


def publish_script(word: bytes, *, answers: bool) -> Script:
    """Return the script that stores an envelope, and publishes it with its head.

    Its keys are the stream, the hash, and a key of its own for the idempotency key if there is one.

    Args:
        word: the command that publishes.
        answers: whether it answers with the offset, the epoch, 1 for a known key, and the number of receivers. If not,
            it answers with 1, which costs less.
    """
    text = STORE_AND_PUBLISH.replace("'PUBLISH'", f"'{word.decode()}'")
    text = text.replace("KEY_TTL", f"{IDEMPOTENCY_SECONDS * 1000:.0f}")
    return Script(text + ("return {offset, epoch, 0, receivers}" if answers else "return 1"))
