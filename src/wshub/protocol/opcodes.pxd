"""Opcodes, header bits, limits and close codes of RFC 6455: one declaration for all native code."""

from libc.stdint cimport uint16_t


cdef extern from "opcodes.h" nogil:
    enum:
        # Roles
        SERVER "WSHUB_SERVER"
        CLIENT "WSHUB_CLIENT"

        # Opcodes
        CONTINUATION_OPCODE "WSHUB_CONTINUATION_OPCODE"
        TEXT_OPCODE "WSHUB_TEXT_OPCODE"
        BINARY_OPCODE "WSHUB_BINARY_OPCODE"
        CLOSE_OPCODE "WSHUB_CLOSE_OPCODE"
        PING_OPCODE "WSHUB_PING_OPCODE"
        PONG_OPCODE "WSHUB_PONG_OPCODE"

        # Bits of a header's first byte
        FIN_BIT "WSHUB_FIN_BIT"
        RSV1_BIT "WSHUB_RSV1_BIT"
        RESERVED_BITS "WSHUB_RESERVED_BITS"
        OPCODE_BITS "WSHUB_OPCODE_BITS"
        CONTROL_BIT "WSHUB_CONTROL_BIT"

        # Bits of the second byte
        MASK_BIT "WSHUB_MASK_BIT"
        LENGTH_BITS "WSHUB_LENGTH_BITS"

        # Values of the length bits that announce a longer length field
        LENGTH_IN_16_BITS "WSHUB_LENGTH_IN_16_BITS"
        LENGTH_IN_64_BITS "WSHUB_LENGTH_IN_64_BITS"

        # Limits
        MASK_KEY_SIZE "WSHUB_MASK_KEY_SIZE"
        MAX_HEADER_SIZE "WSHUB_MAX_HEADER_SIZE"
        MAX_CONTROL_PAYLOAD "WSHUB_MAX_CONTROL_PAYLOAD"

        # Close codes
        PROTOCOL_ERROR "WSHUB_PROTOCOL_ERROR"
        NO_STATUS "WSHUB_NO_STATUS"
        INVALID_DATA "WSHUB_INVALID_DATA"
        POLICY_VIOLATION "WSHUB_POLICY_VIOLATION"
        MESSAGE_TOO_BIG "WSHUB_MESSAGE_TOO_BIG"
        INTERNAL_ERROR "WSHUB_INTERNAL_ERROR"

    bint is_valid_on_wire "wshub_is_valid_on_wire"(uint16_t code) noexcept
