from libc.stdint cimport uint8_t, uint64_t

from wshub.protocol.compression.deflate cimport Deflater, DeflatePool
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class SharedWindow:
    """What a room with a shared window compresses with."""

    cdef Deflater deflater
    cdef DeflatePool pool
    cdef readonly uint8_t window_bits
    cdef uint64_t restart_interval
    cdef uint64_t generation    # which history this is: no other window of the hub has, or had, the same
    cdef uint64_t messages      # compressed since the history began
    cdef uint64_t able          # members that could be in step,
    cdef uint64_t in_step       # and those that are, as they were
    cdef uint64_t counted_at    # when the hub had seen so many changes
    cdef uint64_t missed        # deliveries since then that went without the history, to members that could have it

    cdef bint is_due(self) noexcept
    cdef void restart(self, uint64_t generation) noexcept
    cdef FrameBuffer *compress(self, FrameBuffer *frame) noexcept
