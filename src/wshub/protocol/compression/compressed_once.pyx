# cython: language_level=3
"""Compresses a message once for all its receivers, with states that all connections of a hub share."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from wshub.protocol.compression.deflate cimport (
    FLUSH_SPACE,
    LONGEST_DEFLATED,
    Deflater,
    deflate_message,
    deflater_clear,
    deflater_forget,
    deflater_init,
    finished,
    inflater_clear,
    inflater_init,
)
from wshub.protocol.compression.deflate_engine cimport ENGINE_NAME, DeflateEngine
from wshub.protocol.frame_buffer cimport FrameBuffer, frame_new, frame_payload, frame_release
from wshub.protocol.message cimport Message

from wshub.errors import ConfigurationError
from wshub.protocol.compression.config import CompressionConfig

try:
    from wshub.protocol.compression.isal import ENGINE
except ImportError:
    ENGINE = None

cdef enum:
    # Other engines than zlib are for speed: from this level on zlib compresses better in the same time.
    SLOW_LEVEL = 4


cdef const DeflateEngine *engine_for(object config) except? NULL:
    """Returns the engine that a CompressionConfig asks for; NULL is zlib."""
    if config.engine == "isal" and ENGINE is None:
        raise ConfigurationError('engine="isal" needs ISA-L: install libisal-dev, and build wshub again')
    if config.engine == "zlib" or ENGINE is None or config.level >= SLOW_LEVEL:
        return NULL
    return <const DeflateEngine *>PyCapsule_GetPointer(ENGINE, ENGINE_NAME)


cdef uint8_t bits_of(size_t length) noexcept nogil:
    """Returns the window bits that a message of that length can use: no reference goes back beyond its start."""
    cdef uint8_t bits = 8
    while bits < 15 and length > <size_t>1 << bits:
        bits += 1
    return bits


cdef class DeflatePool:
    """The states that all connections of a hub share to compress and decompress, and their statistics.

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
        # No state is kept between messages, so a smaller window would save nothing.
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
        """Returns the form without history for a receiver that keeps 2**window_bits bytes.

        It is made once and kept with the frame: the reference is borrowed. Returns NULL if the message is best sent
        plain.
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
        # A failure for lack of memory counts too: trying again for each receiver would not help.
        frame.incompressible = form == NULL
        return form

    cdef FrameBuffer *compress(self, Deflater *deflater, FrameBuffer *frame, bint only_shorter) noexcept:
        """Calls deflate_message(), and counts it."""
        cdef FrameBuffer *form = deflate_message(deflater, frame, only_shorter)
        self.count(frame, form)
        return form

    cdef FrameBuffer *make_form_by_engine(self, FrameBuffer *frame, uint8_t window_bits) noexcept:
        cdef FrameBuffer *form
        if self.engine_state == NULL:
            self.engine_state = self.engine.create(self.config.level)
            if self.engine_state == NULL:
                return NULL
        form = frame_new(frame.opcode, frame.length + FLUSH_SPACE)
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
        self.bytes_in += frame.length
        self.bytes_out += form.length if form != NULL else frame.length

    def compress_message(self, Message message not None, int window_bits=15):
        """Returns the payload of the form without history, or None if the message goes plain."""
        cdef FrameBuffer *form
        message.check()
        if not 8 <= window_bits <= 15:
            raise ConfigurationError("window_bits must be from 8 to 15")
        form = self.form(message.frame, window_bits)
        return frame_payload(form)[:form.length] if form != NULL else None
