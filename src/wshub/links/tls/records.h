/* Finds the records of TLS in a stream of bytes (RFC 8446 section 5.1). Their content is OpenSSL's matter. */

#ifndef WSHUB_TLS_RECORDS_H
#define WSHUB_TLS_RECORDS_H

#include <stddef.h>
#include <stdint.h>

enum {
    WSHUB_RECORD_HEADER = 5,
    /* The most that a header may declare (RFC 5246 section 6.2.3; TLS 1.3 allows less). */
    WSHUB_RECORD_PAYLOAD = 16384 + 2048,
    WSHUB_RECORD_SIZE = WSHUB_RECORD_HEADER + WSHUB_RECORD_PAYLOAD,
    WSHUB_HANDSHAKE_RECORD = 22
};

/* The records at the start of a stream. */
typedef struct {
    size_t length;  /* of the whole records */
    size_t records; /* how many these are */
    size_t needed;  /* of the record behind them that is not whole: its length as far as it is known; or 0 */
    int handshake;  /* one of them belongs to a handshake, and says so */
    int invalid;    /* the last of them is none, or is too large: only its header is among them */
} wshub_records;

/* Whether the five bytes at `data` can be the header of a record. */
static inline int
wshub_is_record(const uint8_t *data)
{
    return data[0] >= 20 && data[0] <= 24 && data[1] == 3 && (data[3] << 8 | data[4]) <= WSHUB_RECORD_PAYLOAD;
}

/* Finds the whole records at the start of `data`, up to `most` of them. */
static inline wshub_records
wshub_find_records(const uint8_t *data, size_t length, size_t most)
{
    wshub_records found = {0, 0, 0, 0, 0};

    while (found.length < length && found.records < most && !found.invalid) {
        const uint8_t *record = data + found.length;
        size_t size = WSHUB_RECORD_HEADER;
        if (length - found.length >= WSHUB_RECORD_HEADER) {
            if (wshub_is_record(record))
                size += (size_t)record[3] << 8 | record[4];
            else
                found.invalid = 1;
        }
        if (size > length - found.length) {
            found.needed = size;
            break;
        }
        found.handshake |= record[0] == WSHUB_HANDSHAKE_RECORD;
        found.length += size;
        found.records++;
    }
    return found;
}

#endif
