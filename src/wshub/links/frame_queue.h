/* The frames that wait to be sent on one connection, in order.
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

/* A shorter frame counts as this many bytes against a bound on the queue, because it takes at least that much
 * memory. */
#define WSHUB_LEAST_CHARGE 64

/* Frames up to this many bytes are copied side by side before they are sent. For the kernel one long piece of memory is
 * cheaper than many short ones, and the copy reads a cache that every receiver keeps warm. */
#define WSHUB_COPY_LIMIT 2048

typedef struct wshub_chunk {
    struct wshub_chunk *next;
    struct wshub_chunk *previous;
    struct wshub_chunk *next_droppable;     /* a ring of the chunks with droppable messages, if this is one */
    struct wshub_chunk *previous_droppable; /* ... and the one before it */
    uint8_t end;    /* the place after the last frame; for the tail, queue.end has it */
    uint8_t droppables; /* the number of droppable messages, if the queue has an index */
    uint16_t tags[WSHUB_CHUNK_FRAMES]; /* wshub_tag_of() each frame, so that a search need not read the frames */
    wshub_frame *frames[WSHUB_CHUNK_FRAMES];
} wshub_chunk;

/* The tags of frames without a key. The tags of frames with a key are higher. */
enum {
    WSHUB_TAG_NEEDED = 0, /* it stays in its place */
    WSHUB_TAG_USES_CONTEXT,    /* so does this one, which refers back to bytes of frames before it */
    WSHUB_TAG_DROPPABLE,
    WSHUB_TAG_CONFLATION_KEYS
};

/* An index of the droppable messages: those that may be dropped or replaced. A queue has it from the first search until
 * it is empty. A client that keeps up never needs it. */
typedef struct {
    wshub_chunk *last; /* borrowed: the last chunk with droppable messages, whose next_droppable is the first; or NULL */
    size_t charge;     /* of all of them, against a bound */
    size_t uses_context;    /* frames with the tag of one that is uses_context */
} wshub_droppables;

typedef struct {
    wshub_chunk *head;   /* owned, and through it all others */
    wshub_chunk *tail;   /* borrowed: the last of them */
    wshub_droppables *droppables; /* owned, or NULL */
    size_t queued_bytes;       /* still to be sent, of all frames */
    size_t sent;         /* of the first frame, already */
    size_t padding;      /* the bytes by which frames are shorter than WSHUB_LEAST_CHARGE */
    uint32_t messages;   /* queued data frames; memory ends before this overflows */
    uint8_t first;       /* the place of the first frame in head */
    uint8_t end;         /* the place behind the last frame in tail */
    uint8_t tagged;      /* the tags are set; without them, no frame is droppable */
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

/* The bytes that count against a bound. */
static inline size_t
wshub_queue_charge(const wshub_queue *queue)
{
    return queue->queued_bytes + queue->padding;
}

/* The tag of droppable messages with that key. Some keys share a tag. */
static inline uint16_t
wshub_tag_of_conflation_key(uint64_t conflation_key)
{
    return (uint16_t)(WSHUB_TAG_CONFLATION_KEYS + conflation_key % (UINT16_MAX - WSHUB_TAG_CONFLATION_KEYS));
}

/* The tag that a queue keeps for a frame. A frame with the flag `droppable` gets a droppable tag, unless it uses the
 * context: later frames may refer to it. */
static inline uint16_t
wshub_tag_of(const wshub_frame *frame)
{
    if (frame->uses_context)
        return WSHUB_TAG_USES_CONTEXT;
    if (!frame->droppable)
        return WSHUB_TAG_NEEDED;
    return frame->conflation_key == 0 ? WSHUB_TAG_DROPPABLE : wshub_tag_of_conflation_key(frame->conflation_key);
}

/* The bytes of a frame that count against a bound, before any of it was sent. */
static inline size_t
wshub_frame_charge(const wshub_frame *frame)
{
    return wshub_frame_wire_length(frame) + wshub_frame_padding(frame);
}

/* The first place of a chunk that is in use. */
static inline size_t
wshub_queue_start_of(const wshub_queue *queue, const wshub_chunk *chunk)
{
    return chunk == queue->head ? queue->first : 0;
}

/* The place after the last one of a chunk that is in use. */
static inline size_t
wshub_queue_end_of(const wshub_queue *queue, const wshub_chunk *chunk)
{
    return chunk == queue->tail ? queue->end : chunk->end;
}

/* Appends a chunk to the ring. It comes after all others with droppable messages. */
static inline void
wshub_droppables_append_chunk(wshub_droppables *droppables, wshub_chunk *chunk)
{
    if (droppables->last == NULL)
        chunk->next_droppable = chunk->previous_droppable = chunk;
    else {
        chunk->previous_droppable = droppables->last;
        chunk->next_droppable = droppables->last->next_droppable;
        chunk->next_droppable->previous_droppable = chunk;
        droppables->last->next_droppable = chunk;
    }
    droppables->last = chunk;
}

/* Removes a chunk from the ring: it has no droppable message any more. */
static inline void
wshub_droppables_remove_chunk(wshub_droppables *droppables, wshub_chunk *chunk)
{
    if (chunk->next_droppable == chunk) {
        droppables->last = NULL;
        return;
    }
    chunk->previous_droppable->next_droppable = chunk->next_droppable;
    chunk->next_droppable->previous_droppable = chunk->previous_droppable;
    if (droppables->last == chunk)
        droppables->last = chunk->previous_droppable;
}

/* Adds a frame to the index, after all others. */
static inline void
wshub_droppables_add(wshub_droppables *droppables, wshub_chunk *chunk, size_t place)
{
    uint16_t tag = chunk->tags[place];

    droppables->uses_context += tag == WSHUB_TAG_USES_CONTEXT;
    if (tag < WSHUB_TAG_DROPPABLE)
        return;
    droppables->charge += wshub_frame_charge(chunk->frames[place]);
    if (chunk->droppables++ == 0)
        wshub_droppables_append_chunk(droppables, chunk);
}

/* Removes a frame from the index. It is about to leave its place. */
static inline void
wshub_droppables_discard(wshub_droppables *droppables, wshub_chunk *chunk, size_t place)
{
    uint16_t tag = chunk->tags[place];

    droppables->uses_context -= tag == WSHUB_TAG_USES_CONTEXT;
    if (tag < WSHUB_TAG_DROPPABLE)
        return;
    droppables->charge -= wshub_frame_charge(chunk->frames[place]);
    if (--chunk->droppables == 0)
        wshub_droppables_remove_chunk(droppables, chunk);
}

/* Sets the tag of the last frame. Frames before it that have no tag yet stay in their places. */
static inline void
wshub_queue_tag_last(wshub_queue *queue)
{
    size_t place = queue->end - 1u;

    if (!queue->tagged)
        for (wshub_chunk *chunk = queue->head; chunk != NULL; chunk = chunk->next)
            memset(chunk->tags, WSHUB_TAG_NEEDED, sizeof(chunk->tags));
    queue->tagged = 1;
    queue->tail->tags[place] = wshub_tag_of(queue->tail->frames[place]);
    if (queue->droppables != NULL)
        wshub_droppables_add(queue->droppables, queue->tail, place);
}

/* Keeps the first frame in its place: some of it was sent, and the rest must follow. */
static inline void
wshub_queue_pin_first(wshub_queue *queue)
{
    if (!queue->tagged)
        return;
    if (queue->droppables != NULL)
        wshub_droppables_discard(queue->droppables, queue->head, queue->first);
    queue->head->tags[queue->first] = WSHUB_TAG_NEEDED;
}

/* Keeps the frames that the first `length` bytes of the queue belong to in their places. */
static inline void
wshub_queue_pin(wshub_queue *queue, size_t length)
{
    size_t place = queue->first, skip = queue->sent;

    if (!queue->tagged)
        return;
    for (wshub_chunk *chunk = queue->head; chunk != NULL; chunk = chunk->next) {
        size_t end = wshub_queue_end_of(queue, chunk);
        for (; place < end; place++) {
            size_t rest = wshub_frame_wire_length(chunk->frames[place]) - skip;
            skip = 0;
            if (queue->droppables != NULL)
                wshub_droppables_discard(queue->droppables, chunk, place);
            chunk->tags[place] = WSHUB_TAG_NEEDED;
            if (length <= rest)
                return;
            length -= rest;
        }
        place = 0;
    }
}

/* Appends the frame and takes over a reference of the caller. Returns -1, and changes nothing, if there is no
 * memory. */
static inline int
wshub_queue_append(wshub_queue *queue, wshub_frame *frame)
{
    if (queue->head == NULL || queue->end == WSHUB_CHUNK_FRAMES) {
        wshub_chunk *chunk = PyMem_Malloc(sizeof(wshub_chunk));
        if (chunk == NULL)
            return -1;
        chunk->next = NULL;
        chunk->droppables = 0;
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
    /* Without tags, a fan-out writes one cache line less for each receiver. */
    if (frame->droppable || queue->tagged)
        wshub_queue_tag_last(queue);
    queue->queued_bytes += wshub_frame_wire_length(frame);
    queue->padding += wshub_frame_padding(frame);
    queue->messages += wshub_frame_is_message(frame);
    return 0;
}

static inline void
wshub_frame_accept(wshub_frame *frame)
{
    if (frame->delivery_counters != NULL) {
        frame->delivery_counters->accepted++;
        frame->delivery_counters->pending++;
    }
}

/* Appends the frame with a reference of the queue's own. Returns -1, and changes nothing, if there is no memory.
 * A frame without bytes is ignored: no byte could ever advance the queue over it. */
static inline int
wshub_queue_push(wshub_queue *queue, wshub_frame *frame)
{
    if (wshub_frame_wire_length(frame) == 0)
        return 0;
    if (wshub_queue_append(queue, frame) < 0)
        return -1;
    wshub_frame_accept(wshub_frame_retain(frame));
    return 0;
}

/* Makes the last frame longer by `length` bytes, if it is RAW, has space for them, and has no holder but the queue. Returns
 * where they begin: the caller writes them at once. Returns NULL, and changes nothing, if there is no such frame. */
static inline uint8_t *
wshub_queue_extend(wshub_queue *queue, size_t length)
{
    wshub_frame *frame;
    uint8_t *place;

    if (wshub_queue_is_empty(queue))
        return NULL;
    frame = queue->tail->frames[queue->end - 1u];
    if (frame->opcode != WSHUB_RAW || frame->references != 1 || frame->capacity - frame->length < length)
        return NULL;
    place = wshub_frame_payload(frame) + frame->length;
    queue->padding -= wshub_frame_padding(frame);
    frame->length += length;
    queue->queued_bytes += length;
    queue->padding += wshub_frame_padding(frame);
    return place;
}

/* The first frame, which stays where it is. The queue must not be empty. */
static inline wshub_frame *
wshub_queue_first(const wshub_queue *queue)
{
    return queue->head->frames[queue->first];
}

/* Removes the first place of the queue, which is empty. */
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
    else if (queue->droppables != NULL) {
        PyMem_Free(queue->droppables);
        queue->droppables = NULL;
    }
    PyMem_Free(chunk);
}

/* Removes the first frame and returns it with the queue's reference to it. The queue must not be empty. */
static inline wshub_frame *
wshub_queue_take(wshub_queue *queue)
{
    wshub_frame *frame = wshub_queue_first(queue);

    if (queue->droppables != NULL)
        wshub_droppables_discard(queue->droppables, queue->head, queue->first);
    queue->queued_bytes -= wshub_frame_wire_length(frame) - queue->sent;
    queue->padding -= wshub_frame_padding(frame);
    queue->messages -= wshub_frame_is_message(frame);
    queue->sent = 0;
    wshub_queue_skip_first_place(queue);
    return frame;
}

/* Counts what became of a frame that has left a queue. */
static inline void
wshub_frame_count_outcome(wshub_frame *frame, wshub_outcome outcome)
{
    if (frame->delivery_counters != NULL) {
        frame->delivery_counters->pending--;
        frame->delivery_counters->outcomes[outcome]++;
    }
}

/* Removes the first frame, counts its outcome, and returns it with the queue's reference. The queue must not be
 * empty. */
static inline wshub_frame *
wshub_queue_pop(wshub_queue *queue, wshub_outcome outcome)
{
    wshub_frame *frame = wshub_queue_take(queue);

    wshub_frame_count_outcome(frame, outcome);
    return frame;
}

/* Removes every frame. Returns the number of data frames among them. */
static inline size_t
wshub_queue_clear(wshub_queue *queue, wshub_outcome outcome)
{
    size_t messages = queue->messages;

    while (!wshub_queue_is_empty(queue))
        wshub_frame_release(wshub_queue_pop(queue, outcome));
    return messages;
}

/* Removes every frame of which nothing was sent yet. Returns the number of data frames among them. */
static inline size_t
wshub_queue_discard_unsent(wshub_queue *queue, wshub_outcome outcome)
{
    wshub_frame *partial = NULL;
    size_t sent = queue->sent, before = queue->messages;

    if (sent > 0)
        partial = wshub_queue_take(queue);
    wshub_queue_clear(queue, outcome);
    if (partial != NULL) {
        /* One chunk was freed just now. If there is none even so, the stream is cut; the close that follows would
         * cut it too. */
        if (wshub_queue_append(queue, partial) == 0) {
            queue->sent = sent;
            queue->queued_bytes -= sent;
            wshub_queue_pin_first(queue);
        }
        else {
            wshub_frame_count_outcome(partial, outcome);
            wshub_frame_release(partial);
        }
    }
    return before - queue->messages;
}

/* Removes every frame but those that the first `kept` bytes of the queue belong to; at least one byte is kept. Returns
 * the number of data frames that were removed. */
static inline size_t
wshub_queue_discard_after(wshub_queue *queue, size_t kept, wshub_outcome outcome)
{
    wshub_chunk *last = queue->head;
    size_t place = queue->first, skip = queue->sent, before = queue->messages;

    /* Find the place after the frames that stay. It is not the first place of a chunk. */
    for (;;) {
        size_t rest = wshub_frame_wire_length(last->frames[place]) - skip;
        skip = 0;
        place++;
        if (kept <= rest)
            break;
        kept -= rest;
        if (place == wshub_queue_end_of(queue, last)) {
            last = last->next;
            place = 0;
        }
    }
    size_t start = place;
    for (wshub_chunk *chunk = last; chunk != NULL; chunk = chunk->next, start = 0)
        for (size_t end = wshub_queue_end_of(queue, chunk); start < end; start++) {
            wshub_frame *frame = chunk->frames[start];
            if (queue->droppables != NULL)
                wshub_droppables_discard(queue->droppables, chunk, start);
            queue->queued_bytes -= wshub_frame_wire_length(frame);
            queue->padding -= wshub_frame_padding(frame);
            queue->messages -= wshub_frame_is_message(frame);
            wshub_frame_count_outcome(frame, outcome);
            wshub_frame_release(frame);
        }
    for (wshub_chunk *chunk = last->next; chunk != NULL;) {
        wshub_chunk *next = chunk->next;
        PyMem_Free(chunk);
        chunk = next;
    }
    last->next = NULL;
    queue->tail = last;
    queue->end = (uint8_t)place;
    return before - queue->messages;
}

/* Copies the first bytes of the queue, up to `size`, to `target`. Returns their number. */
static inline size_t
wshub_queue_copy(const wshub_queue *queue, uint8_t *target, size_t size)
{
    size_t place = queue->first, skip = queue->sent, used = 0;

    for (const wshub_chunk *chunk = queue->head; chunk != NULL && used < size; chunk = chunk->next, place = 0)
        for (size_t end = wshub_queue_end_of(queue, chunk); place < end && used < size; place++) {
            const wshub_frame *frame = chunk->frames[place];
            size_t length = wshub_frame_wire_length(frame) - skip;
            if (length > size - used)
                length = size - used;
            memcpy(target + used, wshub_frame_wire(frame) + skip, length);
            skip = 0;
            used += length;
        }
    return used;
}

/* Describes the start of the queue in at most `count` pieces. Short frames are copied together into `scratch`.
 * Returns the number of pieces, and the bytes in them in `*total`. */
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

/* Removes the first `length` bytes, which have left. Returns the number of data frames that have left whole. */
static inline size_t
wshub_queue_advance(wshub_queue *queue, size_t length)
{
    size_t messages = queue->messages;

    while (length > 0) {
        size_t rest = wshub_frame_wire_length(queue->head->frames[queue->first]) - queue->sent;
        if (length < rest) {
            queue->sent += length;
            queue->queued_bytes -= length;
            wshub_queue_pin_first(queue);
            break;
        }
        length -= rest;
        wshub_frame_release(wshub_queue_pop(queue, WSHUB_DELIVERED));
    }
    return messages - queue->messages;
}

#endif
