"""The members of rooms of a hub without a broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.presence_store import PresenceStore

__all__ = ["LocalPresence"]


class LocalPresence:
    """The presence of one node, in its memory. Its methods are those of ``PresenceBroker``.

    Args:
        node: the id of the node.
        now: returns the time in seconds.
    """

    def __init__(self, node: str, now: Callable[[], float]) -> None:
        self._node = node
        self._now = now
        self._store = PresenceStore()

    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        return self._store.enter(self._node, channel, entries, self._now())

    async def presence_leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        return self._store.leave(self._node, channel, entries)

    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        return self._store.beat(self._node, self._now(), is_leaving=is_leaving)._replace(entry_count=None)

    async def presence_take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        return self._store.take_over(self._node, node, self._now())

    async def presence_own(self) -> list[tuple[str, PresenceEntry]]:
        return self._store.own(self._node)

    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        return self._store.read(channel, cursor, limit)

    async def presence_counts(self, channel: str) -> PresenceCounts:
        return self._store.counts(channel)
