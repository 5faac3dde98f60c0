from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "delivery_counters.h" nogil:
    ctypedef int Outcome "wshub_outcome"

    cdef enum:
        DELIVERED "WSHUB_DELIVERED"
        DROPPED_CLOSED "WSHUB_DROPPED_CLOSED"
        DROPPED_SLOW "WSHUB_DROPPED_SLOW"
        DROPPED_NEWEST "WSHUB_DROPPED_NEWEST"
        DROPPED_OLDEST "WSHUB_DROPPED_OLDEST"
        REPLACED "WSHUB_REPLACED"

    ctypedef struct DeliveryCounters "wshub_delivery_counters":
        uint64_t accepted
        uint64_t pending
        uint64_t outcomes[6]

    DeliveryCounters *delivery_counters_new "wshub_delivery_counters_new"() noexcept
    void delivery_counters_release "wshub_delivery_counters_release"(DeliveryCounters *delivery_counters) noexcept


cdef extern from "frame_buffer.h" nogil:
    ctypedef struct FrameBuffer "wshub_frame":
        uint32_t references
        uint8_t opcode
        uint8_t header_length
        uint8_t window_bits
        uint8_t incompressible
        uint8_t uses_context
        uint8_t droppable
        FrameBuffer *next_form
        DeliveryCounters *delivery_counters
        uint64_t conflation_key
        size_t length
        size_t capacity

    const uint8_t RAW "WSHUB_RAW"

    uint8_t *frame_payload "wshub_frame_payload"(FrameBuffer *frame) noexcept
    const uint8_t *frame_wire "wshub_frame_wire"(const FrameBuffer *frame) noexcept
    size_t frame_wire_length "wshub_frame_wire_length"(const FrameBuffer *frame) noexcept
    bint frame_is_message "wshub_frame_is_message"(const FrameBuffer *frame) noexcept
    FrameBuffer *frame_retain "wshub_frame_retain"(FrameBuffer *frame) noexcept
    void frame_set_metadata "wshub_frame_set_metadata"(
        FrameBuffer *frame, uint64_t conflation_key, DeliveryCounters *counters, bint droppable
    ) noexcept
    void frame_seal "wshub_frame_seal"(FrameBuffer *frame, uint8_t opcode) noexcept


# These use Python's allocator, so they need the GIL.
cdef extern from "frame_buffer.h":
    FrameBuffer *frame_new "wshub_frame_new"(uint8_t opcode, size_t capacity) noexcept
    FrameBuffer *frame_resize "wshub_frame_resize"(FrameBuffer *frame, size_t capacity) noexcept
    void frame_release "wshub_frame_release"(FrameBuffer *frame) noexcept
    FrameBuffer *frame_masked "wshub_frame_masked"(const FrameBuffer *frame, const uint8_t *key) noexcept
    FrameBuffer *frame_with_metadata "wshub_frame_with_metadata"(
        FrameBuffer *frame, uint32_t holders, uint64_t conflation_key, DeliveryCounters *counters, bint droppable
    ) noexcept
