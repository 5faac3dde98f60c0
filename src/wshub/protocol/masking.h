/* Masking of payloads (RFC 6455 section 5.3): octet i is XORed with octet i modulo 4 of the key. */

#ifndef WSHUB_MASKING_H
#define WSHUB_MASKING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Writes `length` masked octets of `source` to `destination`, which may be the same place but must not
 * overlap otherwise. `position` is how many octets of the frame's payload came before `source`.
 * The eight-octet blocks are moved by memcpy, so neither pointer needs any alignment; the compiler turns the
 * loop into vector instructions. */
static inline void
wshub_mask(uint8_t *destination, const uint8_t *source, size_t length, const uint8_t key[4], uint64_t position)
{
    uint8_t rotated[8];
    uint64_t block_key;
    size_t i = 0;

    for (size_t octet = 0; octet < 8; octet++)
        rotated[octet] = key[(position + octet) & 3];
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
