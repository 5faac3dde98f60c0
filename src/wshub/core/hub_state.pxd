from cpython.unicode cimport PyUnicode_CheckExact
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wshub.core.backlog cimport Backlog
from wshub.core.shared_window cimport SharedWindow
from wshub.links.link cimport Ledger
from wshub.protocol.compression.deflate cimport DeflatePool
from wshub.protocol.frame_buffer cimport FrameBuffer, Tally


# What is done with a message for a connection on which too much is queued already.
cdef enum Policy:
    CLOSE_CONNECTION
    DROP_NEWEST
    DROP_OLDEST
    LATEST
    INHERITED  # a room's, where the hub's is meant


cdef struct Delivery:
    # How a message is sent, the same for all its receivers.
    size_t threshold  # from how many octets on it is compressed
    uint8_t policy


# What a connection does that has a rate: the places in HubBase.rates and ConnectionCore.left.
cdef enum:
    OCTETS
    MESSAGES
    CONTROL_FRAMES
    HANDLER_TIME
    RATES  # how many there are


cdef struct Rate:
    # What a connection may do in a second, and how much of that it can save up; as good as infinite without a bound.
    double per_second
    double at_most


# Where keys of messages are told apart, besides each room: the numbers that no room has for its key.
cdef enum:
    PRIVATE_KEYS
    HUB_KEYS


cdef class Queued:
    """The result of the methods that queue something."""


cdef Queued QUEUED  # the only one


cdef class HandlerTable:
    """The handlers of one EventHandler, looked up once."""

    cdef readonly object handler
    cdef object on_open, on_message, on_close, on_error, on_ping, on_pong, on_drain
    cdef dict close_codes  # the code that is sent for one that the hub would close with; None if all are the same
    cdef bint receives  # messages wait for receive() from the start
    cdef bint endpoint  # on_open is the whole life of the connection: it receives, and its end closes


cdef class Room:
    cdef readonly str name
    cdef dict members           # id: Connection
    cdef dict walked            # the members that a message is being queued for: nobody may be added to that dict
    cdef SharedWindow window    # or None
    cdef Tally *tally           # a reference: of what is sent to the room
    cdef uint64_t key           # of messages to it that have no key of their own; and the namespace of those that have
    cdef uint8_t policy


cdef class HubBase:
    """What a connection needs of its hub."""

    cdef object loop
    cdef unsigned long thread_id
    cdef object clock            # a function without arguments: seconds, never going back
    cdef Ledger ledger
    cdef Backlog backlog         # connections with input that waits for a later loop iteration
    cdef dict connections        # id: Connection, of all that are not closed
    cdef dict walked             # ... that a message is being queued for: nobody may be added to that dict
    cdef dict room_table         # name: Room, of all that have a member
    cdef readonly object _admission  # Admission
    cdef bint counts_addresses   # it counts the connections of each address
    cdef dict closes             # close code: how many
    cdef bytes farewell          # payload of the close frame that everybody has been sent, once that is so; or None
    cdef bint closed             # no connection may open any more
    cdef dict handler_tasks      # Task of a handler that is suspended: id of its connection
    cdef object handling         # ContextVar: the id of the connection in whose handler, or its child task, code runs
    cdef uint64_t max_message_size
    cdef size_t max_send_buffer
    cdef uint32_t max_fragments
    cdef uint8_t policy          # for slow consumers
    cdef uint64_t last_key       # of messages of which only the latest matters
    cdef dict keys               # (namespace, name): number of such a key
    cdef Py_ssize_t key_length   # characters of all these names
    cdef Rate rates[RATES]
    cdef bint times_handlers     # their time is bounded
    cdef bint limits_input       # there is a rate of octets or messages
    cdef bint closes_at_rate     # who exceeds a rate is closed, rather than delayed
    cdef size_t compression_threshold
    cdef DeflatePool pool        # None where compression is not enabled
    cdef dict room_configs       # name: RoomConfig, of the rooms that were given one
    cdef uint64_t last_generation
    cdef uint64_t window_changes  # of who is in a room with a shared window, or in step with one: how many, ever
    cdef bint ends_stalled       # there is a send_timeout: who takes nothing need not be asked for a sign of life
    cdef double ping_interval, pong_timeout, close_timeout, send_timeout, idle_timeout, max_lifetime
    cdef double swept_at         # when the last sweep was
    cdef uint64_t rates_exceeded
    cdef bint had_no_room        # for a message, on some connection

    cdef object forget(self, object key, object address_key)
    cdef int describe(self, Delivery *delivery, object compress, object slow_consumer, uint8_t policy) except -1
    cdef uint64_t number_of(self, uint64_t namespace, object key) except? 0xFFFFFFFFFFFFFFFF
    cdef Room open_room(self, str name)
    cdef object configure(self, Room room, object config)
    cdef SharedWindow window_of(self, object config)
    cdef void restart(self, SharedWindow window) noexcept


cdef str name_from(object name)


cdef inline str room_name(object name):
    """The name of a room as an exact str, whose hash no subclass can change. Raises TypeError for anything else."""
    if PyUnicode_CheckExact(name):
        return <str>name
    return name_from(name)


cdef uint8_t policy_of(object name) except? 255
cdef object connection_id(str name, str what, object value)
cdef int check_key(object key) except -1
