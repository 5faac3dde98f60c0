/* Counts what became of messages that were accepted for sending. At any moment, accepted = pending + all outcomes.
 *
 * A tally belongs to all holders of references. It lives as long as a frame refers to it, even after its creator is gone. */

#ifndef WSHUB_TALLY_H
#define WSHUB_TALLY_H

#include <Python.h>

#include <stdint.h>
#include <string.h>

typedef enum {
    WSHUB_DELIVERED,      /* the kernel or the transport took all of it */
    WSHUB_DROPPED_CLOSED, /* its connection ended first */
    WSHUB_DROPPED_SLOW,   /* its connection was closed: its queue was full */
    WSHUB_DROPPED_NEWEST, /* the queue was full, so it was not queued */
    WSHUB_DROPPED_OLDEST, /* it was removed from a full queue for a newer one */
    WSHUB_REPLACED,       /* a newer message with the same key took its place */
    WSHUB_OUTCOMES
} wshub_outcome;

typedef struct {
    uint64_t references;
    uint64_t accepted;
    uint64_t pending;
    uint64_t outcomes[WSHUB_OUTCOMES];
} wshub_tally;

/* Returns a tally with one reference, which the caller owns; NULL if there is no memory. */
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
