# cython: language_level=3
"""Writes frames for both roles: headers, and the masking of what a client sends (RFC 6455 sections 5.2 and 5.3).

A server's frames are shared by their receivers, so nothing here touches them. A client's frame is a masked copy: each
has a new key.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from wshub.protocol.frame_buffer cimport (
    FrameBuffer,
    frame_masked,
    frame_release,
    frame_retain,
    frame_wire,
    frame_wire_length,
)
from wshub.protocol.message cimport frame_from_data, frame_from_payload
from wshub.protocol.opcodes cimport (
    CLOSE_OPCODE,
    MASK_BIT,
    MASK_KEY_SIZE,
    MAX_CONTROL_PAYLOAD,
    MAX_HEADER_SIZE,
    PING_OPCODE,
    PONG_OPCODE,
)

import os

from wshub.errors import InvalidMessageError
from wshub.protocol.role import Role, check_role

cdef extern from "frame_header.h" nogil:
    size_t write_header "wshub_write_header"(uint8_t *end, uint8_t first, uint8_t mask_bit, uint64_t length) noexcept

cdef extern from "masking.h" nogil:
    void mask "wshub_mask"(uint8_t *destination, const uint8_t *source, size_t length, const uint8_t *key,
                           uint64_t position) noexcept

cdef enum:
    # A request to the operating system costs more than the keys, so one request brings as many.
    KEYS_PER_REQUEST = 64


def encode_header(uint8_t first, uint8_t mask_bit, uint64_t length):
    """Returns the header of a frame without its masking key.

    Args:
        first: the first byte: FIN, the reserved bits and the opcode.
        mask_bit: 0x80 if a masking key follows, or 0.
        length: bytes of payload.
    """
    cdef uint8_t[MAX_HEADER_SIZE] header
    cdef uint8_t *end = header + MAX_HEADER_SIZE
    cdef size_t size = write_header(end, first, mask_bit, length)
    return PyBytes_FromStringAndSize(<const char *>end - size, size)


def encode_frame(uint8_t first, const uint8_t[::1] payload, bytes mask_key=None):
    """Returns a whole frame, masked if there is a key.

    Args:
        first: the first byte: FIN, the reserved bits and the opcode.
        payload: the payload in the clear.
        mask_key: the four bytes of the masking key, or None for an unmasked frame.
    """
    cdef uint8_t[MAX_HEADER_SIZE] header
    cdef uint8_t *end = header + MAX_HEADER_SIZE
    cdef size_t length = payload.shape[0]
    cdef size_t size = write_header(end, first, 0 if mask_key is None else MASK_BIT, length)
    cdef size_t key_size = 0 if mask_key is None else MASK_KEY_SIZE
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, size + key_size + length)
    cdef uint8_t *place = <uint8_t *>PyBytes_AS_STRING(frame)
    memcpy(place, end - size, size)
    place += size
    if mask_key is not None:
        check_mask_key(mask_key)
        memcpy(place, PyBytes_AS_STRING(mask_key), MASK_KEY_SIZE)
        place += MASK_KEY_SIZE
    if length and mask_key is not None:
        mask(place, &payload[0], length, <const uint8_t *>PyBytes_AS_STRING(mask_key), 0)
    elif length:
        memcpy(place, &payload[0], length)
    return frame


def apply_mask(const uint8_t[::1] payload, bytes mask_key not None):
    """Returns ``payload`` masked with the four bytes of ``mask_key``. Masked twice, it is as before (section 5.3)."""
    cdef bytes masked = PyBytes_FromStringAndSize(NULL, payload.shape[0])
    check_mask_key(mask_key)
    if payload.shape[0]:
        mask(<uint8_t *>PyBytes_AS_STRING(masked), &payload[0], payload.shape[0],
             <const uint8_t *>PyBytes_AS_STRING(mask_key), 0)
    return masked


cdef int check_mask_key(bytes mask_key) except -1:
    """Raises InvalidMessageError unless the key has four bytes."""
    if PyBytes_GET_SIZE(mask_key) != MASK_KEY_SIZE:
        raise InvalidMessageError(f"a mask key has {MASK_KEY_SIZE} bytes, not {len(mask_key)}")
    return 0


cdef class FrameWriter:
    """Writes the frames of one side of a connection.

    Masking keys must be unpredictable and new for each frame (RFC 6455 section 10.3). A writer serves one connection:
    after a fork, a writer that both processes use would repeat its keys.

    Args:
        role: the side that writes.
        random_bytes: returns as many random bytes as its argument says. The default is the operating system's source;
            a test may pass another.
    """

    def __cinit__(self, role, random_bytes=os.urandom):
        self.role = check_role(role)
        self.masks = role is Role.CLIENT
        self.random_bytes = random_bytes
        self.keys = b""
        self.next_key = 0

    cdef const uint8_t *take_key(self) except NULL:
        """Returns a new masking key, valid until the next call."""
        cdef Py_ssize_t place = self.next_key
        cdef bytes keys
        if place == PyBytes_GET_SIZE(self.keys):
            keys = self.random_bytes(KEYS_PER_REQUEST * MASK_KEY_SIZE)
            if PyBytes_GET_SIZE(keys) != KEYS_PER_REQUEST * MASK_KEY_SIZE:
                raise InvalidMessageError("random_bytes() must return as many bytes as it is called with")
            self.keys = keys
            place = 0
        self.next_key = place + MASK_KEY_SIZE
        return <const uint8_t *>PyBytes_AS_STRING(self.keys) + place

    cdef FrameBuffer *outgoing(self, FrameBuffer *frame) except NULL:
        """Returns a sealed frame as this role sends it: as it is, or a masked copy. The caller owns the reference."""
        cdef FrameBuffer *masked
        if not self.masks:
            return frame_retain(frame)
        masked = frame_masked(frame, self.take_key())
        if masked == NULL:
            raise MemoryError
        return masked

    cdef bytes encode(self, FrameBuffer *frame):
        """Returns the bytes of a frame as this role sends it, and releases the caller's reference."""
        cdef FrameBuffer *sent
        try:
            sent = self.outgoing(frame)
        finally:
            frame_release(frame)
        try:
            return PyBytes_FromStringAndSize(<const char *>frame_wire(sent), frame_wire_length(sent))
        finally:
            frame_release(sent)

    def message(self, data):
        """Returns the frame of a whole message: a str as text, an object with a buffer as binary, or a Message.

        Raises TypeError and InvalidMessageError as ``Message`` does.
        """
        return self.encode(frame_from_data(data))

    def control(self, uint8_t opcode, payload=b""):
        """Returns a close, ping or pong frame.

        Raises InvalidMessageError for another opcode and for more than 125 bytes of payload. The payload of a close
        frame is not checked: ``encode_close_payload`` makes it.
        """
        cdef FrameBuffer *frame
        if opcode not in (CLOSE_OPCODE, PING_OPCODE, PONG_OPCODE):
            raise InvalidMessageError(f"{opcode} is not the opcode of a control frame")
        frame = frame_from_payload(payload, opcode)
        if frame.length > MAX_CONTROL_PAYLOAD:
            length = frame.length
            frame_release(frame)
            raise InvalidMessageError(f"a control frame has at most {MAX_CONTROL_PAYLOAD} bytes, not {length}")
        return self.encode(frame)
