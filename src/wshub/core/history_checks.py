"""Finds messages to rooms with history that have not arrived here although the broker has noticed nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from wshub.brokers.history_interface import HistoryQuery, HistorySource, StoredHistory
from wshub.core.room_history import RoomHistory
from wshub.errors import BrokerError

__all__ = ["PositionChecks"]

logger = logging.getLogger("wshub.broker")

CHECK_SECONDS = 30.0
"""Seconds within which the position of each room is compared with that of its history."""

DOUBT_SECONDS = 2.0
"""Seconds that a message has to arrive which a check has found in the history."""


class CheckedHistories(Protocol):
    """The histories of a hub, as far as the checks use them."""

    source: HistorySource

    @property
    def cursors(self) -> Mapping[str, RoomHistory]: ...

    def is_current(self, history: RoomHistory) -> bool: ...


class PositionChecks:
    """Compares the position of each room with that of its history, one after the other.

    Args:
        histories: the rooms.
        now: the time in seconds, by the clock of ``sweep()``.
    """

    def __init__(self, histories: CheckedHistories, now: float) -> None:
        self._histories = histories
        self._checked_at = now
        self._checking: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Check nothing more."""
        if self._checking is not None:
            self._checking.cancel()

    def sweep(self, now: float) -> None:
        """Begin to check all rooms if it is time."""
        is_checking = self._checking is not None and not self._checking.done()
        if not is_checking and now >= self._checked_at + CHECK_SECONDS:
            self._checked_at = now
            self._checking = asyncio.get_running_loop().create_task(self._check_all())

    async def _check_all(self) -> None:
        histories = [history for history in self._histories.cursors.values() if history.is_live]
        for history in histories:
            await asyncio.sleep(CHECK_SECONDS / 2 / len(histories))
            try:
                await self.check(history)
            except BrokerError:
                return

    async def check(self, history: RoomHistory) -> None:
        """Have a room read its history again if it is behind. Raises ``BrokerError``."""
        query = HistoryQuery(since=history.position, limit=0, is_own=True, mark=history.mark)
        found = await self._histories.source.history(history.channel, history.config, query)
        if not self._differs(history, found):
            return
        await asyncio.sleep(DOUBT_SECONDS)
        if self._differs(history, found):
            logger.warning("messages to the room %r have not arrived, and are read", history.name)
            history.interrupt()

    def _differs(self, history: RoomHistory, found: StoredHistory) -> bool:
        """Whether a room is behind its history, or its history has lost messages that the room has had."""
        if not self._histories.is_current(history) or not history.is_live:
            return False
        position = found.position
        return history.epoch != position.epoch or history.offset < position.offset or found.gap == "epoch"
