from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

from wshub.hub.shared_window cimport SharedWindow
from wshub.links.link cimport Ledger
from wshub.protocol.deflate cimport DeflatePool


cdef class HandlerTable:
    """The handlers of one EventHandler, looked up once."""

    cdef readonly object handler
    cdef object on_open, on_message, on_close, on_error, on_ping, on_pong
    cdef bint receives  # messages wait for receive() from the start
    cdef bint endpoint  # on_open is the whole life of the connection: it receives, and its end closes


cdef class Room:
    cdef readonly str name
    cdef dict members           # id: Connection
    cdef SharedWindow window    # or None


cdef class HubBase:
    """What a connection needs of its hub."""

    cdef object loop
    cdef unsigned long thread_id
    cdef object clock            # a function without arguments: seconds, never going back
    cdef Ledger ledger
    cdef dict connections        # id: Connection, of all that are not closed
    cdef dict room_table         # name: Room, of all that have a member
    cdef dict closes             # close code: how many
    cdef object spare            # a SpareTask, or None
    cdef set handler_tasks       # of handlers that are suspended
    cdef uint64_t max_message_size
    cdef size_t max_send_buffer
    cdef size_t compression_threshold
    cdef DeflatePool pool        # None where compression is not enabled
    cdef dict room_configs       # name: RoomConfig, of the rooms that were given one
    cdef uint64_t last_generation
    cdef uint64_t window_changes  # of who is in a room with a shared window, or in step with one: how many, ever
    cdef double ping_interval, pong_timeout, close_timeout
    cdef uint64_t messages_received
    cdef uint64_t slow_consumers

    cdef object forget(self, object key)
    cdef size_t threshold(self, object compress) except? 1
    cdef Room open_room(self, str name)
    cdef SharedWindow window_of(self, object config)
    cdef void restart(self, SharedWindow window) noexcept
