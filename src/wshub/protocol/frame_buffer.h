/* A frame as it goes over the wire: made once, and shared by all receivers.
 *
 * In front of the payload is space for the longest header without a masking key. So a payload is received, unmasked and
 * grown in place before its length is known. Writing the header in front of it makes it a frame. This is the only file that
 * allocates or frees frames.
 *
 * A message that is also sent compressed keeps its compressed forms (RFC 7692). They are frames of their own, in a chain
 * that the plain frame owns.
 *
 * A frame belongs to all holders of references. wshub_frame_new() gives its caller the first one. Every other holder takes
 * its own with wshub_frame_retain(), and each gives it back with wshub_frame_release(). The count is not atomic: the thread
 * of the hub makes, queues and releases its frames.
 *
 * Memory comes from Python's allocator, which needs the GIL. It serves short frames in a fraction of malloc's time. */

#ifndef WSHUB_FRAME_BUFFER_H
#define WSHUB_FRAME_BUFFER_H

#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "frame_header.h"
#include "masking.h"
#include "opcodes.h"
#include "delivery_counters.h"

/* Space for two bytes, and eight for a 64-bit length (RFC 6455 section 5.2). A masking key has no place of its own. */
#define WSHUB_HEADER_SPACE 10

/* An opcode that no frame has: bytes that are sent as they are, such as the answer to a handshake. */
#define WSHUB_RAW 0xFF

typedef struct wshub_frame {
    uint32_t references;
    uint8_t opcode;
    uint8_t header_length;
    uint8_t window_bits;    /* of a compressed form: its receiver must keep 2**window_bits bytes; 0: not compressed */
    uint8_t incompressible : 1; /* no compressed form is shorter */
    uint8_t uses_context : 1; /* a compressed form that later ones refer to: their receivers need it too */
    uint8_t droppable : 1; /* a message that its policy may drop while it waits */
    struct wshub_frame *next_form; /* owned: the next compressed form; the plain frame is the head of the chain */
    wshub_delivery_counters *delivery_counters; /* a reference: counts the outcome of the message; or NULL */
    uint64_t conflation_key;    /* a newer message with the same key replaces this one; 0: none */
    size_t length;   /* bytes of payload so far */
    size_t capacity; /* bytes of payload that fit */
    uint8_t storage[];
} wshub_frame;

static inline uint8_t *
wshub_frame_payload(wshub_frame *frame)
{
    return frame->storage + WSHUB_HEADER_SPACE;
}

static inline const uint8_t *
wshub_frame_wire(const wshub_frame *frame)
{
    return frame->storage + WSHUB_HEADER_SPACE - frame->header_length;
}

static inline size_t
wshub_frame_wire_length(const wshub_frame *frame)
{
    return frame->header_length + frame->length;
}

/* Only data frames count as messages; control frames and RAW bytes do not. */
static inline int
wshub_frame_is_message(const wshub_frame *frame)
{
    return frame->opcode < WSHUB_CONTROL_BIT;
}

/* Returns NULL if there is no memory, or no address space, for `capacity` bytes. */
static inline wshub_frame *
wshub_frame_new(uint8_t opcode, size_t capacity)
{
    wshub_frame *frame;

    if (capacity > (size_t)PY_SSIZE_T_MAX - sizeof(wshub_frame) - WSHUB_HEADER_SPACE)
        return NULL;
    frame = PyMem_Malloc(sizeof(wshub_frame) + WSHUB_HEADER_SPACE + capacity);
    if (frame == NULL)
        return NULL;
    frame->references = 1;
    frame->opcode = opcode;
    frame->header_length = 0;
    frame->window_bits = 0;
    frame->incompressible = 0;
    frame->uses_context = 0;
    frame->droppable = 0;
    frame->next_form = NULL;
    frame->delivery_counters = NULL;
    frame->conflation_key = 0;
    frame->length = 0;
    frame->capacity = capacity;
    return frame;
}

/* Gives the payload space for exactly `capacity` bytes, no fewer than it has. Returns the frame, which may have moved, or
 * NULL with the old one untouched. Only for a frame that has a single holder. */
static inline wshub_frame *
wshub_frame_resize(wshub_frame *frame, size_t capacity)
{
    wshub_frame *resized;

    if (capacity > (size_t)PY_SSIZE_T_MAX - sizeof(wshub_frame) - WSHUB_HEADER_SPACE)
        return NULL;
    resized = PyMem_Realloc(frame, sizeof(wshub_frame) + WSHUB_HEADER_SPACE + capacity);
    if (resized != NULL)
        resized->capacity = capacity;
    return resized;
}

static inline wshub_frame *
wshub_frame_retain(wshub_frame *frame)
{
    frame->references++;
    return frame;
}

static inline void
wshub_frame_release(wshub_frame *frame)
{
    while (frame != NULL && --frame->references == 0) {
        wshub_frame *form = frame->next_form;
        wshub_delivery_counters_release(frame->delivery_counters);
        PyMem_Free(frame);
        frame = form;
    }
}

static inline void
wshub_frame_set_metadata(wshub_frame *frame, uint64_t conflation_key, wshub_delivery_counters *delivery_counters, int droppable)
{
    wshub_delivery_counters *former = frame->delivery_counters;

    frame->conflation_key = conflation_key;
    frame->droppable = droppable != 0;
    frame->delivery_counters = wshub_delivery_counters_retain(delivery_counters);
    wshub_delivery_counters_release(former);
}

/* Whether the frame has no more than `holders` holders, and its compressed forms have no holder but the chain. */
static inline int
wshub_frame_is_private(const wshub_frame *frame, uint32_t holders)
{
    if (frame->references != holders)
        return 0;
    while ((frame = frame->next_form) != NULL)
        if (frame->references != 1)
            return 0;
    return 1;
}

/* Returns a copy with its compressed forms. The caller owns it; NULL if there is no memory. */
static inline wshub_frame *
wshub_frame_copy(const wshub_frame *frame)
{
    wshub_frame *first = NULL, **next = &first;

    for (; frame != NULL; frame = frame->next_form) {
        size_t size = sizeof(wshub_frame) + WSHUB_HEADER_SPACE + frame->length;
        wshub_frame *copy = PyMem_Malloc(size);
        if (copy == NULL) {
            wshub_frame_release(first);
            return NULL;
        }
        memcpy(copy, frame, size);
        copy->references = 1;
        copy->capacity = frame->length;
        copy->next_form = NULL;
        wshub_delivery_counters_retain(copy->delivery_counters);
        *next = copy;
        next = &copy->next_form;
    }
    return first;
}

/* Gives a frame and its forms what a queue must know of a message: its key, its delivery_counters, and whether it is droppable.
 * The caller owns one reference. Up to `holders` references are known to be in no queue. If there are more, a copy is
 * with_metadata and takes the place of the caller's reference, because a queued frame never changes. Returns the frame or the
 * copy. Returns NULL if there is no memory; the caller still owns its reference then. */
static inline wshub_frame *
wshub_frame_with_metadata(wshub_frame *frame, uint32_t holders, uint64_t conflation_key, wshub_delivery_counters *delivery_counters, int droppable)
{
    if (frame->conflation_key == conflation_key && frame->delivery_counters == delivery_counters && frame->droppable == droppable)
        return frame;
    if (!wshub_frame_is_private(frame, holders)) {
        wshub_frame *copy = wshub_frame_copy(frame);
        if (copy == NULL)
            return NULL;
        wshub_frame_release(frame);
        frame = copy;
    }
    for (wshub_frame *form = frame; form != NULL; form = form->next_form)
        wshub_frame_set_metadata(form, conflation_key, delivery_counters, droppable);
    return frame;
}

/* Writes the header of a whole, unmasked message in front of the payload. It sets RSV1 if the frame is a compressed form
 * (RFC 7692 section 6). */
static inline void
wshub_frame_seal(wshub_frame *frame, uint8_t opcode)
{
    uint8_t first = (uint8_t)(WSHUB_FIN_BIT | (frame->window_bits ? WSHUB_RSV1_BIT : 0) | opcode);

    frame->opcode = opcode;
    frame->header_length = (uint8_t)wshub_write_header(wshub_frame_payload(frame), first, 0, frame->length);
}

/* Returns a copy of a sealed frame as a client sends it, masked with `key` (RFC 6455 section 5.3). The caller owns it; NULL
 * if there is no memory. The key travels in front of the masked payload and counts as payload here: wshub_frame_wire() needs
 * no special case, and only clients pay for its four bytes. The copy has no compressed forms of its own. */
static inline wshub_frame *
wshub_frame_masked(const wshub_frame *frame, const uint8_t key[WSHUB_MASK_KEY_SIZE])
{
    const uint8_t *source = frame->storage + WSHUB_HEADER_SPACE;
    uint8_t *payload;
    wshub_frame *masked;

    if (frame->length > (size_t)PY_SSIZE_T_MAX - WSHUB_MASK_KEY_SIZE)
        return NULL;
    masked = wshub_frame_new(frame->opcode, frame->length + WSHUB_MASK_KEY_SIZE);
    if (masked == NULL)
        return NULL;
    wshub_frame_set_metadata(masked, frame->conflation_key, frame->delivery_counters, frame->droppable);
    masked->window_bits = frame->window_bits;
    masked->length = frame->length + WSHUB_MASK_KEY_SIZE;
    payload = wshub_frame_payload(masked);
    memcpy(payload, key, WSHUB_MASK_KEY_SIZE);
    wshub_mask(payload + WSHUB_MASK_KEY_SIZE, source, frame->length, key, 0);
    masked->header_length =
        (uint8_t)wshub_write_header(payload, wshub_frame_wire(frame)[0], WSHUB_MASK_BIT, frame->length);
    return masked;
}

#endif
