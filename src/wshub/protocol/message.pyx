# cython: language_level=3
"""A text or binary message, kept as the frame that travels (RFC 6455 section 5.6)."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
cimport cython

from wshub.protocol.frame_buffer cimport (
    RAW,
    FrameBuffer,
    DeliveryCounters,
    frame_with_metadata,
    frame_new,
    frame_payload,
    frame_release,
    frame_retain,
    frame_seal,
    frame_wire,
    frame_wire_length,
)
from wshub.protocol.json_text cimport decode_json
from wshub.protocol.opcodes cimport BINARY_OPCODE, TEXT_OPCODE

import enum

from wshub.errors import InvalidMessageError, UnexpectedMessageError

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


class MessageType(enum.Enum):
    """The type of a message's payload. The values are the opcodes of RFC 6455 section 5.2."""

    TEXT = TEXT_OPCODE
    BINARY = BINARY_OPCODE


cdef object TEXT_TYPE = MessageType.TEXT
cdef object BINARY_TYPE = MessageType.BINARY


cdef FrameBuffer *frame_from_bytes(const void *source, size_t length, uint8_t opcode) except NULL:
    """Returns a sealed frame with a copy of the payload; RAW bytes get no header. The caller owns it.

    Raises MemoryError.
    """
    cdef FrameBuffer *frame = frame_new(opcode, length)
    if frame == NULL:
        raise MemoryError
    memcpy(frame_payload(frame), source, length)
    frame.length = length
    if opcode != RAW:
        frame_seal(frame, opcode)
    return frame


cdef inline const char *encode_text(object text, Py_ssize_t *length) except NULL:
    """Returns the UTF-8 of a str, which owns it. Raises InvalidMessageError if there is none."""
    try:
        return PyUnicode_AsUTF8AndSize(text, length)
    except UnicodeEncodeError as error:
        raise InvalidMessageError(f"text with a lone surrogate cannot be sent as UTF-8: {error}") from None


cdef FrameBuffer *frame_from_text(object text, uint8_t opcode) except NULL:
    cdef Py_ssize_t length
    cdef const char *source = encode_text(text, &length)
    return frame_from_bytes(source, length, opcode)


cdef int check_contiguous(object data) except -1:
    """Raises InvalidMessageError if the buffer of an object has gaps."""
    if not memoryview(data).c_contiguous:
        raise InvalidMessageError(
            f"the buffer of this {type(data).__name__} is not contiguous: send bytes(data), which copies it"
        )
    return 0


cdef FrameBuffer *frame_from_payload(object data, uint8_t opcode) except NULL:
    """Returns a sealed frame of that opcode: a str becomes UTF-8, an object with a buffer its bytes.

    Raises TypeError for anything else. Raises InvalidMessageError for text that UTF-8 cannot encode, and for a buffer
    with gaps.
    """
    cdef Py_buffer buffer
    cdef FrameBuffer *frame

    if isinstance(data, bytes):
        return frame_from_bytes(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), opcode)
    if isinstance(data, str):
        return frame_from_text(data, opcode)
    try:
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    except TypeError:
        raise TypeError(
            f"a message is a str, bytes, bytearray, memoryview or Message, not {type(data).__name__}"
        ) from None
    except (BufferError, ValueError):
        check_contiguous(data)
        raise
    try:
        frame = frame_from_bytes(buffer.buf, buffer.len, opcode)
    finally:
        PyBuffer_Release(&buffer)
    return frame


cdef FrameBuffer *frame_from_data(object data) except NULL:
    """Returns the frame of a message. A Message shares its frame, a str becomes text, an object with a buffer binary.

    The caller owns one reference to it.
    """
    if isinstance(data, Message):
        (<Message>data).check()
        return frame_retain((<Message>data).frame)
    if isinstance(data, str):
        return frame_from_text(data, TEXT_OPCODE)
    return frame_from_payload(data, BINARY_OPCODE)


cdef object payload_from_data(object data, Payload *payload):
    """Fills in what frame_from_data() would make a frame of. Returns what owns it. Raises as frame_from_data()."""
    cdef Py_ssize_t length
    if isinstance(data, str):
        payload.opcode = TEXT_OPCODE
        payload.data = <const uint8_t *>encode_text(data, &length)
        payload.length = length
        return data
    message = data if isinstance(data, Message) else Message(data)
    (<Message>message).check()
    payload[0] = payload_of_frame((<Message>message).frame)
    return message


cdef FrameBuffer *frame_with_metadata_from_data(
    object data, uint64_t conflation_key, DeliveryCounters *counters, bint droppable
) except NULL:
    """Returns frame_from_data() with what a queue must know. A Message's frame keeps it if no queue has the frame."""
    cdef FrameBuffer *frame = frame_from_data(data)
    cdef uint32_t holders = 2 if isinstance(data, Message) else 1
    cdef FrameBuffer *result = frame_with_metadata(frame, holders, conflation_key, counters, droppable)
    if result == NULL:
        frame_release(frame)
        raise MemoryError
    return result


cdef Message message_from_frame(FrameBuffer *frame):
    """Returns a message that takes over the caller's reference to a sealed text or binary frame."""
    cdef Message message
    try:
        message = Message.__new__(Message)
    except MemoryError:
        frame_release(frame)
        raise
    message.frame = frame
    return message


cdef str text_of(Message message):
    """Return the payload of a text message. Raise UnexpectedMessageError for a binary one."""
    message.check()
    if message.frame.opcode != TEXT_OPCODE:
        raise UnexpectedMessageError(1003, "expected a text message")
    return message.data


cdef bytes bytes_of(Message message):
    """Return the payload of a binary message. Raise UnexpectedMessageError for a text message."""
    message.check()
    if message.frame.opcode != BINARY_OPCODE:
        raise UnexpectedMessageError(1003, "expected a binary message")
    return message.data


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Message:
    """One whole message, received or to be sent.

    It holds its payload once, as the frame that goes over the wire. So ``send`` and ``broadcast`` pass a received
    message on without decoding or copying it. A message is immutable, and you may keep it.

    Args:
        data: a str makes a text message. Bytes, or any object with a contiguous buffer, make a binary one.

    Raises:
        TypeError: ``data`` is neither.
        InvalidMessageError: ``data`` is a str with a lone surrogate, or a buffer that is not contiguous.
    """

    def __cinit__(self, *arguments):
        self.frame = NULL
        self.payload = None

    def __init__(self, data):
        # The new frame comes first: if it fails, a message that is initialised twice must keep its old one.
        cdef FrameBuffer *frame = frame_from_data(data)
        frame_release(self.frame)
        self.frame = frame
        self.payload = None

    def __dealloc__(self):
        frame_release(self.frame)

    cdef int check(self) except -1:
        if self.frame == NULL:
            raise TypeError("Message.__init__() was not called")
        return 0

    @property
    def data(self):
        """The payload: a str for a text message, bytes for a binary one. It is decoded at the first use and kept."""
        if self.payload is None:
            self.check()
            if self.frame.opcode == TEXT_OPCODE:
                self.payload = PyUnicode_DecodeUTF8(
                    <const char *>frame_payload(self.frame), self.frame.length, NULL
                )
            else:
                self.payload = PyBytes_FromStringAndSize(
                    <const char *>frame_payload(self.frame), self.frame.length
                )
        return self.payload

    @property
    def type(self):
        """MessageType.TEXT or MessageType.BINARY."""
        self.check()
        return TEXT_TYPE if self.frame.opcode == TEXT_OPCODE else BINARY_TYPE

    def json(self):
        """Return the value of a text message that is JSON.

        Raises:
            UnexpectedMessageError: the message is binary, or its text is no JSON. If a handler does not catch the
                error, the hub closes the connection with 1003 or 1007.
        """
        return decode_json(text_of(self))

    @property
    def frame_bytes(self):
        """The unmasked frame, header and payload, as it goes over the wire."""
        self.check()
        return PyBytes_FromStringAndSize(
            <const char *>frame_wire(self.frame), frame_wire_length(self.frame)
        )

    def __bytes__(self):
        self.check()
        return PyBytes_FromStringAndSize(<const char *>frame_payload(self.frame), self.frame.length)

    def __len__(self):
        """The length of the payload in bytes. For text, that is not the number of characters."""
        self.check()
        return self.frame.length

    def __bool__(self):
        return True

    def __eq__(self, other):
        if not isinstance(other, Message):
            return NotImplemented
        return self.type is other.type and bytes(self) == bytes(other)

    def __hash__(self):
        return hash((self.type, bytes(self)))

    def __repr__(self):
        return f"<Message {self.type.name.lower()}, {len(self)} bytes>"

    def __reduce__(self):
        return Message, (self.data,)
