/*
 * Messages of permessage-deflate (RFC 7692) for the load generator. It compresses each message to send in advance. It
 * decompresses what arrives, and compares it.
 *
 * A server may compress for each connection: then each stream has a window of its own. A server may also send all
 * connections the same frames. Then the load generator decompresses the first copy of a frame only. All other copies
 * must have the same bytes, which mean the same after equal bytes before them.
 */
#ifndef DEFLATED_H
#define DEFLATED_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { REMEMBERED = 1024, DEFLATE_TAIL = 4 };

static const uint8_t deflate_tail[DEFLATE_TAIL] = {0, 0, 0xff, 0xff};

struct bytes {
    uint8_t *start; /* owned */
    size_t length;
};

/* A stream of compressed messages: its window, and the frames that were seen to be right. */
struct deflated {
    z_stream window;
    uint8_t *plain; /* owned: space for the longest message, and one byte more */
    size_t plain_capacity;
    struct bytes *seen; /* owned: of the last messages, for other connections; or NULL */
    uint32_t next;       /* the number of the first message that nobody has got yet */
};

/* Returns the payload of a message, or nothing where there is no memory. */
static struct bytes deflate_alone(const uint8_t *plain, size_t length)
{
    struct bytes out = {0};
    z_stream stream = {0};
    if (deflateInit2(&stream, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return out;
    size_t capacity = deflateBound(&stream, length) + 16;
    out.start = malloc(capacity);
    if (out.start) {
        stream.next_in = (uint8_t *)plain;
        stream.avail_in = length;
        stream.next_out = out.start;
        stream.avail_out = capacity;
        deflate(&stream, Z_SYNC_FLUSH);
        out.length = capacity - stream.avail_out - DEFLATE_TAIL;
    }
    deflateEnd(&stream);
    return out;
}

static bool deflated_init(struct deflated *stream, size_t longest, bool remembers)
{
    memset(stream, 0, sizeof *stream);
    stream->plain_capacity = longest + 1;
    stream->plain = malloc(stream->plain_capacity);
    if (remembers)
        stream->seen = calloc(REMEMBERED, sizeof *stream->seen);
    return stream->plain && (stream->seen || !remembers) && inflateInit2(&stream->window, -15) == Z_OK;
}

/* Whether the payload decompresses to what was expected. */
static bool inflates_to(struct deflated *stream, const uint8_t *payload, size_t length, const uint8_t *plain,
                        size_t plain_length)
{
    z_stream *window = &stream->window;
    window->next_out = stream->plain;
    window->avail_out = stream->plain_capacity;
    window->next_in = (uint8_t *)payload;
    window->avail_in = length;
    int status = inflate(window, Z_SYNC_FLUSH);
    if (status != Z_OK && status != Z_BUF_ERROR)
        return false;
    window->next_in = (uint8_t *)deflate_tail;
    window->avail_in = DEFLATE_TAIL;
    status = inflate(window, Z_SYNC_FLUSH);
    if ((status != Z_OK && status != Z_BUF_ERROR) || window->avail_in)
        return false;
    return stream->plain_capacity - window->avail_out == plain_length && !memcmp(stream->plain, plain, plain_length);
}

/* Whether a frame is right as message `number` of the stream; `wire` is all of it, `payload` where its payload begins. */
static bool is_right(struct deflated *stream, uint32_t number, const uint8_t *wire, size_t wire_length, size_t payload,
                     const uint8_t *plain, size_t plain_length)
{
    if (number < stream->next) {
        struct bytes *seen = &stream->seen[number % REMEMBERED];
        return stream->next - number <= REMEMBERED && seen->length == wire_length &&
               !memcmp(seen->start, wire, wire_length);
    }
    if (number > stream->next)
        return false;
    stream->next++;
    if (stream->seen) {
        struct bytes *seen = &stream->seen[number % REMEMBERED];
        uint8_t *copy = realloc(seen->start, wire_length);
        if (!copy)
            return false;
        memcpy(copy, wire, wire_length);
        *seen = (struct bytes){copy, wire_length};
    }
    if (wire[0] & 0x40)
        return inflates_to(stream, wire + payload, wire_length - payload, plain, plain_length);
    return wire_length - payload == plain_length && !memcmp(wire + payload, plain, plain_length);
}

#endif
