from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint64_t

from wshub.links.link cimport Ledger, Link, Receiver
from wshub.protocol.frame_buffer cimport FrameBuffer
from wshub.protocol.parser cimport Event, Parser


cdef class HandlerTable:
    """The handlers of one EventHandler, looked up once."""

    cdef readonly object handler
    cdef object on_open, on_message, on_close, on_error, on_ping, on_pong
    cdef bint endpoint  # on_open is the whole life of the connection: it receives, and its end closes


cdef class Room:
    cdef readonly str name
    cdef dict members  # id: Connection


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
    cdef double ping_interval, pong_timeout, close_timeout
    cdef uint64_t messages_received
    cdef uint64_t slow_consumers
    cdef bint closing

    cdef object forget(self, Connection connection)


cdef class Connection(Receiver):
    # A broadcast looks at these alone of each connection: they come first, to be in one line of the cache.
    cdef readonly HubBase hub
    cdef Link link
    cdef uint8_t status          # CONNECTING, OPEN, CLOSING, CLOSED

    cdef readonly uint64_t id
    cdef object key              # the id as the object that is the key of every dict
    cdef HandlerTable handlers
    cdef Parser parser
    cdef readonly object request       # RequestHead, or None
    cdef public object subprotocol     # str, or None; set before the handshake is answered
    cdef public object path_params     # dict of what the route found in the path, or None
    cdef object context          # contextvars.Context in which the handlers run
    cdef object user_metadata    # dict, or None as long as nobody asked
    cdef dict room_table         # name: Room; None while in no room
    cdef object inbox            # deque of Message for receive(), or None
    cdef object waiter           # Future of a pending receive(), or None
    cdef object receiving_task   # who waits, for the error that a second one gets
    cdef list waiters            # Futures of drain() and wait_closed()
    cdef object drain_waiters
    cdef bytes unread            # octets received and not parsed, while handling is blocked
    cdef size_t unread_offset
    cdef FrameBuffer *pending_pong  # owned: the answer to the latest ping, while the peer does not read
    cdef readonly double last_ping_time
    cdef readonly double last_pong_time
    cdef double next_ping
    cdef double pong_deadline    # 0: no ping is unanswered
    cdef double close_deadline   # 0: not closing
    cdef uint16_t code           # 0: not known yet
    cdef str reason
    cdef uint8_t blocks          # why handling is blocked
    cdef bint alive              # something arrived since the last sweep
    cdef bint input_ended        # what still arrives is ignored
    cdef bint receiving          # somebody has asked for messages with receive()
    cdef bint opened             # on_open has been called, so on_close will be
    cdef bint tells_of_error     # on_error runs
    cdef bint close_pending      # on_close is to be called when the running handler ends
    cdef object __weakref__

    cdef int queue(self, FrameBuffer *frame) noexcept
    cdef void sweep(self, double now, FrameBuffer *ping) noexcept
    cdef void start(self, Link link)
    cdef object join_room(self, str name)
    cdef bint leave_room(self, str name) except -1
    cdef void leave_all_rooms(self) noexcept
    cdef void go_away(self, uint16_t code, str reason, bytes payload) noexcept
    cdef void process(self, const uint8_t **cursor, const uint8_t *end) noexcept
    cdef void dispatch(self, Event event) noexcept
    cdef void handle_message(self)
    cdef void handle_control(self, Event event)
    cdef void handle_close(self)
    cdef void fail(self, uint16_t code, str reason) noexcept
    cdef void begin_closing(self, bytes payload) noexcept
    cdef void overflow(self) noexcept
    cdef void out_of_memory(self) noexcept
    cdef bint is_blocked(self) noexcept
    cdef void unblock(self, uint8_t block) noexcept
    cdef void process_unread(self) noexcept
    cdef void wake_receiver(self) noexcept
    cdef object call(self, object handler, tuple arguments)
    cdef object run(self, object coroutine)
    cdef void handler_failed(self, object error) noexcept
    cdef object call_on_close(self)
    cdef object end_endpoint(self)
    cdef object abandon(self)
    cdef object closed_error(self)
    cdef object check_open(self)
    cdef bint is_foreign(self) noexcept
    cdef object send_control(self, object payload, uint8_t opcode)
