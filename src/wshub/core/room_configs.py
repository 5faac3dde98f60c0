"""The settings of rooms, by the names of rooms and by patterns of names.

A pattern is a name with one ``*``, which stands for any characters, none included. The room of that very name has the
settings that it was given itself. Otherwise the most specific pattern counts: the one with the most characters besides
the ``*``, and of two such patterns the one with more characters before it.
"""

from __future__ import annotations

from wshub.brokers.room_patterns import RoomPattern
from wshub.core.config import RoomConfig

__all__ = ["RoomConfigs"]

# Names whose settings were found by a pattern, and that are remembered.
REMEMBERED = 4096


class RoomConfigs:
    """The RoomConfig of each name and pattern."""

    def __init__(self) -> None:
        self._names: dict[str, RoomConfig] = {}
        self._patterns: dict[str, RoomConfig] = {}
        # The patterns, the most specific first.
        self._order: list[RoomPattern] = []
        self._found: dict[str, RoomConfig | None] = {}

    def set(self, pattern: str, config: RoomConfig) -> None:
        """Set the settings of a room, or of all rooms that match a pattern.

        Raises ``ConfigurationError`` for a pattern with more than one ``*``.
        """
        parsed = RoomPattern.parse(pattern)
        self._found.clear()
        if parsed.behind is None:
            self._names[pattern] = config
            return
        if pattern not in self._patterns:
            self._order.append(parsed)
            self._order.sort(key=lambda each: (-len(str(each)), -len(each.before), each))
        self._patterns[pattern] = config

    def find(self, name: str) -> RoomConfig | None:
        """Return the settings of a room; None if it has the hub's."""
        if not self._order:
            return self._names.get(name)
        try:
            return self._found[name]
        except KeyError:
            pattern = self.pattern_of(name)
        found = None
        if pattern is not None:
            found = self._names[pattern] if pattern in self._names else self._patterns[pattern]
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        self._found[name] = found
        return found

    def pattern_of(self, name: str) -> str | None:
        """Return the name or the pattern whose settings a room has; None if there is none.

        This takes time in proportion to the number of patterns.
        """
        if name in self._names:
            return name
        return next((str(pattern) for pattern in self._order if pattern.matches(name)), None)
