"""The patterns of rooms that a worker has subscribed to. For the others, a pattern is a channel like any other."""

from __future__ import annotations

from collections.abc import Callable

from wshub.brokers.room_patterns import RoomPattern, matching_channels, pattern_of

__all__ = ["Patterns"]


class Patterns:
    """The functions that take the envelopes of each pattern, by channel."""

    def __init__(self) -> None:
        self._receivers: dict[str, Callable[[bytes], None]] = {}
        self._patterns: dict[str, RoomPattern] = {}

    def add(self, channel: str, receive: Callable[[bytes], None]) -> None:
        """Have a function called with the envelopes of a pattern."""
        self._patterns[channel] = pattern_of(channel)
        self._receivers[channel] = receive

    def remove(self, channel: str) -> None:
        """Have it called no more."""
        self._receivers.pop(channel, None)
        self._patterns.pop(channel, None)

    def clear(self) -> None:
        """Have no function called any more."""
        self._receivers.clear()
        self._patterns.clear()

    def matching(self, channel: str) -> list[str]:
        """Return the channels of the patterns that match a room."""
        return matching_channels(self._patterns, channel)

    def receive(self, channel: str, envelope: bytes) -> None:
        """Take an envelope of a pattern. It is ignored if the worker has unsubscribed meanwhile."""
        receive = self._receivers.get(channel)
        if receive is not None:
            receive(envelope)
