from libc.stdint cimport int64_t, uint8_t, uint64_t

from wshub.core.connection_state cimport ConnectionCore
from wshub.core.delivery_options cimport Delivery
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef int queue(ConnectionCore connection, FrameBuffer *frame, uint8_t policy) noexcept
cdef int queue_compressible(ConnectionCore connection, FrameBuffer *frame, const Delivery *delivery) noexcept
cdef int queue_alone(ConnectionCore connection, FrameBuffer *frame, const Delivery *delivery) noexcept
cdef int queue_compressed(
    ConnectionCore connection, FrameBuffer *form, uint64_t generation, uint8_t policy
) noexcept
cdef bint must_be_independent(ConnectionCore connection, const Delivery *delivery) noexcept

cdef void queue_pong(ConnectionCore connection, FrameBuffer *pong) noexcept
cdef object add_drain_waiter(ConnectionCore connection, object future, int64_t end)
cdef void wake_drain_waiters(ConnectionCore connection, bint all_left) noexcept


cdef inline int queue_message(ConnectionCore connection, FrameBuffer *frame, const Delivery *delivery) noexcept:
    """Queue a message that other connections may get too, compressed where that pays. Returns as queue() does."""
    if connection.window_bits:
        return queue_compressible(connection, frame, delivery)
    return queue(connection, frame, delivery.policy)
