# cython: language_level=3
"""What a connection sends: queueing under a policy, compression, pongs, and the waits of drain().

queue() calls no handler and changes no room, so a broadcast may call it for each member of a room. fail_slow_consumer()
changes rooms, so a broadcast calls it at the end.
"""

from libc.stdint cimport int64_t

from wshub.core.closing cimport abort_out_of_memory, wake
from wshub.core.connection_state cimport IS_OPEN, is_full
from wshub.core.delivery_options cimport CLOSE_CONNECTION, LATEST
from wshub.core.rooms cimport sync_to
from wshub.core.slow_consumers cimport queue_at_limit
from wshub.protocol.compression.deflate cimport LONGEST_DEFLATED, deflater_forget
from wshub.protocol.frame_buffer cimport (
    frame_is_message,
    frame_release,
    frame_retain,
)

from collections import OrderedDict

cdef enum:
    # From this many bytes on, a message is compressed by itself, and the connection leaves the shared window of its
    # room. Each message of the room then costs some dozens of bytes more, for at most some hundred messages until the
    # window restarts.
    WORTH_LEAVING_WINDOW = 8192


# Queueing

cdef int queue(ConnectionCore connection, FrameBuffer *frame, uint8_t policy) noexcept:
    """Queue a frame if the connection is open, without running Python code.

    Returns 1 if the frame was queued. Returns 0 if the connection is not open or the policy dropped the frame. Returns
    -1 if the queue is full and the policy is to close. Then the caller calls fail_slow_consumer(), which changes rooms:
    a caller that iterates over a room does so after the iteration.
    """
    if connection.status != IS_OPEN:
        return 0
    # The flag is tested before it is set: a fan-out writes to the cache line of each receiver only if it must.
    if not connection.is_active and frame_is_message(frame):
        connection.is_active = True
    if is_full(connection) or (policy == LATEST and connection.link.blocked):
        return queue_at_limit(connection, frame, policy)
    if connection.link.write(frame) < 0:
        abort_out_of_memory(connection)
        return 0
    return 1


# Compression

cdef bint stays_in_window(ConnectionCore connection, FrameBuffer *frame) noexcept:
    """Whether to send the message plain, so that the peer keeps the shared window of its room."""
    return connection.generation != 0 and frame.length < WORTH_LEAVING_WINDOW


cdef bint must_be_independent(ConnectionCore connection, const Delivery *delivery) noexcept:
    """Whether the message must be independent of other messages, since the policy may drop it from the queue."""
    return delivery.policy != CLOSE_CONNECTION and connection.link.blocked


cdef int queue_compressible(ConnectionCore connection, FrameBuffer *frame, const Delivery *delivery) noexcept:
    """queue_message() for a peer that decompresses."""
    cdef FrameBuffer *form = NULL
    if (
        frame.length >= delivery.threshold and connection.status == IS_OPEN
        and not stays_in_window(connection, frame)
    ):
        form = connection.hub.pool.form(frame, connection.window_bits)
    if form == NULL:
        return queue(connection, frame, delivery.policy)
    return queue_compressed(connection, form, 0, delivery.policy)


cdef int queue_alone(ConnectionCore connection, FrameBuffer *frame, const Delivery *delivery) noexcept:
    """queue_message() for a message to this connection alone, which may refer to earlier ones to it."""
    cdef FrameBuffer *form
    cdef int queued
    if (
        connection.deflater == NULL or connection.status != IS_OPEN
        or not delivery.threshold <= frame.length <= LONGEST_DEFLATED or must_be_independent(connection, delivery)
    ):
        return queue_message(connection, frame, delivery)
    if stays_in_window(connection, frame):
        return queue(connection, frame, delivery.policy)
    if connection.context_stale:
        deflater_forget(connection.deflater)
        connection.context_stale = False
    if is_full(connection):
        # A transport may run code that sends another message. That message must not come between this one and later
        # messages that refer to this one.
        connection.link.flush_now()
    form = connection.hub.pool.compress(connection.deflater, frame, False)
    if form == NULL or form.length >= frame.length:
        # No later message may refer to one that the peer does not get.
        frame_release(form)
        connection.context_stale = True
        return queue(connection, frame, delivery.policy)
    form.uses_context = True
    queued = queue_compressed(connection, form, 0, delivery.policy)
    connection.context_stale = queued <= 0
    frame_release(form)
    return queued


cdef int queue_compressed(
    ConnectionCore connection, FrameBuffer *form, uint64_t generation, uint8_t policy
) noexcept:
    """queue() for a compressed frame. The peer is then in sync with the window of that generation; with none for 0."""
    sync_to(connection, generation)
    connection.context_stale = True
    return queue(connection, form, policy)


# Pongs

cdef void queue_pong(ConnectionCore connection, FrameBuffer *pong) noexcept:
    """Queue the answer to a ping. No policy drops it.

    Only the latest of several pings needs an answer (RFC 6455 section 5.5.3). A peer that sends pings without reading
    gets one pong queued. The latest further pong waits until that one has left.
    """
    frame_release(connection.pending_pong)
    connection.pending_pong = NULL
    if is_full(connection):
        connection.link.flush_now()
    if connection.link.blocked and connection.link.bytes_written < connection.pong_end:
        connection.pending_pong = frame_retain(pong)
        connection.link.notify_when_left(connection.pong_end)
    elif connection.link.write(pong) < 0:
        abort_out_of_memory(connection)
    else:
        connection.pong_end = connection.link.end_of_queue()


# Waits of drain() and wait_writable()

cdef object add_drain_waiter(ConnectionCore connection, object future, int64_t end):
    """Wake a future when the link's `bytes_written` reaches `end`, or the queue is empty. Waiters stay in order."""
    waiters = connection.drain_waiters
    if waiters is None:
        waiters = connection.drain_waiters = OrderedDict()
    waiters[future] = end
    if end < connection.link.end_of_queue():
        # wait_writable() waits for less than what is queued.
        for later in [other for other in waiters if waiters[other] > end]:
            waiters.move_to_end(later)
    connection.link.notify_when_left(end)


cdef void wake_drain_waiters(ConnectionCore connection, bint all_left) noexcept:
    """Wake each drain() and wait_writable() whose bytes have left the queue."""
    while connection.drain_waiters:
        future, end = connection.drain_waiters.popitem(False)
        if not all_left and end > connection.link.bytes_written:
            connection.drain_waiters[future] = end
            connection.drain_waiters.move_to_end(future, False)
            connection.link.notify_when_left(end)
            return
        wake(future)
    connection.drain_waiters = None
