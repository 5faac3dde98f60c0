"""Patterns of the names of rooms.

A pattern is a name with one ``*``, which stands for any characters, none included. A name without ``*`` is a pattern
too: it matches the room of that very name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from wshub.brokers.interface import PATTERN_CHANNELS, ROOM_CHANNELS
from wshub.errors import ConfigurationError

__all__ = ["WILDCARD", "RoomPattern", "matching_channels", "pattern_of"]

WILDCARD = "*"


class RoomPattern(NamedTuple):
    """A pattern, taken apart."""

    before: str
    """The beginning of the name."""

    behind: str | None
    """Its end, behind the wildcard; None if the pattern has no wildcard."""

    @classmethod
    def parse(cls, pattern: str) -> RoomPattern:
        """Take a pattern apart. Raises ``ConfigurationError`` for more than one ``*``."""
        wildcards = pattern.count(WILDCARD)
        if wildcards > 1:
            raise ConfigurationError(f'a pattern of rooms has one "*", not {wildcards}: {pattern!r}')
        before, wildcard, behind = pattern.partition(WILDCARD)
        return cls(before, behind if wildcard else None)

    def __str__(self) -> str:
        return self.before if self.behind is None else self.before + WILDCARD + self.behind

    def matches(self, name: str) -> bool:
        """Return whether a room has such a name."""
        before, behind = self
        if behind is None:
            return name == before
        return len(name) >= len(before) + len(behind) and name.startswith(before) and name.endswith(behind)


def pattern_of(channel: str) -> RoomPattern:
    """Return the pattern of its channel. Raises ``ConfigurationError`` for more than one ``*``."""
    return RoomPattern.parse(channel.removeprefix(PATTERN_CHANNELS))


def matching_channels(patterns: Mapping[str, RoomPattern], channel: str) -> list[str]:
    """Return the channels of those patterns, by channel, that match the room of a channel."""
    if not patterns or not channel.startswith(ROOM_CHANNELS):
        return []
    room = channel.removeprefix(ROOM_CHANNELS)
    return [name for name, pattern in patterns.items() if pattern.matches(room)]
