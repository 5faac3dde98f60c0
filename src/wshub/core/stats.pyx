# cython: language_level=3
"""The counters that ``Hub.stats`` returns. stats_types.py describes each of them."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from wshub.core.connection_state cimport ConnectionCore
from wshub.links.link cimport counts_of
from wshub.protocol.frame_buffer cimport DeliveryCounters


cdef dict hub_stats(HubBase hub, dict refused):
    """Return the HubStats of a hub. `refused` has the number of refused handshakes by status."""
    cdef uint64_t pending = 0
    cdef ConnectionCore connection
    for connection in hub.connection_table.values():
        if connection.link is not None:
            pending += connection.link.queue.messages
    return {
        "connections": len(hub.connection_table),
        "rooms": len(hub.room_table),
        "messages_received": hub.counters.messages_received,
        "bytes_received": hub.counters.bytes_received,
        "bytes_sent": hub.counters.bytes_sent,
        **counts_of(&hub.counters.messages, pending),
        "rates_exceeded": hub.rates_exceeded,
        "compression": {
            "compressions": hub.pool.compressions if hub.pool is not None else 0,
            "bytes_in": hub.pool.bytes_in if hub.pool is not None else 0,
            "bytes_out": hub.pool.bytes_out if hub.pool is not None else 0,
        },
        "closes": dict(hub.closes),
        "refused": dict(refused),
    }


cdef dict room_stats(Room room):
    """Return the RoomStats of a room, or those of an empty room for None."""
    cdef DeliveryCounters nothing
    if room is not None:
        counts = counts_of(room.delivery_counters, room.delivery_counters.pending)
        return {"connections": len(room.members), **counts}
    memset(&nothing, 0, sizeof(nothing))
    return {"connections": 0, **counts_of(&nothing, 0)}
