from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wshub.core.backlog cimport Backlog
from wshub.core.delivery_options cimport Delivery
from wshub.core.conflation_keys cimport ConflationKeys
from wshub.core.times cimport Times
from wshub.links.link cimport LinkCounters
from wshub.protocol.compression.compressed_once cimport DeflatePool


# The rates: indices of HubBase.rates and ConnectionCore.left.
cdef enum:
    BYTES
    MESSAGES
    CONTROL_FRAMES
    HANDLER_TIME
    RATES  # the number of rates


cdef struct Rate:
    # A limit per second, and the most that can be saved up. Both are huge if there is no limit.
    double per_second
    double at_most


cdef class HubBase:
    """The state of a hub that its connections use."""

    cdef object loop             # None until the hub is bound to one
    cdef unsigned long thread_id
    cdef bint clock_is_monotonic  # it is time.monotonic
    cdef object clock            # a function without arguments that returns seconds and never goes back
    cdef LinkCounters counters
    cdef Backlog backlog         # connections whose input waits for a later loop iteration
    cdef dict connection_table   # id: Connection, of all that are not closed
    cdef dict walked             # connections that a message is being queued for: do not add to that dict; or None
    cdef dict room_table         # name: Room, of all that have a member
    cdef dict user_table         # user: Room of the user's connections, of all that have one
    cdef object cluster          # Cluster: the hubs that a broker joins to this one; None without a broker
    cdef object histories        # Histories of rooms; None until the hub is in use and keeps one
    cdef object history_messages  # RemoteMessages: makes the envelopes of messages that histories keep; or None
    cdef public object _watches  # Watches: functions that get the messages to rooms; None while there are none
    cdef readonly bint _keeps_histories  # the settings of some room have a history
    cdef object presences        # Presences: who is in which room; None until the hub is in use and knows it of one
    cdef readonly bint _keeps_presences  # the settings of some room have a presence
    cdef dict history_cursors    # name: HistoryCursor, of the rooms with history that messages arrive for
    cdef dict history_senders    # name: StoredSender, of rooms with history that messages were sent to
    cdef readonly object _admission  # Admission
    cdef bint counts_addresses   # the connections of each address are counted
    cdef dict closes             # close code: number of connections
    cdef bytes shutdown_close_payload  # of the close frame that all connections were sent; None before that
    cdef bint closed             # no connection may open
    cdef dict handler_tasks      # Task of a suspended handler: its connection
    cdef object handling         # ContextVar: the id of the connection in whose handler, or its child task, code runs
    cdef uint64_t max_message_size
    cdef size_t max_send_buffer
    cdef uint32_t max_fragments
    cdef Delivery delivery_defaults  # how to send a message if neither the call nor the room says otherwise
    cdef ConflationKeys conflation_keys
    cdef Rate rates[RATES]
    cdef bint times_handlers     # handler time is limited
    cdef bint observes_handlers  # handler time is limited or measured, or messages have spans
    cdef bint limits_input       # the rate of bytes or messages is limited
    cdef bint closes_at_rate     # a connection that exceeds a rate is closed, not delayed
    cdef DeflatePool pool        # None if compression is not enabled
    cdef object room_configs     # RoomConfigs: the settings of rooms by pattern
    cdef bint has_room_configs   # there are any
    cdef uint64_t last_generation  # of the shared windows
    cdef uint64_t window_changes  # count of changes to rooms with a shared window: members, syncs, restarts
    cdef bint ends_stalled       # a send_timeout is set: a peer that takes no bytes needs no ping
    cdef double ping_interval, pong_timeout, close_timeout, send_timeout, idle_timeout, max_lifetime
    cdef double swept_at         # the time of the last sweep
    cdef uint64_t rates_exceeded
    cdef uint64_t connections_opened
    cdef bint had_no_space        # some connection's send queue has been full since the last sweep
    cdef object limit_log        # LimitLog: warns once of each limit that is reached
    cdef bint access_log         # each connection has lines in the access log
    cdef Times times             # how long handshakes, handlers and pings take; None if that is not measured
    cdef object tracer           # Tracer: makes the spans of handshakes and messages; None without tracing
    cdef bint traces_messages    # messages have spans too
    cdef readonly bint _observes_handshakes  # handshakes are measured, or have spans

    cdef object forget(self, object connection_id, object address_bucket)
    cdef bint bind_to_send(self) except -1
