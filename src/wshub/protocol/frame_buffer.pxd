from libc.stdint cimport uint8_t, uint32_t


cdef extern from "frame_buffer.h" nogil:
    ctypedef struct FrameBuffer "wshub_frame":
        uint32_t references
        uint8_t opcode
        uint8_t header_length
        uint8_t window_bits
        uint8_t incompressible
        FrameBuffer *next_form
        size_t length
        size_t capacity

    const uint8_t RAW "WSHUB_RAW"

    uint8_t *frame_payload "wshub_frame_payload"(FrameBuffer *frame) noexcept
    const uint8_t *frame_wire "wshub_frame_wire"(const FrameBuffer *frame) noexcept
    size_t frame_wire_length "wshub_frame_wire_length"(const FrameBuffer *frame) noexcept
    bint frame_is_message "wshub_frame_is_message"(const FrameBuffer *frame) noexcept
    FrameBuffer *frame_new "wshub_frame_new"(uint8_t opcode, size_t capacity) noexcept
    FrameBuffer *frame_resize "wshub_frame_resize"(FrameBuffer *frame, size_t capacity) noexcept
    FrameBuffer *frame_retain "wshub_frame_retain"(FrameBuffer *frame) noexcept
    void frame_release "wshub_frame_release"(FrameBuffer *frame) noexcept
    void frame_seal "wshub_frame_seal"(FrameBuffer *frame, uint8_t opcode) noexcept
