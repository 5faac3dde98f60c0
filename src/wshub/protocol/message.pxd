from libc.stdint cimport uint8_t, uint64_t

from wshub.protocol.frame_buffer cimport FrameBuffer, DeliveryCounters, frame_payload


# The payload of a message, and where it lies in memory.
ctypedef struct Payload:
    uint8_t opcode       # TEXT_OPCODE or BINARY_OPCODE
    const uint8_t *data  # borrowed
    size_t length


cdef inline Payload payload_of_frame(FrameBuffer *frame) noexcept:
    """Returns the payload of a sealed frame, which owns it."""
    return Payload(opcode=frame.opcode, data=frame_payload(frame), length=frame.length)


cdef class Message:
    cdef FrameBuffer *frame  # owned, sealed; never NULL after __cinit__
    cdef object payload      # the str or bytes made of it, once it was used
    cdef int check(self) except -1


cdef str text_of(Message message)
cdef bytes bytes_of(Message message)
cdef Message message_from_frame(FrameBuffer *frame)
cdef FrameBuffer *frame_from_bytes(const void *source, size_t length, uint8_t opcode) except NULL
cdef FrameBuffer *frame_from_data(object data) except NULL
cdef object payload_from_data(object data, Payload *payload)
cdef FrameBuffer *frame_with_metadata_from_data(
    object data, uint64_t conflation_key, DeliveryCounters *counters, bint droppable
) except NULL
cdef FrameBuffer *frame_from_payload(object data, uint8_t opcode) except NULL
