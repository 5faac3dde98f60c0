from cpython.pythread cimport PyThread_get_thread_ident
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from wshub.core.backpressure cimport Delivery
from wshub.core.handler_table cimport HandlerTable
from wshub.core.hub_state cimport RATES, HubBase
from wshub.core.shared_window cimport SharedWindow
from wshub.links.link cimport Link, Progress, Receiver
from wshub.protocol.compression.deflate cimport Deflater, Inflater
from wshub.protocol.frame_buffer cimport FrameBuffer
from wshub.protocol.message cimport Message
from wshub.protocol.parser cimport Event, Parser


cdef enum Status:
    IS_CONNECTING
    IS_OPEN
    IS_CLOSING
    IS_CLOSED

# Why the handling of what arrives is blocked; a connection is read only while nothing of this is set.
cdef enum:
    HANDLER_RUNS = 1  # a handler other than on_open is suspended
    INBOX_FULL = 2    # receive() is not called as fast as messages arrive
    OUTPUT_FULL = 4   # the peer does not read what is sent to it
    TURN_SPENT = 8    # enough was done for it in this turn of the loop: it waits in the hub's backlog
    RATE_SPENT = 16   # more arrived than the rates allow
    ON_OPEN_RUNS = 32  # on_open is suspended; that blocks nothing once receive() is called, for it may be the caller
    ANY_HANDLER_RUNS = HANDLER_RUNS | ON_OPEN_RUNS

cdef enum:
    # Messages that wait for receive(), at the most.
    INBOX_LIMIT = 16
    # KiB of messages that wait for receive() before nothing more is read. The one that reaches it is kept.
    INBOX_KIBIBYTES = 256


cdef struct Turn:
    # The work done for a connection before others have their turn.
    int events              # handled so far
    int look_at             # the clock is looked at when so many have been handled
    uint64_t look_at_queued  # ... or so many messages were queued, ever
    bint is_timed           # it has been looked at
    double began            # when that was


cdef class ConnectionCore(Receiver):
    # A broadcast looks at these alone of each connection: they come first, to be in one line of the cache.
    cdef readonly HubBase hub
    cdef Link link
    cdef uint8_t status          # CONNECTING, OPEN, CLOSING, CLOSED
    cdef uint8_t window_bits     # what the peer's decompressor keeps, 8 to 15; 0: it has none
    cdef uint8_t is_active       # a message was sent or received since the last sweep
    cdef uint8_t keeps_window    # it also keeps it from message to message
    cdef uint8_t history_is_stale  # the peer was given something compressed that `deflater` does not know of
    cdef uint64_t generation     # of the shared window that the peer is in step with, or 0
    cdef Deflater *deflater      # owned: with the history of what is sent to this connection alone; or NULL

    cdef readonly uint64_t id
    cdef object key              # the id as the object that is the key of every dict
    cdef HandlerTable handlers
    cdef Parser parser
    cdef Inflater *inflater      # owned: with the history of what the peer sends; or NULL
    cdef readonly object request       # RequestHead, or None
    cdef readonly object compression   # PermessageDeflate, or None
    cdef public object subprotocol     # str, or None; set before the handshake is answered
    cdef public object forwarded_address  # the peer's address as a proxy that is trusted tells it, or None
    cdef object address_key      # under which the connection is counted, or None
    cdef public object path_params     # dict of what the route found in the path, or None
    cdef object context          # contextvars.Context in which the handlers run
    cdef object user_metadata    # dict, or None as long as nobody asked
    cdef dict room_table         # name: Room; None while in no room
    cdef object inbox            # deque of Message for receive(), or None
    cdef object waiter           # Future of a pending receive(), or None
    cdef object receiving_task   # who waits, for the error that a second one gets
    cdef dict waiters            # Futures of wait_closed(), as keys; or None
    cdef object drain_waiters    # OrderedDict of drain(): Future: bytes that must have left the link's queue; or None
    cdef bytes unread            # octets received and not parsed, while handling is blocked
    cdef size_t unread_offset
    cdef int64_t pong_end        # octets that will have left the link's queue, ever, once the last pong has
    cdef FrameBuffer *pending_pong  # owned: the answer to a later ping, while that pong waits for the peer to read
    cdef readonly double last_ping_time
    cdef readonly double last_pong_time
    cdef double next_ping
    cdef double pong_deadline    # 0: no ping is unanswered
    cdef int64_t before_ping     # octets ever sent in front of the unanswered ping; 0: the peer has acknowledged them
    cdef double give_up_at       # on a peer that takes nothing of what waits for it, or 0
    cdef double idle_deadline
    cdef double lifetime_end     # while it is closing: of the closing handshake
    cdef double left[RATES]      # what the rates allow until the next sweep
    cdef str reason
    cdef uint16_t code           # 0: not known yet
    cdef uint16_t inbox_kibibytes  # of the messages in the inbox, as inbox_charge() counts them
    cdef uint8_t blocks          # why handling is blocked
    cdef uint8_t alive           # something arrived since the last sweep
    cdef uint8_t seems_silent    # the last sweep found that its time to answer is over
    cdef uint8_t seems_stalled   # the last sweep found that its time to take what it is sent is over
    cdef uint8_t sheds           # messages to it have been dropped since it last had nothing to catch up with
    cdef uint8_t input_ended     # what still arrives is ignored
    cdef uint8_t receiving       # somebody has asked for messages with receive()
    cdef uint8_t opened          # on_open has been called, so on_close will be
    cdef uint8_t tells_of_error  # on_error runs, in the place of the handlers with these blocks
    cdef uint8_t drain_pending   # on_drain is to be called, once the queue is empty and no handler in the way
    cdef uint8_t is_named        # its context says which connection a handler is for
    cdef uint8_t close_pending   # on_close is to be called when the running handler ends
    cdef object __weakref__

    cdef int queue(self, FrameBuffer *frame, uint8_t policy) noexcept
    cdef int queue_at_bound(self, FrameBuffer *frame, uint8_t policy) noexcept
    cdef bint stays_in_step(self, FrameBuffer *frame) noexcept
    cdef bint stands_alone(self, const Delivery *delivery) noexcept
    cdef void fall_out_of_step(self, SharedWindow window) noexcept
    cdef void come_in_step(self, uint64_t generation) noexcept
    cdef int queue_compressible(self, FrameBuffer *frame, const Delivery *delivery) noexcept
    cdef int queue_alone(self, FrameBuffer *frame, const Delivery *delivery) noexcept
    cdef int queue_compressed(self, FrameBuffer *form, uint64_t generation, uint8_t policy) noexcept
    cdef object negotiated(self, object compression)
    cdef void renounce_compression(self) noexcept
    cdef void free_compressors(self) noexcept
    cdef void sweep(self, double now, FrameBuffer *ping) noexcept
    cdef bint is_in_doubt(self) noexcept
    cdef bint is_stalled(self, double now, Progress progress) noexcept
    cdef bint is_overdue(self, double now, Progress progress) noexcept
    cdef void ping(self, double now, FrameBuffer *ping) noexcept
    cdef bint is_excused(self, Progress progress) noexcept
    cdef void refill(self, double elapsed) noexcept
    cdef void spend(self, int kind, double amount) noexcept
    cdef void slow_down(self, str what) noexcept
    cdef void retire(self, str reason) noexcept
    cdef void give_up(self, uint16_t code, str reason) noexcept
    cdef void start(self, Link link)
    cdef void leave_all_rooms(self) noexcept
    cdef void go_away(self, bytes payload) noexcept
    cdef void process(self, const uint8_t **cursor, const uint8_t *end, uint64_t work_before) noexcept
    cdef bint is_over(self, Turn *turn) noexcept
    cdef void end_turn(self) noexcept
    cdef void dispatch(self, Event event) noexcept
    cdef void handle_message(self)
    cdef void handle_control(self, Event event)
    cdef void handle_close(self)
    cdef void fail(self, uint16_t code, str reason) noexcept
    cdef uint16_t code_to_send(self, uint16_t code) noexcept
    cdef void begin_closing(self, bytes payload) noexcept
    cdef void queue_pong(self, FrameBuffer *pong) noexcept
    cdef void wake_drainers(self, bint all_left) noexcept
    cdef void refuse_drainers(self) noexcept
    cdef void overflow(self) noexcept
    cdef void out_of_memory(self) noexcept
    cdef bint is_blocked(self) noexcept
    cdef void unblock(self, uint8_t block) noexcept
    cdef void unblock_later(self, uint8_t block) noexcept
    cdef void process_unread(self) noexcept
    cdef void wake_receiver(self) noexcept
    cdef object call(self, object handler, tuple arguments, uint8_t block)
    cdef object run(self, object awaitable, uint8_t block)
    cdef void handler_failed(self, object error, uint8_t block) noexcept
    cdef object call_on_drain(self)
    cdef object call_on_close(self)
    cdef object end_endpoint(self)
    cdef object close_before_opening(self, bytes payload)
    cdef object abandon(self)
    cdef void forsake(self) noexcept
    cdef void wake_all(self) noexcept
    cdef object closed_error(self)
    cdef object check_open(self)
    cdef bint can_hand_over(self) noexcept
    cdef object hand_over(self, call)


cdef inline uint16_t inbox_charge(Message message) noexcept:
    """KiB that a message counts for in an inbox: those of less than one are bounded by their number."""
    return <uint16_t>min(message.frame.length >> 10, <size_t>INBOX_KIBIBYTES)


cdef inline int queue_message(ConnectionCore connection, FrameBuffer *frame, const Delivery *delivery) noexcept:
    """ConnectionCore.queue() for a message that others may get too, compressed where that pays."""
    if connection.window_bits:
        return connection.queue_compressible(frame, delivery)
    return connection.queue(frame, delivery.policy)


cdef inline bint is_foreign(ConnectionCore connection) noexcept:
    """Whether the call comes from another thread than the loop's, and the loop is there to take it."""
    return PyThread_get_thread_ident() != connection.hub.thread_id and connection.can_hand_over()
