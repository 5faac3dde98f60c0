"""The histories of a hub that has no broker: in its memory, and delivered at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wshub.brokers.envelope import encode_stored
from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.history_store import HistoryStore
from wshub.brokers.interface import HistoryConfig, Position, Published

if TYPE_CHECKING:
    from wshub.core.hub_core import HubCore

__all__ = ["LocalHistory"]

POSITION_ALONE = HistoryQuery(limit=0)


class LocalHistory:
    """Stores what a hub publishes, and gives it to the members in the same iteration of the loop.

    Args:
        hub: tells the time, and has the watches of rooms.
        receive: takes each stored envelope, with its head.
    """

    def __init__(self, hub: HubCore, receive: Callable[[bytes], None]) -> None:
        self.store = HistoryStore()
        self._hub = hub
        self._now = hub.now
        self._receive = receive

    async def subscribed(self, channel: str) -> None:
        """Return at once: nothing is published elsewhere."""

    def position(self, channel: str, config: HistoryConfig) -> Position:
        """Return the position of the newest message."""
        return self.store.read(channel, config, POSITION_ALONE, self._now()).position

    def send_stored(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and deliver it."""
        self._store(channel, envelope, config, "")
        return True

    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        """Store an envelope and deliver it, unless its key is known."""
        return self._store(channel, envelope, config, idempotency_key)

    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored."""
        return self.store.read(channel, config, query, self._now())

    def sweep(self, now: float) -> None:
        """Forget what is too old."""
        self.store.sweep(now)

    def _store(self, channel: str, envelope: bytes, config: HistoryConfig, key: str) -> Published:
        stored = self.store.store(channel, envelope, config, self._now(), key)
        position = stored.position
        if not stored.is_duplicate:
            envelope = encode_stored(envelope, offset=position.offset, previous=stored.previous, epoch=position.epoch)
            if self._hub._watches is not None:
                self._hub._watches.stored(envelope)
            self._receive(envelope)
        return Published(receivers=0, position=position, is_duplicate=stored.is_duplicate)
