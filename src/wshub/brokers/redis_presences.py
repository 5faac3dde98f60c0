"""The members of rooms, which an engine keeps for the nodes of a hub."""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

from wshub.brokers.presence_interface import DEAD_SECONDS, Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.redis_commands import ChannelNames, pack_command
from wshub.brokers.redis_key_commands import KeyCommands
from wshub.brokers.redis_presence_scripts import BEAT, ENTER, LEAVE, OWN, TAKE_OVER
from wshub.errors import BrokerUncertain, MisuseError

__all__ = ["RedisPresences"]

# Entries that one call takes over.
TAKEN_AT_ONCE = 500

# Outcomes of leaves that one call has the engine forget, because the node has them; and milliseconds for which it keeps
# others, after the last leave.
FORGOTTEN_AT_ONCE = 1000
KEPT_MS = b"3600000"

# In place of the number of a beat: beats count from 1.
NEVER = b"0"


class RedisPresences:
    """Keeps entries in an engine. The methods are those of ``PresenceBroker``.

    Args:
        names: the names of keys in the engine.
        calls: the engine, or the engines of a cluster.
        node: the id of the node.
        group: of all keys.
    """

    def __init__(self, names: ChannelNames, calls: KeyCommands, node: str, group: int = 0) -> None:
        self._calls = calls
        self._group = group
        self._node = node.encode()
        self._seed = secrets.token_hex(8).encode()
        self._beats = names.key("presence", "beats", group)
        self._known = names.key("presence", "known", group)
        self._epoch = names.key("presence", "epoch", group)
        # The beginnings of the names of sets, of entries and of users.
        self._sets = names.key("presence-of", "", group)
        self._entries = names.key("presence-entries", "", group)
        self._users = names.key("presence-users", "", group)
        # And that of the outcomes of leaves.
        self._outcomes = names.key("presence-left", "", group)
        # The leaves whose outcome the engine need not keep any more, as ids with channels.
        self._answered: deque[bytes] = deque()
        self._dead_after = b"%d" % (DEAD_SECONDS * 1000)
        self._numbers = itertools.count(1)
        # The last beat whose answer has said that the node is not known.
        self._seen = NEVER

    async def enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node."""
        keys = (*self._keys(channel), self._sets + self._node, self._beats)
        words = [word for entry in entries for word in (encoded(entry.id), encoded(entry.user), entry.data)]
        answer = await self._calls.call(self._group, ENTER, keys, self._node, encoded(channel), *words)
        return outcome_of(answer, len(entries))

    async def leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node."""
        keys = (*self._keys(channel), self._sets + self._node, self._outcomes + self._node)
        words = [word for entry in entries for word in (encoded(entry.id), encoded(entry.user))]
        known = [self._answered.popleft() for _ in range(min(len(self._answered), FORGOTTEN_AT_ONCE))]
        numbers = KEPT_MS, b"%d" % len(known)
        try:
            answer = await self._calls.call(self._group, LEAVE, keys, encoded(channel), *numbers, *known, *words)
            outcome = outcome_of(answer, len(entries))
        except BaseException:
            self._answered.extend(known)
            raise
        self._answered.extend(encoded(f"{entry.id}\n{channel}") for entry in entries)
        return outcome

    async def beat(self, *, is_leaving: bool) -> Beat:
        """Say that this node lives, or that it is about to end."""
        keys = self._beats, self._known, self._epoch
        number = b"%d" % next(self._numbers)
        words = self._node, b"%d" % is_leaving, self._seed, self._dead_after, self._sets, self._seen, number
        answer = await self._calls.call(self._group, BEAT, keys, *words)
        is_known, epoch, dead, count, elements = answer
        if not is_known:
            self._seen = number
        kept = frozenset(element.partition(b"\n")[0].decode() for element in elements)
        nodes = tuple(node.decode() for node in dead)
        return Beat(bool(is_known), epoch.decode(), nodes, kept=kept, entry_count=count)

    def forget_answer(self) -> None:
        """Have the next beat say again that the node is not known, because the hub was not told."""
        self._seen = NEVER

    async def take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Make entries of a dead node those of this one."""
        count = b"%d" % TAKEN_AT_ONCE
        prefixes = self._sets, self._entries, self._outcomes
        words = self._node, encoded(node), self._dead_after, count, *prefixes, KEPT_MS
        return found_in(await self._calls.call(self._group, TAKE_OVER, (self._beats, self._known), *words))

    async def own(self) -> list[tuple[str, PresenceEntry]]:
        """Return the entries of this node."""
        return found_in(await self._calls.call(self._group, OWN, (self._sets + self._node,), self._entries))

    async def read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel."""
        if not cursor.isascii() or (cursor and not cursor.isdigit()):
            raise MisuseError(f"cursor must be that of an earlier page, not {cursor!r}")
        entries, _ = self._keys(channel)
        command = pack_command(b"HSCAN", entries, cursor.encode() or b"0", b"COUNT", b"%d" % limit)
        following, found = await self._calls.request(self._group, command)
        page = tuple(entry_of(name, value) for name, value in zip(found[::2], found[1::2], strict=True))
        return StoredPresence(page, "" if following == b"0" else following.decode())

    async def counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and of users of a channel."""
        entries, users = self._keys(channel)
        return PresenceCounts(
            connections=await self._calls.request(self._group, pack_command(b"HLEN", entries)),
            users=await self._calls.request(self._group, pack_command(b"HLEN", users)),
        )

    def _keys(self, channel: str) -> tuple[bytes, bytes]:
        return self._entries + encoded(channel), self._users + encoded(channel)


def encoded(text: str) -> bytes:
    """Return a text as the engine has it."""
    return text.encode(errors="surrogatepass")


def entry_of(name: bytes, value: bytes) -> PresenceEntry:
    """Return an entry that the engine has kept."""
    # The first byte is a mark of the scripts.
    size, _, rest = value[1:].partition(b":")
    user, data = rest[: int(size)], rest[int(size) :]
    return PresenceEntry(name.decode(), user.decode(errors="surrogatepass"), data)


def found_in(answer: list[bytes]) -> list[tuple[str, PresenceEntry]]:
    """Return the channels and entries that a script has found."""
    return [
        (channel.decode(errors="surrogatepass"), entry_of(name, value))
        for channel, name, value in zip(answer[::3], answer[1::3], answer[2::3], strict=True)
    ]


def outcome_of(answer: Any, count: int) -> list[bool]:
    """Return what a script has answered for each entry. Raise ``BrokerUncertain`` if it is something else."""
    if not isinstance(answer, list) or len(answer) != count:
        raise BrokerUncertain(f"the engine has answered for {count} entries with {answer!r}")
    return [bool(each) for each in answer]
