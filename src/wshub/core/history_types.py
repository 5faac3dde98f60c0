"""The outcome of a recovery, and the counts of histories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wshub.brokers.interface import Gap, Position

__all__ = ["HistoryStats", "Recovery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How a client came back to a room with history."""

    position: Position
    """The position of the last message before those that arrive from now on. Send it to the client if it had none."""

    sent: int = 0
    """The number of messages that the client was sent."""

    gap: Gap = ""
    """Why the client misses messages; empty if it misses none. With a gap it is a member all the same: have it load
    what it shows anew."""

    @property
    def is_complete(self) -> bool:
        """Whether the client has every message up to the position."""
        return not self.gap


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStats:
    """The counts of a hub's histories since its first use. Immutable."""

    rooms: int
    """Rooms with history that have members here."""

    reads: int
    """Readings of histories."""

    caught_up: int
    """Times that messages were read which had not arrived."""

    gaps: Mapping[str, int] = field(default_factory=dict)
    """Times that these could not be read any more, by reason."""

    recoveries: Mapping[str, int] = field(default_factory=dict)
    """Clients that came back: ``complete``, or by the gap that they have."""
