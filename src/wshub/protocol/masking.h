/* Masks and unmasks payloads (RFC 6455 section 5.3): XORs byte i with byte i modulo 4 of the key. */

#ifndef WSHUB_MASKING_H
#define WSHUB_MASKING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "opcodes.h"

/* Writes `length` masked bytes of `source` to `destination`. The two may be the same place but must not overlap otherwise.
 * `position` is the number of payload bytes of the frame that came before `source`.
 * memcpy moves the blocks of eight bytes, so neither pointer needs any alignment. The compiler turns the loop into vector
 * instructions. */
static inline void
wshub_mask(uint8_t *destination, const uint8_t *source, size_t length, const uint8_t key[WSHUB_MASK_KEY_SIZE],
           uint64_t position)
{
    uint8_t rotated[8];
    uint64_t block_key;
    size_t i = 0;

    for (size_t place = 0; place < 8; place++)
        rotated[place] = key[(position + place) & 3];
    memcpy(&block_key, rotated, 8);
    for (; i + 8 <= length; i += 8) {
        uint64_t block;
        memcpy(&block, source + i, 8);
        block ^= block_key;
        memcpy(destination + i, &block, 8);
    }
    for (; i < length; i++)
        destination[i] = source[i] ^ rotated[i & 7];
}

#endif
