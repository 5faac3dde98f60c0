/* The constants of RFC 6455 that native code uses: opcodes, header bits, limits and close codes.
 *
 * They are declared here once. `opcodes.pxd` gives them to Cython; `frame.py` and `close_code.py` are their Python twins. */

#ifndef WSHUB_OPCODES_H
#define WSHUB_OPCODES_H

#include <stdint.h>

/* The role of this side. A client masks its frames, a server does not (section 5.1). */
#define WSHUB_SERVER 0
#define WSHUB_CLIENT 1

/* Opcodes (section 5.2). The other ten values of the four bits are reserved. */
#define WSHUB_CONTINUATION_OPCODE 0x0
#define WSHUB_TEXT_OPCODE 0x1
#define WSHUB_BINARY_OPCODE 0x2
#define WSHUB_CLOSE_OPCODE 0x8
#define WSHUB_PING_OPCODE 0x9
#define WSHUB_PONG_OPCODE 0xA

/* Bits of a header's first byte. RSV1 marks a compressed message (RFC 7692 section 6). */
#define WSHUB_FIN_BIT 0x80
#define WSHUB_RSV1_BIT 0x40
#define WSHUB_RESERVED_BITS 0x70
#define WSHUB_OPCODE_BITS 0x0F
/* Set in the opcodes of control frames only. */
#define WSHUB_CONTROL_BIT 0x08

/* Bits of the second byte. */
#define WSHUB_MASK_BIT 0x80
#define WSHUB_LENGTH_BITS 0x7F

/* Values of the length bits that announce a longer length field, of two or of eight bytes. */
#define WSHUB_LENGTH_IN_16_BITS 126
#define WSHUB_LENGTH_IN_64_BITS 127

#define WSHUB_MASK_KEY_SIZE 4
/* Two bytes, eight for a 64-bit length, and the masking key. */
#define WSHUB_MAX_HEADER_SIZE 14
/* Bytes of payload in a control frame (section 5.5). */
#define WSHUB_MAX_CONTROL_PAYLOAD 125

/* Close codes that native code reports (section 7.4.1). `NO_STATUS` never travels. */
#define WSHUB_PROTOCOL_ERROR 1002
#define WSHUB_NO_STATUS 1005
#define WSHUB_INVALID_DATA 1007
#define WSHUB_POLICY_VIOLATION 1008
#define WSHUB_MESSAGE_TOO_BIG 1009
#define WSHUB_INTERNAL_ERROR 1011

/* Whether a close frame may carry this code (section 7.4, and the IANA registry up to 1014). */
static inline int
wshub_is_valid_on_wire(uint16_t code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

#endif
