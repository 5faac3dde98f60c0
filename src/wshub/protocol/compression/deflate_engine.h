/* What a library must do to compress messages without history in place of zlib. */

#ifndef WSHUB_DEFLATE_ENGINE_H
#define WSHUB_DEFLATE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define WSHUB_DEFLATE_ENGINE "wshub.protocol.compression.isal.ENGINE"

typedef struct {
    /* Makes a state, which its caller owns, for a level of zlib's scale; NULL where there is no memory. */
    void *(*create)(int level);
    void (*destroy)(void *state);
    /* Writes the whole of `plain` as deflate data that refers back 2**window_bits octets at the most, and a flush: the
     * last four octets are 00 00 FF FF. Returns the length, or 0 where it does not fit in `room`. */
    size_t (*deflate)(void *state, const uint8_t *plain, size_t length, int window_bits, uint8_t *out, size_t room);
} wshub_deflate_engine;

#endif
