# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The incremental parser of frames, for both roles (RFC 6455 sections 5 and 8.1, RFC 7692 section 6).

The rules of this file:

- It takes any bytes and gives events. Only :class:`FrameParser` calls into Python.
- A length from the network is compared while it is unsigned, before it is added to anything or allocated.
- After a failure or a close frame it ignores all bytes.
- A role costs a server nothing: what differs between the roles stands in the struct, as values to compare with.
"""

from libc.stddef cimport size_t
from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

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
from wshub.protocol.opcodes cimport (
    BINARY_OPCODE,
    CLIENT,
    CLOSE_OPCODE,
    CONTINUATION_OPCODE,
    CONTROL_BIT,
    FIN_BIT,
    INTERNAL_ERROR,
    INVALID_DATA,
    LENGTH_IN_16_BITS,
    MASK_BIT,
    MASK_KEY_SIZE,
    MAX_CONTROL_PAYLOAD,
    MESSAGE_TOO_BIG,
    NO_STATUS,
    OPCODE_BITS,
    PING_OPCODE,
    POLICY_VIOLATION,
    PONG_OPCODE,
    PROTOCOL_ERROR,
    RESERVED_BITS,
    RSV1_BIT,
    SERVER,
    TEXT_OPCODE,
    is_valid_on_wire,
)

from wshub.errors import ConfigurationError, ProtocolError
from wshub.protocol.role import Role, check_role


cdef extern from "masking.h" nogil:
    void apply_mask "wshub_mask"(uint8_t *destination, const uint8_t *source, size_t length,
                                 const uint8_t *key, uint64_t position) noexcept

cdef extern from "utf8.h" nogil:
    int utf8_validate "wshub_utf8_validate"(Utf8State *state, const uint8_t *text, size_t length) noexcept

cdef enum:
    # With fewer bytes to come it is better to receive into the shared buffer, together with the next frames.
    DIRECT_RECEIVE_THRESHOLD = 8192
    # Bytes that a header alone makes the parser allocate for its payload, at most.
    MAX_RESERVED_BY_HEADER = 1 << 20


cdef void parser_init(Parser *parser, uint8_t role, uint64_t max_message_size) noexcept:
    """Makes a parser for what the peer of that role sends: SERVER reads masked frames, CLIENT unmasked ones."""
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
    parser.expected_mask_bit = MASK_BIT if role == SERVER else 0
    parser.shortest_header = 2 + (MASK_KEY_SIZE if role == SERVER else 0)
    memset(parser.mask, 0, MASK_KEY_SIZE)
    parser.state = IN_HEADER
    parser.opcode = 0
    parser.message_opcode = 0
    parser.final = True
    parser.compressed = False
    parser.utf8.missing = 0


cdef void parser_clear(Parser *parser) noexcept:
    """Releases all frames of the parser, and stops it."""
    parser.state = STOPPED
    frame_release(parser.message)
    parser.message = NULL
    frame_release(parser.control)
    parser.control = NULL


cdef FrameBuffer *parser_take_message(Parser *parser) noexcept:
    """Returns the message of a MESSAGE event. The caller owns it."""
    cdef FrameBuffer *message = parser.message
    parser.message = NULL
    return message


cdef FrameBuffer *parser_take_control(Parser *parser) noexcept:
    """Returns the payload of a PING, PONG or CLOSE event, not sealed. The caller owns it."""
    cdef FrameBuffer *control = parser.control
    parser.control = NULL
    return control


cdef Event fail(Parser *parser, uint16_t code, const char *reason) noexcept:
    parser.failure_code = code
    parser.failure_reason = reason
    parser_clear(parser)
    return FAILURE


cdef Event fail_for_masking(Parser *parser) noexcept:
    if parser.expected_mask_bit:
        return fail(parser, PROTOCOL_ERROR, b"a client's frame is not masked")
    return fail(parser, PROTOCOL_ERROR, b"a server's frame is masked")


cdef uint8_t length_bits(const Parser *parser, const uint8_t *header) noexcept nogil:
    """Returns the length bits of a header; with MASK_BIT if the mask bit is not as this role expects it."""
    return header[1] ^ parser.expected_mask_bit


cdef size_t length_size(uint64_t length) noexcept nogil:
    """Returns the bytes of a length that does not fit into the length bits, which have `length`; 0 if it fits."""
    if length < LENGTH_IN_16_BITS:
        return 0
    return 2 if length == LENGTH_IN_16_BITS else 8


cdef size_t header_size(const Parser *parser, const uint8_t *header) noexcept nogil:
    """Returns the length of a header by its second byte. With a wrong mask bit the frame is refused, whatever it is."""
    return parser.shortest_header + length_size(length_bits(parser, header))


cdef bint may_be_compressed(Parser *parser, uint8_t opcode) noexcept nogil:
    """Whether RSV1 may be set: it marks the first frame of a compressed message (RFC 7692 section 6)."""
    return parser.inflater != NULL and (opcode == TEXT_OPCODE or opcode == BINARY_OPCODE)


cdef Event check_start(Parser *parser, uint8_t first, uint64_t length) noexcept:
    """Checks a header by its first byte and its length_bits(). Returns NEED_DATA if they are valid, or FAILURE."""
    cdef uint8_t opcode = first & OPCODE_BITS

    if first & RESERVED_BITS and (first & RESERVED_BITS != RSV1_BIT or not may_be_compressed(parser, opcode)):
        return fail(parser, PROTOCOL_ERROR, b"a reserved bit is set")
    if length & MASK_BIT:
        return fail_for_masking(parser)
    if opcode & CONTROL_BIT:
        if opcode > PONG_OPCODE:
            return fail(parser, PROTOCOL_ERROR, b"a reserved opcode")
        if not first & FIN_BIT:
            return fail(parser, PROTOCOL_ERROR, b"a fragmented control frame")
        if length > MAX_CONTROL_PAYLOAD:
            return fail(parser, PROTOCOL_ERROR, b"a control frame above 125 bytes")
    elif opcode > BINARY_OPCODE:
        return fail(parser, PROTOCOL_ERROR, b"a reserved opcode")
    elif opcode == CONTINUATION_OPCODE and parser.message_opcode == 0:
        return fail(parser, PROTOCOL_ERROR, b"a continuation of no message")
    elif opcode != CONTINUATION_OPCODE and parser.message_opcode != 0:
        return fail(parser, PROTOCOL_ERROR, b"a new message within a fragmented one")
    return NEED_DATA


cdef Event read_length(Parser *parser, const uint8_t *header, size_t extended, uint64_t *length) noexcept:
    """Reads a payload length of `extended` bytes behind the first two. Returns NEED_DATA if it is valid, or FAILURE."""
    cdef size_t place

    length[0] = 0
    for place in range(extended):
        length[0] = length[0] << 8 | header[2 + place]
    if length[0] >> 63:
        return fail(parser, PROTOCOL_ERROR, b"a payload length with its highest bit set")
    if length[0] < LENGTH_IN_16_BITS or (extended == 8 and length[0] <= 0xFFFF):
        return fail(parser, PROTOCOL_ERROR, b"a payload length in more bytes than needed")
    return NEED_DATA


cdef Event check_incomplete_header(Parser *parser) noexcept:
    """Checks as much of parser.header as has arrived, two bytes at least. Returns NEED_DATA, or FAILURE."""
    cdef uint64_t length = length_bits(parser, parser.header)
    cdef size_t extended = length_size(length)

    if check_start(parser, parser.header[0], length) == FAILURE:
        return FAILURE
    if extended and parser.header_length >= 2 + extended:
        return read_length(parser, parser.header, extended, &length)
    return NEED_DATA


cdef Event begin_frame(Parser *parser, const uint8_t *header) noexcept:
    """Takes a whole header. Returns NEED_DATA if the payload can be read now, or FAILURE."""
    cdef uint8_t opcode = header[0] & OPCODE_BITS
    cdef uint64_t length = length_bits(parser, header)
    cdef size_t extended = length_size(length)

    if check_start(parser, header[0], length) == FAILURE:
        return FAILURE
    if extended and read_length(parser, header, extended, &length) == FAILURE:
        return FAILURE
    if parser.expected_mask_bit:
        # A client's parser keeps the key of zeros, which changes nothing.
        memcpy(parser.mask, header + 2 + extended, MASK_KEY_SIZE)
    parser.opcode = opcode
    parser.final = (header[0] & FIN_BIT) != 0
    parser.frame_length = length
    parser.frame_received = 0
    parser.state = IN_PAYLOAD
    if opcode & CONTROL_BIT:
        parser.control = frame_new(opcode, <uint8_t>length)
        if parser.control == NULL:
            return fail(parser, INTERNAL_ERROR, b"out of memory")
        return NEED_DATA
    if opcode != CONTINUATION_OPCODE:
        parser.compressed = (header[0] & RSV1_BIT) != 0
    return begin_data(parser, opcode, length)


cdef uint64_t payload_limit(Parser *parser) noexcept nogil:
    """Returns the maximum bytes of all frames of the message.

    The compressed form of a message may be longer than the message, by an eighth at most.
    """
    if parser.compressed:
        return parser.max_message_size + parser.max_message_size // 8 + 64
    return parser.max_message_size


cdef bint reserve(Parser *parser, uint64_t more) noexcept:
    """Makes space for `more` bytes of the message. Returns False if there is no memory."""
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
    """Checks the length of a data frame against the limit, and makes space for its payload.

    A peer may declare a length and send nothing. So a header reserves only a part of a long payload; take_payload()
    reserves the rest as it arrives.
    """
    cdef uint64_t so_far = parser.message.length if parser.message != NULL else 0

    if length > payload_limit(parser) - so_far:
        return fail(parser, MESSAGE_TOO_BIG, b"a message above the size allowed")
    if opcode != CONTINUATION_OPCODE:
        parser.message_opcode = opcode
        parser.fragments = 0
        parser.utf8.missing = 0
        parser.message = frame_new(opcode, <size_t>min(length, MAX_RESERVED_BY_HEADER))
        if parser.message == NULL:
            return fail(parser, INTERNAL_ERROR, b"out of memory")
        return NEED_DATA
    parser.fragments += 1
    if parser.fragments > parser.max_fragments:
        return fail(parser, POLICY_VIOLATION, b"a message in more fragments than allowed")
    if not reserve(parser, min(length, MAX_RESERVED_BY_HEADER)):
        return fail(parser, INTERNAL_ERROR, b"out of memory")
    return NEED_DATA


cdef Event end_close(Parser *parser) noexcept:
    cdef uint8_t *payload = frame_payload(parser.control)
    cdef size_t length = parser.control.length
    cdef Utf8State utf8

    if length == 0:
        parser.close_code = NO_STATUS
    elif length == 1:
        return fail(parser, PROTOCOL_ERROR, b"a close frame with half a code")
    else:
        parser.close_code = <uint16_t>(payload[0] << 8 | payload[1])
        if not is_valid_on_wire(parser.close_code):
            return fail(parser, PROTOCOL_ERROR, b"an invalid close code")
        utf8.missing = 0
        if utf8_validate(&utf8, payload + 2, length - 2) < 0 or utf8.missing:
            return fail(parser, INVALID_DATA, b"a close reason that is not UTF-8")
    parser.state = STOPPED
    frame_release(parser.message)
    parser.message = NULL
    return CLOSE


cdef Event inflate(Parser *parser) noexcept:
    """Replaces the whole message with its decompressed form. Returns NEED_DATA, or FAILURE."""
    cdef FrameBuffer *plain
    cdef InflateResult result = inflate_message(parser.inflater, parser.message, parser.max_message_size, &plain)
    if result == TOO_LARGE:
        return fail(parser, MESSAGE_TOO_BIG, b"a message above the size allowed")
    if result == INVALID:
        return fail(parser, INVALID_DATA, b"a message that cannot be decompressed")
    if result == NO_MEMORY:
        return fail(parser, INTERNAL_ERROR, b"out of memory")
    if result == WASTEFUL:
        return fail(parser, POLICY_VIOLATION, b"a message in more blocks than allowed")
    frame_release(parser.message)
    parser.message = plain
    parser.inflating_work += plain.length + parser.inflater.work
    if parser.message_opcode == TEXT_OPCODE and utf8_validate(&parser.utf8, frame_payload(plain), plain.length) < 0:
        return fail(parser, INVALID_DATA, b"a text message that is not UTF-8")
    return NEED_DATA


cdef Event end_frame(Parser *parser) noexcept:
    """Ends a frame whose payload is complete. Returns its event, or NEED_DATA after a fragment that is not the last."""
    parser.state = IN_HEADER
    if parser.opcode == CLOSE_OPCODE:
        return end_close(parser)
    if parser.opcode == PING_OPCODE:
        return PING
    if parser.opcode == PONG_OPCODE:
        return PONG
    if not parser.final:
        return NEED_DATA
    if parser.compressed and inflate(parser) == FAILURE:
        return FAILURE
    if parser.utf8.missing:
        return fail(parser, INVALID_DATA, b"a text message that ends within a character")
    frame_seal(parser.message, parser.message_opcode)
    parser.message_opcode = 0
    return MESSAGE


cdef Event take_payload(Parser *parser, const uint8_t *source, size_t length) noexcept:
    """Appends `length` bytes, no more than the frame still lacks. They may stand in their final place already.

    Returns NEED_DATA, or FAILURE.
    """
    cdef FrameBuffer *target
    cdef uint8_t *destination

    if parser.opcode & CONTROL_BIT:
        target = parser.control
    elif reserve(parser, length):
        target = parser.message
    else:
        return fail(parser, INTERNAL_ERROR, b"out of memory")
    destination = frame_payload(target) + target.length
    apply_mask(destination, source, length, parser.mask, parser.frame_received)
    target.length += length
    parser.frame_received += length
    if target == parser.message and parser.message_opcode == TEXT_OPCODE and not parser.compressed:
        if utf8_validate(&parser.utf8, destination, length) < 0:
            return fail(parser, INVALID_DATA, b"a text message that is not UTF-8")
    return NEED_DATA


cdef size_t take_header(Parser *parser, const uint8_t *data, size_t available) noexcept nogil:
    """Keeps the available part of an incomplete header. Returns the number of bytes taken.

    The header is complete when parser.header_length has reached header_size(parser, parser.header).
    """
    cdef size_t taken = 0
    while taken < available:
        if parser.header_length >= 2 and parser.header_length == header_size(parser, parser.header):
            break
        parser.header[parser.header_length] = data[taken]
        parser.header_length += 1
        taken += 1
    return taken


cdef Event parser_next(Parser *parser, const uint8_t **cursor, const uint8_t *end) noexcept:
    """Reads from `cursor[0]` to the next event, at most to `end`, and moves the cursor behind the bytes read."""
    cdef Event event
    cdef size_t available, length

    while parser.state != STOPPED:
        available = end - cursor[0]
        if parser.state == IN_HEADER:
            if parser.header_length == 0 and available >= 2 and available >= header_size(parser, cursor[0]):
                length = header_size(parser, cursor[0])
                event = begin_frame(parser, cursor[0])
                cursor[0] += length
            else:
                cursor[0] += take_header(parser, cursor[0], available)
                if parser.header_length < 2:
                    return NEED_DATA
                if parser.header_length < header_size(parser, parser.header):
                    if check_incomplete_header(parser) == FAILURE:
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
    """Sets `buffer` to where the rest of a large data frame can be received without a copy.

    Returns the number of bytes that fit there, or 0 if there is no such place. After receiving, call
    parser_buffer_updated().
    """
    cdef uint64_t rest = parser.frame_length - parser.frame_received
    if parser.state != IN_PAYLOAD or parser.opcode & CONTROL_BIT or rest < DIRECT_RECEIVE_THRESHOLD:
        return 0
    if not reserve(parser, DIRECT_RECEIVE_THRESHOLD):
        # take_payload() will find the same, and report it.
        return 0
    buffer[0] = frame_payload(parser.message) + parser.message.length
    return <size_t>min(rest, <uint64_t>(parser.message.capacity - parser.message.length))


cdef Event parser_buffer_updated(Parser *parser, size_t length) noexcept:
    """Takes `length` bytes that were received in the buffer of parser_get_buffer()."""
    if take_payload(parser, frame_payload(parser.message) + parser.message.length, length) == FAILURE:
        return FAILURE
    if parser.frame_received < parser.frame_length:
        return NEED_DATA
    return end_frame(parser)


cdef class FrameParser:
    """The native parser for programs without I/O, and for tests: bytes in, events out.

    Args:
        max_message_size: maximum bytes of a message's payload.
        compression: the PermessageDeflate that was negotiated, or None.
        role: the side that reads. A server refuses unmasked frames with 1002, a client masked ones.
    """

    cdef Parser parser
    cdef Inflater inflater

    def __cinit__(self, max_message_size=64 * 1024, compression=None, role=Role.SERVER):
        cdef bint is_client = check_role(role) is Role.CLIENT
        parser_init(&self.parser, CLIENT if is_client else SERVER, 0)
        inflater_init(&self.inflater, 15, False)
        if compression is not None:
            if is_client:
                self.inflater.window_bits = compression.server_max_window_bits
                self.inflater.keeps_context = not compression.server_no_context_takeover
            else:
                self.inflater.window_bits = compression.client_max_window_bits
                self.inflater.keeps_context = not compression.client_no_context_takeover
            self.parser.inflater = &self.inflater
        if not isinstance(max_message_size, int) or not 0 <= max_message_size < 1 << 62:
            raise ConfigurationError("max_message_size must be an integer from 0 to 2**62 - 1")
        self.parser.max_message_size = max_message_size

    def __dealloc__(self):
        parser_clear(&self.parser)
        inflater_clear(&self.inflater)

    @property
    def stopped(self):
        """Whether the parser has read a close frame or a failure. It ignores all bytes that follow."""
        return self.parser.state == STOPPED

    def feed(self, data):
        """Reads `data` and returns the events that it completes, in order, as pairs of a name and a value.

        The events are ``("message", Message)``, ``("ping", bytes)``, ``("pong", bytes)`` and
        ``("close", (code, payload))``. ``("failure", ProtocolError)`` is always the last one.
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
        """Reads `data` as :meth:`feed` does, but puts a large payload straight into its place, as a link would."""
        cdef const uint8_t[::1] view = data
        cdef size_t length = view.shape[0]
        cdef size_t space, offset = 0
        cdef uint8_t *buffer
        cdef list events = []
        cdef Event event

        while offset < length:
            space = min(parser_get_buffer(&self.parser, &buffer), length - offset)
            if space == 0:
                # The start of a frame: a link would have received it into its shared buffer.
                space = min(<size_t>64, length - offset)
                events += self.feed(data[offset:offset + space])
                offset += space
                continue
            memcpy(buffer, &view[offset], space)
            offset += space
            event = parser_buffer_updated(&self.parser, space)
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
