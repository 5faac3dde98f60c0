/* The interface of a library that compresses messages without history in place of zlib. */

#ifndef WSHUB_DEFLATE_ENGINE_H
#define WSHUB_DEFLATE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define WSHUB_DEFLATE_ENGINE "wshub.protocol.compression.isal.ENGINE"

typedef struct {
    /* Makes a state for a level of zlib's scale. The caller owns it; NULL if there is no memory. */
    void *(*create)(int level);
    void (*destroy)(void *state);
    /* Writes the whole of `plain` as deflate data that refers back at most 2**window_bits bytes, and a flush: the last
     * four bytes are 00 00 FF FF. Returns the length, or 0 if it does not fit in `space`. */
    size_t (*deflate)(void *state, const uint8_t *plain, size_t length, int window_bits, uint8_t *out, size_t space);
} wshub_deflate_engine;

#endif
