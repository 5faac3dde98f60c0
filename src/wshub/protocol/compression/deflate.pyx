# cython: language_level=3, cdivision=True
"""Compresses and decompresses the payload of messages (RFC 7692 section 7.2).

The rules of this file:

- A state is made when it is first needed. A failure leaves it unchanged, or forgets its history.
- The size of decompressed data is bounded before it is written.
- Two messages share nothing unless their sender means to share it. So a state that serves many connections forgets its
  history before each message.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from wshub.protocol.frame_buffer cimport (
    FrameBuffer,
    frame_set_metadata,
    frame_new,
    frame_payload,
    frame_release,
    frame_resize,
    frame_seal,
)

cdef extern from "zlib.h" nogil:
    enum:
        Z_BLOCK
        Z_OK
        Z_STREAM_END
        Z_BUF_ERROR
        Z_MEM_ERROR
        Z_SYNC_FLUSH
        Z_DEFLATED
        Z_DEFAULT_STRATEGY

    int inflateInit2(z_stream *stream, int window_bits) noexcept
    int inflateReset(z_stream *stream) noexcept
    int inflateResetKeep(z_stream *stream) noexcept
    int inflateEnd(z_stream *stream) noexcept
    int zlib_inflate "inflate"(z_stream *stream, int flush) noexcept
    int deflateInit2(z_stream *stream, int level, int method, int window_bits, int memory_level, int strategy) noexcept
    int deflateReset(z_stream *stream) noexcept
    int deflateEnd(z_stream *stream) noexcept
    int zlib_deflate "deflate"(z_stream *stream, int flush) noexcept

# The empty block at the end of a flush. A message leaves it out, except for its first bits (RFC 7692 section 7.2.1).
cdef uint8_t[4] TAIL = [0x00, 0x00, 0xFF, 0xFF]

cdef enum:
    # zlib's `data_type` of a stream: the number of unused bits of the last byte; in the last block; between two blocks.
    BITS_HELD = 7
    IN_LAST_BLOCK = 64
    BETWEEN_BLOCKS = 128
    # The cost of a block, in decompressed bytes. A block with codes of its own needs tables for them.
    BLOCK_WORK = 8
    CODES_WORK = 2000
    # The blocks of a message may cost this much for each byte of it, and this much in addition. With the least memory,
    # zlib begins new codes after 127 bytes, and sooner after a flush: two blocks, if that is after each byte.
    WORK_PER_BYTE = 20
    SPARE_WORK = 512 * CODES_WORK
    # A message is decompressed into space for this many times its compressed length, at first.
    USUAL_RATIO = 4
    LARGEST_PIECE = 1 << 30
    # Bytes: less unused memory than this is not released.
    WORTH_TRIMMING = 512
    # The type of a block that brings its own codes (RFC 1951 section 3.2.3).
    CODES_OF_ITS_OWN = 2


cdef void *allocate(void *opaque, unsigned int items, unsigned int size) noexcept nogil:
    return PyMem_RawMalloc(<size_t>items * size)


cdef void release(void *opaque, void *address) noexcept nogil:
    PyMem_RawFree(address)


cdef void stream_init(z_stream *stream) noexcept nogil:
    memset(stream, 0, sizeof(z_stream))
    stream.zalloc = allocate
    stream.zfree = release


# Decompressing


cdef void inflater_init(Inflater *inflater, uint8_t window_bits, bint keeps_context) noexcept nogil:
    stream_init(&inflater.stream)
    inflater.started = False
    inflater.keeps_context = keeps_context
    inflater.window_bits = window_bits


cdef void inflater_clear(Inflater *inflater) noexcept nogil:
    if inflater.started:
        inflateEnd(&inflater.stream)
        inflater.started = False


cdef bint inflater_start(Inflater *inflater) noexcept nogil:
    """Makes the inflater ready for a message. Returns False if there is no memory."""
    if not inflater.started:
        inflater.started = inflateInit2(&inflater.stream, -<int>inflater.window_bits) == Z_OK
    elif not inflater.keeps_context:
        inflateReset(&inflater.stream)
    return inflater.started


cdef bint grow(FrameBuffer **frame, uint64_t limit) noexcept:
    """Doubles the space of a frame, up to `limit`. Returns False if there is no memory."""
    cdef FrameBuffer *grown = frame_resize(frame[0], <size_t>min(2 * <uint64_t>frame[0].capacity, limit))
    if grown == NULL:
        return False
    frame[0] = grown
    return True


cdef uint64_t work_of_block(const z_stream *stream, int held) noexcept nogil:
    """Returns the cost of the next block (RFC 1951 section 3.2.3).

    The block begins with the last `held` bits of the byte before. The missing part of an incomplete header counts as
    zeros.
    """
    cdef unsigned int header = 0
    if held:
        header = stream.next_in[-1] >> (8 - held)
    if stream.avail_in:
        header |= <unsigned int>stream.next_in[0] << held
    return CODES_WORK if header >> 1 & 3 == CODES_OF_ITS_OWN else BLOCK_WORK


cdef InflateResult inflate_bytes(
    Inflater *inflater, const uint8_t *source, size_t length, uint64_t limit, FrameBuffer **plain
) noexcept:
    """Decompresses `source` to the end of `plain`, which grows as needed, up to `limit` and one byte.

    It goes from block to block, so that their cost is bounded before it arises: an empty block costs time and adds no
    byte.
    """
    cdef z_stream *stream = &inflater.stream
    cdef bint begins = True
    cdef int held = 0
    cdef size_t space
    cdef int status = Z_OK
    stream.next_in = source
    while True:
        if plain[0].length == plain[0].capacity and not grow(plain, limit + 1):
            return NO_MEMORY
        if stream.avail_in == 0:
            stream.avail_in = <unsigned int>min(length, LARGEST_PIECE)
            length -= stream.avail_in
        if begins:
            inflater.work += work_of_block(stream, held)
            if inflater.work > SPARE_WORK + plain[0].length * WORK_PER_BYTE:
                return WASTEFUL
        space = min(plain[0].capacity - plain[0].length, LARGEST_PIECE)
        stream.next_out = frame_payload(plain[0]) + plain[0].length
        stream.avail_out = <unsigned int>space
        status = zlib_inflate(stream, Z_BLOCK)
        plain[0].length += space - stream.avail_out
        if plain[0].length > limit:
            return TOO_LARGE
        if status == Z_MEM_ERROR:
            return NO_MEMORY
        begins = (stream.data_type & (BETWEEN_BLOCKS | IN_LAST_BLOCK)) == BETWEEN_BLOCKS
        held = stream.data_type & BITS_HELD
        if status == Z_STREAM_END:
            # After a final block the same message may go on (RFC 7692 section 7.2.3.4).
            inflateResetKeep(stream)
            begins = True
            held = 0
        elif status != Z_OK and status != Z_BUF_ERROR:
            return INVALID
        if stream.avail_in == 0 and length == 0 and stream.avail_out > 0:
            return INFLATED


cdef InflateResult inflate_whole(
    Inflater *inflater, FrameBuffer *compressed, uint64_t limit, FrameBuffer **plain
) noexcept:
    cdef InflateResult result
    if compressed.length == 0:
        # RFC 7692 section 7.2.3.6 wants one byte for an empty message, but some peers send none.
        return INFLATED
    result = inflate_bytes(inflater, frame_payload(compressed), compressed.length, limit, plain)
    if result == INFLATED:
        result = inflate_bytes(inflater, TAIL, sizeof(TAIL), limit, plain)
    # After a whole message with its tail the stream is between two blocks, with no bits left over.
    if result == INFLATED and inflater.stream.data_type != BETWEEN_BLOCKS:
        return INVALID
    return result


cdef InflateResult inflate_message(
    Inflater *inflater, FrameBuffer *compressed, uint64_t limit, FrameBuffer **plain
) noexcept:
    """Decompresses a whole message of at most `limit` bytes into a new frame, not sealed. The caller owns it.

    A failure loses the history of the inflater, so the connection must end.
    """
    cdef FrameBuffer *frame
    cdef InflateResult result
    cdef uint64_t capacity = min(<uint64_t>compressed.length * USUAL_RATIO + FLUSH_SPACE, limit + 1)

    if not inflater_start(inflater):
        return NO_MEMORY
    frame = frame_new(compressed.opcode, <size_t>capacity)
    if frame == NULL:
        return NO_MEMORY
    inflater.stream.avail_in = 0
    inflater.work = 0
    result = inflate_whole(inflater, compressed, limit, &frame)
    if result != INFLATED:
        frame_release(frame)
        inflateReset(&inflater.stream)
        return result
    plain[0] = trimmed(frame)
    return INFLATED


cdef FrameBuffer *trimmed(FrameBuffer *frame) noexcept:
    """Returns the frame, without its unused memory if there was much."""
    cdef FrameBuffer *smaller = NULL
    if frame.capacity - frame.length > frame.length // 4 + WORTH_TRIMMING:
        smaller = frame_resize(frame, frame.length)
    return frame if smaller == NULL else smaller


# Compressing


cdef void deflater_init(Deflater *deflater, uint8_t level, uint8_t memory_level, uint8_t window_bits) noexcept nogil:
    stream_init(&deflater.stream)
    deflater.started = False
    deflater.has_history = False
    deflater.level = level
    deflater.memory_level = memory_level
    deflater.window_bits = window_bits


cdef void deflater_clear(Deflater *deflater) noexcept nogil:
    if deflater.started:
        deflateEnd(&deflater.stream)
        deflater.started = False


cdef bint deflater_start(Deflater *deflater) noexcept nogil:
    """Makes a state if there is none. Returns False if there is no memory."""
    if not deflater.started:
        # zlib has no window of 256 bytes. It refers back at most its window less 262 bytes, which is 250 with a
        # window of 512. A receiver with a window of 256 can read that.
        deflater.started = deflateInit2(
            &deflater.stream, deflater.level, Z_DEFLATED, -max(<int>deflater.window_bits, 9), deflater.memory_level,
            Z_DEFAULT_STRATEGY
        ) == Z_OK
    return deflater.started


cdef void deflater_forget(Deflater *deflater) noexcept nogil:
    """Forgets the history: the next message refers to nothing before it."""
    if deflater.has_history:
        deflateReset(&deflater.stream)
        deflater.has_history = False


cdef FrameBuffer *deflate_to_end(z_stream *stream, FrameBuffer *form, bint only_shorter) noexcept:
    """Writes all of the input and a flush to `form`. Returns it; or NULL, after releasing it."""
    cdef FrameBuffer *grown
    cdef size_t space
    cdef int status
    while True:
        space = form.capacity - form.length
        stream.next_out = frame_payload(form) + form.length
        stream.avail_out = <unsigned int>space
        status = zlib_deflate(stream, Z_SYNC_FLUSH)
        form.length += space - stream.avail_out
        if status == Z_OK and stream.avail_out > 0:
            return form
        grown = NULL
        if status == Z_OK and not only_shorter:
            grown = frame_resize(form, form.capacity + form.capacity // 4 + FLUSH_SPACE)
        if grown == NULL:
            frame_release(form)
            return NULL
        form = grown


cdef FrameBuffer *finished(FrameBuffer *form, FrameBuffer *plain, uint8_t window_bits, bint only_shorter) noexcept:
    """Seals a form that ends in a flush, without its tail. Returns it; or NULL, after releasing it."""
    form.length -= sizeof(TAIL)
    if only_shorter and form.length >= plain.length:
        frame_release(form)
        return NULL
    form.window_bits = window_bits
    form = trimmed(form)
    frame_set_metadata(form, plain.conflation_key, plain.delivery_counters, plain.droppable)
    frame_seal(form, plain.opcode)
    return form


cdef FrameBuffer *deflate_message(Deflater *deflater, FrameBuffer *plain, bint only_shorter) noexcept:
    """Returns the sealed compressed form of a message of 1 to LONGEST_DEFLATED bytes. The caller owns it.

    Returns NULL and forgets the history if there is no memory. With `only_shorter`, it does so too if the form is not
    shorter than the message.
    """
    cdef FrameBuffer *form
    if not deflater_start(deflater):
        return NULL
    form = frame_new(plain.opcode, plain.length + FLUSH_SPACE)
    if form == NULL:
        deflater_forget(deflater)
        return NULL
    deflater.stream.next_in = frame_payload(plain)
    deflater.stream.avail_in = <unsigned int>plain.length
    deflater.has_history = True
    form = deflate_to_end(&deflater.stream, form, only_shorter)
    if form != NULL:
        form = finished(form, plain, deflater.window_bits, only_shorter)
    if form == NULL:
        deflater_forget(deflater)
    return form
