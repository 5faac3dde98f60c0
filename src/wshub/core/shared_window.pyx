# cython: language_level=3
"""One compressor for all members of a room, whose output refers to the room's earlier messages (RFC 7692 section 7.2).

A member's decompressor needs the history that the output refers to. It has it if it was given every compressed message
of the room since the compressor last forgot, and nothing else that was compressed: then it is in step. So

- a member comes in step with the first message after the compressor has forgotten, whatever it was given before;
- a member in step is given the room's messages, and anything else plain, or else is out of step from there on;
- whoever is not in step is given the form of a message that refers to nothing.

Each history has a number, its generation, which a member that is in step remembers.
"""

from libc.stdint cimport uint8_t, uint64_t

from wshub.protocol.compression.deflate cimport (
    DeflatePool,
    deflater_clear,
    deflater_forget,
    deflater_init,
)
from wshub.protocol.frame_buffer cimport FrameBuffer

cdef enum:
    # A window that is shared is worth a longer search: it finds more, at little cost in so small a window.
    LEVEL = 6
    WINDOW_BITS = 13
    MEMORY_LEVEL = 6


cdef class SharedWindow:
    def __cinit__(self, DeflatePool pool not None, uint64_t restart_interval):
        self.pool = pool
        self.restart_interval = restart_interval
        self.window_bits = min(<uint8_t>WINDOW_BITS, pool.window_bits)
        deflater_init(&self.deflater, LEVEL, MEMORY_LEVEL, self.window_bits)

    def __dealloc__(self):
        deflater_clear(&self.deflater)

    cdef bint is_due(self) noexcept:
        """Whether to forget before the next message.

        At the latest after `restart_interval` messages; at once if nobody loses by it; and when as many deliveries went
        without the history as there are members to lose it, which costs at most twice what the best choice would have.
        """
        return self.in_step == 0 or self.messages >= self.restart_interval or self.missed >= self.able

    cdef void restart(self, uint64_t generation) noexcept:
        """Forgets the history: the next message begins another, with that number."""
        deflater_forget(&self.deflater)
        self.generation = generation
        self.messages = 0
        self.missed = 0

    cdef FrameBuffer *compress(self, FrameBuffer *frame) noexcept:
        """The form for those in step, which the caller owns. NULL where there is no memory: then it must restart."""
        cdef FrameBuffer *form
        self.messages += 1
        form = self.pool.compress(&self.deflater, frame, False)
        if form != NULL:
            form.chained = True
        return form
