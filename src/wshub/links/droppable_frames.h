/* How droppable messages leave a queue early: dropped, or replaced by newer ones.
 *
 * The time of a function does not depend on the number of queued frames: a slow reader must not cost more when more
 * waits for it. Only making the index reads all frames, once until the queue is empty. */

#ifndef WSHUB_DROPPABLE_FRAMES_H
#define WSHUB_DROPPABLE_FRAMES_H

#include "frame_queue.h"

/* Two neighbouring chunks are joined if they have at most this many frames: a chunk always takes the same memory. */
#define WSHUB_CHUNK_JOINED (WSHUB_CHUNK_FRAMES / 2)

/* The most chunks that a search for a key looks at, from the last one on. It bounds the cost of a message. */
#define WSHUB_CHUNKS_SEARCHED 256

/* A place in a queue. */
typedef struct {
    wshub_chunk *chunk; /* borrowed; NULL: no place */
    size_t place;
} wshub_spot;

/* Makes the index, if there is none yet and there may be a droppable message. Returns whether there is an index.
 *
 * An empty queue gets none: the index is freed when the last frame leaves. */
static inline int
wshub_queue_index(wshub_queue *queue)
{
    if (queue->droppables != NULL || !queue->tagged || wshub_queue_is_empty(queue))
        return queue->droppables != NULL;
    queue->droppables = PyMem_Calloc(1, sizeof(wshub_droppables));
    if (queue->droppables == NULL)
        return 0;
    for (wshub_chunk *chunk = queue->head; chunk != NULL; chunk = chunk->next) {
        size_t end = wshub_queue_end_of(queue, chunk);
        chunk->droppables = 0;
        for (size_t place = wshub_queue_start_of(queue, chunk); place < end; place++)
            wshub_droppables_add(queue->droppables, chunk, place);
    }
    return 1;
}

/* The first droppable message. There must be one. */
static inline wshub_spot
wshub_queue_find_oldest(const wshub_queue *queue)
{
    wshub_chunk *chunk = queue->droppables->last->next_droppable;
    size_t place = wshub_queue_start_of(queue, chunk);

    while (chunk->tags[place] < WSHUB_TAG_DROPPABLE)
        place++;
    return (wshub_spot){chunk, place};
}

/* Whether the tags include that one. Reading all of them lets the compiler compare many at a time. */
static inline int
wshub_tags_include(const uint16_t *tags, size_t count, uint16_t tag)
{
    uint16_t found = 0;

    for (size_t i = 0; i < count; i++)
        found |= tags[i] == tag;
    return found;
}

/* The last droppable message with that key. */
static inline wshub_spot
wshub_queue_find_latest(const wshub_queue *queue, uint64_t conflation_key)
{
    uint16_t tag = wshub_tag_of_conflation_key(conflation_key);
    wshub_chunk *chunk = queue->droppables->last;

    for (int searched = 0; chunk != NULL && searched < WSHUB_CHUNKS_SEARCHED; searched++) {
        size_t start = wshub_queue_start_of(queue, chunk);
        size_t place = wshub_queue_end_of(queue, chunk);
        if (wshub_tags_include(chunk->tags + start, place - start, tag))
            while (place-- > start)
                if (chunk->tags[place] == tag && chunk->frames[place]->conflation_key == conflation_key)
                    return (wshub_spot){chunk, place};
        if (chunk == queue->droppables->last->next_droppable)
            break;
        chunk = chunk->previous_droppable;
    }
    return (wshub_spot){NULL, 0};
}

/* Removes an empty chunk that is not the head. */
static inline void
wshub_queue_remove_chunk(wshub_queue *queue, wshub_chunk *chunk)
{
    chunk->previous->next = chunk->next;
    if (chunk->next != NULL)
        chunk->next->previous = chunk->previous;
    else {
        queue->tail = chunk->previous;
        queue->end = queue->tail->end;
    }
    PyMem_Free(chunk);
}

/* Moves all frames of a chunk to the end of the one before it. The chunk is neither the head nor the tail. */
static inline void
wshub_queue_join_chunks(wshub_queue *queue, wshub_chunk *chunk)
{
    wshub_chunk *former = chunk->previous;

    memcpy(former->tags + former->end, chunk->tags, chunk->end * sizeof(chunk->tags[0]));
    memcpy(former->frames + former->end, chunk->frames, chunk->end * sizeof(chunk->frames[0]));
    former->end += chunk->end;
    if (chunk->droppables > 0) {
        if (former->droppables == 0) {
            /* The former takes the place of the chunk in the ring. */
            int alone = chunk->next_droppable == chunk;
            former->next_droppable = alone ? former : chunk->next_droppable;
            former->previous_droppable = alone ? former : chunk->previous_droppable;
            former->next_droppable->previous_droppable = former;
            former->previous_droppable->next_droppable = former;
            if (queue->droppables->last == chunk)
                queue->droppables->last = former;
        }
        else
            wshub_droppables_remove_chunk(queue->droppables, chunk);
        former->droppables += chunk->droppables;
    }
    wshub_queue_remove_chunk(queue, chunk);
}

/* Closes the gap that a frame has left in a chunk that is not the head. */
static inline void
wshub_queue_close_gap(wshub_queue *queue, wshub_spot spot)
{
    wshub_chunk *chunk = spot.chunk;
    size_t end = wshub_queue_end_of(queue, chunk) - 1, behind = end - spot.place;

    memmove(chunk->tags + spot.place, chunk->tags + spot.place + 1, behind * sizeof(chunk->tags[0]));
    memmove(chunk->frames + spot.place, chunk->frames + spot.place + 1, behind * sizeof(chunk->frames[0]));
    if (chunk == queue->tail)
        queue->end = (uint8_t)end;
    else
        chunk->end = (uint8_t)end;
    if (end == 0)
        wshub_queue_remove_chunk(queue, chunk);
    else if (chunk != queue->tail && chunk->previous->end + end <= WSHUB_CHUNK_JOINED)
        wshub_queue_join_chunks(queue, chunk);
}

/* Removes a droppable message and returns it with the queue's reference. Only frames of its chunk move, by one place. */
static inline wshub_frame *
wshub_queue_remove(wshub_queue *queue, wshub_spot spot)
{
    wshub_chunk *chunk = spot.chunk;
    wshub_frame *removed = chunk->frames[spot.place];
    size_t first = queue->first, before = spot.place - first;

    wshub_droppables_discard(queue->droppables, chunk, spot.place);
    queue->queued_bytes -= wshub_frame_wire_length(removed);
    queue->padding -= wshub_frame_padding(removed);
    queue->messages--;
    if (chunk == queue->head) {
        memmove(chunk->tags + first + 1, chunk->tags + first, before * sizeof(chunk->tags[0]));
        memmove(chunk->frames + first + 1, chunk->frames + first, before * sizeof(chunk->frames[0]));
        wshub_queue_skip_first_place(queue);
    }
    else
        wshub_queue_close_gap(queue, spot);
    return removed;
}

/* Drops the oldest droppable messages until the charge of the queue is below `bound`. Drops none if that cannot be
 * reached, or if there is no memory for the index. Returns the number dropped. */
static inline size_t
wshub_queue_make_space(wshub_queue *queue, size_t bound)
{
    size_t dropped = 0;

    if (!wshub_queue_index(queue) || wshub_queue_charge(queue) - queue->droppables->charge >= bound)
        return 0;
    for (; wshub_queue_charge(queue) >= bound; dropped++) {
        wshub_frame *frame = wshub_queue_remove(queue, wshub_queue_find_oldest(queue));
        wshub_frame_count_outcome(frame, WSHUB_DROPPED_OLDEST);
        wshub_frame_release(frame);
    }
    return dropped;
}

/* Puts a message in the place of a droppable one, which the caller owns from now on. */
static inline void
wshub_queue_put(wshub_queue *queue, wshub_spot spot, wshub_frame *frame)
{
    wshub_frame *former = spot.chunk->frames[spot.place];

    queue->queued_bytes += wshub_frame_wire_length(frame) - wshub_frame_wire_length(former);
    queue->padding += wshub_frame_padding(frame) - wshub_frame_padding(former);
    queue->droppables->charge += wshub_frame_charge(frame) - wshub_frame_charge(former);
    spot.chunk->frames[spot.place] = frame;
    spot.chunk->tags[spot.place] = wshub_tag_of(frame);
}

/* Replaces the last droppable message with the same key. Returns whether there was one.
 *
 * The new message takes the old one's place, or goes to the end of the queue in two cases. It refers back to earlier
 * frames itself; or it is compressed, the old one is not, and another frame may refer back over that place. */
static inline int
wshub_queue_replace(wshub_queue *queue, wshub_frame *frame)
{
    wshub_spot spot;
    wshub_frame *former;

    if (!wshub_queue_index(queue))
        return 0;
    spot = wshub_queue_find_latest(queue, frame->conflation_key);
    if (spot.chunk == NULL)
        return 0;
    former = spot.chunk->frames[spot.place];
    if (frame->uses_context || (frame->window_bits != 0 && former->window_bits == 0 && queue->droppables->uses_context > 0)) {
        if (wshub_queue_append(queue, frame) < 0)
            return 0;
        wshub_queue_remove(queue, spot);
    }
    else
        wshub_queue_put(queue, spot, frame);
    wshub_frame_accept(wshub_frame_retain(frame));
    wshub_frame_count_outcome(former, WSHUB_REPLACED);
    wshub_frame_release(former);
    return 1;
}

#endif
