"""The patterns of rooms that a broker delivers by: each is a channel of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from wshub.brokers.interface import pattern_channel

__all__ = ["PatternChannels"]


class PatternChannels(ABC):
    """The methods of ``PatternBroker``. A subclass knows what takes the envelopes of a pattern's channel."""

    @abstractmethod
    def subscribe(self, channel: str) -> None: ...

    @abstractmethod
    def unsubscribe(self, channel: str) -> None: ...

    @abstractmethod
    async def subscribed(self, channel: str) -> None: ...

    @abstractmethod
    def _add_receiver(self, channel: str, receive: Callable[[bytes], None]) -> None:
        """Have a function take the envelopes of a pattern."""

    @abstractmethod
    def _remove_receiver(self, channel: str) -> None:
        """Have it take no more."""

    def subscribe_pattern(self, pattern: str, receive: Callable[[bytes], None]) -> None:
        """Have envelopes of rooms that match the pattern arrive. See ``PatternBroker.subscribe_pattern``."""
        self._add_receiver(pattern_channel(pattern), receive)
        self.subscribe(pattern_channel(pattern))

    def unsubscribe_pattern(self, pattern: str) -> None:
        """Let no more envelopes arrive by the pattern."""
        self.unsubscribe(pattern_channel(pattern))
        self._remove_receiver(pattern_channel(pattern))

    async def pattern_subscribed(self, pattern: str) -> None:
        """Return when every envelope that any node sends to a matching room from now on arrives.

        Raises:
            BrokerUnavailable: as for ``subscribed()``.
        """
        await self.subscribed(pattern_channel(pattern))
