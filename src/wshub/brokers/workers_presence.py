"""The members of rooms, of which each worker knows those of some rooms."""

from __future__ import annotations

from collections.abc import Sequence

from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.workers_presences import Presences
from wshub.brokers.workers_session import WorkersSession
from wshub.errors import BrokerUnavailable

__all__ = ["WorkersPresence"]


class WorkersPresence:
    """The methods of ``PresenceBroker`` of a broker of workers."""

    _session: WorkersSession | None

    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node. See ``PresenceSource.presence_enter``."""
        return await self._presences().enter(channel, entries)

    async def presence_leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node. See ``PresenceSource.presence_leave``."""
        return await self._presences().leave(channel, entries)

    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        """Take part from now on. See ``PresenceSource.presence_beat``."""
        return self._presences().beat()

    async def presence_take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Take entries of a dead node over in the rooms that this node keeps. See ``PresenceSource``."""
        return self._presences().take_over(node)

    async def presence_own(self) -> list[tuple[str, PresenceEntry]]:
        """Return nothing: no beat has an ``entry_count``. See ``PresenceSource.presence_own``."""
        return []

    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel. See ``PresenceSource.presence_read``."""
        return await self._presences().read(channel, cursor, limit)

    async def presence_counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users of a channel. See ``PresenceSource.presence_counts``."""
        return await self._presences().counts(channel)

    def _presences(self) -> Presences:
        if self._session is None or self._session.is_closed:
            raise BrokerUnavailable("the broker is not started")
        return self._session.presences
