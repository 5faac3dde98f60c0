"""The patterns of rooms, whose envelopes a broker in memory has its engine deliver."""

from __future__ import annotations

from collections.abc import Callable

from wshub.brokers.interface import pattern_channel

__all__ = ["MemoryPatterns"]


class MemoryPatterns:
    """The methods of ``PatternBroker`` of a broker in memory. For the engine, a pattern is a channel of its own."""

    # The functions that take the envelopes of each pattern, by channel.
    _patterns: dict[str, Callable[[bytes], None]]

    def subscribe(self, channel: str) -> None:
        raise NotImplementedError

    def unsubscribe(self, channel: str) -> None:
        raise NotImplementedError

    async def subscribed(self, channel: str) -> None:
        raise NotImplementedError

    def subscribe_pattern(self, pattern: str, receive: Callable[[bytes], None]) -> None:
        """Have envelopes of rooms that match the pattern arrive. See ``PatternBroker.subscribe_pattern``."""
        self._patterns[pattern_channel(pattern)] = receive
        self.subscribe(pattern_channel(pattern))

    def unsubscribe_pattern(self, pattern: str) -> None:
        """Let no more envelopes arrive by the pattern."""
        self.unsubscribe(pattern_channel(pattern))
        self._patterns.pop(pattern_channel(pattern), None)

    async def pattern_subscribed(self, pattern: str) -> None:
        """Return when every envelope that any node sends to a matching room from now on arrives.

        Raises:
            BrokerUnavailable: as for ``subscribed()``.
        """
        await self.subscribed(pattern_channel(pattern))
