# cython: language_level=3, cdivision=True
"""Compresses and decompresses the payload of messages (RFC 7692 section 7.2).

The rules of this file: a state is made when it is first needed, and a failure leaves it as it was before or forgets
its history; what is decompressed is bounded before it is written; nothing is shared between two messages but what their
sender means to share: a state that serves many connections forgets before each message.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from wshub.protocol.compression.deflate_engine cimport ENGINE_NAME, DeflateEngine
from wshub.protocol.frame_buffer cimport (
    FrameBuffer,
    frame_label,
    frame_new,
    frame_payload,
    frame_release,
    frame_resize,
    frame_seal,
)
from wshub.protocol.message cimport Message

from wshub.errors import ConfigurationError
from wshub.protocol.compression.config import CompressionConfig

try:
    from wshub.protocol.compression.isal import ENGINE
except ImportError:
    ENGINE = None

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

# The empty block at the end of what a flush gives, of which a message leaves out all but the first bits (RFC 7692
# section 7.2.1).
cdef uint8_t[4] TAIL = [0x00, 0x00, 0xFF, 0xFF]

cdef enum:
    # Of what zlib tells of a stream: how many bits of the last octet are not used yet; in the last block; between two.
    BITS_HELD = 7
    IN_LAST_BLOCK = 64
    BETWEEN_BLOCKS = 128
    # What a block costs, as so many octets decompressed: one with codes of its own has tables made for them.
    BLOCK_WORK = 8
    CODES_WORK = 2000
    # What the blocks of a message may cost for each octet that it becomes, and beside that. With the least of memory
    # zlib begins new codes after 127 octets, and sooner where it is flushed: two blocks, if that is after each octet.
    WORK_PER_OCTET = 20
    SPARE_WORK = 512 * CODES_WORK
    # A flush needs more than six octets of room, or it may be written twice.
    FLUSH_ROOM = 16
    # A message that is decompressed gets room for so many times what it had, at first.
    USUAL_RATIO = 4
    LARGEST_PIECE = 1 << 30
    # Octets: less than this is not given back.
    WORTH_TRIMMING = 512
    # How the header of a block says that its codes stand in it (RFC 1951 section 3.2.3).
    CODES_OF_ITS_OWN = 2
    # An engine other than zlib is for speed: from this level on zlib makes more of its time.
    SLOW_LEVEL = 4


cdef void *allocate(void *opaque, unsigned int items, unsigned int size) noexcept nogil:
    return PyMem_RawMalloc(<size_t>items * size)


cdef void release(void *opaque, void *address) noexcept nogil:
    PyMem_RawFree(address)


cdef void stream_init(z_stream *stream) noexcept nogil:
    memset(stream, 0, sizeof(z_stream))
    stream.zalloc = allocate
    stream.zfree = release


# Decompressing


cdef void inflater_init(Inflater *inflater, uint8_t window_bits, bint keeps_history) noexcept nogil:
    stream_init(&inflater.stream)
    inflater.started = False
    inflater.keeps_history = keeps_history
    inflater.window_bits = window_bits


cdef void inflater_clear(Inflater *inflater) noexcept nogil:
    if inflater.started:
        inflateEnd(&inflater.stream)
        inflater.started = False


cdef bint inflater_start(Inflater *inflater) noexcept nogil:
    """Makes the inflater ready for a message. Returns False where there is no memory."""
    if not inflater.started:
        inflater.started = inflateInit2(&inflater.stream, -<int>inflater.window_bits) == Z_OK
    elif not inflater.keeps_history:
        inflateReset(&inflater.stream)
    return inflater.started


cdef bint make_room(FrameBuffer **frame, uint64_t limit) noexcept:
    """Doubles what fits, up to `limit`. Returns False where there is no memory."""
    cdef FrameBuffer *grown = frame_resize(frame[0], <size_t>min(2 * <uint64_t>frame[0].capacity, limit))
    if grown == NULL:
        return False
    frame[0] = grown
    return True


cdef uint64_t work_of_block(const z_stream *stream, int held) noexcept nogil:
    """What the block costs that begins with the `held` last bits of the octet before the next (RFC 1951 section 3.2.3).

    Of a header that has not come to its end, the rest is of no account.
    """
    cdef unsigned int header = 0
    if held:
        header = stream.next_in[-1] >> (8 - held)
    if stream.avail_in:
        header |= <unsigned int>stream.next_in[0] << held
    return CODES_WORK if header >> 1 & 3 == CODES_OF_ITS_OWN else BLOCK_WORK


cdef InflateResult inflate_octets(
    Inflater *inflater, const uint8_t *octets, size_t length, uint64_t limit, FrameBuffer **plain
) noexcept:
    """Decompresses `octets` to the end of `plain`, which grows as it must, to `limit` and one octet at the most.

    It goes from block to block, for what they cost to be bounded before they do: empty ones become nothing.
    """
    cdef z_stream *stream = &inflater.stream
    cdef bint begins = True
    cdef int held = 0
    cdef size_t room
    cdef int status = Z_OK
    stream.next_in = octets
    while True:
        if plain[0].length == plain[0].capacity and not make_room(plain, limit + 1):
            return NO_MEMORY
        if stream.avail_in == 0:
            stream.avail_in = <unsigned int>min(length, LARGEST_PIECE)
            length -= stream.avail_in
        if begins:
            inflater.work += work_of_block(stream, held)
            if inflater.work > SPARE_WORK + plain[0].length * WORK_PER_OCTET:
                return WASTEFUL
        room = min(plain[0].capacity - plain[0].length, LARGEST_PIECE)
        stream.next_out = frame_payload(plain[0]) + plain[0].length
        stream.avail_out = <unsigned int>room
        status = zlib_inflate(stream, Z_BLOCK)
        plain[0].length += room - stream.avail_out
        if plain[0].length > limit:
            return TOO_LARGE
        if status == Z_MEM_ERROR:
            return NO_MEMORY
        begins = (stream.data_type & (BETWEEN_BLOCKS | IN_LAST_BLOCK)) == BETWEEN_BLOCKS
        held = stream.data_type & BITS_HELD
        if status == Z_STREAM_END:
            # What follows a final block is more of the same message (RFC 7692 section 7.2.3.4).
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
        # Not what RFC 7692 section 7.2.3.6 has for an empty message, but some send it.
        return INFLATED
    result = inflate_octets(inflater, frame_payload(compressed), compressed.length, limit, plain)
    if result == INFLATED:
        result = inflate_octets(inflater, TAIL, sizeof(TAIL), limit, plain)
    # After a whole message with its tail the stream is between two blocks, with no bits left over.
    if result == INFLATED and inflater.stream.data_type != BETWEEN_BLOCKS:
        return INVALID
    return result


cdef InflateResult inflate_message(
    Inflater *inflater, FrameBuffer *compressed, uint64_t limit, FrameBuffer **plain
) noexcept:
    """Decompresses a whole message of at most `limit` octets into a new frame, which the caller owns and seals.

    After a failure the inflater has lost its history, and the connection must end.
    """
    cdef FrameBuffer *frame
    cdef InflateResult result
    cdef uint64_t capacity = min(<uint64_t>compressed.length * USUAL_RATIO + FLUSH_ROOM, limit + 1)

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
    """The frame, with no more memory than its payload needs if there was much."""
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
    """Makes a state where there is none. Returns False where there is no memory."""
    if not deflater.started:
        # zlib has no window of 256 octets, but never refers further back than its window less 262 octets: with one of
        # 512 that is 250, which is within what a receiver that keeps 256 has.
        deflater.started = deflateInit2(
            &deflater.stream, deflater.level, Z_DEFLATED, -max(<int>deflater.window_bits, 9), deflater.memory_level,
            Z_DEFAULT_STRATEGY
        ) == Z_OK
    return deflater.started


cdef void deflater_forget(Deflater *deflater) noexcept nogil:
    """The next message refers to nothing before it."""
    if deflater.has_history:
        deflateReset(&deflater.stream)
        deflater.has_history = False


cdef FrameBuffer *deflate_to_end(z_stream *stream, FrameBuffer *form, bint only_shorter) noexcept:
    """Writes all that there is, and a flush, to `form`. Returns it, or NULL, when it has been released."""
    cdef FrameBuffer *grown
    cdef size_t room
    cdef int status
    while True:
        room = form.capacity - form.length
        stream.next_out = frame_payload(form) + form.length
        stream.avail_out = <unsigned int>room
        status = zlib_deflate(stream, Z_SYNC_FLUSH)
        form.length += room - stream.avail_out
        if status == Z_OK and stream.avail_out > 0:
            return form
        grown = NULL
        if status == Z_OK and not only_shorter:
            grown = frame_resize(form, form.capacity + form.capacity // 4 + FLUSH_ROOM)
        if grown == NULL:
            frame_release(form)
            return NULL
        form = grown


cdef FrameBuffer *finished(FrameBuffer *form, FrameBuffer *plain, uint8_t window_bits, bint only_shorter) noexcept:
    """The form, which ends in a flush, without its tail and sealed; or NULL, when it has been released."""
    form.length -= sizeof(TAIL)
    if only_shorter and form.length >= plain.length:
        frame_release(form)
        return NULL
    form.window_bits = window_bits
    form = trimmed(form)
    frame_label(form, plain.key, plain.tally, plain.dispensable)
    frame_seal(form, plain.opcode)
    return form


cdef FrameBuffer *deflate_message(Deflater *deflater, FrameBuffer *plain, bint only_shorter) noexcept:
    """The sealed compressed form of a message of 1 to LONGEST_DEFLATED octets, which the caller owns.

    Returns NULL, and forgets the history, where there is no memory, or with `only_shorter` where the form is not
    shorter than the message.
    """
    cdef FrameBuffer *form
    if not deflater_start(deflater):
        return NULL
    form = frame_new(plain.opcode, plain.length + FLUSH_ROOM)
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


cdef const DeflateEngine *engine_for(object config) except? NULL:
    """The engine that a CompressionConfig asks for; NULL is zlib."""
    if config.engine == "isal" and ENGINE is None:
        raise ConfigurationError('engine="isal" needs ISA-L: install libisal-dev, and build wshub again')
    if config.engine == "zlib" or ENGINE is None or config.level >= SLOW_LEVEL:
        return NULL
    return <const DeflateEngine *>PyCapsule_GetPointer(ENGINE, ENGINE_NAME)


cdef uint8_t bits_of(size_t length) noexcept nogil:
    """The window bits that a message of that length can make use of: nothing in it is further back than its start."""
    cdef uint8_t bits = 8
    while bits < 15 and length > <size_t>1 << bits:
        bits += 1
    return bits


cdef class DeflatePool:
    """The states that all connections of a hub share to compress and decompress, and what was done with them.

    Args:
        config: a CompressionConfig.
    """

    def __cinit__(self, config):
        cdef uint8_t bits
        if not isinstance(config, CompressionConfig):
            raise ConfigurationError(f"a DeflatePool is made with a CompressionConfig, not {config!r}")
        self.config = config
        self.engine = engine_for(config)
        self.window_bits = config.server_max_window_bits
        # A message may refer as far back as any: no state is kept, so a smaller window would save nothing.
        inflater_init(&self.inflater, 15, False)
        for bits in range(16):
            deflater_init(&self.deflaters[bits], config.level, config.memory_level, bits)

    def __dealloc__(self):
        cdef uint8_t bits
        inflater_clear(&self.inflater)
        for bits in range(16):
            deflater_clear(&self.deflaters[bits])
        if self.engine_state != NULL:
            self.engine.destroy(self.engine_state)

    cdef FrameBuffer *form(self, FrameBuffer *frame, uint8_t window_bits) noexcept:
        """The form without history for a receiver that keeps 2**window_bits octets.

        It is made once, and kept with the frame: the reference is borrowed. Returns NULL where it is best to send the
        message plain.
        """
        cdef uint8_t useful = bits_of(frame.length)
        cdef uint8_t bits = min(useful, window_bits)
        cdef FrameBuffer *form = frame.next_form

        while form != NULL:
            if form.window_bits == bits:
                return form
            form = form.next_form
        if frame.incompressible or frame.length > LONGEST_DEFLATED:
            return NULL
        # A message no longer than the receiver's window is safe with any window here.
        form = self.make_form(frame, self.window_bits if bits == useful else bits)
        if form == NULL:
            return NULL
        form.window_bits = bits
        form.next_form = frame.next_form
        frame.next_form = form
        return form

    cdef FrameBuffer *make_form(self, FrameBuffer *frame, uint8_t window_bits) noexcept:
        cdef Deflater *deflater = &self.deflaters[window_bits]
        cdef FrameBuffer *form
        if self.engine != NULL:
            form = self.make_form_by_engine(frame, window_bits)
        else:
            deflater_forget(deflater)
            form = self.compress(deflater, frame, True)
        # For lack of memory too: to find out again for each receiver would not make it better.
        frame.incompressible = form == NULL
        return form

    cdef FrameBuffer *compress(self, Deflater *deflater, FrameBuffer *frame, bint only_shorter) noexcept:
        """deflate_message(), counted."""
        cdef FrameBuffer *form = deflate_message(deflater, frame, only_shorter)
        self.count(frame, form)
        return form

    cdef FrameBuffer *make_form_by_engine(self, FrameBuffer *frame, uint8_t window_bits) noexcept:
        cdef FrameBuffer *form
        if self.engine_state == NULL:
            self.engine_state = self.engine.create(self.config.level)
            if self.engine_state == NULL:
                return NULL
        form = frame_new(frame.opcode, frame.length + FLUSH_ROOM)
        if form == NULL:
            return NULL
        form.length = self.engine.deflate(
            self.engine_state, frame_payload(frame), frame.length, window_bits, frame_payload(form), form.capacity
        )
        if form.length == 0:
            frame_release(form)
            form = NULL
        else:
            form = finished(form, frame, window_bits, True)
        self.count(frame, form)
        return form

    cdef void count(self, FrameBuffer *frame, FrameBuffer *form) noexcept:
        self.compressions += 1
        self.octets_in += frame.length
        self.octets_out += form.length if form != NULL else frame.length

    def compress_message(self, Message message not None, int window_bits=15):
        """The payload of the form without history, or None where the message goes plain. For programs without I/O."""
        cdef FrameBuffer *form
        message.check()
        if not 8 <= window_bits <= 15:
            raise ConfigurationError("window_bits must be from 8 to 15")
        form = self.form(message.frame, window_bits)
        return frame_payload(form)[:form.length] if form != NULL else None
