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

/* A chunk takes 488 octets on a 64-bit machine, within the 512 of Python's allocator for small objects; its tags are
 * compared eight at a time. */
#define WSHUB_CHUNK_FRAMES 48

/* A shorter frame counts as so many octets against a bound on what may wait: that much memory it takes at the least. */
#define WSHUB_LEAST_CHARGE 64

/* Frames up to this many octets are copied side by side before they are sent: for the kernel one long piece of
 * memory is cheaper than many short ones, and the copy is made from a cache that every receiver keeps warm. */
#define WSHUB_COPY_LIMIT 2048

typedef struct wshub_chunk {
    struct wshub_chunk *next;
    uint16_t tags[WSHUB_CHUNK_FRAMES]; /* wshub_tag_of() each frame: a search need not look at the frames themselves */
    wshub_frame *frames[WSHUB_CHUNK_FRAMES];
} wshub_chunk;

/* The tags of frames that have no key; those of frames that have one come behind. */
enum {
    WSHUB_TAG_NEEDED = 0, /* it must not leave the queue before its turn */
    WSHUB_TAG_SPARE,
    WSHUB_TAG_KEYS
};

typedef struct {
    wshub_chunk *head;   /* owned, and through it all others */
    wshub_chunk *tail;   /* borrowed: the last of them */
    size_t octets;       /* still to be sent, of all frames */
    size_t sent;         /* of the first frame, already */
    size_t padding;      /* what frames are shorter than WSHUB_LEAST_CHARGE, all together */
    uint32_t messages;   /* data frames among those queued: memory ends before they cannot be counted */
    uint8_t first;       /* the place of the first frame in head */
    uint8_t end;         /* the place behind the last frame in tail */
    uint8_t tagged;      /* the tags are there; as long as they are not, no frame is dispensable */
} wshub_queue;

/* A place in a queue. */
typedef struct {
    wshub_chunk *chunk;  /* borrowed; NULL: no place */
    size_t place;
} wshub_spot;

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
    if (!frame->dispensable || frame->chained)
        return WSHUB_TAG_NEEDED;
    return frame->key == 0 ? WSHUB_TAG_SPARE : wshub_tag_of_key(frame->key);
}

/* Gives the frame that is about to be put behind all others its tag, and those in front of it theirs if they have none:
 * they are needed. */
static inline void
wshub_queue_tag_next(wshub_queue *queue, const wshub_frame *frame)
{
    if (!queue->tagged)
        for (wshub_chunk *chunk = queue->head; chunk != NULL; chunk = chunk->next)
            memset(chunk->tags, WSHUB_TAG_NEEDED, sizeof(chunk->tags));
    queue->tagged = 1;
    queue->tail->tags[queue->end] = wshub_tag_of(frame);
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
        if (queue->head == NULL) {
            queue->head = chunk;
            queue->first = 0;
            queue->tagged = 0;
        }
        else
            queue->tail->next = chunk;
        queue->tail = chunk;
        queue->end = 0;
    }
    /* Without tags, a fan-out has one line of the cache less to write for each receiver. */
    if (frame->dispensable || queue->tagged)
        wshub_queue_tag_next(queue, frame);
    queue->tail->frames[queue->end++] = frame;
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
    if (queue->first == (chunk == queue->tail ? queue->end : WSHUB_CHUNK_FRAMES)) {
        queue->head = chunk->next;
        queue->first = 0;
        PyMem_Free(chunk);
    }
}

/* Removes the first frame and returns it with the queue's reference to it. The queue must not be empty. */
static inline wshub_frame *
wshub_queue_take(wshub_queue *queue)
{
    wshub_frame *frame = wshub_queue_first(queue);

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
        }
        else {
            wshub_frame_settle(partial, outcome);
            wshub_frame_release(partial);
        }
    }
    return before - queue->messages;
}

/* The spot of the first frame of which nothing has been sent. */
static inline wshub_spot
wshub_queue_first_unsent(const wshub_queue *queue)
{
    return (wshub_spot){queue->head, queue->first + (queue->sent > 0)};
}

/* Where the places of a chunk that are in use end. */
static inline size_t
wshub_queue_end_of(const wshub_queue *queue, const wshub_chunk *chunk)
{
    return chunk == queue->tail ? queue->end : WSHUB_CHUNK_FRAMES;
}

/* From that spot on, the first message that can be spared. */
static inline wshub_spot
wshub_queue_find_spare(const wshub_queue *queue, wshub_spot from)
{
    if (!queue->tagged)
        return (wshub_spot){NULL, 0};
    for (; from.chunk != NULL; from = (wshub_spot){from.chunk->next, 0})
        for (; from.place < wshub_queue_end_of(queue, from.chunk); from.place++)
            if (from.chunk->tags[from.place] != WSHUB_TAG_NEEDED)
                return from;
    return from;
}

/* Whether one of these tags is that one. All of them are looked at, which lets the compiler compare many at a time. */
static inline int
wshub_tags_include(const uint16_t *tags, size_t count, uint16_t tag)
{
    uint16_t found = 0;

    for (size_t i = 0; i < count; i++)
        found |= tags[i] == tag;
    return found;
}

/* The last message with that key of which nothing has been sent and that can be spared: a newer one may take its place. */
static inline wshub_spot
wshub_queue_find_latest(const wshub_queue *queue, uint64_t key)
{
    wshub_spot found = {NULL, 0};
    wshub_spot spot = wshub_queue_first_unsent(queue);
    uint16_t tag = wshub_tag_of_key(key);

    if (!queue->tagged)
        return found;
    for (; spot.chunk != NULL; spot = (wshub_spot){spot.chunk->next, 0}) {
        size_t end = wshub_queue_end_of(queue, spot.chunk);
        if (!wshub_tags_include(spot.chunk->tags + spot.place, end - spot.place, tag))
            continue;
        for (; spot.place < end; spot.place++)
            if (spot.chunk->tags[spot.place] == tag && spot.chunk->frames[spot.place]->key == key)
                found = spot;
    }
    return found;
}

/* Whether a frame behind the spot, which is one that can be spared, may count octets back over it, which must not change
 * then. */
static inline int
wshub_queue_is_referred_over(const wshub_queue *queue, wshub_spot spot)
{
    size_t place = spot.place + 1;

    for (const wshub_chunk *chunk = spot.chunk; chunk != NULL; chunk = chunk->next, place = 0) {
        size_t end = wshub_queue_end_of(queue, chunk);
        for (; place < end; place++)
            if (chunk->tags[place] == WSHUB_TAG_NEEDED && chunk->frames[place]->chained)
                return 1;
    }
    return 0;
}

/* Removes a message of which nothing has been sent, and returns it with the queue's reference to it. Those in front of
 * it, few as a rule, move up by one place. */
static inline wshub_frame *
wshub_queue_remove(wshub_queue *queue, wshub_spot spot)
{
    wshub_frame *removed = spot.chunk->frames[spot.place], *carried = NULL;
    uint16_t carried_tag = WSHUB_TAG_NEEDED;
    wshub_chunk *chunk = queue->head;
    size_t place = queue->first;

    for (;;) {
        wshub_frame *here = chunk->frames[place];
        uint16_t tag = chunk->tags[place];
        chunk->frames[place] = carried;
        chunk->tags[place] = carried_tag;
        if (chunk == spot.chunk && place == spot.place)
            break;
        carried = here;
        carried_tag = tag;
        if (++place == WSHUB_CHUNK_FRAMES) {
            chunk = chunk->next;
            place = 0;
        }
    }
    wshub_queue_skip_first_place(queue);
    queue->octets -= wshub_frame_wire_length(removed);
    queue->padding -= wshub_frame_padding(removed);
    queue->messages--;
    return removed;
}

/* Whether the queue would count for less than `bound` if every message that can be spared were dropped. */
static inline int
wshub_queue_can_make_room(const wshub_queue *queue, size_t bound)
{
    size_t charge = wshub_queue_charge(queue);
    wshub_spot spot = wshub_queue_first_unsent(queue);

    while (charge >= bound && (spot = wshub_queue_find_spare(queue, spot)).chunk != NULL) {
        const wshub_frame *frame = spot.chunk->frames[spot.place++];
        charge -= wshub_frame_wire_length(frame) + wshub_frame_padding(frame);
    }
    return charge < bound;
}

/* Drops the oldest of the messages that can be spared until the queue counts for less than `bound`; none of them where
 * all would not do. Returns how many it has dropped. */
static inline size_t
wshub_queue_make_room(wshub_queue *queue, size_t bound)
{
    size_t dropped = 0;

    if (!wshub_queue_can_make_room(queue, bound))
        return 0;
    for (; wshub_queue_charge(queue) >= bound; dropped++) {
        wshub_spot oldest = wshub_queue_find_spare(queue, wshub_queue_first_unsent(queue));
        wshub_frame *frame = wshub_queue_remove(queue, oldest);
        wshub_frame_settle(frame, WSHUB_DROPPED_OLDEST);
        wshub_frame_release(frame);
    }
    return dropped;
}

/* Puts a message in the place of the one with the same key that can be spared; or behind all others, if it is compressed
 * where a plain one was and a later frame counts the octets back over that place. Returns whether there was one. */
static inline int
wshub_queue_replace(wshub_queue *queue, wshub_frame *frame)
{
    wshub_spot spot = wshub_queue_find_latest(queue, frame->key);
    wshub_frame *former;

    if (spot.chunk == NULL)
        return 0;
    former = spot.chunk->frames[spot.place];
    if (frame->window_bits != 0 && former->window_bits == 0 && wshub_queue_is_referred_over(queue, spot)) {
        if (wshub_queue_append(queue, frame) < 0)
            return 0;
        wshub_queue_remove(queue, spot);
    }
    else {
        spot.chunk->frames[spot.place] = frame;
        spot.chunk->tags[spot.place] = wshub_tag_of(frame);
        queue->octets += wshub_frame_wire_length(frame);
        queue->octets -= wshub_frame_wire_length(former);
        queue->padding += wshub_frame_padding(frame);
        queue->padding -= wshub_frame_padding(former);
    }
    wshub_frame_accept(wshub_frame_retain(frame));
    wshub_frame_settle(former, WSHUB_REPLACED);
    wshub_frame_release(former);
    return 1;
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
        wshub_frame_release(wshub_queue_pop(queue, WSHUB_DELIVERED));
    }
    return messages - queue->messages;
}

#endif
