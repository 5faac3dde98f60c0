# cython: language_level=3
"""The counts that ``Hub.stats`` returns. stats_types.py describes each of them."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from wshub.core.connection_state cimport ConnectionCore
from wshub.links.link cimport counts_of
from wshub.protocol.frame_buffer cimport DeliveryCounters

from wshub.core.stats_types import CompressionStats, DroppedMessages, HubStats, RoomStats


cdef dict message_counts(const DeliveryCounters *delivery_counters, uint64_t pending):
    """Return the fields of a MessageStats."""
    cdef dict counts = counts_of(delivery_counters, pending)
    counts["dropped"] = DroppedMessages(**counts["dropped"])
    return counts


cdef object hub_stats(HubBase hub, dict refused, object cluster):
    """Return the HubStats of a hub.

    `refused` has the number of refused handshakes by status, and `cluster` is its ClusterStats, or None.
    """
    cdef uint64_t messages_pending = 0
    cdef uint64_t bytes_pending = 0
    cdef ConnectionCore connection
    for connection in hub.connection_table.values():
        if connection.link is not None:
            messages_pending += connection.link.queue.messages
            bytes_pending += connection.link.queue.queued_bytes
    return HubStats(
        **message_counts(&hub.counters.messages, messages_pending),
        connections=len(hub.connection_table),
        connections_opened=hub.connections_opened,
        rooms=len(hub.room_table),
        messages_received=hub.counters.messages_received,
        bytes_received=hub.counters.bytes_received,
        bytes_sent=hub.counters.bytes_sent,
        bytes_pending=bytes_pending,
        rates_exceeded=hub.rates_exceeded,
        compression=CompressionStats(
            compressions=hub.pool.compressions if hub.pool is not None else 0,
            bytes_in=hub.pool.bytes_in if hub.pool is not None else 0,
            bytes_out=hub.pool.bytes_out if hub.pool is not None else 0,
        ),
        closes=dict(hub.closes),
        refused=dict(refused),
        handshake_seconds=hub.times.handshakes.snapshot() if hub.times is not None else None,
        handler_seconds=hub.times.handlers.snapshot() if hub.times is not None else None,
        ping_seconds=hub.times.pings.snapshot() if hub.times is not None else None,
        cluster=cluster,
        history=hub.histories.stats() if hub.histories is not None else None,
        presence=hub.presences.stats() if hub.presences is not None else None,
    )


cdef object room_stats(Room room):
    """Return the RoomStats of a room, or those of an empty room for None."""
    cdef DeliveryCounters nothing
    if room is not None:
        counts = message_counts(room.delivery_counters, room.delivery_counters.pending)
        return RoomStats(connections=len(room.members), **counts)
    memset(&nothing, 0, sizeof(nothing))
    return RoomStats(connections=0, **message_counts(&nothing, 0))
