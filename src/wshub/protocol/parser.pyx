# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The incremental parser of what a client sends (RFC 6455 sections 5 and 8.1, RFC 7692 section 6).

The rules of this file: it takes octets and gives events, whatever the octets are; it never calls into Python
before :class:`FrameParser`; a length from the network is compared while it is unsigned, before it is added to
anything or allocated; after a failure or a close frame it takes nothing more.
"""

from libc.stddef cimport size_t
from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from wshub.protocol.compression.deflate cimport (
    INVALID,
    NO_MEMORY,
    TOO_LARGE,
    WASTEFUL,
    Inflater,
    InflateResult,
    inflate_message,
    inflater_clear,
    inflater_init,
)
from wshub.protocol.frame_buffer cimport (
    FrameBuffer,
    frame_new,
    frame_payload,
    frame_release,
    frame_resize,
    frame_seal,
)
from wshub.protocol.message cimport message_from_frame

from wshub.errors import ConfigurationError, ProtocolError


cdef extern from "masking.h" nogil:
    void apply_mask "wshub_mask"(uint8_t *destination, const uint8_t *source, size_t length,
                                 const uint8_t *key, uint64_t position) noexcept

cdef extern from "utf8.h" nogil:
    int utf8_validate "wshub_utf8_validate"(Utf8State *state, const uint8_t *text, size_t length) noexcept

cdef enum:
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE_FRAME = 0x8
    PING_FRAME = 0x9
    PONG_FRAME = 0xA

cdef enum:
    FIN_BIT = 0x80
    RESERVED_BITS = 0x70
    COMPRESSED_BIT = 0x40
    OPCODE_BITS = 0x0F
    CONTROL_BIT = 0x08
    MASK_BIT = 0x80
    LENGTH_BITS = 0x7F
    MAX_CONTROL_PAYLOAD = 125

# Below this many octets to come it is better to receive into the shared buffer, together with what follows.
cdef enum:
    DIRECT_RECEIVE_THRESHOLD = 8192

# What a header alone has set aside for its payload, at the most.
cdef enum:
    MOST_RESERVED = 1 << 20


cdef void parser_init(Parser *parser, uint64_t max_message_size) noexcept:
    parser.max_message_size = max_message_size
    parser.max_fragments = UINT32_MAX
    parser.fragments = 0
    parser.frame_length = 0
    parser.frame_received = 0
    parser.message = NULL
    parser.control = NULL
    parser.inflater = NULL
    parser.inflating_work = 0
    parser.failure_reason = NULL
    parser.failure_code = 0
    parser.close_code = 0
    parser.header_length = 0
    parser.state = IN_HEADER
    parser.opcode = 0
    parser.message_opcode = 0
    parser.final = True
    parser.compressed = False
    parser.utf8.missing = 0


cdef void parser_clear(Parser *parser) noexcept:
    """Gives back what the parser owns, and stops it."""
    parser.state = STOPPED
    frame_release(parser.message)
    parser.message = NULL
    frame_release(parser.control)
    parser.control = NULL


cdef FrameBuffer *parser_take_message(Parser *parser) noexcept:
    """The message of a MESSAGE event; from here on it is the caller's to release."""
    cdef FrameBuffer *message = parser.message
    parser.message = NULL
    return message


cdef FrameBuffer *parser_take_control(Parser *parser) noexcept:
    """The payload of a PING, PONG or CLOSE event; from here on it is the caller's to seal and to release."""
    cdef FrameBuffer *control = parser.control
    parser.control = NULL
    return control


cdef Event fail(Parser *parser, uint16_t code, const char *reason) noexcept:
    parser.failure_code = code
    parser.failure_reason = reason
    parser_clear(parser)
    return FAILURE


cdef size_t header_size(const uint8_t *header) noexcept nogil:
    """How long a header is, by its second octet. A header without a mask is cut short: it is refused."""
    cdef uint8_t length = header[1] & LENGTH_BITS
    cdef size_t mask_length = 4 if header[1] & MASK_BIT else 0
    if length < 126:
        return 2 + mask_length
    return (4 if length == 126 else 10) + mask_length


cdef bint may_be_compressed(Parser *parser, uint8_t opcode) noexcept nogil:
    """Whether RSV1 may be set: it is in the first frame of a message that is compressed (RFC 7692 section 6)."""
    return parser.inflater != NULL and (opcode == TEXT or opcode == BINARY)


cdef Event check_start(Parser *parser, const uint8_t *header) noexcept:
    """Judges a frame by its first two octets. Returns NEED_DATA where nothing is wrong so far, or FAILURE."""
    cdef uint8_t opcode = header[0] & OPCODE_BITS

    if header[0] & RESERVED_BITS and (
        header[0] & RESERVED_BITS != COMPRESSED_BIT or not may_be_compressed(parser, opcode)
    ):
        return fail(parser, 1002, b"a reserved bit is set")
    if not header[1] & MASK_BIT:
        return fail(parser, 1002, b"a client's frame is not masked")
    if opcode & CONTROL_BIT:
        if opcode > PONG_FRAME:
            return fail(parser, 1002, b"a reserved opcode")
        if not header[0] & FIN_BIT:
            return fail(parser, 1002, b"a fragmented control frame")
        if header[1] & LENGTH_BITS > MAX_CONTROL_PAYLOAD:
            return fail(parser, 1002, b"a control frame above 125 octets")
    elif opcode > BINARY:
        return fail(parser, 1002, b"a reserved opcode")
    elif opcode == CONTINUATION and parser.message_opcode == 0:
        return fail(parser, 1002, b"a continuation of no message")
    elif opcode != CONTINUATION and parser.message_opcode != 0:
        return fail(parser, 1002, b"a new message within a fragmented one")
    return NEED_DATA


cdef Event begin_frame(Parser *parser, const uint8_t *header) noexcept:
    """Takes a whole header. Returns NEED_DATA where the payload can be read now, or FAILURE."""
    cdef uint8_t opcode = header[0] & OPCODE_BITS
    cdef uint64_t length = header[1] & LENGTH_BITS
    cdef size_t extended = 0
    cdef size_t octet

    if check_start(parser, header) == FAILURE:
        return FAILURE
    if length >= 126:
        extended = 2 if length == 126 else 8
        length = 0
        for octet in range(extended):
            length = length << 8 | header[2 + octet]
        if length >> 63:
            return fail(parser, 1002, b"a payload length with its highest bit set")
        if length < 126 or (extended == 8 and length <= 0xFFFF):
            return fail(parser, 1002, b"a payload length in more octets than needed")
    memcpy(parser.mask, header + 2 + extended, 4)
    parser.opcode = opcode
    parser.final = (header[0] & FIN_BIT) != 0
    parser.frame_length = length
    parser.frame_received = 0
    parser.state = IN_PAYLOAD
    if opcode & CONTROL_BIT:
        parser.control = frame_new(opcode, <size_t>length)
        if parser.control == NULL:
            return fail(parser, 1011, b"out of memory")
        return NEED_DATA
    if opcode != CONTINUATION:
        parser.compressed = (header[0] & COMPRESSED_BIT) != 0
    return begin_data(parser, opcode, length)


cdef uint64_t payload_limit(Parser *parser) noexcept nogil:
    """How long all frames of the message may be. The longest compressed form of a message is an eighth longer."""
    if parser.compressed:
        return parser.max_message_size + parser.max_message_size // 8 + 64
    return parser.max_message_size


cdef bint reserve(Parser *parser, uint64_t more) noexcept:
    """Makes room for so many octets more of the message. Returns False where there is no memory."""
    cdef FrameBuffer *message = parser.message
    cdef FrameBuffer *grown
    cdef uint64_t wanted = message.length + more

    if wanted <= message.capacity:
        return True
    # Doubling keeps a message of very many small pieces linear in its length.
    wanted = max(wanted, 2 * <uint64_t>message.capacity)
    if parser.final:
        wanted = min(wanted, message.length + parser.frame_length - parser.frame_received)
    wanted = min(wanted, payload_limit(parser))
    grown = frame_resize(message, <size_t>wanted)
    if grown == NULL:
        return False
    parser.message = grown
    return True


cdef Event begin_data(Parser *parser, uint8_t opcode, uint64_t length) noexcept:
    """Makes room for the payload of a data frame, once it is known that the message may be that long.

    Who only says that much will come is not believed: more is set aside when the first of it is there.
    """
    cdef uint64_t so_far = parser.message.length if parser.message != NULL else 0

    if length > payload_limit(parser) - so_far:
        return fail(parser, 1009, b"a message above the size allowed")
    if opcode != CONTINUATION:
        parser.message_opcode = opcode
        parser.fragments = 0
        parser.utf8.missing = 0
        parser.message = frame_new(opcode, <size_t>min(length, MOST_RESERVED))
        if parser.message == NULL:
            return fail(parser, 1011, b"out of memory")
        return NEED_DATA
    parser.fragments += 1
    if parser.fragments > parser.max_fragments:
        return fail(parser, 1008, b"a message in more fragments than allowed")
    if not reserve(parser, min(length, MOST_RESERVED)):
        return fail(parser, 1011, b"out of memory")
    return NEED_DATA


cdef bint is_close_code(uint16_t code) noexcept nogil:
    """Whether a close frame may carry this code (RFC 6455 section 7.4, and the IANA registry up to 1014)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


cdef Event end_close(Parser *parser) noexcept:
    cdef uint8_t *payload = frame_payload(parser.control)
    cdef size_t length = parser.control.length
    cdef Utf8State utf8

    if length == 0:
        parser.close_code = 1005
    elif length == 1:
        return fail(parser, 1002, b"a close frame with half a code")
    else:
        parser.close_code = <uint16_t>(payload[0] << 8 | payload[1])
        if not is_close_code(parser.close_code):
            return fail(parser, 1002, b"an invalid close code")
        utf8.missing = 0
        if utf8_validate(&utf8, payload + 2, length - 2) < 0 or utf8.missing:
            return fail(parser, 1007, b"a close reason that is not UTF-8")
    parser.state = STOPPED
    frame_release(parser.message)
    parser.message = NULL
    return CLOSE


cdef Event inflate(Parser *parser) noexcept:
    """Puts what the whole message decompresses to in its place. Returns NEED_DATA, or FAILURE."""
    cdef FrameBuffer *plain
    cdef InflateResult result = inflate_message(parser.inflater, parser.message, parser.max_message_size, &plain)
    if result == TOO_LARGE:
        return fail(parser, 1009, b"a message above the size allowed")
    if result == INVALID:
        return fail(parser, 1007, b"a message that cannot be decompressed")
    if result == NO_MEMORY:
        return fail(parser, 1011, b"out of memory")
    if result == WASTEFUL:
        return fail(parser, 1008, b"a message in more blocks than allowed")
    frame_release(parser.message)
    parser.message = plain
    parser.inflating_work += plain.length + parser.inflater.work
    if parser.message_opcode == TEXT and utf8_validate(&parser.utf8, frame_payload(plain), plain.length) < 0:
        return fail(parser, 1007, b"a text message that is not UTF-8")
    return NEED_DATA


cdef Event end_frame(Parser *parser) noexcept:
    """All of the frame's payload is there. Returns its event, or NEED_DATA after a fragment that is not the last."""
    parser.state = IN_HEADER
    if parser.opcode == CLOSE_FRAME:
        return end_close(parser)
    if parser.opcode == PING_FRAME:
        return PING
    if parser.opcode == PONG_FRAME:
        return PONG
    if not parser.final:
        return NEED_DATA
    if parser.compressed and inflate(parser) == FAILURE:
        return FAILURE
    if parser.utf8.missing:
        return fail(parser, 1007, b"a text message that ends within a character")
    frame_seal(parser.message, parser.message_opcode)
    parser.message_opcode = 0
    return MESSAGE


cdef Event take_payload(Parser *parser, const uint8_t *source, size_t length) noexcept:
    """Appends `length` octets, no more than the frame still lacks, which may stand in their final place already.

    Returns NEED_DATA, or FAILURE.
    """
    cdef FrameBuffer *target
    cdef uint8_t *destination

    if parser.opcode & CONTROL_BIT:
        target = parser.control
    elif reserve(parser, length):
        target = parser.message
    else:
        return fail(parser, 1011, b"out of memory")
    destination = frame_payload(target) + target.length
    apply_mask(destination, source, length, parser.mask, parser.frame_received)
    target.length += length
    parser.frame_received += length
    if target == parser.message and parser.message_opcode == TEXT and not parser.compressed:
        if utf8_validate(&parser.utf8, destination, length) < 0:
            return fail(parser, 1007, b"a text message that is not UTF-8")
    return NEED_DATA


cdef size_t take_header(Parser *parser, const uint8_t *data, size_t available) noexcept nogil:
    """Keeps what there is of a header that is not complete. Returns how many octets were taken.

    The header is complete when parser.header_length has reached header_size(parser.header).
    """
    cdef size_t taken = 0
    while taken < available:
        if parser.header_length >= 2 and parser.header_length == header_size(parser.header):
            break
        parser.header[parser.header_length] = data[taken]
        parser.header_length += 1
        taken += 1
    return taken


cdef Event parser_next(Parser *parser, const uint8_t **cursor, const uint8_t *end) noexcept:
    """Reads from `cursor[0]` to the next event, at the most to `end`, and moves the cursor behind what it read."""
    cdef Event event
    cdef size_t available, length

    while parser.state != STOPPED:
        available = end - cursor[0]
        if parser.state == IN_HEADER:
            if parser.header_length == 0 and available >= 2 and available >= header_size(cursor[0]):
                length = header_size(cursor[0])
                event = begin_frame(parser, cursor[0])
                cursor[0] += length
            else:
                cursor[0] += take_header(parser, cursor[0], available)
                if parser.header_length < 2:
                    return NEED_DATA
                if parser.header_length < header_size(parser.header):
                    if check_start(parser, parser.header) == FAILURE:
                        break
                    return NEED_DATA
                event = begin_frame(parser, parser.header)
                parser.header_length = 0
            if event == FAILURE:
                break
            continue
        length = end - cursor[0]
        if length > parser.frame_length - parser.frame_received:
            length = <size_t>(parser.frame_length - parser.frame_received)
        if take_payload(parser, cursor[0], length) == FAILURE:
            break
        cursor[0] += length
        if parser.frame_received < parser.frame_length:
            return NEED_DATA
        event = end_frame(parser)
        if event != NEED_DATA:
            return event
    cursor[0] = end
    return FAILURE if parser.failure_code else NEED_DATA


cdef size_t parser_get_buffer(Parser *parser, uint8_t **buffer) noexcept:
    """Where the rest of a large data frame may be received without a copy, and how many octets fit: 0 if nowhere.

    What was received there is made known with parser_buffer_updated().
    """
    cdef uint64_t rest = parser.frame_length - parser.frame_received
    if parser.state != IN_PAYLOAD or parser.opcode & CONTROL_BIT or rest < DIRECT_RECEIVE_THRESHOLD:
        return 0
    if not reserve(parser, DIRECT_RECEIVE_THRESHOLD):
        # Where what comes is copied from, this is found again, and said.
        return 0
    buffer[0] = frame_payload(parser.message) + parser.message.length
    return <size_t>min(rest, <uint64_t>(parser.message.capacity - parser.message.length))


cdef Event parser_buffer_updated(Parser *parser, size_t length) noexcept:
    """Takes `length` octets that were received where parser_get_buffer() said."""
    if take_payload(parser, frame_payload(parser.message) + parser.message.length, length) == FAILURE:
        return FAILURE
    if parser.frame_received < parser.frame_length:
        return NEED_DATA
    return end_frame(parser)


cdef class FrameParser:
    """The native parser for programs without I/O, and for tests: octets in, events out.

    Args:
        max_message_size: the longest message taken, in octets of payload.
        compression: a PermessageDeflate, as it was negotiated, or None.
    """

    cdef Parser parser
    cdef Inflater inflater

    def __cinit__(self, max_message_size=64 * 1024, compression=None):
        parser_init(&self.parser, 0)
        inflater_init(&self.inflater, 15, False)
        if compression is not None:
            self.inflater.window_bits = compression.client_max_window_bits
            self.inflater.keeps_history = not compression.client_no_context_takeover
            self.parser.inflater = &self.inflater
        if not isinstance(max_message_size, int) or not 0 <= max_message_size < 1 << 62:
            raise ConfigurationError("max_message_size must be an integer from 0 to 2**62 - 1")
        self.parser.max_message_size = max_message_size

    def __dealloc__(self):
        parser_clear(&self.parser)
        inflater_clear(&self.inflater)

    @property
    def stopped(self):
        """Whether a close frame or a failure has been read, after which all octets are ignored."""
        return self.parser.state == STOPPED

    def feed(self, data):
        """Reads `data` and returns the events that it completes, in order, as pairs of a name and a value.

        ``("message", Message)``, ``("ping", bytes)``, ``("pong", bytes)``, ``("close", (code, payload))``, and, as the
        last event of all, ``("failure", ProtocolError)``.
        """
        cdef const uint8_t[::1] view = data
        cdef const uint8_t *cursor = &view[0] if view.shape[0] else NULL
        cdef const uint8_t *end = cursor + view.shape[0]
        cdef list events = []
        cdef Event event

        if self.parser.state == STOPPED:
            return events
        while True:
            event = parser_next(&self.parser, &cursor, end)
            if event == NEED_DATA:
                return events
            if self.append_event(events, event):
                return events

    def feed_directly(self, data):
        """Reads `data` as :meth:`feed` does, but a large payload straight into its place, as a link would."""
        cdef const uint8_t[::1] view = data
        cdef size_t length = view.shape[0]
        cdef size_t room, offset = 0
        cdef uint8_t *buffer
        cdef list events = []
        cdef Event event

        while offset < length:
            room = min(parser_get_buffer(&self.parser, &buffer), length - offset)
            if room == 0:
                # The start of a frame; a link would have received it into its shared buffer.
                room = min(<size_t>64, length - offset)
                events += self.feed(data[offset:offset + room])
                offset += room
                continue
            memcpy(buffer, &view[offset], room)
            offset += room
            event = parser_buffer_updated(&self.parser, room)
            if event != NEED_DATA:
                self.append_event(events, event)
        return events

    cdef bint append_event(self, list events, Event event) except -1:
        """Appends the event as a pair; returns whether it was the last."""
        cdef FrameBuffer *control

        if event == MESSAGE:
            events.append(("message", message_from_frame(parser_take_message(&self.parser))))
            return False
        if event == FAILURE:
            reason = (<bytes>self.parser.failure_reason).decode("ascii")
            events.append(("failure", ProtocolError(self.parser.failure_code, reason)))
            return True
        control = parser_take_control(&self.parser)
        try:
            payload = frame_payload(control)[:control.length]
        finally:
            frame_release(control)
        if event == CLOSE:
            events.append(("close", (self.parser.close_code, payload)))
            return True
        events.append(("ping" if event == PING else "pong", payload))
        return False
