"""The payload of compressed messages (RFC 7692 section 7.2): the only file that calls zlib."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t

from wshub.protocol.frame_buffer cimport FrameBuffer


cdef extern from "zlib.h" nogil:
    ctypedef struct z_stream:
        const uint8_t *next_in
        unsigned int avail_in
        uint8_t *next_out
        unsigned int avail_out
        void *(*zalloc)(void *opaque, unsigned int items, unsigned int size) noexcept nogil
        void (*zfree)(void *opaque, void *address) noexcept nogil
        void *opaque
        int data_type


cdef enum InflateResult:
    INFLATED
    TOO_LARGE       # longer than allowed
    INVALID         # not valid deflate data
    NO_MEMORY
    WASTEFUL        # in more blocks than a compressor makes


cdef enum:
    # Longer messages are sent plain: zlib counts in 32 bits.
    LONGEST_DEFLATED = 1 << 30
    # A flush needs more than six bytes of space, or it may be written twice.
    FLUSH_SPACE = 16


cdef struct Inflater:
    z_stream stream         # owns a state if started
    bint started
    bint keeps_context      # a message may refer to earlier ones
    uint8_t window_bits
    uint64_t work           # cost of the last message's blocks, in decompressed bytes


cdef struct Deflater:
    z_stream stream         # owns a state if started
    bint started
    bint has_history        # true if it compressed something since it last forgot its history
    uint8_t level
    uint8_t memory_level
    uint8_t window_bits


cdef void inflater_init(Inflater *inflater, uint8_t window_bits, bint keeps_context) noexcept nogil
cdef void inflater_clear(Inflater *inflater) noexcept nogil
cdef InflateResult inflate_message(
    Inflater *inflater, FrameBuffer *compressed, uint64_t limit, FrameBuffer **plain
) noexcept

cdef void deflater_init(Deflater *deflater, uint8_t level, uint8_t memory_level, uint8_t window_bits) noexcept nogil
cdef void deflater_clear(Deflater *deflater) noexcept nogil
cdef void deflater_forget(Deflater *deflater) noexcept nogil
cdef FrameBuffer *deflate_message(Deflater *deflater, FrameBuffer *plain, bint only_shorter) noexcept
cdef FrameBuffer *finished(FrameBuffer *form, FrameBuffer *plain, uint8_t window_bits, bint only_shorter) noexcept
