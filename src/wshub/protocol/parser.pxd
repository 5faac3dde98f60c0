"""The incremental parser of frames, for both roles (RFC 6455 sections 5 and 8.1).

It is a plain struct and a few functions without Python objects, so a fuzzer or a simulation can drive it. It needs the
GIL, because it allocates frames. The caller pulls: it asks for the next event, and may stop between two.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from wshub.protocol.compression.deflate cimport Inflater
from wshub.protocol.frame_buffer cimport FrameBuffer
from wshub.protocol.opcodes cimport MASK_KEY_SIZE, MAX_HEADER_SIZE


cdef extern from "utf8.h" nogil:
    ctypedef struct Utf8State "wshub_utf8_state":
        uint8_t missing


cdef enum Event:
    NEED_DATA   # all bytes are taken, and no event is complete
    MESSAGE     # parser_take_message() gives a text or binary message, complete and sealed
    PING        # parser_take_control() gives the payload
    PONG        # parser_take_control() gives the payload
    CLOSE       # close_code and parser_take_control(): the payload, checked; later bytes are ignored
    FAILURE     # failure_code and failure_reason; later bytes are ignored


cdef enum ParserState:
    IN_HEADER
    IN_PAYLOAD
    STOPPED


cdef struct Parser:
    uint64_t max_message_size
    uint32_t max_fragments
    uint32_t fragments          # of the data message under way, after its first frame
    uint64_t frame_length       # bytes of payload in the current frame
    uint64_t frame_received     # bytes of it that have arrived
    FrameBuffer *message        # owned: the data message under way, of one or more frames; or NULL
    FrameBuffer *control        # owned: the control frame under way; or NULL
    Inflater *inflater          # borrowed: decompresses messages; NULL without compression
    uint64_t inflating_work     # bytes of all decompressed messages, and the cost of their blocks in bytes
    const char *failure_reason  # static
    uint16_t failure_code
    uint16_t close_code         # of the close frame received; 1005 if it had none
    uint8_t header[MAX_HEADER_SIZE]  # the first bytes of a header whose rest is still to come
    uint8_t header_length
    uint8_t expected_mask_bit   # of every frame: MASK_BIT from clients, 0 from servers
    uint8_t shortest_header     # bytes: 6 from clients, 2 from servers
    uint8_t mask[MASK_KEY_SIZE]  # of the current frame; zeros in a client's parser
    uint8_t state
    uint8_t opcode              # of the current frame
    uint8_t message_opcode      # TEXT or BINARY while a message is under way between frames, else 0
    bint final
    bint compressed             # the data message under way
    Utf8State utf8


cdef void parser_init(Parser *parser, uint8_t role, uint64_t max_message_size) noexcept
cdef void parser_clear(Parser *parser) noexcept
cdef Event parser_next(Parser *parser, const uint8_t **cursor, const uint8_t *end) noexcept
cdef size_t parser_get_buffer(Parser *parser, uint8_t **buffer) noexcept
cdef Event parser_buffer_updated(Parser *parser, size_t length) noexcept
cdef FrameBuffer *parser_take_message(Parser *parser) noexcept
cdef FrameBuffer *parser_take_control(Parser *parser) noexcept
