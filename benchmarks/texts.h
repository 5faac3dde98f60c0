/* The texts of the load generator's messages: noise, rows of JSON, or ticks that resemble one another. */
#ifndef TEXTS_H
#define TEXTS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum text { NOISE, JSON, TICK };
static const char *const text_names[] = {"noise", "json", "tick"};

/* Printable characters that do not compress, the number of the message first. */
static void write_noise(uint8_t *at, size_t size, uint32_t number, int binary)
{
    char digits[9];
    size_t count = size < 8 ? size : 8;
    for (size_t i = 0; i < size; i++)
        at[i] = binary ? random() : ' ' + random() % 95;
    snprintf(digits, sizeof digits, "%08x", number);
    memcpy(at, digits + 8 - count, count);
}

/* An array of records, cut off at `size`. */
static void write_json(uint8_t *at, size_t size, uint32_t number)
{
    static const char *const symbols[] = {"EURUSD", "BTCUSD", "AAPL", "MSFT", "GOLD"};
    static const char *const notes[] = {"as agreed by telephone", "first of three", "see the other one", "no remark"};
    char row[256];
    size_t length = snprintf(row, sizeof row, "{\"number\": %u, \"rows\": [", number);
    for (size_t done = 0; done < size;) {
        size_t piece = size - done < length ? size - done : length;
        memcpy(at + done, row, piece);
        done += piece;
        length = snprintf(row, sizeof row,
                          "{\"id\": %ld, \"symbol\": \"%s\", \"bid\": %ld.%04ld, \"ask\": %ld.%04ld, \"note\": \"%s\"}, ",
                          random() % 1000000, symbols[random() % 5], random() % 2000, random() % 10000,
                          random() % 2000, random() % 10000, notes[random() % 4]);
    }
}

/* A price that wanders. Returns its length, which is about 117 bytes. */
static size_t write_tick(uint8_t *at, size_t capacity, uint32_t number)
{
    static long price = 6421705;
    price += random() % 401 - 200;
    return snprintf((char *)at, capacity,
                    "{\"type\":\"tick\",\"symbol\":\"BTCUSD\",\"bid\":%ld.%02ld,\"ask\":%ld.%02ld,\"volume\":%ld,"
                    "\"time\":%lld,\"seq\":%u}",
                    price / 100, price % 100, (price + 50) / 100, (price + 50) % 100, random() % 1000,
                    1700000000000LL + 250 * number, number);
}

#endif
