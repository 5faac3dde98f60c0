"""The counts that ``Hub.stats`` returns.

At any moment, of a hub and of each room, ``messages_accepted`` is ``messages_delivered`` + ``messages_pending`` +
``dropped.total``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wshub.core.cluster_types import ClusterStats
from wshub.core.history_types import HistoryStats
from wshub.core.presence_types import PresenceStats

__all__ = ["CompressionStats", "DroppedMessages", "Histogram", "HubStats", "MessageStats", "RoomStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedMessages:
    """Messages that were accepted and not delivered, by reason."""

    closed: int
    """The connection ended before they were delivered."""

    slow: int
    """The connection was closed by the policy ``"close"`` of ``slow_consumer``."""

    newest: int
    """The queue was full, and the message was not queued."""

    oldest: int
    """The queue was full, and ``"drop_oldest"`` or ``"latest"`` made space for a newer message."""

    replaced: int
    """Under ``"latest"``, a newer message with the same key took its place."""

    @property
    def total(self) -> int:
        """The sum over all reasons."""
        return self.closed + self.slow + self.newest + self.oldest + self.replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStats:
    """The outcome of the messages that were sent. A message counts once for each of its receivers."""

    messages_accepted: int
    """Messages that were sent to an open connection."""

    messages_delivered: int
    """Messages that the kernel has taken whole, or the transport or ASGI server in its place. See
    ``Connection.buffered``."""

    messages_pending: int
    """Messages that are queued now."""

    dropped: DroppedMessages
    """Messages that were dropped."""

    def asdict(self) -> dict[str, Any]:
        """Return the counts as a dict; a value that has fields itself is a dict too."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomStats(MessageStats):
    """Counts of one room, since its first member joined. They end when its last member leaves."""

    connections: int
    """Members now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionStats:
    """How much was compressed. A message that is compressed once for many receivers counts once."""

    compressions: int
    """Messages that were compressed."""

    bytes_in: int
    """Bytes of these messages before compression."""

    bytes_out: int
    """Bytes of these messages after compression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often something took how long."""

    bounds: tuple[float, ...]
    """The upper bounds of the buckets, in seconds. The last bucket has none."""

    counts: tuple[int, ...]
    """How often a bucket was hit: one number for each bound, and one for what took longer."""

    sum: float
    """The seconds of all together."""

    @property
    def count(self) -> int:
        """How often it was measured."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubStats(MessageStats):
    """Counts of a hub, since its first use on its event loop. Immutable."""

    connections: int
    """Connections now, including those that are closing."""

    connections_opened: int
    """Connections that have opened."""

    rooms: int
    """Rooms that have a member now."""

    messages_received: int
    """Text and binary messages received."""

    bytes_received: int
    """Bytes received from clients."""

    bytes_sent: int
    """Bytes that were taken from the send queues: by the kernel, or by the transport or ASGI server in its place."""

    bytes_pending: int
    """Bytes in the send queues of all connections now."""

    rates_exceeded: int
    """How often a connection exceeded one of its ``RateLimits``."""

    compression: CompressionStats
    """How much was compressed."""

    closes: Mapping[int, int]
    """How many connections ended, by close code."""

    refused: Mapping[int, int]
    """How many handshakes were refused, by status code."""

    handshake_seconds: Histogram | None
    """Seconds from a complete handshake request to its 101, ``on_upgrade`` included. None, like the next two, until
    ``Hub.measure_times`` has been called."""

    handler_seconds: Histogram | None
    """Seconds that ``on_message`` took. The time that a coroutine was suspended counts too."""

    ping_seconds: Histogram | None
    """Seconds from a ping of the hub to its pong."""

    cluster: ClusterStats | None
    """Messages between nodes; None without a broker."""

    history: HistoryStats | None
    """Rooms whose messages are kept; None if there are none."""

    presence: PresenceStats | None
    """Rooms whose members are known on all nodes; None if there are none."""
