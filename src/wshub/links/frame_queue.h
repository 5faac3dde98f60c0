/* The frames that wait to be sent on one connection, in order, by reference.
 *
 * A queue owns one reference to each frame in it. An empty queue holds no memory. */

#ifndef WSHUB_FRAME_QUEUE_H
#define WSHUB_FRAME_QUEUE_H

#include "frame_buffer.h"

#ifdef _WIN32
struct iovec {
    void *iov_base;
    size_t iov_len;
};
#else
#include <sys/uio.h>
#endif

/* With the link, a chunk fills 512 octets on a 64-bit machine. */
#define WSHUB_CHUNK_FRAMES 63

/* Frames up to this many octets are copied side by side before they are sent: for the kernel one long piece of
 * memory is cheaper than many short ones, and the copy is made from a cache that every receiver keeps warm. */
#define WSHUB_COPY_LIMIT 2048

typedef struct wshub_chunk {
    struct wshub_chunk *next;
    wshub_frame *frames[WSHUB_CHUNK_FRAMES];
} wshub_chunk;

typedef struct {
    wshub_chunk *head;   /* owned, and through it all others */
    wshub_chunk *tail;   /* borrowed: the last of them */
    size_t octets;       /* still to be sent, of all frames */
    size_t sent;         /* of the first frame, already */
    size_t messages;     /* data frames among those queued */
    uint8_t first;       /* the place of the first frame in head */
    uint8_t end;         /* the place behind the last frame in tail */
} wshub_queue;

static inline int
wshub_queue_is_empty(const wshub_queue *queue)
{
    return queue->head == NULL;
}

/* Takes a reference of its own to the frame. Returns -1 where there is no memory, and nothing has changed. */
static inline int
wshub_queue_push(wshub_queue *queue, wshub_frame *frame)
{
    if (queue->head == NULL || queue->end == WSHUB_CHUNK_FRAMES) {
        wshub_chunk *chunk = PyMem_RawMalloc(sizeof(wshub_chunk));
        if (chunk == NULL)
            return -1;
        chunk->next = NULL;
        if (queue->head == NULL) {
            queue->head = chunk;
            queue->first = 0;
        }
        else
            queue->tail->next = chunk;
        queue->tail = chunk;
        queue->end = 0;
    }
    queue->tail->frames[queue->end++] = wshub_frame_retain(frame);
    queue->octets += wshub_frame_wire_length(frame);
    queue->messages += wshub_frame_is_message(frame);
    return 0;
}

/* Removes the first frame and returns it with the queue's reference to it. The queue must not be empty. */
static inline wshub_frame *
wshub_queue_pop(wshub_queue *queue)
{
    wshub_chunk *chunk = queue->head;
    wshub_frame *frame = chunk->frames[queue->first++];

    queue->octets -= wshub_frame_wire_length(frame) - queue->sent;
    queue->messages -= wshub_frame_is_message(frame);
    queue->sent = 0;
    if (queue->first == (chunk == queue->tail ? queue->end : WSHUB_CHUNK_FRAMES)) {
        queue->head = chunk->next;
        queue->first = 0;
        PyMem_RawFree(chunk);
    }
    return frame;
}

/* Removes every frame of which nothing has been sent yet. Returns how many data frames were among them. */
static inline size_t
wshub_queue_discard_unsent(wshub_queue *queue)
{
    wshub_frame *partial = NULL;
    size_t sent = queue->sent, before = queue->messages;

    if (wshub_queue_is_empty(queue))
        return 0;
    if (sent > 0)
        partial = wshub_queue_pop(queue);
    while (!wshub_queue_is_empty(queue))
        wshub_frame_release(wshub_queue_pop(queue));
    if (partial != NULL) {
        /* One chunk was freed just now; if even so there is none to be had, the stream is cut, as it would be
         * by the close that follows. */
        if (wshub_queue_push(queue, partial) == 0) {
            queue->sent = sent;
            queue->octets -= sent;
        }
        wshub_frame_release(partial);
    }
    return before - queue->messages;
}

/* Removes every frame. Returns how many data frames were among them. */
static inline size_t
wshub_queue_clear(wshub_queue *queue)
{
    size_t messages = queue->messages;

    while (!wshub_queue_is_empty(queue))
        wshub_frame_release(wshub_queue_pop(queue));
    return messages;
}

/* Describes what comes first in the queue in at most `count` pieces, small frames copied together into `scratch`.
 * Returns the number of pieces; `*total` is how many octets they hold. */
static inline int
wshub_queue_gather(const wshub_queue *queue, struct iovec *pieces, int count, uint8_t *scratch, size_t scratch_size,
                   size_t *total)
{
    const wshub_chunk *chunk = queue->head;
    size_t place = queue->first, skip = queue->sent, used = 0;
    int piece = 0, joins = 0;

    *total = 0;
    while (chunk != NULL) {
        size_t end = chunk == queue->tail ? queue->end : WSHUB_CHUNK_FRAMES;
        for (; place < end; place++) {
            const wshub_frame *frame = chunk->frames[place];
            const uint8_t *wire = wshub_frame_wire(frame) + skip;
            size_t length = wshub_frame_wire_length(frame) - skip;

            skip = 0;
            if (length <= WSHUB_COPY_LIMIT) {
                if (used + length > scratch_size || (!joins && piece == count))
                    return piece;
                memcpy(scratch + used, wire, length);
                if (joins)
                    pieces[piece - 1].iov_len += length;
                else
                    pieces[piece++] = (struct iovec){scratch + used, length};
                used += length;
                joins = 1;
            }
            else {
                if (piece == count)
                    return piece;
                pieces[piece++] = (struct iovec){(void *)wire, length};
                joins = 0;
            }
            *total += length;
        }
        chunk = chunk->next;
        place = 0;
    }
    return piece;
}

/* Takes note that the first `octets` of the queue have left. Returns how many data frames have left whole. */
static inline size_t
wshub_queue_advance(wshub_queue *queue, size_t octets)
{
    size_t messages = queue->messages;

    while (octets > 0) {
        size_t rest = wshub_frame_wire_length(queue->head->frames[queue->first]) - queue->sent;
        if (octets < rest) {
            queue->sent += octets;
            queue->octets -= octets;
            break;
        }
        octets -= rest;
        wshub_frame_release(wshub_queue_pop(queue));
    }
    return messages - queue->messages;
}

#endif
