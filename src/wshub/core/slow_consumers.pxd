from libc.stdint cimport uint8_t

from wshub.core.connection_state cimport ConnectionCore
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef int queue_at_limit(ConnectionCore connection, FrameBuffer *frame, uint8_t policy) noexcept
cdef void fail_slow_consumer(ConnectionCore connection) noexcept
