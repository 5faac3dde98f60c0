"""The histories of a hub that has no broker: in its memory, and delivered at once."""

from __future__ import annotations

from collections.abc import Callable

from wshub.brokers.envelope import encode_stored
from wshub.brokers.history_store import HistoryStore
from wshub.brokers.interface import HistoryConfig, Position, Published, StoredHistory

__all__ = ["LocalHistory"]


class LocalHistory:
    """Stores what a hub publishes, and gives it to the members in the same iteration of the loop.

    Args:
        now: returns the time in seconds.
        receive: takes each stored envelope, with its head.
    """

    def __init__(self, now: Callable[[], float], receive: Callable[[bytes], None]) -> None:
        self.store = HistoryStore()
        self._now = now
        self._receive = receive

    async def subscribed(self, channel: str) -> None:
        """Return at once: nothing is published elsewhere."""

    def position(self, channel: str, config: HistoryConfig) -> Position:
        """Return the position of the newest message."""
        return self.store.read(channel, config, self._now(), limit=0).position

    def send_stored(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and deliver it."""
        self._store(channel, envelope, config, "")
        return True

    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        """Store an envelope and deliver it, unless its key is known."""
        return self._store(channel, envelope, config, idempotency_key)

    async def history(
        self,
        channel: str,
        config: HistoryConfig,
        *,
        since: Position | None = None,
        limit: int = 100,
        max_bytes: int = 1024 * 1024,
        reverse: bool = False,
        is_own: bool = False,
        mark: bytes = b"",
    ) -> StoredHistory:
        """Return what is stored."""
        return self.store.read(
            channel,
            config,
            self._now(),
            since=since,
            limit=limit,
            max_bytes=max_bytes,
            reverse=reverse,
            is_own=is_own,
            mark=mark,
        )

    def sweep(self, now: float) -> None:
        """Forget what is too old."""
        self.store.sweep(now)

    def _store(self, channel: str, envelope: bytes, config: HistoryConfig, key: str) -> Published:
        stored = self.store.store(channel, envelope, config, self._now(), key)
        position = stored.position
        if not stored.is_duplicate:
            self._receive(
                encode_stored(envelope, offset=position.offset, previous=stored.previous, epoch=position.epoch)
            )
        return Published(receivers=0, position=position, is_duplicate=stored.is_duplicate)
