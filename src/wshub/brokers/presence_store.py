"""The members of channels, in the memory of a process. Time is given from outside."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice

from wshub.brokers.history_store import new_epoch
from wshub.brokers.presence_interface import DEAD_SECONDS, Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.errors import MisuseError

__all__ = ["PresenceEntries", "PresenceStore", "check_cursor", "former_id", "taken_id"]

TAKEN_AT_ONCE = 1000
"""Entries that one call of ``take_over()`` returns at most."""

REMEMBERED = 1000
"""Entries that have left, and of which the outcome is known."""

CURSOR_MARK = ">"


def check_cursor(cursor: str) -> None:
    """Raise ``MisuseError`` if a cursor is not empty, and none that ``PresenceEntries.read`` has returned."""
    if cursor and not cursor.startswith(CURSOR_MARK):
        raise MisuseError(f"cursor must be that of an earlier page, not {cursor!r}")


def taken_id(node: str, entry_id: str) -> str:
    """Return the id of an entry once a node has taken it over."""
    return f"{node}/{entry_id}"


def former_id(entry_id: str) -> str:
    """Return the id that an entry had before it was taken over."""
    return entry_id.partition("/")[2]


class Presence:
    """The entries of one channel."""

    __slots__ = ("entries", "ids", "later", "users")

    def __init__(self) -> None:
        self.entries: dict[str, PresenceEntry] = {}
        self.ids: list[str] = []
        """The ids in order: a page begins behind the last one of the page before, whatever has gone since."""
        self.users: dict[str, int] = {}
        """The number of entries of each user."""
        self.later: set[str] = set()
        """The ids of entries whose user had another one when they came."""

    def add(self, entry: PresenceEntry) -> bool:
        """Add an entry, or replace that of the same id. Return whether it was the only one of its user at first."""
        if entry.id not in self.entries:
            if entry.user in self.users:
                self.later.add(entry.id)
            self.users[entry.user] = self.users.get(entry.user, 0) + 1
            if not self.ids or entry.id > self.ids[-1]:
                self.ids.append(entry.id)
            else:
                self.ids.insert(bisect_left(self.ids, entry.id), entry.id)
        self.entries[entry.id] = entry
        return entry.id not in self.later

    def remove(self, entry_id: str) -> PresenceEntry | None:
        """Remove an entry and return it; None if there is none."""
        entry = self.entries.pop(entry_id, None)
        if entry is None:
            return None
        del self.ids[bisect_left(self.ids, entry_id)]
        self.later.discard(entry_id)
        if self.users[entry.user] > 1:
            self.users[entry.user] -= 1
        else:
            del self.users[entry.user]
        return entry


class PresenceEntries:
    """Entries of channels, each of which belongs to a node."""

    def __init__(self) -> None:
        self._channels: dict[str, Presence] = {}
        # The channels and ids of the entries of each node.
        self._of_node: dict[str, dict[tuple[str, str], None]] = {}
        # By channel and id of entries that have left: whether it was the last one of its user.
        self._left: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(owned) for owned in self._of_node.values())

    @property
    def nodes(self) -> list[str]:
        """The nodes that have entries."""
        return list(self._of_node)

    def count(self, node: str) -> int:
        """Return the number of entries of a node."""
        return len(self._of_node.get(node, ()))

    def names_of(self, node: str) -> list[tuple[str, str]]:
        """Return channels and ids of the entries of a node."""
        return list(self._of_node.get(node, ()))

    def of_node(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Return channels and entries of a node."""
        return [(channel, self._channels[channel].entries[name]) for channel, name in self._of_node.get(node, ())]

    def parts(self, node: str, size: int) -> Iterator[tuple[str, tuple[PresenceEntry, ...]]]:
        """Yield channels with some entries of a node each. Those that are removed before their turn are left out."""
        names: dict[str, list[str]] = {}
        for channel, name in self._of_node.get(node, ()):
            names.setdefault(channel, []).append(name)
        for channel, ids in names.items():
            for first in range(0, len(ids), size):
                own = self._of_node.get(node, {})
                found = [name for name in ids[first : first + size] if (channel, name) in own]
                if found:
                    yield channel, tuple(self._channels[channel].entries[name] for name in found)

    def has(self, channel: str, entry_id: str) -> bool:
        """Return whether there is such an entry."""
        presence = self._channels.get(channel)
        return presence is not None and entry_id in presence.entries

    def has_left(self, channel: str, entry_id: str) -> bool:
        """Return whether an entry was removed not long ago."""
        return (channel, entry_id) in self._left

    def enter(self, node: str, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of a node. Return for each whether it was the only one of its user when it came."""
        if not entries:
            return []
        presence = self._channels.get(channel)
        if presence is None:
            presence = self._channels[channel] = Presence()
        own = self._of_node.setdefault(node, {})
        outcome = []
        for entry in entries:
            self._left.pop((channel, entry.id), None)
            outcome.append(presence.add(entry))
            own[channel, entry.id] = None
        return outcome

    def leave(self, node: str, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries, for a node. Return for each whether no entry of its user was left then."""
        presence = self._channels.get(channel) or Presence()
        outcome = []
        for entry in entries:
            key = channel, entry.id
            self._disown(node, key)
            if presence.remove(entry.id) is not None:
                self._left[key] = entry.user not in presence.users
            # The answer to an earlier call may have been lost.
            outcome.append(self._left.get(key, entry.user not in presence.users))
        self._forget_oldest()
        self._tidy(channel)
        return outcome

    def note_outcome(self, channel: str, entry_id: str, *, is_last: bool) -> None:
        """Have ``leave()`` answer so for an entry that is not there."""
        self._left[channel, entry_id] = is_last
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)

    def _disown(self, node: str, key: tuple[str, str]) -> None:
        """Have an entry belong to no node. It belongs to this one, unless another one has taken it over."""
        for each in (node, *self._of_node):
            own = self._of_node.get(each)
            if own is not None and key in own:
                del own[key]
                if not own:
                    del self._of_node[each]
                return

    def drop(self, node: str, channel: str, entry_id: str) -> None:
        """Remove an entry of a node of which nobody is told."""
        self._disown(node, (channel, entry_id))
        presence = self._channels.get(channel)
        if presence is not None:
            presence.remove(entry_id)
        self._tidy(channel)

    def _tidy(self, channel: str) -> None:
        """Keep nothing of a channel without entries."""
        presence = self._channels.get(channel)
        if presence is not None and not presence.entries:
            del self._channels[channel]

    def take(self, node: str, other: str) -> list[tuple[str, PresenceEntry]]:
        """Make some entries of another node those of a node, under other ids. Return channels and entries."""
        theirs = self._of_node.get(other, {})
        own = self._of_node.setdefault(node, {})
        taken = []
        for channel, name in list(islice(theirs, TAKEN_AT_ONCE)):
            del theirs[channel, name]
            presence = self._channels[channel]
            former = presence.remove(name)
            assert former is not None
            entry = former._replace(id=taken_id(node, name))
            presence.add(entry)
            own[channel, entry.id] = None
            taken.append((channel, entry))
        for each in (node, other):
            if not self._of_node.get(each):
                self._of_node.pop(each, None)
        return taken

    def read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return entries behind a cursor, in the order of their ids. Raises ``MisuseError`` if it is none."""
        check_cursor(cursor)
        presence = self._channels.get(channel) or Presence()
        first = bisect_right(presence.ids, cursor.removeprefix(CURSOR_MARK)) if cursor else 0
        ids = presence.ids[first : first + limit]
        has_more = first + len(ids) < len(presence.ids)
        page = tuple(presence.entries[each] for each in ids)
        return StoredPresence(page, CURSOR_MARK + ids[-1] if has_more else "")

    def counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users."""
        presence = self._channels.get(channel) or Presence()
        return PresenceCounts(connections=len(presence.entries), users=len(presence.users))


class PresenceStore:
    """The entries of all nodes, and their beats. All times are seconds by one clock."""

    def __init__(self) -> None:
        self.epoch = new_epoch()
        self._entries = PresenceEntries()
        self._beats: dict[str, float] = {}
        # Nodes that have had a beat, and were not taken for dead since: the number of the first one.
        self._known: dict[str, int] = {}
        # Nodes of which some entries were taken over. They stay dead until the others have followed.
        self._condemned: set[str] = set()

    def enter(self, node: str, channel: str, entries: Sequence[PresenceEntry], now: float) -> list[bool]:
        """Add entries of a node. Return for each whether it is the only one of its user."""
        # A node that dies before its first beat is dead all the same.
        self._beats.setdefault(node, now)
        return self._entries.enter(node, channel, entries)

    def leave(self, node: str, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of a node. Return for each whether no entry of its user is left."""
        return self._entries.leave(node, channel, entries)

    def beat(self, node: str, now: float, *, is_leaving: bool = False, seen: int = 0, number: int = 0) -> Beat:
        """Note that a node lives, or that it ends.

        Args:
            node: the node.
            now: the time.
            is_leaving: whether it ends.
            seen: the number of the last beat whose answer has said that the node is not known.
            number: that of this beat. If its answer is lost, that of the next one says the same.
        """
        is_known = node in self._condemned or self._known.get(node) == seen
        if node not in self._condemned:
            if not is_known:
                self._known[node] = number
            self._beats[node] = float("-inf") if is_leaving else now
        dead = [other for other, beat in self._beats.items() if beat <= now - DEAD_SECONDS and other != node]
        have_entries = set(self._entries.nodes)
        for other in dead:
            if other not in have_entries:
                self._forget(other)
        dead = [other for other in dead if other in have_entries]
        kept = frozenset(name for _, name in self._entries.names_of(node)) if not is_known else frozenset()
        return Beat(is_known, self.epoch, tuple(dead), kept=kept, entry_count=self._entries.count(node))

    def own(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Return channels and entries of a node."""
        return self._entries.of_node(node)

    def take_over(self, node: str, dead: str, now: float) -> list[tuple[str, PresenceEntry]]:
        """Make entries of a dead node those of another one."""
        if self._beats.get(dead, now) > now - DEAD_SECONDS:
            return []
        self._condemned.add(dead)
        taken = self._entries.take(node, dead)
        for channel, entry in taken:
            # The other node may be alive, and remove it. This one tells of the leave.
            self._entries.note_outcome(channel, former_id(entry.id), is_last=False)
        if dead not in self._entries.nodes:
            self._forget(dead)
        return taken

    def read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return entries behind a cursor."""
        return self._entries.read(channel, cursor, limit)

    def counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users."""
        return self._entries.counts(channel)

    def _forget(self, node: str) -> None:
        self._condemned.discard(node)
        self._known.pop(node, None)
        self._beats.pop(node, None)
