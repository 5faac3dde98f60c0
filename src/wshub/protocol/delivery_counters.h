/* Counts what became of messages that were accepted for sending. At any moment, accepted = pending + all outcomes.
 *
 * A delivery_counters belongs to all holders of references. It lives as long as a frame refers to it, even after its creator is gone. */

#ifndef WSHUB_DELIVERY_COUNTERS_H
#define WSHUB_DELIVERY_COUNTERS_H

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
} wshub_delivery_counters;

/* Returns delivery counters with one reference, which the caller owns; NULL if there is no memory. */
static inline wshub_delivery_counters *
wshub_delivery_counters_new(void)
{
    wshub_delivery_counters *delivery_counters = PyMem_RawCalloc(1, sizeof(wshub_delivery_counters));

    if (delivery_counters != NULL)
        delivery_counters->references = 1;
    return delivery_counters;
}

static inline wshub_delivery_counters *
wshub_delivery_counters_retain(wshub_delivery_counters *delivery_counters)
{
    if (delivery_counters != NULL)
        delivery_counters->references++;
    return delivery_counters;
}

static inline void
wshub_delivery_counters_release(wshub_delivery_counters *delivery_counters)
{
    if (delivery_counters != NULL && --delivery_counters->references == 0)
        PyMem_RawFree(delivery_counters);
}

#endif
