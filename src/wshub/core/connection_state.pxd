"""The fields of a connection by subject, and small functions about them that all files of a connection share.

The files of a connection import one another in this order: connection_state, closing, sending, rates, keepalive,
handlers, receiving, inbox, connection. Their functions take the connection as the first argument.
"""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wshub.core.handler_table cimport HandlerTable
from wshub.core.hub_state cimport RATES, HubBase
from wshub.links.link cimport Link, Receiver, queue_charge
from wshub.protocol.compression.deflate cimport Deflater, Inflater
from wshub.protocol.frame_buffer cimport FrameBuffer
from wshub.protocol.message cimport Message
from wshub.protocol.parser cimport Parser


# The table of the states is in connection_state.pyx.
cdef enum Status:
    IS_CONNECTING
    IS_OPEN
    IS_CLOSING
    IS_CLOSED

# Why received bytes are not handled now. The link is read only while no bit is set.
cdef enum:
    HANDLER_RUNS = 1   # a handler other than on_open is suspended
    INBOX_FULL = 2     # messages arrive faster than receive() is called
    OUTPUT_FULL = 4    # the peer does not read what is sent to it
    BUDGET_SPENT = 8   # the connection used its share of this loop iteration and waits in the hub's backlog
    RATE_SPENT = 16    # more arrived than the rates allow
    ON_OPEN_RUNS = 32  # on_open is suspended; blocks nothing once receive() was called, perhaps by on_open itself
    ANY_HANDLER_RUNS = HANDLER_RUNS | ON_OPEN_RUNS

cdef enum:
    # Maximum number of messages that wait for receive().
    INBOX_LIMIT = 16
    # KiB of messages waiting for receive() at which reading stops. The message that reaches the limit is kept.
    INBOX_KIBIBYTES = 256


# The state that keepalive.pyx decides with. It is packed so that the three flags at its end leave no gap behind them.
cdef packed struct Liveness:
    double next_ping
    double pong_deadline   # 0: no ping is unanswered
    double stall_deadline  # for a peer that takes none of the bytes that wait for it; 0: the peer is not stalled
    double idle_deadline
    double lifetime_end    # while the connection is CLOSING: the end of the closing handshake
    int64_t before_ping    # bytes ever sent before the unanswered ping; 0: the peer has acknowledged all of them
    uint8_t is_alive       # bytes arrived since the last sweep
    uint8_t seems_silent   # the last sweep found that the time for the pong is over
    uint8_t seems_stalled  # the last sweep found that the time to take bytes is over


cdef class ConnectionCore(Receiver):
    # A broadcast reads only these fields of each connection. They come first, so that they share a cache line.
    cdef readonly HubBase hub
    cdef Link link               # None before start()
    cdef uint8_t status          # a Status
    cdef uint8_t window_bits     # window of the peer's decompressor, 8 to 15; 0: the peer does not decompress
    cdef uint8_t is_active       # a message was sent or received since the last sweep
    cdef uint8_t server_context_takeover    # the peer's decompressor keeps its window from message to message
    cdef uint8_t context_stale   # the peer was sent compressed bytes that are not in the history of `deflater`
    cdef uint64_t generation     # of the shared window that the peer has too, or 0
    cdef Deflater *deflater      # owned: its history is what was sent to this connection alone; or NULL

    # Identity
    cdef readonly uint64_t id
    cdef object connection_id  # the id as an object, the key of every dict of connections
    cdef HandlerTable handlers
    cdef readonly object request       # RequestHead, or None
    cdef public object subprotocol     # str, or None; set before the handshake is answered
    cdef public object forwarded_address  # the client's address as a trusted proxy reports it, or None
    cdef object address_bucket      # the address bucket in which the connection is counted, or None
    cdef public object path_params     # dict of the parameters in the path, or None

    # The application
    cdef object context          # contextvars.Context in which the handlers run
    cdef object user_metadata    # dict, or None until the application asks for it
    cdef dict room_table         # name: Room; None before the first join

    # Input
    cdef Parser parser
    cdef Inflater *inflater      # owned: its history is what the peer sent; or NULL
    cdef object inbox            # deque of Message for receive(), or None
    cdef tuple waiter            # of a pending receive(): its Future, and its task, for the error of a second; or None
    cdef bytes unread            # bytes received and not parsed, while input is blocked
    cdef size_t unread_offset

    # Output
    cdef readonly object compression   # PermessageDeflate, or None
    cdef object drain_waiters    # OrderedDict of the waits for space: Future: bytes that must have left; or None
    cdef int64_t pong_end        # the link's bytes_written when the last pong will have left
    cdef FrameBuffer *pending_pong  # owned: the answer to a later ping, until the queued pong has left; or NULL

    # Time
    cdef readonly double last_ping_time
    cdef readonly double last_pong_time
    cdef double left[RATES]      # what the rates allow until the next sweep
    cdef Liveness liveness

    # Flags and small numbers of all subjects, together so that they leave no gaps
    cdef uint8_t blocks          # why input is blocked
    cdef uint8_t input_ended     # further input is ignored
    cdef uint8_t receiving       # receive() was called, or will be
    cdef uint8_t is_dropping     # the policy dropped messages to the peer, which has not caught up since
    cdef uint8_t drain_pending   # on_drain is due when the queue is empty and no handler is suspended
    cdef uint8_t opened          # on_open was called, so on_close will be
    cdef uint8_t error_blocks    # the blocks under which on_error runs
    cdef uint8_t is_named        # the context has the connection's id
    cdef uint8_t close_pending   # on_close is due when the suspended handler ends
    cdef uint8_t awaits_pong     # no pong has arrived since the last ping
    cdef uint16_t inbox_kibibytes  # of the messages in the inbox, as inbox_charge() counts them
    cdef uint32_t round_trip     # of the last answered ping, in microseconds, plus one; 0 before the first answer

    # The log
    cdef object log              # ConnectionLog; None if the connection is not logged
    cdef uint64_t bytes_received  # since the opening

    # The end
    cdef uint16_t code           # 0: not known yet
    cdef str reason
    cdef dict waiters            # Futures of wait_closed(), as keys; or None
    cdef object __weakref__

    cdef void resume_input(self, uint8_t block) noexcept


cdef inline bint is_full(ConnectionCore connection) noexcept:
    """Whether the queue has reached max_send_buffer."""
    return queue_charge(&connection.link.queue) >= connection.hub.max_send_buffer


cdef inline bint is_blocked(ConnectionCore connection) noexcept:
    """Whether input must wait.

    While the connection is CLOSING, input is read up to the peer's close frame and ignored.
    """
    if connection.status == IS_CLOSING:
        return connection.blocks & BUDGET_SPENT != 0
    return connection.blocks != 0 and (connection.blocks != ON_OPEN_RUNS or not connection.receiving)


cdef inline uint16_t inbox_charge(Message message) noexcept:
    """KiB that a message counts for in an inbox. Shorter messages are limited by their number."""
    return <uint16_t>min(message.frame.length >> 10, <size_t>INBOX_KIBIBYTES)


cdef bint can_hand_over(ConnectionCore connection) noexcept


cdef inline bint is_other_thread(ConnectionCore connection) noexcept:
    """Whether the call comes from another thread than the loop's, and the loop can take it."""
    return PyThread_get_thread_ident() != connection.hub.thread_id and can_hand_over(connection)


cdef object hand_over(ConnectionCore connection, object call)
cdef void wait_for_next_iteration(ConnectionCore connection) noexcept
cdef void unblock_later(ConnectionCore connection, uint8_t block) noexcept
cdef object take_negotiated(ConnectionCore connection, object compression)
cdef void drop_compression(ConnectionCore connection) noexcept
