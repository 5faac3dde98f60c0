from libc.stdint cimport uint8_t, uint64_t

from wshub.protocol.compression.compressed_once cimport DeflatePool
from wshub.protocol.compression.deflate cimport Deflater
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class SharedWindow:
    """The compressor of a room with a shared window."""

    cdef Deflater deflater
    cdef DeflatePool pool
    cdef readonly uint8_t window_bits
    cdef uint64_t restart_interval
    cdef uint64_t generation    # number of the history, which no other history in the hub has had
    cdef uint64_t messages      # compressed since the history began
    cdef uint64_t able          # members that can be in sync, at the last count
    cdef uint64_t in_sync       # members that are in sync, at the last count
    cdef uint64_t counted_at    # the hub's window_changes at the last count
    cdef uint64_t missed        # deliveries since the restart, to able members that were not in sync

    cdef bint is_due(self) noexcept
    cdef void restart(self, uint64_t generation) noexcept
    cdef FrameBuffer *compress(self, FrameBuffer *frame) noexcept
