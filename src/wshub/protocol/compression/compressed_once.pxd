from libc.stdint cimport uint8_t, uint64_t

from wshub.protocol.compression.deflate cimport Deflater, Inflater
from wshub.protocol.compression.deflate_engine cimport DeflateEngine
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class DeflatePool:
    cdef Inflater inflater
    cdef Deflater deflaters[16]          # by window bits
    cdef const DeflateEngine *engine     # used in place of these, where not NULL
    cdef void *engine_state              # owned, made by the engine; NULL until needed
    cdef readonly object config
    cdef uint8_t window_bits             # the config's, for the server
    cdef readonly uint64_t compressions  # number of messages compressed
    cdef readonly uint64_t bytes_in     # bytes of these messages
    cdef readonly uint64_t bytes_out    # bytes of their forms

    cdef FrameBuffer *form(self, FrameBuffer *frame, uint8_t window_bits) noexcept
    cdef FrameBuffer *make_form(self, FrameBuffer *frame, uint8_t window_bits) noexcept
    cdef FrameBuffer *make_form_by_engine(self, FrameBuffer *frame, uint8_t window_bits) noexcept
    cdef void count(self, FrameBuffer *frame, FrameBuffer *form) noexcept
    cdef FrameBuffer *compress(self, Deflater *deflater, FrameBuffer *frame, bint only_shorter) noexcept
