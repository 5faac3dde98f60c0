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

/* A chunk takes 504 bytes on a 64-bit machine, within the 512 of Python's allocator for small objects. */
#define WSHUB_CHUNK_FRAMES 47

/* A shorter frame counts as so many octets against a bound on what may wait: that much memory it takes at the least. */
#define WSHUB_LEAST_CHARGE 64

/* Frames up to this many octets are copied side by side before they are sent: for the kernel one long piece of
 * memory is cheaper than many short ones, and the copy is made from a cache that every receiver keeps warm. */
#define WSHUB_COPY_LIMIT 2048

typedef struct wshub_chunk {
    struct wshub_chunk *next;
    struct wshub_chunk *previous;
    struct wshub_chunk *next_spare;     /* while this chunk has messages to spare, the next one that has some, in a ring */
    struct wshub_chunk *previous_spare; /* ... and the one before it */
    uint8_t end;    /* the place behind the last frame; of the tail, the queue knows it */
    uint8_t spares; /* frames that can be spared, where the queue has an index */
    uint16_t tags[WSHUB_CHUNK_FRAMES]; /* wshub_tag_of() each frame: a search need not look at the frames themselves */
    wshub_frame *frames[WSHUB_CHUNK_FRAMES];
} wshub_chunk;

/* The tags of frames that have no key; those of frames that have one come behind. */
enum {
    WSHUB_TAG_NEEDED = 0, /* it must not leave the queue before its turn */
    WSHUB_TAG_CHAINED,    /* nor may this one, which counts bytes back over what is in front of it */
    WSHUB_TAG_SPARE,
    WSHUB_TAG_KEYS
};

/* Where the messages are that can be spared. A queue has it from the first search on until it is empty: whoever takes
 * all that is sent never needs it. */
typedef struct {
    wshub_chunk *last; /* borrowed: of the chunks that have some, the last, whose next_spare is the first; or NULL */
    size_t charge;     /* what they count for against a bound, all together */
    size_t chained;    /* frames with the tag of one that is chained */
} wshub_spares;

typedef struct {
    wshub_chunk *head;   /* owned, and through it all others */
    wshub_chunk *tail;   /* borrowed: the last of them */
    wshub_spares *spares; /* owned, or NULL */
    size_t octets;       /* still to be sent, of all frames */
    size_t sent;         /* of the first frame, already */
    size_t padding;      /* what frames are shorter than WSHUB_LEAST_CHARGE, all together */
    uint32_t messages;   /* data frames among those queued: memory ends before they cannot be counted */
    uint8_t first;       /* the place of the first frame in head */
    uint8_t end;         /* the place behind the last frame in tail */
    uint8_t tagged;      /* the tags are there; as long as they are not, no frame is dispensable */
} wshub_queue;

static inline int
wshub_queue_is_empty(const wshub_queue *queue)
{
    return queue->head == NULL;
}

static inline size_t
wshub_frame_padding(const wshub_frame *frame)
{
    size_t length = wshub_frame_wire_length(frame);

    return length < WSHUB_LEAST_CHARGE ? WSHUB_LEAST_CHARGE - length : 0;
}

/* What the queue counts for against a bound, in octets. */
static inline size_t
wshub_queue_charge(const wshub_queue *queue)
{
    return queue->octets + queue->padding;
}

/* The tag of frames that can be spared and have that key; some other keys have the same. */
static inline uint16_t
wshub_tag_of_key(uint64_t key)
{
    return (uint16_t)(WSHUB_TAG_KEYS + key % (UINT16_MAX - WSHUB_TAG_KEYS));
}

/* What a queue keeps beside a frame. One that is dispensable by its policy can be spared if nothing else on the way needs
 * it. */
static inline uint16_t
wshub_tag_of(const wshub_frame *frame)
{
    if (frame->chained)
        return WSHUB_TAG_CHAINED;
    if (!frame->dispensable)
        return WSHUB_TAG_NEEDED;
    return frame->key == 0 ? WSHUB_TAG_SPARE : wshub_tag_of_key(frame->key);
}

/* The charge of a frame against a bound, as long as nothing of it has been sent. */
static inline size_t
wshub_frame_charge(const wshub_frame *frame)
{
    return wshub_frame_wire_length(frame) + wshub_frame_padding(frame);
}

/* Where the places of a chunk that are in use begin. */
static inline size_t
wshub_queue_start_of(const wshub_queue *queue, const wshub_chunk *chunk)
{
    return chunk == queue->head ? queue->first : 0;
}

/* Where the places of a chunk that are in use end. */
static inline size_t
wshub_queue_end_of(const wshub_queue *queue, const wshub_chunk *chunk)
{
    return chunk == queue->tail ? queue->end : chunk->end;
}

/* The chunk, which is behind all others that have messages to spare, has one. */
static inline void
wshub_spares_append_chunk(wshub_spares *spares, wshub_chunk *chunk)
{
    if (spares->last == NULL)
        chunk->next_spare = chunk->previous_spare = chunk;
    else {
        chunk->previous_spare = spares->last;
        chunk->next_spare = spares->last->next_spare;
        chunk->next_spare->previous_spare = chunk;
        spares->last->next_spare = chunk;
    }
    spares->last = chunk;
}

/* The chunk has no message to spare any more. */
static inline void
wshub_spares_remove_chunk(wshub_spares *spares, wshub_chunk *chunk)
{
    if (chunk->next_spare == chunk) {
        spares->last = NULL;
        return;
    }
    chunk->previous_spare->next_spare = chunk->next_spare;
    chunk->next_spare->previous_spare = chunk->previous_spare;
    if (spares->last == chunk)
        spares->last = chunk->previous_spare;
}

/* Takes a frame into the index that stands in that chunk, behind all others that are in it. */
static inline void
wshub_spares_add(wshub_spares *spares, wshub_chunk *chunk, size_t place)
{
    uint16_t tag = chunk->tags[place];

    spares->chained += tag == WSHUB_TAG_CHAINED;
    if (tag < WSHUB_TAG_SPARE)
        return;
    spares->charge += wshub_frame_charge(chunk->frames[place]);
    if (chunk->spares++ == 0)
        wshub_spares_append_chunk(spares, chunk);
}

/* Takes a frame out of the index that is about to leave its place. */
static inline void
wshub_spares_discard(wshub_spares *spares, wshub_chunk *chunk, size_t place)
{
    uint16_t tag = chunk->tags[place];

    spares->chained -= tag == WSHUB_TAG_CHAINED;
    if (tag < WSHUB_TAG_SPARE)
        return;
    spares->charge -= wshub_frame_charge(chunk->frames[place]);
    if (--chunk->spares == 0)
        wshub_spares_remove_chunk(spares, chunk);
}

/* Gives the frame that has been put behind all others its tag, and those in front of it theirs if they have none: they
 * are needed. */
static inline void
wshub_queue_tag_last(wshub_queue *queue)
{
    size_t place = queue->end - 1u;

    if (!queue->tagged)
        for (wshub_chunk *chunk = queue->head; chunk != NULL; chunk = chunk->next)
            memset(chunk->tags, WSHUB_TAG_NEEDED, sizeof(chunk->tags));
    queue->tagged = 1;
    queue->tail->tags[place] = wshub_tag_of(queue->tail->frames[place]);
    if (queue->spares != NULL)
        wshub_spares_add(queue->spares, queue->tail, place);
}

/* Some of the first frame has been sent: the rest of it must follow. */
static inline void
wshub_queue_pin_first(wshub_queue *queue)
{
    if (!queue->tagged)
        return;
    if (queue->spares != NULL)
        wshub_spares_discard(queue->spares, queue->head, queue->first);
    queue->head->tags[queue->first] = WSHUB_TAG_NEEDED;
}

/* Puts the frame, with a reference that was the caller's, behind all others. Returns -1 where there is no memory, and
 * nothing has changed. */
static inline int
wshub_queue_append(wshub_queue *queue, wshub_frame *frame)
{
    if (queue->head == NULL || queue->end == WSHUB_CHUNK_FRAMES) {
        wshub_chunk *chunk = PyMem_Malloc(sizeof(wshub_chunk));
        if (chunk == NULL)
            return -1;
        chunk->next = NULL;
        chunk->spares = 0;
        if (queue->head == NULL) {
            chunk->previous = NULL;
            queue->head = chunk;
            queue->first = 0;
            queue->tagged = 0;
        }
        else {
            chunk->previous = queue->tail;
            queue->tail->end = WSHUB_CHUNK_FRAMES;
            queue->tail->next = chunk;
        }
        queue->tail = chunk;
        queue->end = 0;
    }
    queue->tail->frames[queue->end++] = frame;
    /* Without tags, a fan-out has one line of the cache less to write for each receiver. */
    if (frame->dispensable || queue->tagged)
        wshub_queue_tag_last(queue);
    queue->octets += wshub_frame_wire_length(frame);
    queue->padding += wshub_frame_padding(frame);
    queue->messages += wshub_frame_is_message(frame);
    return 0;
}

static inline void
wshub_frame_accept(wshub_frame *frame)
{
    if (frame->tally != NULL) {
        frame->tally->accepted++;
        frame->tally->pending++;
    }
}

/* Takes a reference of its own to the frame. Returns -1 where there is no memory, and nothing has changed. */
static inline int
wshub_queue_push(wshub_queue *queue, wshub_frame *frame)
{
    if (wshub_queue_append(queue, frame) < 0)
        return -1;
    wshub_frame_accept(wshub_frame_retain(frame));
    return 0;
}

/* The first frame, which stays where it is. The queue must not be empty. */
static inline wshub_frame *
wshub_queue_first(const wshub_queue *queue)
{
    return queue->head->frames[queue->first];
}

/* The first place of the queue is empty, and is one no more. */
static inline void
wshub_queue_skip_first_place(wshub_queue *queue)
{
    wshub_chunk *chunk = queue->head;

    queue->first++;
    if (queue->first < wshub_queue_end_of(queue, chunk))
        return;
    queue->head = chunk->next;
    queue->first = 0;
    if (queue->head != NULL)
        queue->head->previous = NULL;
    else if (queue->spares != NULL) {
        PyMem_Free(queue->spares);
        queue->spares = NULL;
    }
    PyMem_Free(chunk);
}

/* Removes the first frame and returns it with the queue's reference to it. The queue must not be empty. */
static inline wshub_frame *
wshub_queue_take(wshub_queue *queue)
{
    wshub_frame *frame = wshub_queue_first(queue);

    if (queue->spares != NULL)
        wshub_spares_discard(queue->spares, queue->head, queue->first);
    queue->octets -= wshub_frame_wire_length(frame) - queue->sent;
    queue->padding -= wshub_frame_padding(frame);
    queue->messages -= wshub_frame_is_message(frame);
    queue->sent = 0;
    wshub_queue_skip_first_place(queue);
    return frame;
}

/* Notes what became of a frame that has left a queue. */
static inline void
wshub_frame_settle(wshub_frame *frame, wshub_outcome outcome)
{
    if (frame->tally != NULL) {
        frame->tally->pending--;
        frame->tally->outcomes[outcome]++;
    }
}

/* Removes the first frame, to which that has happened, and returns it with the queue's reference to it. The queue must not
 * be empty. */
static inline wshub_frame *
wshub_queue_pop(wshub_queue *queue, wshub_outcome outcome)
{
    wshub_frame *frame = wshub_queue_take(queue);

    wshub_frame_settle(frame, outcome);
    return frame;
}

/* Removes every frame. Returns how many data frames were among them. */
static inline size_t
wshub_queue_clear(wshub_queue *queue, wshub_outcome outcome)
{
    size_t messages = queue->messages;

    while (!wshub_queue_is_empty(queue))
        wshub_frame_release(wshub_queue_pop(queue, outcome));
    return messages;
}

/* Removes every frame of which nothing has been sent yet. Returns how many data frames were among them. */
static inline size_t
wshub_queue_discard_unsent(wshub_queue *queue, wshub_outcome outcome)
{
    wshub_frame *partial = NULL;
    size_t sent = queue->sent, before = queue->messages;

    if (sent > 0)
        partial = wshub_queue_take(queue);
    wshub_queue_clear(queue, outcome);
    if (partial != NULL) {
        /* One chunk was freed just now; if even so there is none to be had, the stream is cut, as it would be
         * by the close that follows. */
        if (wshub_queue_append(queue, partial) == 0) {
            queue->sent = sent;
            queue->octets -= sent;
            wshub_queue_pin_first(queue);
        }
        else {
            wshub_frame_settle(partial, outcome);
            wshub_frame_release(partial);
        }
    }
    return before - queue->messages;
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
        size_t end = wshub_queue_end_of(queue, chunk);
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
            wshub_queue_pin_first(queue);
            break;
        }
        octets -= rest;
        wshub_frame_release(wshub_queue_pop(queue, WSHUB_DELIVERED));
    }
    return messages - queue->messages;
}

#endif
