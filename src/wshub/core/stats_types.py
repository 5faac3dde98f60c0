"""The counters that ``Hub.stats`` returns.

At any moment, of a hub and of each room, ``messages_accepted`` is ``messages_delivered`` + ``messages_pending`` + the
sum of ``dropped``.
"""

from __future__ import annotations

from typing import TypedDict

from wshub.core.cluster_types import ClusterStats

__all__ = ["CompressionStats", "DroppedMessages", "HubStats", "MessageStats", "RoomStats"]


class DroppedMessages(TypedDict):
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


class MessageStats(TypedDict):
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


class RoomStats(MessageStats):
    """Counts of one room, since its first member joined. They end when its last member leaves."""

    connections: int
    """Members now."""


class CompressionStats(TypedDict):
    """How much was compressed. A message that is compressed once for many receivers counts once."""

    compressions: int
    """Messages that were compressed."""

    bytes_in: int
    """Bytes of these messages before compression."""

    bytes_out: int
    """Bytes of these messages after compression."""


class HubStats(MessageStats):
    """Counts of a hub, since its first use on its event loop."""

    connections: int
    """Connections now, including those that are closing."""

    rooms: int
    """Rooms that have a member now."""

    messages_received: int
    """Text and binary messages received."""

    bytes_received: int
    """Bytes received from clients."""

    bytes_sent: int
    """Bytes that were taken from the send queues: by the kernel, or by the transport or ASGI server in its place."""

    rates_exceeded: int
    """How often a connection exceeded one of its ``RateLimits``."""

    compression: CompressionStats
    """How much was compressed."""

    closes: dict[int, int]
    """How many connections ended, by close code."""

    refused: dict[int, int]
    """How many handshakes were refused, by status code."""

    cluster: ClusterStats | None
    """Messages between nodes; None without a broker."""
