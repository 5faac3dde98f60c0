/* A frame as it goes over the wire: made once, shared by all who are to get it.
 *
 * The payload stands behind room for the longest header that a server writes, so a payload can be received,
 * unmasked and grown in place before its length is known, and becomes a frame by writing the header in front
 * of it. This is the only file that allocates or frees what it describes.
 *
 * A message that is sent compressed as well keeps its compressed forms (RFC 7692): frames of their own, in a chain that
 * the plain frame owns.
 *
 * A frame buffer belongs to whoever holds references to it: wshub_frame_new() gives its caller one, every
 * other holder takes its own with wshub_frame_retain(), and each gives it back with wshub_frame_release().
 * The count is plain, not atomic: frames are made, queued and released on the thread of their hub.
 *
 * Memory comes from Python's allocator, which needs the GIL: short frames come and go by the dozen, and it hands those
 * out in a fraction of what malloc takes beyond the few that it has at hand. */

#ifndef WSHUB_FRAME_BUFFER_H
#define WSHUB_FRAME_BUFFER_H

#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tally.h"

/* Two octets, and eight for a 64-bit length (RFC 6455 section 5.2); a server's frame has no mask. */
#define WSHUB_HEADER_ROOM 10

/* An opcode that no frame has: octets that are sent as they are, such as the answer to a handshake. */
#define WSHUB_RAW 0xFF

typedef struct wshub_frame {
    uint32_t references;
    uint8_t opcode;
    uint8_t header_length;
    uint8_t window_bits;    /* of a compressed form: its receiver must keep 2**window_bits octets; 0: not compressed */
    uint8_t incompressible : 1; /* it is known that no compressed form is shorter */
    uint8_t chained : 1; /* a compressed form that later ones refer to: whoever is given those needs it too */
    uint8_t dispensable : 1; /* a message that may be dropped while it waits, by the policy it is sent with */
    struct wshub_frame *next_form; /* owned: the next of the compressed forms, of which the plain frame is the head */
    wshub_tally *tally; /* a reference: where it is counted what becomes of the message; or NULL */
    uint64_t key;    /* of messages of which only the latest matters; 0: none */
    size_t length;   /* octets of payload so far */
    size_t capacity; /* octets of payload that fit */
    uint8_t storage[];
} wshub_frame;

static inline uint8_t *
wshub_frame_payload(wshub_frame *frame)
{
    return frame->storage + WSHUB_HEADER_ROOM;
}

static inline const uint8_t *
wshub_frame_wire(const wshub_frame *frame)
{
    return frame->storage + WSHUB_HEADER_ROOM - frame->header_length;
}

static inline size_t
wshub_frame_wire_length(const wshub_frame *frame)
{
    return frame->header_length + frame->length;
}

/* Data frames are what the counts of messages speak of; control frames and raw octets are not. */
static inline int
wshub_frame_is_message(const wshub_frame *frame)
{
    return frame->opcode < 0x8;
}

/* Returns NULL where there is no memory, or no address space, for `capacity` octets. */
static inline wshub_frame *
wshub_frame_new(uint8_t opcode, size_t capacity)
{
    wshub_frame *frame;

    if (capacity > (size_t)PY_SSIZE_T_MAX - sizeof(wshub_frame) - WSHUB_HEADER_ROOM)
        return NULL;
    frame = PyMem_Malloc(sizeof(wshub_frame) + WSHUB_HEADER_ROOM + capacity);
    if (frame == NULL)
        return NULL;
    frame->references = 1;
    frame->opcode = opcode;
    frame->header_length = 0;
    frame->window_bits = 0;
    frame->incompressible = 0;
    frame->chained = 0;
    frame->dispensable = 0;
    frame->next_form = NULL;
    frame->tally = NULL;
    frame->key = 0;
    frame->length = 0;
    frame->capacity = capacity;
    return frame;
}

/* Gives the payload room for exactly `capacity` octets, no fewer than it has. Returns the frame, which may have moved, or
 * NULL with the old one untouched. Only for a frame that has a single holder. */
static inline wshub_frame *
wshub_frame_resize(wshub_frame *frame, size_t capacity)
{
    wshub_frame *resized;

    if (capacity > (size_t)PY_SSIZE_T_MAX - sizeof(wshub_frame) - WSHUB_HEADER_ROOM)
        return NULL;
    resized = PyMem_Realloc(frame, sizeof(wshub_frame) + WSHUB_HEADER_ROOM + capacity);
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
        wshub_tally_release(frame->tally);
        PyMem_Free(frame);
        frame = form;
    }
}

static inline void
wshub_frame_label(wshub_frame *frame, uint64_t key, wshub_tally *tally, int dispensable)
{
    wshub_tally *former = frame->tally;

    frame->key = key;
    frame->dispensable = dispensable != 0;
    frame->tally = wshub_tally_retain(tally);
    wshub_tally_release(former);
}

/* Whether nobody but `holders` holders of the frame has it, or any of its compressed forms. */
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

/* Returns a copy with its compressed forms, which is the caller's; NULL where there is no memory. */
static inline wshub_frame *
wshub_frame_copy(const wshub_frame *frame)
{
    wshub_frame *first = NULL, **next = &first;

    for (; frame != NULL; frame = frame->next_form) {
        size_t size = sizeof(wshub_frame) + WSHUB_HEADER_ROOM + frame->length;
        wshub_frame *copy = PyMem_Malloc(size);
        if (copy == NULL) {
            wshub_frame_release(first);
            return NULL;
        }
        memcpy(copy, frame, size);
        copy->references = 1;
        copy->capacity = frame->length;
        copy->next_form = NULL;
        wshub_tally_retain(copy->tally);
        *next = copy;
        next = &copy->next_form;
    }
    return first;
}

/* Gives a frame and its forms what a queue has to know of a message: its key, its tally, and whether it is dispensable.
 * The caller owns one of the references, of which `holders` at most are not in any queue. Where others have the frame it
 * is a copy that gets them, in place of the caller's reference: nothing that is queued ever changes. Returns the frame or
 * the copy; NULL where there is no memory, and the caller's reference is unchanged. */
static inline wshub_frame *
wshub_frame_labelled(wshub_frame *frame, uint32_t holders, uint64_t key, wshub_tally *tally, int dispensable)
{
    if (frame->key == key && frame->tally == tally && frame->dispensable == dispensable)
        return frame;
    if (!wshub_frame_is_private(frame, holders)) {
        wshub_frame *copy = wshub_frame_copy(frame);
        if (copy == NULL)
            return NULL;
        wshub_frame_release(frame);
        frame = copy;
    }
    for (wshub_frame *form = frame; form != NULL; form = form->next_form)
        wshub_frame_label(form, key, tally, dispensable);
    return frame;
}

/* Writes the header of a final, unmasked frame in front of the payload, its length in the fewest octets
 * (RFC 6455 section 5.2), RSV1 set if it is compressed (RFC 7692 section 6). */
static inline void
wshub_frame_seal(wshub_frame *frame, uint8_t opcode)
{
    uint8_t *payload = wshub_frame_payload(frame);
    uint64_t length = frame->length;

    frame->opcode = opcode;
    if (length < 126) {
        frame->header_length = 2;
        payload[-1] = (uint8_t)length;
    }
    else if (length <= 0xFFFF) {
        frame->header_length = 4;
        payload[-3] = 126;
        payload[-2] = (uint8_t)(length >> 8);
        payload[-1] = (uint8_t)length;
    }
    else {
        frame->header_length = 10;
        payload[-9] = 127;
        for (int octet = 1; octet <= 8; octet++) {
            payload[-octet] = (uint8_t)length;
            length >>= 8;
        }
    }
    payload[-frame->header_length] = (uint8_t)(0x80 | (frame->window_bits ? 0x40 : 0) | opcode);
}

#endif
