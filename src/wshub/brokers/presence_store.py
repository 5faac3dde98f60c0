"""The members of channels, in the memory of a process. Time is given from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from wshub.brokers.history_store import new_epoch
from wshub.brokers.presence_interface import DEAD_SECONDS, Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.errors import MisuseError

__all__ = ["PresenceStore"]

TAKEN_AT_ONCE = 1000
"""Entries that one call of ``take_over()`` returns at most."""


class Presence:
    """The entries of one channel."""

    def __init__(self) -> None:
        self.entries: dict[str, PresenceEntry] = {}
        self.users: Counter[str] = Counter()


class PresenceStore:
    """The entries of all nodes. All times are seconds by one clock."""

    def __init__(self) -> None:
        self.epoch = new_epoch()
        self._channels: dict[str, Presence] = {}
        self._beats: dict[str, float] = {}
        # Nodes that have had a beat, and were not taken for dead since.
        self._known: set[str] = set()
        # The channels and ids of the entries of each node.
        self._of_node: dict[str, dict[tuple[str, str], None]] = {}

    def enter(self, node: str, channel: str, entries: Sequence[PresenceEntry], now: float) -> list[bool]:
        """Add entries of a node. Return for each whether it is the only one of its user."""
        # A node that dies before its first beat is dead all the same.
        self._beats.setdefault(node, now)
        presence = self._channels.setdefault(channel, Presence())
        own = self._of_node.setdefault(node, {})
        outcome = []
        for entry in entries:
            if entry.id not in presence.entries:
                presence.users[entry.user] += 1
            presence.entries[entry.id] = entry
            own[channel, entry.id] = None
            outcome.append(presence.users[entry.user] == 1)
        return outcome

    def leave(self, node: str, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of a node. Return for each whether no entry of its user is left."""
        presence = self._channels.get(channel) or Presence()
        own = self._of_node.get(node, {})
        outcome = []
        for entry in entries:
            own.pop((channel, entry.id), None)
            if presence.entries.pop(entry.id, None) is not None:
                presence.users[entry.user] -= 1
                if not presence.users[entry.user]:
                    del presence.users[entry.user]
            outcome.append(entry.user not in presence.users)
        if not presence.entries:
            self._channels.pop(channel, None)
        return outcome

    def beat(self, node: str, now: float, *, is_leaving: bool = False) -> Beat:
        """Note that a node lives, or that it ends."""
        is_known = node in self._known
        self._known.add(node)
        self._beats[node] = float("-inf") if is_leaving else now
        dead = [other for other, beat in self._beats.items() if beat <= now - DEAD_SECONDS and other != node]
        for other in dead:
            if not self._of_node.get(other):
                self._forget(other)
        return Beat(is_known, self.epoch, tuple(other for other in dead if other in self._beats))

    def take_over(self, node: str, dead: str, now: float) -> list[tuple[str, PresenceEntry]]:
        """Make entries of a dead node those of another one."""
        if self._beats.get(dead, now) > now - DEAD_SECONDS:
            return []
        theirs = self._of_node.get(dead, {})
        own = self._of_node.setdefault(node, {})
        taken = []
        for channel, name in list(islice(theirs, TAKEN_AT_ONCE)):
            del theirs[channel, name]
            presence = self._channels[channel]
            entry = presence.entries.pop(name)._replace(id=f"{node}/{name}")
            presence.entries[entry.id] = entry
            own[channel, entry.id] = None
            taken.append((channel, entry))
        if not theirs:
            self._forget(dead)
        return taken

    def read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return entries behind a cursor, which is the number of those before it. Raises ``MisuseError``."""
        if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 20):
            raise MisuseError(f"cursor must be that of an earlier page, not {cursor!r}")
        presence = self._channels.get(channel) or Presence()
        first = int(cursor or 0)
        found = tuple(islice(presence.entries.values(), first, first + limit))
        end = first + len(found)
        return StoredPresence(found, str(end) if found and end < len(presence.entries) else "")

    def counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users."""
        presence = self._channels.get(channel) or Presence()
        return PresenceCounts(connections=len(presence.entries), users=len(presence.users))

    def _forget(self, node: str) -> None:
        self._known.discard(node)
        self._beats.pop(node, None)
        self._of_node.pop(node, None)
