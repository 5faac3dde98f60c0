"""The interface between a link, which carries the bytes of a connection, and its receiver, which handles them.

The docstrings in link.pyx say what each method promises. Everything happens on the thread of the event loop.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from wshub.protocol.frame_buffer cimport FrameBuffer, Outcome, DeliveryCounters


cdef extern from "frame_queue.h" nogil:
    ctypedef struct FrameQueue "wshub_queue":
        size_t queued_bytes
        size_t sent
        size_t messages

    cdef struct iovec:
        void *iov_base
        size_t iov_len

    size_t queue_charge "wshub_queue_charge"(const FrameQueue *queue) noexcept
    bint queue_is_empty "wshub_queue_is_empty"(const FrameQueue *queue) noexcept
    FrameBuffer *queue_first "wshub_queue_first"(const FrameQueue *queue) noexcept
    int queue_gather "wshub_queue_gather"(const FrameQueue *queue, iovec *pieces, int count, uint8_t *scratch,
                                          size_t scratch_size, size_t *total) noexcept
    size_t queue_copy "wshub_queue_copy"(const FrameQueue *queue, uint8_t *target, size_t size) noexcept
    void queue_pin "wshub_queue_pin"(FrameQueue *queue, size_t length) noexcept
    uint8_t *queue_extend "wshub_queue_extend"(FrameQueue *queue, size_t length) noexcept


# These call Python's allocator, and so need the GIL.
cdef extern from "frame_queue.h":
    int queue_push "wshub_queue_push"(FrameQueue *queue, FrameBuffer *frame) noexcept
    FrameBuffer *queue_pop "wshub_queue_pop"(FrameQueue *queue, Outcome outcome) noexcept
    size_t queue_discard_unsent "wshub_queue_discard_unsent"(FrameQueue *queue, Outcome outcome) noexcept
    size_t queue_discard_after "wshub_queue_discard_after"(FrameQueue *queue, size_t kept, Outcome outcome) noexcept
    size_t queue_clear "wshub_queue_clear"(FrameQueue *queue, Outcome outcome) noexcept
    size_t queue_advance "wshub_queue_advance"(FrameQueue *queue, size_t length) noexcept


cdef extern from "droppable_frames.h":
    size_t queue_make_space "wshub_queue_make_space"(FrameQueue *queue, size_t bound) noexcept
    bint queue_replace "wshub_queue_replace"(FrameQueue *queue, FrameBuffer *frame) noexcept


cdef class LinkCounters:
    cdef uint64_t bytes_received
    cdef uint64_t messages_received
    cdef uint64_t bytes_sent
    cdef uint64_t bytes_fanned_out  # queued by messages to many, for all receivers together
    cdef DeliveryCounters messages  # its `pending` is not kept: each queue counts its own


cdef class Receiver:
    cdef void data_received(self, const uint8_t *data, size_t length) noexcept
    cdef size_t get_buffer(self, uint8_t **buffer) noexcept
    cdef void buffer_updated(self, size_t length) noexcept
    cdef void eof_received(self) noexcept
    cdef void drained(self) noexcept
    cdef void continue_input(self) noexcept
    cdef void connection_lost(self, int error) noexcept


# The peer's progress since the last poll_progress().
cdef enum Progress:
    AT_REST  # no more bytes acknowledged, and none wait
    TAKING   # more bytes acknowledged
    STALLED  # no more bytes acknowledged, and some wait


cdef class Link:
    # The fields that every write touches come first, in as few cache lines as possible.
    cdef FrameQueue queue  # owns its frames
    cdef uint8_t blocked      # the other side took less than it was given, or asked for a pause
    cdef uint8_t closed       # it has ended: connection_lost() has been called, or will be soon
    cdef uint8_t without_pings   # it cannot carry pings or pongs: the ASGI server finds dead peers
    cdef uint8_t drain_requested  # drained() is to be called once, when the queue is empty
    cdef uint8_t notifies_drained   # drained() is to be called again each time that the link was blocked
    cdef uint8_t hides_bytes     # bytes that it has sent may wait in a transport although it is not blocked
    cdef uint8_t was_blocked     # it was blocked since drained() was last called with an empty queue
    cdef uint8_t finishing       # it queues no more, and ends once all has left and the peer has ended its side
    cdef int64_t bytes_written   # bytes that have left the queue, ever: for the kernel, a transport or a server
    cdef int64_t bytes_acked     # of these, how many the peer had acknowledged at the last poll_progress()
    cdef int64_t notify_at       # drained() is to be called when bytes_written reaches this; 0: no such call
    cdef LinkCounters counters
    cdef Receiver receiver

    cdef int write(self, FrameBuffer *frame) noexcept
    cdef void read_to_end(self) noexcept
    cdef void pause(self) noexcept
    cdef void resume(self) noexcept
    cdef void abort(self, bint after_flush) noexcept
    cdef void flush_now(self) noexcept
    cdef void send_from_task(self) noexcept
    cdef void drop_unsent(self) noexcept
    cdef bint make_space(self, size_t bound) noexcept
    cdef bint has_drained(self) noexcept
    cdef int64_t end_of_queue(self) noexcept
    cdef void notify_when_left(self, int64_t length) noexcept
    cdef bint should_notify_drained(self) noexcept
    cdef void notify_drained(self) noexcept
    cdef Progress poll_progress(self) noexcept
    cdef int64_t bytes_unacked(self) noexcept
    cdef bint replace(self, FrameBuffer *frame) noexcept
    cdef void reject(self, FrameBuffer *frame, Outcome outcome) noexcept
    cdef int detach(self) noexcept
    cdef int fileno(self) noexcept
    cdef object peer_name(self)
    cdef int push(self, FrameBuffer *frame) noexcept
    cdef FrameBuffer *pop_delivered(self) noexcept
    cdef void mark_blocked(self) noexcept
    cdef void drop_queue(self) noexcept
    cdef void notify_lost(self, int error) noexcept


cdef dict counts_of(const DeliveryCounters *delivery_counters, uint64_t pending)
