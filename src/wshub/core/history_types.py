"""The outcome of a recovery, and the counts of histories."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

from wshub.brokers.interface import Gap, Position

__all__ = ["HistoryStats", "Recovery", "check_position"]

MAX_OFFSET = (1 << 63) - 1


def check_position(name: str, position: object) -> Position | None:
    """Return a position that brokers can look up. Raises ``TypeError`` for anything but a Position or None.

    No history has an offset below 0 or above ``MAX_OFFSET``. Such a position becomes one of no epoch.
    """
    if position is None:
        return None
    if not isinstance(position, Position):
        raise TypeError(f"{name} must be a Position or None, not {type(position).__name__}")
    offset, epoch = position.offset, position.epoch
    if not isinstance(epoch, str) or isinstance(offset, bool) or not hasattr(offset, "__index__"):
        raise TypeError(f"{name} must have an int as its offset and a str as its epoch, not {position!r}")
    if not 0 <= operator.index(offset) <= MAX_OFFSET:
        return Position(0, "")
    return Position(operator.index(offset), str.__str__(epoch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The outcome of ``Connection.recover``."""

    position: Position
    """The position from which the client gets each new message. Send it to a client that had none."""

    sent: int = 0
    """The number of messages that the client was sent."""

    gap: Gap = ""
    """Why the client misses messages; empty if it misses none.

    With a gap, the connection is a member all the same. Have the client load anew what it shows.
    """

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
    """Times that a history was read."""

    caught_up: int
    """Times that a room read messages which had not arrived."""

    gaps: Mapping[str, int] = field(default_factory=dict)
    """Times that such messages were not kept any more, by reason."""

    recoveries: Mapping[str, int] = field(default_factory=dict)
    """Clients that recovered, by outcome: ``complete``, or the gap."""

    recovered: int = 0
    """Messages that they were sent because they had missed them."""

    kept: int | None = None
    """Messages that this process keeps in its memory; None if an engine keeps them."""

    kept_bytes: int | None = None
    """Bytes of these messages, with their options; None if an engine keeps them."""
