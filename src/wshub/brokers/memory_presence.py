"""The members of rooms, which a broker in memory has its engine keep."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from wshub.brokers.interface import NodeInfo
from wshub.brokers.memory_engine import Ask
from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.presence_store import check_cursor

__all__ = ["MemoryPresence"]


class MemoryPresence:
    """The methods of ``PresenceBroker`` of a broker in memory."""

    _node: NodeInfo
    _requests: count[int]
    # The last beat whose answer has said that the node is not known.
    _seen: int = 0

    async def _request(self, command: Ask) -> Any:
        raise NotImplementedError

    async def _ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Have the engine call a method of its PresenceStore."""
        return await self._request(Ask(method, arguments, keywords, next(self._requests)))

    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node. See ``PresenceBroker.presence_enter``."""
        outcome: list[bool] = await self._ask("enter", self._node.id, channel, tuple(entries))
        return outcome

    async def presence_leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node. See ``PresenceBroker.presence_leave``."""
        outcome: list[bool] = await self._ask("leave", self._node.id, channel, tuple(entries))
        return outcome

    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        """Say that this node lives. See ``PresenceBroker.presence_beat``."""
        number = next(self._requests)
        beat: Beat = await self._ask("beat", self._node.id, is_leaving=is_leaving, seen=self._seen, number=number)
        if not beat.is_known:
            self._seen = number
        return beat

    async def presence_own(self) -> list[tuple[str, PresenceEntry]]:
        """Return entries of this node. See ``PresenceSource.presence_own``."""
        found: list[tuple[str, PresenceEntry]] = await self._ask("own", self._node.id)
        return found

    async def presence_take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Take entries of a dead node over. See ``PresenceBroker.presence_take_over``."""
        taken: list[tuple[str, PresenceEntry]] = await self._ask("take_over", self._node.id, node)
        return taken

    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel. See ``PresenceBroker.presence_read``."""
        check_cursor(cursor)
        found: StoredPresence = await self._ask("read", channel, cursor, limit)
        return found

    async def presence_counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users. See ``PresenceBroker.presence_counts``."""
        counts: PresenceCounts = await self._ask("counts", channel)
        return counts
