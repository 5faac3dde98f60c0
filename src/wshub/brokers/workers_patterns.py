"""The patterns of rooms that a worker has subscribed to. For the others, a pattern is a channel like any other."""

from __future__ import annotations

from collections.abc import Callable

from wshub.brokers.interface import PATTERN_CHANNELS, ROOM_CHANNELS
from wshub.brokers.room_patterns import RoomPattern

__all__ = ["Patterns"]


class Patterns:
    """The functions that take the envelopes of each pattern, by channel."""

    def __init__(self) -> None:
        self._receivers: dict[str, tuple[RoomPattern, Callable[[bytes], None]]] = {}

    def add(self, channel: str, receive: Callable[[bytes], None]) -> None:
        """Have a function called with the envelopes of a pattern."""
        self._receivers[channel] = RoomPattern.parse(channel.removeprefix(PATTERN_CHANNELS)), receive

    def remove(self, channel: str) -> None:
        """Have it called no more."""
        self._receivers.pop(channel, None)

    def clear(self) -> None:
        """Have no function called any more."""
        self._receivers.clear()

    def matching(self, channel: str) -> list[str]:
        """Return the channels of the patterns that match a room."""
        if not self._receivers or not channel.startswith(ROOM_CHANNELS):
            return []
        room = channel.removeprefix(ROOM_CHANNELS)
        return [name for name, (pattern, _) in self._receivers.items() if pattern.matches(room)]

    def receive(self, channel: str, envelope: bytes) -> None:
        """Take an envelope of a pattern. It is ignored if the worker has unsubscribed meanwhile."""
        found = self._receivers.get(channel)
        if found is not None:
            found[1](envelope)
