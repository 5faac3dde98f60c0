/* Writes the headers of frames (RFC 6455 section 5.2), for both roles. */

#ifndef WSHUB_FRAME_HEADER_H
#define WSHUB_FRAME_HEADER_H

#include <stddef.h>
#include <stdint.h>

#include "opcodes.h"

/* Writes a header in front of `end`, up to but without the masking key. Returns its length: 2, 4 or 10 bytes, as few as the
 * payload's length needs. `first` is the first byte. `mask_bit` is WSHUB_MASK_BIT if a masking key follows, or 0. */
static inline size_t
wshub_write_header(uint8_t *end, uint8_t first, uint8_t mask_bit, uint64_t length)
{
    if (length < WSHUB_LENGTH_IN_16_BITS) {
        end[-1] = (uint8_t)(mask_bit | length);
        end[-2] = first;
        return 2;
    }
    if (length <= 0xFFFF) {
        end[-1] = (uint8_t)length;
        end[-2] = (uint8_t)(length >> 8);
        end[-3] = mask_bit | WSHUB_LENGTH_IN_16_BITS;
        end[-4] = first;
        return 4;
    }
    for (int place = 1; place <= 8; place++) {
        end[-place] = (uint8_t)length;
        length >>= 8;
    }
    end[-9] = mask_bit | WSHUB_LENGTH_IN_64_BITS;
    end[-10] = first;
    return 10;
}

#endif
