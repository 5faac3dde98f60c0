/* What became of messages that were accepted for sending: accepted = pending + the sum of all outcomes, at any moment.
 *
 * A tally outlives whoever asked for it as long as a frame refers to it: it belongs to all who hold references to it. */

#ifndef WSHUB_TALLY_H
#define WSHUB_TALLY_H

#include <Python.h>

#include <stdint.h>
#include <string.h>

typedef enum {
    WSHUB_DELIVERED,      /* taken whole by the kernel, or by the transport */
    WSHUB_DROPPED_CLOSED, /* its connection ended before it left */
    WSHUB_DROPPED_SLOW,   /* its connection was closed because too much was queued */
    WSHUB_DROPPED_NEWEST, /* too much was queued already */
    WSHUB_DROPPED_OLDEST, /* it made room for a newer one */
    WSHUB_REPLACED,       /* a newer one with the same key took its place */
    WSHUB_OUTCOMES
} wshub_outcome;

typedef struct {
    uint64_t references;
    uint64_t accepted;
    uint64_t pending;
    uint64_t outcomes[WSHUB_OUTCOMES];
} wshub_tally;

/* Returns NULL where there is no memory; else a tally with one reference, which is the caller's. */
static inline wshub_tally *
wshub_tally_new(void)
{
    wshub_tally *tally = PyMem_RawCalloc(1, sizeof(wshub_tally));

    if (tally != NULL)
        tally->references = 1;
    return tally;
}

static inline wshub_tally *
wshub_tally_retain(wshub_tally *tally)
{
    if (tally != NULL)
        tally->references++;
    return tally;
}

static inline void
wshub_tally_release(wshub_tally *tally)
{
    if (tally != NULL && --tally->references == 0)
        PyMem_RawFree(tally);
}

#endif
