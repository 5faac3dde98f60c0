"""The incremental parser of what a client sends (RFC 6455 sections 5 and 8.1).

It is a plain structure and a few functions without Python objects, so that a fuzzer or a simulation can drive it; with
the GIL, which the memory of frames needs. It is pulled, not pushed: the caller asks for the next event and is free to
stop between two.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from wshub.protocol.compression.deflate cimport Inflater
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef extern from "utf8.h" nogil:
    ctypedef struct Utf8State "wshub_utf8_state":
        uint8_t missing


cdef enum Event:
    NEED_DATA   # all octets given are taken, and no event is complete
    MESSAGE     # parser_take_message() gives a text or binary message, complete and sealed
    PING        # parser_take_control() gives the payload
    PONG        # parser_take_control() gives the payload
    CLOSE       # close_code and parser_take_control(): the payload, checked; octets that follow are ignored
    FAILURE     # failure_code and failure_reason; octets that follow are ignored


cdef enum ParserState:
    IN_HEADER
    IN_PAYLOAD
    STOPPED


cdef struct Parser:
    uint64_t max_message_size
    uint32_t max_fragments
    uint32_t fragments          # of the data message under way, after its first frame
    uint64_t frame_length       # octets of payload that the current frame has
    uint64_t frame_received     # octets of them that are there
    FrameBuffer *message        # owned: the data message under way, of one or more frames; or NULL
    FrameBuffer *control        # owned: the control frame under way; or NULL
    Inflater *inflater          # borrowed: decompresses what comes; NULL where compression was not negotiated
    uint64_t inflating_work     # octets of all messages that were decompressed, and what their blocks cost, as octets
    const char *failure_reason  # static
    uint16_t failure_code
    uint16_t close_code         # of the close frame received: 1005 where it had none
    uint8_t header[14]          # the first octets of a header of which the rest is still to come
    uint8_t header_length
    uint8_t mask[4]
    uint8_t state
    uint8_t opcode              # of the current frame
    uint8_t message_opcode      # TEXT or BINARY while a message is under way between frames, else 0
    bint final
    bint compressed             # the data message under way
    Utf8State utf8


cdef void parser_init(Parser *parser, uint64_t max_message_size) noexcept
cdef void parser_clear(Parser *parser) noexcept
cdef Event parser_next(Parser *parser, const uint8_t **cursor, const uint8_t *end) noexcept
cdef size_t parser_get_buffer(Parser *parser, uint8_t **buffer) noexcept
cdef Event parser_buffer_updated(Parser *parser, size_t length) noexcept
cdef FrameBuffer *parser_take_message(Parser *parser) noexcept
cdef FrameBuffer *parser_take_control(Parser *parser) noexcept
