/* Validates UTF-8 incrementally (RFC 3629). Text messages and close reasons must be UTF-8.
 *
 * It refuses the first byte that no valid text can have at its place, even if its sequence began in an earlier chunk.
 * RFC 6455 section 8.1 lets an endpoint fail before the message is complete. */

#ifndef WSHUB_UTF8_H
#define WSHUB_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* All zero at the start of a text. `missing` continuation bytes are still to come. The next one lies between `lower` and
 * `upper`. After E0, ED, F0 and F4 this range is narrower than 80-BF: other bytes would make an overlong form, a surrogate or a
 * code point above U+10FFFF. */
typedef struct {
    uint8_t missing;
    uint8_t lower;
    uint8_t upper;
} wshub_utf8_state;

#define WSHUB_UTF8_HIGH_BITS UINT64_C(0x8080808080808080)

static inline size_t
wshub_ascii_run(const uint8_t *text, size_t length)
{
    size_t i = 0;

    for (; i + 32 <= length; i += 32) {
        uint64_t block[4];
        memcpy(block, text + i, 32);
        if ((block[0] | block[1] | block[2] | block[3]) & WSHUB_UTF8_HIGH_BITS)
            break;
    }
    for (; i + 8 <= length; i += 8) {
        uint64_t block;
        memcpy(&block, text + i, 8);
        if (block & WSHUB_UTF8_HIGH_BITS)
            break;
    }
    while (i < length && text[i] < 0x80)
        i++;
    return i;
}

/* Returns 0 if `text` can be part of a valid text, -1 if it cannot. A text is complete only if `state->missing` is 0. */
static inline int
wshub_utf8_validate(wshub_utf8_state *state, const uint8_t *text, size_t length)
{
    size_t i = 0;
    uint8_t missing = state->missing, lower = state->lower, upper = state->upper;

    while (i < length) {
        uint8_t byte;

        if (missing == 0 && text[i] < 0x80) {
            i += wshub_ascii_run(text + i, length - i);
            continue;
        }
        byte = text[i++];
        if (missing > 0) {
            if (byte < lower || byte > upper)
                return -1;
            missing--;
            lower = 0x80;
            upper = 0xBF;
            continue;
        }
        if (byte < 0xC2 || byte > 0xF4)
            return -1;
        lower = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
        upper = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
        missing = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
    }
    state->missing = missing;
    state->lower = lower;
    state->upper = upper;
    return 0;
}

#endif
