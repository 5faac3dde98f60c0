/* Incremental validation of UTF-8 (RFC 3629), which text messages and close reasons must be.
 *
 * An octet that no valid text can have at its place is refused at once, also when the sequence it belongs to
 * began in an earlier chunk: RFC 6455 section 8.1 lets a server fail before the message is complete. */

#ifndef WSHUB_UTF8_H
#define WSHUB_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* All zero at the start of a text. `missing` continuation octets are still to come; the next of them lies
 * between `lower` and `upper`: narrower than 80-BF after E0, ED, F0 and F4, where the rest would be overlong,
 * a surrogate or above U+10FFFF. */
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

/* Returns 0 if `text` can be part of a valid text, -1 if it cannot. The text ends validly only where
 * `state->missing` is 0. */
static inline int
wshub_utf8_validate(wshub_utf8_state *state, const uint8_t *text, size_t length)
{
    size_t i = 0;
    uint8_t missing = state->missing, lower = state->lower, upper = state->upper;

    while (i < length) {
        uint8_t octet;

        if (missing == 0 && text[i] < 0x80) {
            i += wshub_ascii_run(text + i, length - i);
            continue;
        }
        octet = text[i++];
        if (missing > 0) {
            if (octet < lower || octet > upper)
                return -1;
            missing--;
            lower = 0x80;
            upper = 0xBF;
            continue;
        }
        if (octet < 0xC2 || octet > 0xF4)
            return -1;
        lower = octet == 0xE0 ? 0xA0 : octet == 0xF0 ? 0x90 : 0x80;
        upper = octet == 0xED ? 0x9F : octet == 0xF4 ? 0x8F : 0xBF;
        missing = octet < 0xE0 ? 1 : octet < 0xF0 ? 2 : 3;
    }
    state->missing = missing;
    state->lower = lower;
    state->upper = upper;
    return 0;
}

#endif
