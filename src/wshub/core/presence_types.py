"""The counts of presences."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PresenceStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceStats:
    """The counts of the rooms with presence, at this hub and since its first use. Immutable."""

    members: int
    """Connections of this hub that count as present, once for each room. Those within their grace count too."""

    pending: int
    """Joins and leaves that the other nodes have not been told yet. It grows while the engine is away."""

    taken_over: int
    """Members of nodes that have died, which this node has taken over to let them leave."""
