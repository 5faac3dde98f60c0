# cython: language_level=3
"""The functions of frame_queue.h and droppable_frames.h as methods: for a test that compares a queue with a list."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from wshub.links.link cimport (
    FrameQueue,
    counts_of,
    iovec,
    queue_advance,
    queue_charge,
    queue_clear,
    queue_copy,
    queue_discard_after,
    queue_discard_unsent,
    queue_extend,
    queue_gather,
    queue_is_empty,
    queue_make_space,
    queue_pin,
    queue_pop,
    queue_push,
    queue_replace,
)
from wshub.protocol.frame_buffer cimport (
    DELIVERED,
    DROPPED_CLOSED,
    DROPPED_SLOW,
    RAW,
    FrameBuffer,
    DeliveryCounters,
    frame_set_metadata,
    frame_new,
    frame_payload,
    frame_release,
    frame_seal,
    frame_wire,
    frame_wire_length,
    delivery_counters_new,
    delivery_counters_release,
)

cdef enum:
    PIECES = 8


cdef class FrameProbe:
    """A frame. The probe holds one reference to it.

    Args:
        payload: its payload.
        opcode: its opcode.
        conflation_key: the conflation key, or 0 for none.
        droppable: the message may be dropped while it waits.
        uses_context: the message is compressed, and later ones refer to it.
        window_bits: of a compressed message: it refers to the last ``2**window_bits`` bytes; 0 if it is not compressed.
    """

    cdef FrameBuffer *frame
    cdef DeliveryCounters *delivery_counters

    def __cinit__(
        self, bytes payload, int opcode=2, uint64_t conflation_key=0, *, bint droppable=False, bint uses_context=False,
        int window_bits=0
    ):
        self.delivery_counters = delivery_counters_new()
        self.frame = frame_new(<uint8_t>opcode, len(payload))
        if self.frame == NULL or self.delivery_counters == NULL:
            raise MemoryError
        memcpy(frame_payload(self.frame), <const char *>payload, len(payload))
        self.frame.length = len(payload)
        self.frame.window_bits = <uint8_t>window_bits
        self.frame.uses_context = uses_context
        frame_seal(self.frame, <uint8_t>opcode)
        frame_set_metadata(self.frame, conflation_key, self.delivery_counters, droppable)

    def __dealloc__(self):
        frame_release(self.frame)
        delivery_counters_release(self.delivery_counters)

    @property
    def wire(self):
        """The bytes of the frame."""
        return frame_wire(self.frame)[:frame_wire_length(self.frame)]

    @property
    def references(self):
        """The references to the frame that others hold."""
        return self.frame.references - 1

    @property
    def counts(self):
        """The outcome of the message, as counters."""
        return counts_of(self.delivery_counters, self.delivery_counters.pending)


cdef class QueueProbe:
    """A queue of frames."""

    cdef FrameQueue queue

    def __dealloc__(self):
        queue_clear(&self.queue, DROPPED_CLOSED)

    def push(self, FrameProbe frame not None):
        if queue_push(&self.queue, frame.frame) < 0:
            raise MemoryError

    def push_raw(self, bytes data not None, size_t capacity):
        """Append a RAW frame that nothing but the queue holds, with space for ``capacity`` bytes."""
        cdef FrameBuffer *frame = frame_new(RAW, max(<size_t>len(data), capacity))
        if frame == NULL:
            raise MemoryError
        memcpy(frame_payload(frame), <const char *>data, len(data))
        frame.length = len(data)
        pushed = queue_push(&self.queue, frame)
        frame_release(frame)
        if pushed < 0:
            raise MemoryError

    def extend(self, bytes data not None):
        """Make the last frame longer by these bytes. Return whether that could be done."""
        cdef uint8_t *place = queue_extend(&self.queue, len(data))
        if place == NULL:
            return False
        memcpy(place, <const char *>data, len(data))
        return True

    def replace(self, FrameProbe frame not None):
        return queue_replace(&self.queue, frame.frame)

    def make_space(self, size_t bound):
        return queue_make_space(&self.queue, bound)

    def advance(self, size_t length):
        return queue_advance(&self.queue, length)

    def pop(self):
        """Remove the first frame as one that was delivered, and return its bytes."""
        cdef FrameBuffer *frame = queue_pop(&self.queue, DELIVERED)
        wire = frame_wire(frame)[:frame_wire_length(frame)]
        frame_release(frame)
        return wire

    def discard_unsent(self):
        return queue_discard_unsent(&self.queue, DROPPED_SLOW)

    def discard_after(self, size_t kept):
        return queue_discard_after(&self.queue, kept, DROPPED_SLOW)

    def pin(self, size_t length):
        queue_pin(&self.queue, length)

    def copy(self, size_t size):
        """Return the bytes that come first, at most ``size`` of them."""
        cdef bytearray target = bytearray(size)
        return bytes(target[:queue_copy(&self.queue, <uint8_t *><char *>target, size)])

    def clear(self):
        return queue_clear(&self.queue, DROPPED_CLOSED)

    def gather(self, int count, size_t scratch_size):
        """Return the pieces that come first, at most ``count`` of them."""
        cdef iovec pieces[PIECES]
        cdef size_t total
        cdef int found, index
        cdef bytearray scratch = bytearray(scratch_size)
        if not 0 < count <= PIECES:
            raise ValueError(f"count must be from 1 to {PIECES}")
        found = queue_gather(&self.queue, pieces, count, <uint8_t *><char *>scratch, scratch_size, &total)
        gathered = [(<const uint8_t *>pieces[index].iov_base)[:pieces[index].iov_len] for index in range(found)]
        if sum(map(len, gathered)) != total:
            raise AssertionError("the total is not that of the pieces")
        return gathered

    @property
    def is_empty(self):
        return queue_is_empty(&self.queue)

    @property
    def charge(self):
        return queue_charge(&self.queue)

    @property
    def length(self):
        """Bytes still to be sent."""
        return self.queue.queued_bytes

    @property
    def sent(self):
        """Bytes of the first frame that have left."""
        return self.queue.sent

    @property
    def messages(self):
        return self.queue.messages
